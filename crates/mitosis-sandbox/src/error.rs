//! What can go wrong with a sandbox.

use mitosis_sys::SysError;

/// Why there is no sandbox for a child.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A kernel call failed.
    #[error("sandbox/guard: {0}")]
    Sys(#[from] SysError),
    /// The guard did not come up.
    #[error("sandbox/guard: did not report ready: {0}")]
    NotReady(String),
    /// No control group that could hold a limit.
    #[error("sandbox/cgroup: {0}")]
    NoGroup(String),
    /// The pool has been shut down.
    #[error("sandbox/pool: shut down")]
    Closed,
}
