//! What can go wrong in the lab.

use std::io;
use std::time::Duration;

/// An error of the lab: the phase, the object it was about, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call or a file operation of the lab itself failed.
    #[error("lab/{phase}: {object}: {source}")]
    Io {
        /// What the lab was doing.
        phase: &'static str,
        /// The path, process or node it was doing it to.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A command of the lab's own set-up, or one that had to succeed, did not.
    #[error("lab/{phase}: `{command}` ended with {status}: {stderr}")]
    Command {
        /// What the lab was doing.
        phase: &'static str,
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// Something did not happen within its bound.
    #[error("lab/{phase}: {object}: not within {bound:?}")]
    Timeout {
        /// What the lab was waiting for.
        phase: &'static str,
        /// The process or node it was waiting for.
        object: String,
        /// The bound.
        bound: Duration,
    },
    /// Output or a file of the kernel did not have the expected form.
    #[error("lab/{phase}: {object}: {cause}")]
    Format {
        /// What the lab was reading.
        phase: &'static str,
        /// Where it came from.
        object: String,
        /// What was wrong with it.
        cause: String,
    },
}

impl LabError {
    /// Makes an [`LabError::Io`] from anything that turns into an [`io::Error`].
    pub(crate) fn io(
        phase: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { phase, object: object.into(), source: source.into() }
    }

    /// Makes a [`LabError::Format`].
    pub(crate) fn format(
        phase: &'static str,
        object: impl Into<String>,
        cause: impl ToString,
    ) -> Self {
        Self::Format { phase, object: object.into(), cause: cause.to_string() }
    }
}
