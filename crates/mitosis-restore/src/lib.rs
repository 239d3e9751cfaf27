//! Builds a child: `Descriptor -> RestorePlan -> Child`.
//!
//! Planning is pure and can be printed; performing is done by the child itself, from inside (see
//! `mitosis_stub`), so that no context switch is paid per operation.

#![forbid(unsafe_code)]

mod error;
mod files;
mod frame;
mod identity;
mod memory;
mod plan;
mod rare;
mod shared;
mod signals;
mod start;

pub use error::RestoreError;
pub use mitosis_state::Provided;
pub use plan::{Area, NodeFacts, ProvenFiles, Request, RestorePlan, plan};
pub use start::{StartFds, Started, start};
