//! Open files, as far as they are alike. What is particular to a kind is in the crate of kinds.

use serde::{Deserialize, Serialize};

/// An open file description. What `kind` means and how `body` is encoded is the business of the
/// crate of kinds (`mitosis-state`), so that a new kind touches one place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    /// Number of the kind.
    pub kind: u16,
    /// `O_*` flags of the description (`F_GETFL`).
    pub flags: u32,
    /// Descriptors that name it: number and close-on-exec.
    pub fds: Vec<(u32, bool)>,
    /// State, in the kind's own encoding.
    pub body: Vec<u8>,
    /// Who is signalled when something happens to it.
    pub signals: Option<FileSignals>,
}

/// Who is signalled when something happens to an open file (`F_SETOWN_EX`, `F_SETSIG`, `O_ASYNC`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileSignals {
    /// `F_OWNER_TID`, `F_OWNER_PID`, `F_OWNER_PGRP`.
    pub kind: u32,
    /// A thread, the process itself or its group, by the number in its own pid namespace; 0 for
    /// nobody that a child could tell.
    pub id: i32,
    /// `F_GETSIG`; 0 for `SIGIO`.
    pub signal: u32,
    /// `O_ASYNC`.
    pub armed: bool,
    /// It is another process of the tree.
    pub other: bool,
}
