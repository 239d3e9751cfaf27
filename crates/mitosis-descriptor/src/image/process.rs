//! What the threads of a process have in common: identity, signals, timers, the layout of its memory.

use serde::{Deserialize, Serialize};

/// Process-wide state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id in its own pid namespace.
    pub pid: i32,
    /// Executable, as `/proc/PID/exe` names it.
    pub exe: String,
    /// Current directory.
    pub cwd: String,
    /// What that is like, if it was deleted: no path leads there.
    pub cwd_deleted: Option<DeletedDirectory>,
    /// Root directory (`/` unless chrooted).
    pub root: String,
    /// File mode creation mask.
    pub umask: u32,
    /// `personality(2)`.
    pub personality: u32,
    /// `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Credentials.
    pub creds: Creds,
    /// Soft and hard limit of each `RLIMIT_*`, in numeric order.
    pub rlimits: Vec<(u64, u64)>,
    /// Fields of `struct prctl_mm_map`, and the auxiliary vector.
    pub mm: MmLayout,
    /// Disposition of signals 1..=64.
    pub sigactions: Vec<SigAction>,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_PDEATHSIG`.
    pub pdeathsig: u32,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// Whether the process led its session.
    pub session_leader: bool,
    /// Seccomp filters, oldest first: classic BPF instructions as 8-byte words.
    pub seccomp: Vec<Vec<u64>>,
    /// Signals that wait for the process.
    pub pending: Vec<SigInfo>,
    /// Armed `setitimer(2)` timers.
    pub itimers: Vec<IntervalTimer>,
    /// `timer_create(2)` timers, armed or not.
    pub timers: Vec<PosixTimer>,
}

/// A directory that was deleted while somebody was in it or had it open. There is nothing in it, and
/// nothing can be made in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeletedDirectory {
    /// Device and inode.
    pub file: (u64, u64),
    /// The last part of the path that it had.
    pub name: String,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The kernel's `siginfo_t` (asm-generic/siginfo.h) without its trailing zeros; at most 128 bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SigInfo(pub Vec<u8>);

impl SigInfo {
    /// Number of the signal.
    pub fn signal(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }
}

/// A timer of `setitimer(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    pub which: u8,
    /// Period in microseconds, 0 for none.
    pub interval_us: u64,
    /// Until it expires, in microseconds.
    pub value_us: u64,
}

/// A timer of `timer_create(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id in the process.
    pub id: u32,
    /// `CLOCK_*`.
    pub clock: u32,
    /// `SIGEV_*`.
    pub notify: u32,
    /// Signal number.
    pub signal: u32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread that is told, in its own pid namespace; 0 for the process.
    pub tid: i32,
    /// Period in nanoseconds, 0 for none.
    pub interval_ns: u64,
    /// Until it expires, in nanoseconds; 0 for a timer that is not armed.
    pub value_ns: u64,
}

/// Credentials, as in `/proc/PID/status`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Creds {
    /// Real, effective, saved, file-system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capability sets.
    pub caps: [u64; 5],
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// `struct prctl_mm_map` (linux/prctl.h) without its pointers, plus the auxiliary vector.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MmLayout {
    /// Start of code.
    pub start_code: u64,
    /// End of code.
    pub end_code: u64,
    /// Start of data.
    pub start_data: u64,
    /// End of data.
    pub end_data: u64,
    /// Start of heap.
    pub start_brk: u64,
    /// End of heap.
    pub brk: u64,
    /// Start of the main stack.
    pub start_stack: u64,
    /// Command line.
    pub arg_start: u64,
    /// End of it.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// End of it.
    pub env_end: u64,
    /// `/proc/PID/auxv`, as 64-bit words.
    pub auxv: Vec<u64>,
}

/// The kernel's `struct sigaction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SigAction {
    /// Handler address, or 0 (default) or 1 (ignore).
    pub handler: u64,
    /// `SA_*` flags.
    pub flags: u64,
    /// Restorer address.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}
