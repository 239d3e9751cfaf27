//! What a verb can end with, and the exit status that it means.

use mitosis_proto::{ClientError, ErrorCode};

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
    /// The node refused, failed, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon did.
    #[error(transparent)]
    Node(#[from] mitosis_node::NodeError),
    /// Standard output does not take what there is to say.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// 2 for wrong usage, 1 for everything else.
    pub fn status(&self) -> u8 {
        match self {
            CliError::Usage(_)
            | CliError::Client(ClientError::Node { code: ErrorCode::Usage, .. }) => 2,
            CliError::Node(error) if error.is_usage() => 2,
            _ => 1,
        }
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> CliError {
        CliError::Output(error.into())
    }
}
