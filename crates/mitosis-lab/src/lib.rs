//! A laboratory of nodes on one machine.
//!
//! The product moves a process between machines, so its tests, its demonstration and its
//! benchmarks need machines. A lab node is one as far as the product can tell: it has network,
//! pid, mount, UTS and IPC namespaces of its own, its own `/proc`, and its own `/run`, `/tmp`,
//! `/var/lib` and `/dev/shm`. Nodes are joined by veth pairs to a bridge that lives in a network
//! namespace of its own, so the host's network is never touched, and neither the processes nor the
//! files that one node makes can be reached from another.
//!
//! Nothing outlives a lab. Pid 1 of each node and the shell that holds the switch wait for the end
//! of a pipe that the lab holds, so dropping the lab, a panic, and SIGKILL all end the same way.
//!
//! ```no_run
//! # fn main() -> Result<(), mitosis_lab::LabError> {
//! use std::path::Path;
//! let lab = mitosis_lab::Lab::new("demo", 2)?;
//! let daemon = lab.node(0).start_daemon(Path::new("/usr/local/bin/mitosis"))?;
//! let seeds = daemon.mitosis(&["seed", "ls", "-o", "json"])?.json()?;
//! # let _ = seeds; Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod census;
mod daemon;
mod enter;
mod error;
mod lab;
mod node;
mod proc;
mod process;

pub use census::Census;
pub use daemon::Daemon;
pub use error::LabError;
pub use lab::Lab;
pub use node::{LinkBytes, Node};
pub use proc::Memory;
pub use process::{LabProcess, Output};
