//! What can go wrong between two nodes.

use serde::{Deserialize, Serialize};

/// The one answer to a seed that is unknown, expired, revoked or named with a wrong capability.
/// It deliberately does not tell which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused by the seed's node")]
pub struct Refused;

/// Why pages could not be read from an open seed. Crosses the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReadError {
    /// The seed was revoked (`seed rm`).
    #[error("seed revoked")]
    Revoked,
    /// The seed's memory is gone: its shadow died.
    #[error("seed lost: {0}")]
    Lost(String),
    /// The seed does not own (all of) the pages asked for.
    #[error("pages not owned by the seed: {0}")]
    NotOwned(String),
    /// The handle was never opened, or opening it was refused.
    #[error("refused by the seed's node")]
    Refused,
    /// The owner failed to read; says what and why.
    #[error("read failed at the owner: {0}")]
    Failed(String),
}

/// Why a source as a whole (a connection) can no longer be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection, or it broke.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The peer closed the connection.
    #[error("connection closed by peer")]
    Closed,
    /// The peer sent something that is not the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The RDMA device of this node cannot be used.
    #[error("RDMA: {0}")]
    Rdma(String),
}

impl SourceError {
    pub(crate) fn io(what: &'static str, cause: impl Into<std::io::Error>) -> SourceError {
        SourceError::Io { what, cause: cause.into() }
    }
}

/// Why the descriptor of a seed could not be fetched (phase `fetch`).
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The seed's node refused; it does not say why.
    #[error("fetch: refused by the seed's node {address}")]
    Refused {
        /// The node asked.
        address: String,
    },
    /// The node could not be asked, or did not answer in time.
    #[error("fetch: node {address}: {cause}")]
    Unreachable {
        /// The node asked.
        address: String,
        /// What happened.
        cause: SourceError,
    },
}
