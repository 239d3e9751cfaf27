//! The fault state machine: what is missing in a child comes from its owner, or the child dies.
//!
//! A child starts with next to none of its memory. This crate is the process that waits on the
//! userfaultfds of all children of a node, fetches what they touch from the owners and places it.
//! It is a process of its own so that a restart of the control daemon costs no child; it is single
//! threaded so that a fault costs no hand-over; and it has one rule above all others: no error,
//! race or loss ever becomes a page of zeros. See `docs/paging.md`.

#![forbid(unsafe_code)]

mod areas;
mod around;
mod arrive;
mod cache;
mod child;
mod client;
mod config;
mod early;
mod error;
mod faults;
mod guard;
mod life;
mod map;
mod message;
mod packet;
mod pager;
mod peer;
mod prefetch;
mod serve;
mod siblings;
mod space;
mod tick;
mod trail;

pub use client::{Asked, ChildFds, PagerClient, PagerEvents};
pub use config::PagerConfig;
pub use error::PagerError;
pub use message::{
    AddChild, Area, ChildId, ChildState, ChildStats, Event, OwnerSource, Reply, Request, Snapshot,
    VERSION,
};
pub use peer::Connect;

/// Runs a pager: the main function of its process. Returns when it was told to shut down, or when
/// no daemon was connected for the linger; all its children are dead then.
///
/// # Errors
/// If the socket cannot be made, or the kernel refuses something the pager cannot do without.
pub fn run(config: PagerConfig) -> Result<(), PagerError> {
    let path = config.socket.clone();
    mitosis_sys::warm::up();
    raise_descriptor_limit();
    let mut pager = pager::Pager::new(config)?;
    let result = pager.run();
    // Only now: a daemon that starts meanwhile finds the socket and waits rather than start a
    // second pager.
    let _ = rustix::fs::unlink(&path);
    result
}

/// A userfaultfd per process of every child: as many as the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is not possible the limit stays, and a child beyond it is ended with that reason.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
