//! What a node can fail at.

use mitosis_descriptor::{DescriptorError, Phase};
use mitosis_pager::PagerError;
use mitosis_sandbox::SandboxError;
use mitosis_transport::ForkError;

/// Why a node could not do something.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A step failed.
    #[error("{phase}: {object}: {cause}")]
    Step {
        /// Where.
        phase: Phase,
        /// With what.
        object: String,
        /// Why.
        cause: String,
    },
    /// A template was ended by somebody else while it made a child.
    #[error("sandbox: template: it was ended")]
    TemplateEnded,
    /// The process cannot be captured.
    #[error(transparent)]
    Capture(#[from] mitosis_capture::CaptureError),
    /// The child cannot be built here.
    #[error(transparent)]
    Restore(#[from] mitosis_restore::RestoreError),
    /// No sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The pager failed.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The descriptor could not be fetched.
    #[error(transparent)]
    Fetch(#[from] ForkError),
    /// The descriptor is not one.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
}

impl NodeError {
    /// A step of the control API that failed.
    pub(crate) fn control(object: impl Into<String>, cause: impl std::fmt::Display) -> NodeError {
        NodeError::step(Phase::Control, object, cause)
    }

    /// A step that failed.
    pub(crate) fn step(
        phase: Phase,
        object: impl Into<String>,
        cause: impl std::fmt::Display,
    ) -> NodeError {
        NodeError::Step { phase, object: object.into(), cause: cause.to_string() }
    }

    /// Whether the caller's request was at fault, rather than this machine or another node.
    pub fn is_usage(&self) -> bool {
        matches!(self, NodeError::Usage(_))
    }
}
