//! What a process holds open: one file per kind of state.
//!
//! A child must hold what its parent held. Each kind of open file has one module under
//! [`kinds`] with its capture, its encoding and its plan side by side, so that adding a kind
//! touches one place. A kind that is not there is refused by name when the parent is captured,
//! never dropped silently.

#![forbid(unsafe_code)]

pub mod deleted;
mod error;
mod files;
pub mod kinds;
mod look;
pub mod net;
mod numbers;
pub mod options;
mod prescan;
mod program;
mod scan;
pub mod shm;
pub mod tree;

pub use error::StateError;
pub use kinds::{capture, capture_member, describe, plan};
pub use look::pidfd_of;
pub use net::{ListenSpec, knows_unix_peers};
pub use numbers::Numbers;
pub use prescan::Prescan;
pub use program::{Detail, Image, Label, List, Program, Region, code_len, op};
pub use scan::{Group, OpenFd, scan};

/// A file descriptor that the child's node supplies, in the order in which the plan asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provided {
    /// The caller's (or the log's) fd 0, 1 or 2.
    Stdio(u32),
    /// A listening socket that the children of one seed on one node share.
    Listener {
        /// Same key, same socket.
        key: u64,
        /// Lowest descriptor number in the child, for messages.
        fd: u32,
        /// How to make it.
        spec: ListenSpec,
    },
    /// A file of this node whose content was proven to be the parent's, to be mapped.
    MappedFile(String),
    /// The executable, for `/proc/self/exe`.
    Executable(String),
    /// A socket from which a byte comes when the working set is in place.
    Filled,
    /// A socket to another member of the process tree, by its number.
    Member(u32),
    /// The master of a pseudo-terminal of the process tree, by its number.
    Terminal(u32),
    /// The time namespace in which the child's clocks continue its parent's.
    TimeNamespace,
    /// The user namespace of the child's own.
    UserNamespace,
}
