//! The parts of a process image.

use crate::{PageIndex, Secret, SeedId};
use serde::{Deserialize, Serialize};

/// Everything but the pages.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    /// Where and when it was taken, and what the machine looked like.
    pub origin: Origin,
    /// Process-wide state.
    pub process: Process,
    /// Threads; the first is the thread-group leader. Never empty.
    pub threads: Vec<Thread>,
    /// Files that VMAs map.
    pub files: Vec<MappedFile>,
    /// Sorted by address, not overlapping.
    pub vmas: Vec<Vma>,
    /// Who owns pages; entry 0 is the seed this descriptor belongs to.
    pub owners: Vec<Owner>,
    /// Pages that hold data, by owner. A page of an anonymous VMA in no run is zero; a page of a
    /// private file VMA in no run is the file's.
    pub pages: PageIndex,
    /// Memory that VMAs map shared and no file holds.
    pub shared: Vec<SharedObject>,
    /// Open file descriptions and the descriptors that name them.
    pub open_files: Vec<OpenFile>,
    /// What its clocks showed.
    pub clocks: Clocks,
    /// What can be called in a child before it goes on.
    pub hooks: Hooks,
    /// What few processes have.
    pub rare: Rare,
}

/// Functions of the program that a child may have to call before it goes on, so that it does not
/// draw the same random numbers as its siblings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hooks {
    /// Each thread was waiting in a system call: none was in the middle of anything.
    pub idle: bool,
    /// Those that were found, by the names under which programs export them.
    pub functions: Vec<Function>,
}

/// A function that the program or one of its libraries exports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Function {
    /// The symbol.
    pub name: String,
    /// Its address in the process.
    pub address: u64,
}

/// The clocks that count from the start of a machine, as the process saw them when it stood still,
/// in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
    /// By how much its `CLOCK_MONOTONIC` was ahead of that of its node.
    pub monotonic_shift: i64,
    /// By how much its `CLOCK_BOOTTIME` was ahead of that of its node.
    pub boottime_shift: i64,
}

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
    /// Index into [`Descriptor::shared`].
    pub object: u32,
    /// Device and inode it had on the parent's node: what the kinds of open file know it by.
    pub file: (u64, u64),
}

/// The machine and moment of the capture.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the node.
    pub node: String,
    /// Wall clock at capture, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// CRC-32 of the vdso image: equal images have equal layouts.
    pub vdso_crc: u32,
    /// XSAVE features (XCR0) enabled on the machine.
    pub xcr0: u64,
    /// Where its CPU has the state of those, but for the first two and AMX, in an XSAVE image.
    pub xsave: Vec<XsaveArea>,
    /// Registers of CPUID that name instructions.
    pub cpuid: Vec<u32>,
    /// Kernel release, for people.
    pub kernel: String,
}

/// Where a component of register state lies in an XSAVE image of standard format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct XsaveArea {
    /// Its bit in XCR0.
    pub bit: u8,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// An owner of pages: a seed on some node, with the capability to read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// `HOST:PORT` of the node that serves the pages.
    pub address: String,
    /// The seed there.
    pub seed: SeedId,
    /// The capability.
    pub secret: Secret,
}

/// Process-wide state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id in its own pid namespace.
    pub pid: i32,
    /// Executable, as `/proc/PID/exe` names it.
    pub exe: String,
    /// Current directory.
    pub cwd: String,
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
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
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

/// One thread.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id in its own pid namespace.
    pub tid: i32,
    /// General registers, rewound so that an interrupted system call starts again.
    pub regs: Registers,
    /// XSAVE image in the layout of a signal frame, cut to the size user space may see.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub sigmask: u64,
    /// Alternate signal stack: address, flags, size.
    pub altstack: (u64, u32, u64),
    /// Head and length of the robust futex list.
    pub robust_list: (u64, u64),
    /// `clear_child_tid`.
    pub clear_tid: u64,
    /// Registered rseq area: address, length, signature. Zero length when there is none.
    pub rseq: (u64, u32, u32),
    /// Name (`comm`).
    pub name: Vec<u8>,
    /// Signals that wait for this thread alone.
    pub pending: Vec<SigInfo>,
    /// How it is scheduled.
    pub sched: Sched,
}

/// How a thread is scheduled (sched(7), ioprio_get(2)).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sched {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`, of which only `RESET_ON_FORK`, `RECLAIM` and `DL_OVERRUN`.
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority, 1 to 99, or 0.
    pub priority: u32,
    /// Class and level; 0 for what follows from the nice value.
    pub ioprio: u32,
    /// CPUs it may run on, one bit each; empty for all of its machine.
    pub cpus: Vec<u64>,
    /// Of `SCHED_DEADLINE`: runtime, deadline and period in nanoseconds.
    pub reservation: [u64; 3],
}

/// `struct user_regs_struct` of x86-64 (sys/user.h), in a neutral order.
#[allow(missing_docs)] // each field is the register of that name
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

/// A file that VMAs map privately (or shared, read-only).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MappedFile {
    /// Path as the parent saw it.
    pub path: String,
    /// Size in bytes at capture.
    pub size: u64,
    /// BLAKE3 of the content, when the seed's node knew it. Unknown means: fetch from the owner.
    pub hash: Option<[u8; 32]>,
}

/// A memory mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `PROT_*` bits.
    pub prot: u8,
    /// See [`vma_flags`].
    pub flags: u16,
    /// What is behind it.
    pub backing: Backing,
}

/// Bits of [`Vma::flags`].
pub mod vma_flags {
    /// Grows downwards (`MAP_GROWSDOWN`).
    pub const GROWSDOWN: u16 = 1;
    /// `mlock(2)`ed.
    pub const LOCKED: u16 = 2;
    /// `MAP_NORESERVE`.
    pub const NORESERVE: u16 = 4;
    /// `MADV_HUGEPAGE`.
    pub const HUGEPAGE: u16 = 8;
    /// `MADV_NOHUGEPAGE`.
    pub const NOHUGEPAGE: u16 = 16;
    /// `MADV_DONTDUMP`.
    pub const DONTDUMP: u16 = 32;
    /// `MADV_WIPEONFORK`.
    pub const WIPEONFORK: u16 = 64;
    /// Mapped `MAP_SHARED`.
    pub const SHARED: u16 = 128;
    /// Counted as committed memory (`ac` in smaps): once writable private.
    pub const ACCOUNTED: u16 = 256;
    /// `mseal(2)`ed.
    pub const SEALED: u16 = 512;
    /// `MAP_DROPPABLE`.
    pub const DROPPABLE: u16 = 1024;
    /// `MADV_DONTFORK`.
    pub const DONTFORK: u16 = 2048;
    /// Shared memory that was attached (`SHM_RDONLY`) or mapped so that it can never be written.
    pub const READ_ONLY: u16 = 4096;
}

/// What a mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous private memory, heap and stacks included.
    Anonymous,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// `[vvar_vclock]`.
    VvarVclock,
    /// A file, from `offset` (bytes).
    File {
        /// Index into [`Descriptor::files`].
        file: u32,
        /// Offset in the file, in bytes.
        offset: u64,
    },
    /// Shared memory without a path, from `offset` (bytes).
    Shared {
        /// Index into [`Descriptor::shared`].
        object: u32,
        /// Offset in the object, in bytes.
        offset: u64,
    },
}

/// Memory that is shared between mappings, of one process or of several, and that no path leads
/// to: `MAP_SHARED | MAP_ANONYMOUS`, a memfd, a file that was deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SharedObject {
    /// What `/proc/PID/maps` is to show of it, for people.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

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
