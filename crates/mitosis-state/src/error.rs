//! What can go wrong with open files.

use mitosis_sys::SysError;

/// Why a descriptor cannot be captured or planned.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A kind (or a state of a kind) that cannot be carried.
    #[error("files: fd {fd} is {what}: cannot be forked{hint}")]
    Refused {
        /// Lowest descriptor number.
        fd: u32,
        /// What it is, by name.
        what: String,
        /// What to do about it, or empty.
        hint: &'static str,
    },
    /// A kernel call failed.
    #[error("files: fd {fd}: {source}")]
    Sys {
        /// Lowest descriptor number, or `u32::MAX` for the table itself.
        fd: u32,
        /// Why.
        source: SysError,
    },
    /// A body that its kind cannot read.
    #[error("files: kind {kind}: malformed: {reason}")]
    Malformed {
        /// Kind number.
        kind: u16,
        /// Why.
        reason: String,
    },
}
