//! A restore: the operations that make a child, and what it says of them.

/// The operations of a restore.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// [`PLAN_MAGIC`].
    pub magic: u64,
    /// Where the region lies (its own address).
    pub region: u64,
    /// Operations of the main thread before the others exist: offset in the region and count.
    pub build: (u64, u64),
    /// Operations every thread performs on itself, after its own (credentials).
    pub identity: (u64, u64),
    /// Operations of the main thread after all threads are ready.
    pub finish: (u64, u64),
    /// [`ThreadPlan`]s: offset and count; entry 0 is the main thread.
    pub threads: (u64, u64),
    /// End of the part of the region that stays mapped read-execute, as an address.
    pub resident_end: u64,
    /// End of the region.
    pub region_end: u64,
    /// Address of the [`Gate`](super::Gate).
    pub gate: u64,
    /// File descriptor of the status socket.
    pub status_fd: i32,
    /// Padding.
    pub pad: u32,
}

/// "mitosis" and a version.
pub const PLAN_MAGIC: u64 = 0x0273_6973_6f74_696d;

/// One thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadPlan {
    /// Thread id wanted; 0 for any.
    pub tid: i32,
    /// [`THREAD_KEEPS`], [`THREAD_OTHER`].
    pub flags: i32,
    /// Top of the stack it uses until it leaves.
    pub stack_top: u64,
    /// Its own operations: offset and count.
    pub ops: (u64, u64),
    /// Address of its signal frame, whose first word is the address of its [`LastCall`]s, or 0.
    pub frame: u64,
}

/// `ThreadPlan::flags`: it does not give [`Gate::capset`](super::Gate::capset) before the gate is open, for its
/// [`LastCall`]s need more.
pub const THREAD_KEEPS: i32 = 1;
/// `ThreadPlan::flags`: its credentials are others than those of [`Plan::identity`]: its own operations end with
/// them.
pub const THREAD_OTHER: i32 = 2;

/// A system call that a thread makes right before it returns to the program, when its stack is gone: what
/// confines it. It must give 0. One with the number 0 ends them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LastCall {
    /// System call number.
    pub nr: u64,
    /// Arguments. The others are 0.
    pub args: [u64; 3],
}

/// `Op::flags`: an argument whose bit is set gets the value of a slot added.
pub const OP_ARG_MASK: u16 = 0x3f;
/// `Op::flags`: errors are ignored.
pub const OP_IGNORE: u16 = 0x40;
/// `Op::flags`: the result must equal `expect`.
pub const OP_EXPECT: u16 = 0x80;
/// `Op::flags`: not a system call: store the 32-bit slot at address `args[0]`.
pub const OP_STORE32: u16 = 0x100;
/// `Op::flags`: not a system call: take the time into [`Status::times`] at index `args[0]`.
pub const OP_TIME: u16 = 0x200;
/// `Op::flags`: not a system call: wait until the guard is the parent. Whoever made a child of a
/// template has then left its namespaces.
pub const OP_ADOPTED: u16 = 0x400;
/// `Op::flags`: not a system call: the result is the 64-bit word at address `args[0]`.
pub const OP_LOAD: u16 = 0x800;
/// `Op::flags`: not a system call: make a process, see it end, and have a pidfd of it; or, if `args[0]`
/// is not 0, one with that pid, which is not waited for.
pub const OP_ENDED: u16 = 0x1000;
/// Slots of saved results.
pub const SLOTS: usize = 8;
/// Slot 0 holds the address of the vdso that exec gave the process.
pub const SLOT_VDSO: usize = 0;
/// `Op::save`: keep nothing.
pub const SAVE_NONE: u8 = 255;

/// One system call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// System call number.
    pub nr: u16,
    /// `OP_*`.
    pub flags: u16,
    /// Slot that keeps the result.
    pub save: u8,
    /// Slot added to the marked arguments.
    pub slot: u8,
    /// Padding.
    pub pad: u16,
    /// Arguments.
    pub args: [u64; 6],
    /// Wanted result with [`OP_EXPECT`].
    pub expect: u64,
}

/// [`Status::kind`]: the child is about to run.
pub const STATUS_STARTED: u32 = 1;
/// [`Status::kind`]: an operation failed.
pub const STATUS_FAILED: u32 = 2;
/// [`Status::list`]: which list the failed operation is in.
pub const LIST_BUILD: u32 = 0;
/// See [`LIST_BUILD`].
pub const LIST_IDENTITY: u32 = 1;
/// See [`LIST_BUILD`].
pub const LIST_FINISH: u32 = 2;
/// See [`LIST_BUILD`]: a template could not make the child; `op` is one of `MAKE_*`.
pub const LIST_MAKE: u32 = u32::MAX;
/// See [`LIST_MAKE`]: enter the pid namespace.
pub const MAKE_ENTER_PID: u64 = 0;
/// See [`LIST_MAKE`]: make the process that enters the other namespaces.
pub const MAKE_MAKER: u64 = 1;
/// See [`LIST_MAKE`]: enter the other namespaces.
pub const MAKE_ENTER: u64 = 2;
/// See [`LIST_MAKE`]: make the child.
pub const MAKE_CHILD: u64 = 3;
/// See [`LIST_BUILD`]: thread `n` is `LIST_THREAD + n`.
pub const LIST_THREAD: u32 = 3;

/// What the child says on the status socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// `STATUS_*`.
    pub kind: u32,
    /// Which list of operations.
    pub list: u32,
    /// Index of the failed operation.
    pub op: u64,
    /// Result of it (negative errno).
    pub result: i64,
    /// `CLOCK_MONOTONIC` in ns: 0 entry, 1 memory built, 2 files built, 3 threads built, 4 end.
    pub times: [u64; 6],
}
