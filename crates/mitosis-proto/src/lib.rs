//! The control protocol of a node, as types and a blocking client.
//!
//! Whoever starts children — the command line, a runner, a test — talks to the daemon of its own
//! node over a unix socket (mode 0600). Integrating by this crate instead of by parsing the
//! command line's output gives callers typed errors and fd passing. The protocol is JSON lines:
//! each [`Request`] is one line, each [`Reply`] is one line; file descriptors travel beside the
//! first byte of the line they belong to (`SCM_RIGHTS`).

#![forbid(unsafe_code)]

mod client;
mod connection;
mod reply;
mod request;

pub use client::{Attached, Client, ClientError};
pub use connection::{Connection, ConnectionError, LINE_BYTES_MAX};
pub use reply::{
    Bound, ChildRow, ChildState, ErrorCode, Exited, Forked, ForkedChild, LogInfo, NodeInfo,
    PhaseTime, Prepared, Reply, SeedRow, SeedState,
};
pub use request::{ForkRequest, Hooks, Net, Paging, PrepareRequest, Request, Transport, Via};
