//! What can go wrong with the pager as a process.

/// Why the pager cannot run, or cannot be reached. Trouble with one child is not an error of the
/// pager: that child is killed, with its reason on record.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A system call failed.
    #[error("paging: {what}: {cause}")]
    System {
        /// What was being done.
        what: String,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The other side speaks another protocol.
    #[error("paging: {0}")]
    Protocol(String),
    /// The pager answered that it could not.
    #[error("paging: {0}")]
    Failed(String),
    /// No answer in time.
    #[error("paging: no answer from the pager within {0} ms")]
    Timeout(u64),
    /// The pager is gone.
    #[error("paging: the pager closed the connection")]
    Gone,
}

impl PagerError {
    pub(crate) fn system(what: impl Into<String>, cause: impl Into<std::io::Error>) -> PagerError {
        PagerError::System { what: what.into(), cause: cause.into() }
    }
}
