//! RDMA verbs as safe, owned types: a device, protection domains, registered memory, queue pairs.
//!
//! `libibverbs` is loaded at run time ([`Device::open`]), so a program with this crate in it starts
//! where there is no RDMA at all. Only what one-sided READs need is here. What makes it safe: memory
//! that a device may write ([`Slot`]) is owned by the queue pair from the post to the completion,
//! and freed after the queue pair is gone; memory that a peer may read ([`Exported`], or another
//! process's: [`Foreign`]) is never written again.

mod device;
mod error;
mod ffi;
pub mod foreign;
mod memory;
mod queue;

pub use device::{Completion, Completions, Device, EndPoint, Pd};
pub use error::RdmaError;
pub use foreign::Foreign;
pub use memory::{Exported, Landing, Slot};
pub use queue::{Queue, Read};
