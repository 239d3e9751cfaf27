//! Builds a child: `Descriptor -> RestorePlan -> Child`.
//!
//! Planning is pure and can be printed; performing is done by the child itself, from inside (see
//! `mitosis_stub`), so that no context switch is paid per operation.

#![forbid(unsafe_code)]

mod aio;
mod error;
mod facts;
mod files;
mod frame;
mod hooks;
mod identity;
mod ipc;
mod machine;
mod memory;
mod plan;
mod rare;
mod seccomp;
mod shared;
mod signals;
mod start;
pub mod tree;
mod user;
mod vdso;
mod working_set;
mod xstate;

pub use error::RestoreError;
pub use facts::NodeFacts;
pub use mitosis_state::Provided;
pub use plan::{Area, Part, ProvenFiles, Request, RestorePlan, Time, plan, region};
pub use shared::has_names;
pub use start::{Building, Maker, StartFds, Started, Steward, await_hooks, start, start_template};
pub use user::is_below;
pub use vdso::{
    VDSO_BYTES_MAX, VdsoFunction, differs as vdso_differs, functions as vdso_functions,
    is_parents as is_parents_vdso,
};
pub use working_set::{Placement, Run};
