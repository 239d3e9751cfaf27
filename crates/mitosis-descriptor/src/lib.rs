//! The process image: what a seed is made of, apart from its pages.
//!
//! A child's node has nothing of the parent. Everything it needs to build the child — registers,
//! VMAs, who owns which page, open files, identity — is one small value, the [`Descriptor`], which
//! crosses the network in one round trip. This crate holds that value, its versioned codec and the
//! limits the decoder enforces. It does no I/O and trusts no byte it is given.

#![forbid(unsafe_code)]

mod births;
mod codec;
mod error;
mod image;
mod index;
mod ipc;
mod page;
mod phase;
mod rare;
mod reference;
mod tree;
mod validate;

pub use births::{Birth, Kin, births, spare_pids};
pub use codec::{HEADER_BYTES, MAGIC, VERSION, decode, encode};
pub use error::DescriptorError;
pub use image::*;
pub use index::PageIndex;
pub use ipc::{Ipc, IpcObject, MessageQueue, Segment, Semaphores};
pub use page::{PAGE_SHIFT, PAGE_SIZE, PageRange, PageRun, Vpn};
pub use phase::Phase;
pub use rare::Confinement;
pub use reference::{Reference, ReferenceError, Secret, SeedId};
pub use tree::{Gift, MEMBERS_MAX, Member, Place, Session, TERMINAL_MAX, Terminal, Tree, Zombie};
pub use validate::Limits;
