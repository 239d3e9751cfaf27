//! Why a process cannot be made a seed.

use mitosis_state::StateError;
use mitosis_sys::SysError;

/// Names the phase, the object and the cause.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No such process.
    #[error("inspect: no such process: {0}")]
    NoSuchProcess(i32),
    /// It ended while it was captured.
    #[error("{phase}: process {pid} ended meanwhile")]
    Ended {
        /// Phase name.
        phase: &'static str,
        /// The process.
        pid: i32,
    },
    /// A process that cannot or may not be forked.
    #[error("inspect: process {pid} {why}")]
    Refused {
        /// The process.
        pid: i32,
        /// Why, with what to do about it.
        why: String,
    },
    /// It did not stop within the bound.
    #[error("stop: thread {tid} of process {pid} did not stop within {bound_ms} ms{state}")]
    NotStopped {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
        /// The bound.
        bound_ms: u64,
        /// What state it is in.
        state: String,
    },
    /// An open file.
    #[error(transparent)]
    State(#[from] StateError),
    /// A kernel call.
    #[error("{phase}: {source}")]
    Sys {
        /// Phase name.
        phase: &'static str,
        /// What happened.
        source: SysError,
    },
    /// A kind of memory that is not carried.
    #[error("describe: mapping {start:#x}..{end:#x} is {what}: cannot be forked")]
    Memory {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// What it is.
        what: String,
    },
    /// The injected fork failed in the parent.
    #[error("shadow: the injected {call} failed: {source}{hint}")]
    Fork {
        /// Which call.
        call: &'static str,
        /// Its errno.
        source: std::io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// The pager could not say which pages are still remote.
    #[error("files: pages still remote: {0}")]
    Inherited(String),
    /// The others of its tree waited for it, and it did not come.
    #[error("tree: process {pid} kept the others of its tree waiting for {} s", bound.as_secs())]
    Late {
        /// The process.
        pid: i32,
        /// How long they waited.
        bound: std::time::Duration,
    },
    /// Another member of its tree could not be captured.
    #[error("tree: process {0} was let go with the others of its tree")]
    LetGo(i32),
    /// A bug.
    #[error("internal: {0}")]
    Internal(String),
}

impl CaptureError {
    pub(crate) const OF_USERFAULTFD: &str = "registered with a userfaultfd of its own";

    /// Whether what is in the way are areas with a `userfaultfd`, which may be this node's pager's.
    pub fn is_of_userfaultfd(&self) -> bool {
        matches!(self, CaptureError::Memory { what, .. } if what == CaptureError::OF_USERFAULTFD)
    }

    pub(crate) fn sys(phase: &'static str, pid: i32) -> impl Fn(SysError) -> CaptureError {
        move |source| match source {
            SysError::Ended(_) => CaptureError::Ended { phase, pid },
            source => CaptureError::Sys { phase, source },
        }
    }
}
