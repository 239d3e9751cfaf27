//! Why a child cannot be made.

use mitosis_descriptor::Phase;
use mitosis_state::StateError;
use mitosis_sys::SysError;

/// Names the phase, the object and the cause.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The machines differ in something a process can see.
    #[error("plan: {0}")]
    Incompatible(String),
    /// An open file.
    #[error("plan: {0}")]
    State(#[from] StateError),
    /// The address space has no hole for the code that builds it.
    #[error("plan: no free range of {0} bytes in the parent's address space")]
    NoHole(u64),
    /// A kernel call of this node.
    #[error("{phase}: {source}")]
    Sys {
        /// Where.
        phase: Phase,
        /// What happened.
        source: SysError,
    },
    /// The guard could not make the process.
    #[error("sandbox: the guard could not make the child: {source}{hint}")]
    Guard {
        /// errno of clone3(2).
        source: std::io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// An operation failed in the child.
    #[error("build/{what}: {source}")]
    Operation {
        /// Label of the operation.
        what: String,
        /// Its errno.
        source: std::io::Error,
    },
    /// A hook of the program failed in the child, or did not come back.
    #[error("hook: {what}: {why}")]
    Hook {
        /// The function.
        what: String,
        /// What became of it.
        why: String,
    },
    /// The child ended before it ran, without a word.
    #[error("build: the child ended before it could run: {0}")]
    Silent(String),
}
