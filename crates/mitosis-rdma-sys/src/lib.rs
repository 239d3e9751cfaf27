//! RDMA verbs as safe, owned types: a device, registered memory, queue pairs, memory windows.
//!
//! `libibverbs` is loaded at run time ([`Device::open`]), so a program with this crate in it starts
//! where there is no RDMA at all. Only what one-sided READs need is here. What makes it safe: memory
//! that a device may write ([`Slot`]) is owned by the queue pair from the post to the completion,
//! and freed after the queue pair is gone; memory that a peer may read ([`Exported`], or another
//! process's: [`Foreign`]) is never written again, and stays registered as long as a [`Window`] is open
//! on it.

mod completions;
mod device;
mod error;
mod ffi;
pub mod foreign;
mod memory;
mod queue;
mod window;

pub use completions::{Completion, Completions};
pub use device::{Device, EndPoint};
pub use error::RdmaError;
pub use foreign::Foreign;
pub use memory::{Exported, Landing, Slot};
pub use queue::{Queue, Read};
pub use window::{Exposed, Opener, Window};
