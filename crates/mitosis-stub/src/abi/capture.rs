//! What the capture blob is asked for in a parent, and what it leaves there.

/// What the capture blob leaves in its region.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CaptureData {
    /// In: top of the helper's stack.
    pub helper_stack_top: u64,
    /// Out: result of the helper's clone.
    pub helper: i64,
    /// Out: pid of the shadow in the parent's pid namespace, or negative errno.
    pub shadow: i64,
    /// Out: `brk(0)`.
    pub brk: u64,
    /// Out: `PR_GET_*` values: child subreaper, pdeathsig, securebits, and thp_disable with
    /// dumpable in bits 8 and up.
    pub prctl: [i64; 4],
    /// Out: `struct sigaction` of signals 1..=64: handler, flags, restorer, mask.
    pub sigactions: [[u64; 4]; 64],
    /// Per-thread data of the leading thread.
    pub thread: CaptureThread,
    /// In: extra flags of the shadow's clone (CLONE_PARENT or 0).
    pub shadow_flags: u64,
    /// In, for the shadow: address and count of [`SharedPiece`]s.
    pub shared: [u64; 2],
    /// Out, in the shadow's own copy: 0, or the negative errno of keeping the shared memory.
    pub shared_result: i64,
    /// Out: `getitimer(2)` of the three timers: interval and value, in seconds and microseconds.
    pub itimers: [[u64; 4]; 3],
    /// In, for the leading thread: address and count of [`TimerPlace`]s.
    pub timers: [u64; 2],
    /// Out: `PR_GET_MDWE`, `PR_GET_MEMORY_MERGE` (negative where the kernel knows none) and
    /// `ARCH_GET_XCOMP_PERM` (0 where it knows none).
    pub values: [i64; 3],
}

/// A timer whose state is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TimerPlace {
    /// In: its id.
    pub id: u64,
    /// Out: interval and value, in seconds and nanoseconds (`timer_gettime(2)`).
    pub state: [u64; 4],
}

/// A mapping of shared memory that the shadow is to have as its own ([`SHARED_AREA`]), or a part
/// of the one before that holds data ([`SHARED_DATA`]).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SharedPiece {
    /// Which of the two.
    pub kind: u64,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// See [`SharedPiece`].
pub const SHARED_AREA: u64 = 0;
/// See [`SharedPiece`].
pub const SHARED_DATA: u64 = 1;

/// What every thread tells of itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CaptureThread {
    /// `PR_GET_TID_ADDRESS`.
    pub tid_address: u64,
    /// Alternate stack: address, flags, size.
    pub altstack: [u64; 3],
    /// `PR_GET_TIMERSLACK`, `PR_MCE_KILL_GET`, `PR_GET_NO_NEW_PRIVS`, `PR_GET_SECCOMP`,
    /// `PR_GET_SECUREBITS`.
    pub values: [i64; 5],
    /// `get_mempolicy(2)`: the result, the mode, the nodes.
    pub policy: [u64; 4],
}
