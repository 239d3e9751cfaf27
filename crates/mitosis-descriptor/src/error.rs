//! What can be wrong with a descriptor.

/// Why bytes are not a descriptor, or a descriptor is not a process.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DescriptorError {
    /// Fewer bytes than the header announces, or than a header.
    #[error("descriptor: truncated: {have} bytes of {need}")]
    Truncated {
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Not a descriptor at all.
    #[error("descriptor: wrong magic")]
    Magic,
    /// A version this build does not read.
    #[error("descriptor: version {found}, this build reads {reads}")]
    Version {
        /// Version found.
        found: u16,
        /// Version this build reads.
        reads: u16,
    },
    /// More than a limit allows.
    #[error("descriptor: {what}: {have} is over the limit of {limit}")]
    TooLarge {
        /// Counted thing.
        what: &'static str,
        /// Count found.
        have: u64,
        /// Limit.
        limit: u64,
    },
    /// Checksum mismatch.
    #[error("descriptor: checksum mismatch")]
    Checksum,
    /// The body does not decode.
    #[error("descriptor: malformed body: {0}")]
    Malformed(String),
    /// Decoded, but contradicts itself.
    #[error("descriptor: invalid: {0}")]
    Invalid(String),
}
