//! One node: seeds, children, the control socket, and the pager it supervises.
//!
//! The stages of a remote fork — capture, transport, restore, paging — do not know each other.
//! This crate joins them: it holds the registry of seeds and their capabilities, starts children
//! out of pooled guards, hands them to the pager, and answers callers. It can be restarted under
//! its children: they belong to the pager and their guards.

#![forbid(unsafe_code)]

mod admission;
mod adopt;
pub mod check;
mod children;
mod config;
mod control;
mod error;
mod filesystems;
mod fill;
mod fork;
mod generation;
mod habits;
mod hashes;
mod kept;
mod listeners;
mod log;
mod logs;
mod memory;
mod node;
mod pager;
mod paging;
mod parents;
mod peers;
mod prepare;
mod rdma;
mod reader;
mod recipe;
mod registry;
mod remote;
mod run;
mod seed;
mod spool;
mod store;
mod template;
mod terminals;
mod time;
mod trail;
mod tree;
mod turns;
mod vdso;
pub mod view;
mod watch;
mod working_set;

pub use config::Config;
pub use error::NodeError;
pub use log::Level;
pub use mitosis_sandbox::Limits;
pub use run::run;

/// Milliseconds since 1970.
fn millis(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
