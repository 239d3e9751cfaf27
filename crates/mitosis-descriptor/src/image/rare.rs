//! What few processes have. It is together, so that nearly all descriptors pay some bytes for all of it.

use serde::{Deserialize, Serialize};

/// What few processes have: nearly always empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rare {
    /// Guard regions (`MADV_GUARD_INSTALL`): first byte and one past the last. Sorted, disjoint.
    pub guards: Vec<(u64, u64)>,
    /// Values of prctl(2) for the process.
    pub values: ProcessValues,
    /// The same for its threads, in their order; empty when all are as usual.
    pub threads: Vec<ThreadValues>,
    /// Memory policies of ranges (`mbind(2)`). Sorted, disjoint.
    pub policies: Vec<(u64, u64, MemoryPolicy)>,
    /// Shared objects that are open files as well.
    pub open_objects: Vec<OpenObject>,
    /// Protection keys of ranges (`pkey_mprotect(2)`), 1 to 15. Sorted, disjoint. Not those that the
    /// kernel gives to what can only be executed.
    pub keys: Vec<(u64, u64, u8)>,
    /// System V objects.
    pub ipc: crate::Ipc,
    /// Contexts of asynchronous I/O (`io_setup(2)`) in which nothing waits. Sorted, disjoint.
    pub rings: Vec<Ring>,
    /// The processes below it.
    pub tree: crate::Tree,
    /// The user namespace that it is in, if that is not its node's: one level below that.
    pub user_namespace: Option<UserNamespace>,
    /// What confines threads that are not confined as `process` says, which is of the first. Each thread is
    /// in one of these at most.
    pub confined: Vec<Confined>,
    /// Threads whose credentials are others than `process` says, which are of the first. Each thread is in
    /// one of these at most, the first in none.
    pub other_creds: Vec<OtherCreds>,
    /// With which code the leading thread has ended, while others live. A child's does what it is said to
    /// have until then.
    pub ended_leader: Option<u8>,
}

/// Credentials of some threads.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct OtherCreds {
    /// Which, as indices of [`crate::Descriptor::threads`], ascending.
    pub threads: Vec<u32>,
    /// Theirs, but for `no_new_privs`, which is as [`Confined`] or `process` says.
    pub creds: crate::Creds,
}

/// What confines some threads.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Confined {
    /// Which, as indices of [`crate::Descriptor::threads`], ascending.
    pub threads: Vec<u32>,
    /// As [`crate::Process::seccomp`].
    pub seccomp: Vec<Vec<u64>>,
    /// Seccomp's strict mode; there are no filters then.
    pub strict: bool,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// What is said of a user namespace when it is made (user_namespaces(7)). All other ids of a descriptor are
/// those of the parent's node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UserNamespace {
    /// `/proc/PID/uid_map`; nothing if it has not been written.
    pub uids: Vec<IdRange>,
    /// `/proc/PID/gid_map`.
    pub gids: Vec<IdRange>,
    /// Whether its processes may call setgroups(2): `/proc/PID/setgroups`.
    pub setgroups: bool,
}

/// A line of `/proc/PID/uid_map` or `gid_map`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id, as it is seen inside.
    pub inside: u32,
    /// The same on the node.
    pub outside: u32,
    /// How many follow one another.
    pub count: u32,
}

/// The ring of a context of asynchronous I/O, whose address is its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ring {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Events for which it has room.
    pub events: u32,
}

/// Values that prctl(2) keeps for a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessValues {
    /// `PR_GET_MDWE`: bits that forbid making executable what was writable.
    pub mdwe: u32,
    /// `PR_GET_MEMORY_MERGE`.
    pub merge: bool,
    /// `ARCH_GET_XCOMP_PERM` beyond what every process has: register state asked for (AMX).
    pub xcomp: u64,
}

/// Values that belong to a thread.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ThreadValues {
    /// `PR_GET_TIMERSLACK`, in nanoseconds; 0 for the usual one.
    pub slack_ns: u64,
    /// `PR_MCE_KILL_GET`; 2 (`PR_MCE_KILL_DEFAULT`) for the usual one.
    pub mce_kill: u8,
    /// `set_mempolicy(2)`.
    pub policy: MemoryPolicy,
}

/// A memory policy (set_mempolicy(2)).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its flags; 0 for none.
    pub mode: u32,
    /// Memory nodes, one bit each.
    pub nodes: Vec<u64>,
}

/// A shared object that descriptors name too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenObject {
    /// Index into [`crate::Descriptor::shared`].
    pub object: u32,
    /// Device and inode it had on the parent's node: what the kinds of open file know it by.
    pub file: (u64, u64),
}
