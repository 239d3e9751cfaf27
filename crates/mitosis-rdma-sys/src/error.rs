//! What can go wrong with a device.

/// Why RDMA is not to be had, or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdmaError {
    /// `libibverbs` is not installed, or lacks a function.
    #[error("libibverbs: {0} (package libibverbs1 and a provider, ibverbs-providers)")]
    Library(String),
    /// There is no device, or none of the name asked for.
    #[error("no RDMA device{0}")]
    NoDevice(String),
    /// A verb failed.
    #[error("{verb}: {cause}")]
    Verb {
        /// The function called.
        verb: &'static str,
        /// What the system said.
        cause: String,
    },
}

impl RdmaError {
    /// The verb just called failed and left `errno`.
    pub(crate) fn last(verb: &'static str) -> RdmaError {
        RdmaError::Verb { verb, cause: std::io::Error::last_os_error().to_string() }
    }

    /// The verb returned an error number, or -1 and left it in `errno`.
    pub(crate) fn code(verb: &'static str, code: i32) -> RdmaError {
        if code <= 0 {
            return RdmaError::last(verb);
        }
        RdmaError::Verb { verb, cause: std::io::Error::from_raw_os_error(code).to_string() }
    }
}
