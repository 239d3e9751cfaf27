//! One error for kernel calls: what was asked, of which object, and what the kernel said.

use std::io;

/// A kernel call that failed.
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// A call failed.
    #[error("{call} ({object}): {source}")]
    Call {
        /// The call, e.g. `PTRACE_SEIZE`.
        call: &'static str,
        /// What it was applied to.
        object: String,
        /// Why.
        source: io::Error,
    },
    /// The traced process or thread ended.
    #[error("process {0} ended")]
    Ended(i32),
    /// The bound on a wait passed.
    #[error("{what} {tid} did not happen in time")]
    Timeout {
        /// What was awaited.
        what: &'static str,
        /// Of which thread.
        tid: i32,
    },
    /// The kernel or process did what it should not.
    #[error("{0}")]
    Unexpected(String),
}

impl SysError {
    /// An error from `errno`.
    pub fn last(call: &'static str, object: impl ToString) -> SysError {
        SysError::Call { call, object: object.to_string(), source: io::Error::last_os_error() }
    }
    /// An error from an [`io::Error`].
    pub fn io(call: &'static str, object: impl ToString, source: impl Into<io::Error>) -> SysError {
        SysError::Call { call, object: object.to_string(), source: source.into() }
    }
    /// Whether the kernel said `errno`.
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, SysError::Call { source, .. } if source.raw_os_error() == Some(errno))
    }
}
