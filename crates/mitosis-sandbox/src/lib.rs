//! Where children live: guards, their namespaces, and a pool of them made ahead of time.
//!
//! A namespace costs more to make than a fork. So guards — pid 1 of a child's namespaces — are
//! started before they are needed and used once. A guard watches the pager of the node that made
//! it; when the pager is gone, it ends everything in its namespace rather than let a missing page
//! read as zero.

#![forbid(unsafe_code)]

mod error;
pub mod group;
mod guard;
mod pool;
mod template;

pub use error::SandboxError;
pub use group::{Group, Groups, Limits};
pub use guard::{Guard, GuardImage, generation_text};
pub use mitosis_sys::spawn::Network;
pub use pool::{Pool, PoolConfig};
pub use template::Blank;
