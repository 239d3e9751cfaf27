//! Calls that are made inside of a process which belongs to somebody: functions of the program
//! before it goes on, ioctl(2) calls of a shadow.

/// What stays of the plan until the child goes on, and is seen from outside: at
/// [`Plan::gate`](super::Plan::gate).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Threads that are ready.
    pub ready: u32,
    /// 1 lets all threads go.
    pub go: u32,
    /// Address of [`Call`]s that the main thread makes before, and their count.
    pub hooks: (u64, u64),
    /// Top of the stack for them: below what the main thread has in use.
    pub stack: u64,
    /// The child's generation number.
    pub generation: u64,
    /// The call that failed, plus one.
    pub failed: u32,
    /// How many threads there are beside the main thread, if any of them has [`LastCall`]s of its own. These are
    /// made before any instruction of the program.
    pub confine: u32,
    /// What threads give to capset(2) when what confines them is in place, or at once: address of the header,
    /// behind which the data are; 0: nothing.
    pub capset: u64,
    /// Not 0: threads wait awake, for the filters forbid the calls by which they would sleep.
    pub awake: u64,
    /// Address of [`Call`]s that the main thread makes when the gate is open, and their count.
    pub late: (u64, u64),
    /// 1 lets threads make their [`LastCall`]s.
    pub begin: u32,
    /// Threads that have.
    pub done: u32,
}

/// A call of a function of the program, on its main thread, before the child goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Address of the function (C calling convention); 0: write the generation number as 16
    /// hexadecimal digits to `args[0]`.
    pub function: u64,
    /// Arguments.
    pub args: [u64; 5],
    /// Byte `n`: the slot whose value is argument `n` instead, plus one; 0 for none.
    pub slots: u64,
    /// Slot that keeps the result. Slot 0 holds the generation number at the start.
    pub save: u32,
    /// `WANT_*`.
    pub want: u32,
    /// See [`WANT_EQUAL`], [`WANT_OR_SKIP`], [`WANT_ZERO_SKIP`].
    pub expect: u64,
    /// Function without arguments that says why it failed, or 0.
    pub explain: u64,
}

/// [`Call::want`]: any result.
pub const WANT_ANY: u32 = 0;
/// [`Call::want`]: the result, an `int`, must be `expect`.
pub const WANT_EQUAL: u32 = 1;
/// [`Call::want`]: the result, a pointer, must not be null.
pub const WANT_POINTER: u32 = 2;
/// [`Call::want`]: after a result of 0 or null the next `expect` calls are left out.
pub const WANT_OR_SKIP: u32 = 3;
/// [`Call::want`]: the result, an `int`, must be 0; then the next `expect` calls are left out.
pub const WANT_ZERO_SKIP: u32 = 5;
/// [`Call::want`]: the result, a `bool`, must be true.
pub const WANT_TRUE: u32 = 4;
/// Slots of the calls.
pub const CALL_SLOTS: usize = 8;
/// [`Call::save`]: keep nothing.
pub const CALL_SAVE_NONE: u32 = u32::MAX;

/// Calls that are made when the program can.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PendingCalls {
    /// Address of the [`Call`]s, and their count.
    pub calls: (u64, u64),
    /// Address of [`Gate::generation`].
    pub generation: u64,
}

/// Calls that a shadow makes: see [`ENTRY_CALLS`](super::ENTRY_CALLS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// Out: how far it is, see [`calls_stage`].
    pub stage: u64,
    /// Out: a pair of sockets. The first one's other holder sends the file over it.
    pub sockets: [i32; 2],
    /// Out: what failed before the first call, as a negative errno.
    pub failed: i64,
    /// The request of each call.
    pub request: u64,
    /// Number of calls.
    pub count: u64,
    /// Address of the first argument.
    pub arguments: u64,
    /// Bytes from one argument to the next.
    pub size: u64,
    /// Address of the first result.
    pub results: u64,
}

/// Values of [`Calls::stage`].
pub mod calls_stage {
    /// It waits for the file.
    pub const WAITING: u64 = 1;
    /// It has made its calls, has no file open, and sleeps.
    pub const DONE: u64 = 2;
}
