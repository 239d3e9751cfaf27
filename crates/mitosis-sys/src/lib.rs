//! The kernel's process primitives as safe, owned, move-only types.
//!
//! Everything above this crate forbids `unsafe`. What needs it — ptrace, userfaultfd, clone with
//! namespaces — is fenced here, and comes out as types whose misuse does not compile.

pub mod clock;
pub mod cpu;
mod error;
pub mod floors;
pub mod ipc;
pub mod kcmp;
pub mod kernel;
pub mod mqueue;
pub mod openfile;
pub mod pagemap;
pub mod procfs;
pub mod ptrace;
pub mod sched;
pub mod sockopt;
pub mod spawn;
pub mod uffd;
pub mod userns;
pub mod warm;

pub use error::SysError;
