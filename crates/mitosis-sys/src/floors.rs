//! What the kernel itself costs: the floors that `mitosis bench` compares the product with.
//!
//! A ratio needs a peer that does nothing but the thing itself. These are such peers: a bare
//! userfaultfd fault, a bare fork, a bare read of another process's memory. Nothing of the
//! product calls them.

mod fault;
mod fork;
mod mapping;
mod memory;

pub use fault::{
    Backing, Bulk, DropOutcome, bulk_place, dropped_page, fault_latency, plain_fault_latency,
    receive_and_place, remote_fault_latency,
};
pub use fork::{fork_cost, scratch_child};
pub use mapping::{PAGE_BYTES, Pages, cached_private};
pub use memory::{ReadVia, ShadowRead, read_shadow};

use std::io;
use std::time::Instant;

/// Nanoseconds since `from`; saturates instead of failing (a run lasts no 500 years).
fn elapsed_ns(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The error of the last system call, with the name of what was tried.
fn last_error(what: &str) -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
