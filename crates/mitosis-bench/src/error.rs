//! Why a benchmark or the demonstration could not be done.

use mitosis_lab::LabError;
use mitosis_proto::ClientError;
use std::io;

/// A failure: what was being measured, on what, and why it could not be.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab of nodes.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A node refused or failed.
    #[error("bench/{step}: {source}")]
    Node {
        /// What was asked of it.
        step: &'static str,
        /// Its answer.
        source: ClientError,
    },
    /// A system call or a file.
    #[error("bench/{step}: {object}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// With what.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Something answered, but not what it should.
    #[error("bench/{step}: {cause}")]
    Wrong {
        /// What was being done.
        step: &'static str,
        /// What came instead.
        cause: String,
    },
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
}

impl BenchError {
    /// An [`BenchError::Io`] maker for `map_err`.
    pub(crate) fn io(step: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Self {
        move |source| BenchError::Io { step, object: object.to_string(), source }
    }

    /// A [`BenchError::Node`] maker for `map_err`.
    pub(crate) fn node(step: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |source| BenchError::Node { step, source }
    }

    /// A [`BenchError::Wrong`].
    pub(crate) fn wrong(step: &'static str, cause: impl ToString) -> Self {
        BenchError::Wrong { step, cause: cause.to_string() }
    }
}
