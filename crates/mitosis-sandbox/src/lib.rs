//! Where children live: guards, their namespaces, and a pool of them made ahead of time.
//!
//! A namespace costs more to make than a fork. So guards — pid 1 of a child's namespaces — are
//! made before they are needed, as copies of one process (the nursery), and used once. A guard watches the pager of the node that made
//! it; when the pager is gone, it ends everything in its namespace rather than let a missing page
//! read as zero.

#![forbid(unsafe_code)]

mod error;
pub mod group;
mod guard;
mod numbers;
mod nursery;
mod pool;
mod template;

pub use error::SandboxError;
pub use group::{Group, Groups, Limits};
pub use guard::{Guard, GuardImage, Network, Users, generation_text};
pub use numbers::Number;
pub use nursery::Nursery;
pub use pool::{Pool, PoolConfig};
pub use template::Blank;
