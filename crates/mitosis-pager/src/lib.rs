//! The fault state machine: what is missing in a child comes from its owner, or the child dies.
//!
//! A child starts with next to none of its memory. This crate is the process that waits on the
//! userfaultfds of all children of a node, fetches what they touch from the owners and places it.
//! It is a process of its own so that a restart of the control daemon costs no child; it is single
//! threaded so that a fault costs no hand-over; and it has one rule above all others: no error,
//! race or loss ever becomes a page of zeros. See `docs/paging.md`.

#![forbid(unsafe_code)]

mod client;
mod config;
mod error;
mod message;
mod packet;

pub use client::{ChildFds, PagerClient, PagerEvents};
pub use config::PagerConfig;
pub use error::PagerError;
pub use message::{
    AddChild, Area, ChildId, ChildState, ChildStats, Event, OwnerSource, Reply, Request, Snapshot,
    VERSION,
};

/// Runs a pager: the main function of its process. Returns when it was told to shut down, or when
/// no daemon was connected for the linger; all its children are dead then.
///
/// # Errors
/// If the socket cannot be made, or the kernel refuses something the pager cannot do without.
pub fn run(_config: PagerConfig) -> Result<(), PagerError> {
    Err(PagerError::Failed("the pager is not built in yet".into()))
}
