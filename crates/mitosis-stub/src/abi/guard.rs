//! Guards and templates: their names, the numbers of their descriptors, and what they are told.

/// `argv[0]` of a guard, and of the nursery that it is a copy of.
pub const GUARD_NAME: &[u8] = b"mitosis-guard\0";
/// `argv[0]` of a template. The letter that tells it from a nursery is [`NAME_LETTER`].
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
/// Over this file a guard mounts one of its own, which holds the generation number of its child,
/// [`GENERATION_DIGITS`] hexadecimal digits, and a newline.
pub const GENERATION_FILE: &[u8] = b"/run/mitosis/generation\0";
/// See [`GENERATION_FILE`].
pub const GENERATION_DIGITS: usize = 16;
/// Exit status of a guard that could not mount its /proc.
pub const GUARD_NO_PROC: u64 = 2;
/// Exit status of a guard that could not mount the generation number.
pub const GUARD_NO_GENERATION: u64 = 4;

/// An order to a nursery: make a guard. Attached are the guard's control socket and, if the node can make
/// it, a mount of a file with the number, to be put into place. The answer is a word, the guard's pid, or
/// what clone3(2) gave instead.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NurseryOrder {
    /// The generation number of the guard's child.
    pub generation: u64,
    /// 1: with a network namespace of its own.
    pub own_net: u64,
    /// 1: in a user namespace of its own, to which its other namespaces belong. Ids it has none until
    /// the node writes its maps.
    pub own_user: u64,
    /// 1: what is attached is not a mount of the file but one of a file system with the file in it. A guard in
    /// a user namespace cannot make that itself: it could make no file there.
    pub whole: u64,
}

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
    /// Child of a template to its guard, before it runs: it has pid `a`; keep the attached userfaultfd. Or
    /// the node: the main child will have pid `a`; keep the read side of its queue.
    pub const HOLD_MAIN: u32 = 6;
    /// The same from one that lacks no page and so has none: it has pid `a`.
    pub const ADOPT: u32 = 15;
    /// Node to guard: build a child; a [`super::ForkOrder`] follows and fds are attached.
    pub const FORK: u32 = 16;
    /// Node to a process executed as a template: be none, but make one child from nothing in the namespaces
    /// of a guard, and end. A [`super::TemplateOrder`] follows, with fds attached as for that.
    pub const MAKE: u32 = 20;
    /// The same for the processes of a tree: `a` and `b` are as with [`FORK_TREE`]. Attached are what comes
    /// with that, a socket for word of a failure, the guard's pidfd, and the socket for
    /// [`super::FD_GUARD_QUEUE`], whose read side the guard has got with [`HOLD_MAIN`].
    pub const MAKE_TREE: u32 = 21;
    /// Node to guard: make the processes of a tree. Attached: a file with `a`
    /// [`TreeEntry`](super::super::TreeEntry)s, the root first, then for each that is to live a socket
    /// on which its own FORK comes, and the file systems that `b` says:
    /// [`MOUNT_TERMINALS`](super::super::MOUNT_TERMINALS), then
    /// [`MOUNT_MEMORY`](super::super::MOUNT_MEMORY).
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
    /// Offset of the [`Plan`](super::Plan) in the region.
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
