// Shared with the guest by `#[path]`: plain data, no references.

/// Offset of the guest's text in its ELF file; entries are relative to it.
pub const TEXT_OFFSET: usize = 4096;
/// Entry: the guard process (the ELF entry point).
pub const ENTRY_GUARD: u64 = 0;
/// Entry: the restore interpreter.
pub const ENTRY_RESTORE: u64 = 16;
/// Entry: the capture blob, run by the parent's leading thread.
pub const ENTRY_CAPTURE: u64 = 32;
/// Entry: per-thread capture, run by every other thread of the parent.
pub const ENTRY_CAPTURE_THREAD: u64 = 48;
/// Entry: timers, run by the parent's leading thread.
pub const ENTRY_CAPTURE_TIMERS: u64 = 64;

/// Entry: what CPython calls when it can (`Py_AddPendingCall`); its argument is a
/// [`PendingCalls`].
pub const ENTRY_PENDING: u64 = 80;
/// Entry: `bytes` of an OpenSSL `RAND_METHOD`: random bytes of the kernel.
pub const ENTRY_RANDOM: u64 = 96;
/// Entry: `seed`, `add` and `status` of one: nothing to do, and all is well.
pub const ENTRY_READY: u64 = 112;

/// Entry: the rest of a template's life, once its region is there: see [`Plan`].
pub const ENTRY_TEMPLATE: u64 = 128;
/// Entry: a shadow makes ioctl(2) calls on a file that it is handed, and then sleeps again; its
/// argument is a [`Calls`].
pub const ENTRY_CALLS: u64 = 144;

/// Entry: the life of a shadow that makes children. Its region is there, its socket is descriptor 3,
/// and rdi is one past the region's last byte.
pub const ENTRY_SERVE: u64 = 160;

/// `argv[0]` of a guard.
pub const GUARD_NAME: &[u8] = b"mitosis-guard\0";
/// `argv[0]` of a template. The letter that tells it from a guard is [`NAME_LETTER`].
pub const TEMPLATE_NAME: &[u8] = b"mitosis-template\0";
/// Index in `argv[0]` of the letter by which the program knows what it is.
pub const NAME_LETTER: usize = 8;

/// File descriptor of the guard's control socket.
pub const GUARD_CONTROL_FD: i32 = 3;
/// File descriptor of the pidfd of the pager that the guard watches.
pub const GUARD_PAGER_FD: i32 = 4;
/// Number under which a guard keeps its child's userfaultfd, or the read side of [`FD_GUARD_QUEUE`].
pub const GUARD_QUEUE_FD: i32 = 15;
/// First number under which a guard keeps safety copies of userfaultfds: above all others that it keeps,
/// and low, for the kernel's table is as large as the highest number.
pub const GUARD_SLOT_BASE: i32 = 16;
/// Number of such copies.
pub const GUARD_SLOTS: u32 = 4096;

/// The directory of [`GENERATION_FILE`].
pub const GENERATION_DIR: &[u8] = b"/run/mitosis\0";
/// Over this file a guard mounts one of its own, which holds its environment: the generation number
/// of its child, [`GENERATION_DIGITS`] hexadecimal digits, and a newline.
pub const GENERATION_FILE: &[u8] = b"/run/mitosis/generation\0";
/// See [`GENERATION_FILE`].
pub const GENERATION_DIGITS: usize = 16;
/// Exit status of a guard that could not mount its /proc.
pub const GUARD_NO_PROC: u64 = 2;
/// Exit status of a guard that could not mount the generation number.
pub const GUARD_NO_GENERATION: u64 = 4;

/// Message kinds on a guard's control socket.
pub mod guard_message {
    /// Guard to pager: the main child ended; `a` is its raw wait status.
    pub const CHILD_EXITED: u32 = 1;
    /// Pager to guard: keep the attached fd in slot `a`.
    pub const HOLD_FD: u32 = 2;
    /// Pager to guard: close slot `a`.
    pub const DROP_FD: u32 = 3;
    /// Pager to guard: kill everything in the namespace and exit.
    pub const END: u32 = 4;
    /// Pager to guard: `a` = 1 keeps the namespace after the main child ended, 0 releases it.
    pub const KEEP: u32 = 5;
    /// Child of a template to its guard, before it runs: keep the attached userfaultfd.
    pub const HOLD_MAIN: u32 = 6;
    /// Node to guard: a template makes the child: its pid will be `a`.
    pub const ADOPT: u32 = 15;
    /// Node to guard: build a child; a [`super::ForkOrder`] follows and fds are attached.
    pub const FORK: u32 = 16;
    /// Node to guard: make the processes of a tree. Attached: a file with `a` [`super::TreeEntry`]s,
    /// the root first, then for each that is to live a socket on which its own FORK comes, and the file
    /// systems that `b` says: [`super::MOUNT_TERMINALS`], then [`super::MOUNT_MEMORY`].
    pub const FORK_TREE: u32 = 19;
    /// Guard to node: ready for an order.
    pub const READY: u32 = 17;
    /// Guard to node: could not make the child; `a` is the errno.
    pub const FORK_FAILED: u32 = 18;
}

/// A message on a guard's control socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GuardMessage {
    /// See [`guard_message`].
    pub kind: u32,
    /// First argument.
    pub a: u32,
    /// Second argument.
    pub b: u64,
}

/// What follows a [`guard_message::FORK`] message in the same packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ForkOrder {
    /// Where the restore region is mapped in the child.
    pub region: u64,
    /// Length of the region in bytes.
    pub region_len: u64,
    /// Bytes of the plan file to read into it.
    pub image_len: u64,
    /// Offset of the [`Plan`] in the region.
    pub plan_offset: u64,
    /// Wanted pid in the namespace; 0 for any.
    pub pid: i32,
    /// Attached fd `i` becomes number `fd_base + i` in the child.
    pub fd_base: i32,
    /// Number of attached fds; the plan file is the first.
    pub fd_count: u32,
    /// Index of the attached fd that is a cgroup to be born in, or `u32::MAX`.
    pub cgroup: u32,
}

/// A process of a tree.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TreeEntry {
    /// Its pid.
    pub pid: i32,
    /// The process group to join, once it is there; 0 for the one that it is born in.
    pub group: i32,
    /// Index of the process that makes it: smaller than its own.
    pub parent: u32,
    /// Index of the one whose child it is when those have ended that do so.
    pub heir: u32,
    /// `TREE_*`.
    pub flags: u32,
    /// Of a zombie, how it ended, as `waitpid(2)` gives it.
    pub status: u32,
    /// Index among those that live.
    pub order: u32,
    /// Number of the pseudo-terminal that controls the session which it begins, plus one; 0 for none.
    pub terminal: u32,
}

/// A file system of pseudo-terminals, for `/dev/pts`.
pub const MOUNT_TERMINALS: u64 = 1;
/// A file system for memory that has names, for `/dev/shm`.
pub const MOUNT_MEMORY: u64 = 2;

/// Bytes of a [`TreeEntry`].
pub const TREE_ENTRY: usize = 32;
/// Most processes of a tree.
pub const TREE_MAX: usize = 200;
/// [`TreeEntry::flags`]: it begins a session of its own.
pub const TREE_LEADS_SESSION: u32 = 1;
/// [`TreeEntry::flags`]: it leads its process group.
pub const TREE_LEADS_GROUP: u32 = 2;
/// [`TreeEntry::flags`]: it is born before its parent begins a session of its own.
pub const TREE_BEFORE: u32 = 4;
/// [`TreeEntry::flags`]: it ends, and is not waited for.
pub const TREE_ZOMBIE: u32 = 8;
/// [`TreeEntry::flags`]: it ends when all have joined their groups, and nobody hears of it.
pub const TREE_TEMPORARY: u32 = 16;
/// [`TreeEntry::flags`]: orphans of those that it makes become its own.
pub const TREE_ADOPTS: u32 = 32;
/// [`TreeEntry::flags`]: it leads a process group until the others have joined theirs, and then joins its own.
pub const TREE_LEAVES: u32 = 64;

/// An order to a template, on its status socket: a child of it, in the namespaces of a guard. Of the
/// attached fds the last two are the guard's pidfd and the node's end of its control socket, for
/// [`FD_GUARD_QUEUE`]; the others are those of [`TemplateOrder::fork`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TemplateOrder {
    /// As a guard gets it. The region is there already.
    pub fork: ForkOrder,
    /// Bytes at the beginning of the region that are as in the plan file: the code.
    pub shared_len: u64,
    /// The child's generation number.
    pub generation: u64,
    /// Pid in the child's namespace for the moment in which it is made: not one of its own.
    pub maker_pid: i32,
    /// Padding.
    pub pad: u32,
}

/// Bytes of a template's region: room for its children's plans; untouched memory costs nothing.
pub const TEMPLATE_REGION: u64 = 48 << 20;
/// Bytes at the end of it for the stacks of its loop.
pub const TEMPLATE_STACKS: u64 = 16 << 10;

/// Attached fd 0: the plan file.
pub const FD_PLAN: i32 = 0;
/// Attached fd 1: the status socket.
pub const FD_STATUS: i32 = 1;
/// Attached fd 2: the pager's socket for the child's userfaultfd.
pub const FD_PAGER: i32 = 2;
/// Attached fd 3: where the child leaves its userfaultfd for the guard. From a template it is the
/// guard's control socket ([`guard_message::HOLD_MAIN`]), else the write side of one whose read side
/// stays in the guard and is never read.
pub const FD_GUARD_QUEUE: i32 = 3;
/// Number the child's userfaultfd gets, relative to `fd_base`.
pub const FD_UFFD: i32 = 4;
/// First attached fd that the plan asked for.
pub const FD_PROVIDED: i32 = 5;

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
    /// Address of the [`Gate`].
    pub gate: u64,
    /// File descriptor of the status socket.
    pub status_fd: i32,
    /// Padding.
    pub pad: u32,
    /// Seccomp filters to install last: address of `struct sock_fprog`s (resident) and count.
    pub seccomp: (u64, u64),
}

/// What stays of the plan until the child goes on, and is seen from outside: at [`Plan::gate`].
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
    /// Padding.
    pub pad: u32,
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

/// "mitosis" and a version.
pub const PLAN_MAGIC: u64 = 0x0173_6973_6f74_696d;

/// One thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadPlan {
    /// Thread id wanted; 0 for any.
    pub tid: i32,
    /// Padding.
    pub pad: i32,
    /// Top of the stack it uses until it leaves.
    pub stack_top: u64,
    /// Its own operations: offset and count.
    pub ops: (u64, u64),
    /// Address of its signal frame.
    pub frame: u64,
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
/// `Op::flags`: not a system call: put pages in place through the userfaultfd `args[0]`, as the
/// [`PlaceTable`] at address `args[1]` says.
pub const OP_PLACE: u16 = 0x400;
/// `Op::flags`: not a system call: wait until the guard is the parent. Whoever made a child of a
/// template has then left its namespaces.
pub const OP_ADOPTED: u16 = 0x800;
/// `Op::flags`: not a system call: the result is the 64-bit word at address `args[0]`.
pub const OP_LOAD: u16 = 0x1000;
/// `Op::flags`: not a system call: make a process, see it end, and have a pidfd of it; or, if `args[0]`
/// is not 0, one with that pid, which is not waited for.
pub const OP_ENDED: u16 = 0x2000;
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

/// Head of a table of pages to put in place, followed by [`PlaceTable::count`] times
/// `struct uffdio_copy` (linux/userfaultfd.h).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PlaceTable {
    /// [`PLACE_MAGIC`]: without it no table has come.
    pub magic: u64,
    /// Entries that follow.
    pub count: u64,
}

/// "mitosis" and a letter.
pub const PLACE_MAGIC: u64 = 0x7073_6973_6f74_696d;
/// Bytes of an entry.
pub const PLACE_ENTRY: usize = 40;

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
    /// `PR_GET_TIMERSLACK`, `PR_MCE_KILL_GET`.
    pub values: [i64; 2],
    /// `get_mempolicy(2)`: the result, the mode, the nodes.
    pub policy: [u64; 4],
}

/// Calls that a shadow makes: see [`ENTRY_CALLS`].
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
