//! Pid 1 of a child's pid namespace. It makes the child on order, or becomes the parent of the one that a
//! template makes, holds a copy of every userfaultfd so that a missing page never reads as zero, and empties
//! the namespace when the pager is gone.

use crate::abi::*;
use crate::nursery;
use crate::restore::CloneArgs;
use crate::rooms;
use crate::settle;
use crate::sys::{self, IoVec, MsgHdr, syscall};
use crate::tree;
use core::mem::MaybeUninit;

pub const FDS_MAX: usize = 240;
const SCM_RIGHTS: u32 = 1;
const SOL_SOCKET: u32 = 1;
const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
const POLLIN: u16 = 1;
const AT_SYSINFO_EHDR: u64 = 33;
const AT_EXECFN: u64 = 31;

#[repr(C, align(8))]
pub struct Packet {
    pub message: GuardMessage,
    pub order: ForkOrder,
}

impl Packet {
    /// All zero.
    pub fn new() -> Packet {
        Packet {
            message: GuardMessage { kind: 0, a: 0, b: 0 },
            order: ForkOrder {
                region: 0, region_len: 0, image_len: 0, plan_offset: 0, pid: 0, fd_base: 0,
                fd_count: 0, cgroup: 0,
            },
        }
    }
}

#[repr(C, align(8))]
pub struct Control {
    len: u64,
    level: u32,
    kind: u32,
    pub fds: [i32; FDS_MAX],
}

/// One message into `len` bytes at `to`, with descriptors: how many bytes and descriptors came.
/// `control` is not initialised: that would be a call to memset, which would need a relocation.
pub fn receive(
    socket: i32,
    to: u64,
    len: u64,
    control: &mut MaybeUninit<Control>,
) -> Option<(usize, usize)> {
    let iov = IoVec { base: to, len };
    let mut header = MsgHdr {
        name: 0, namelen: 0, iov: &raw const iov as u64, iovlen: 1,
        control: control.as_mut_ptr() as u64, controllen: size_of::<Control>() as u64, flags: 0,
    };
    let n = syscall!(sys::RECVMSG, socket, &raw mut header, MSG_CMSG_CLOEXEC);
    if n <= 0 {
        return None;
    }
    // SAFETY: plain integers; only as many fds are counted as the kernel says it wrote.
    let control = unsafe { &*control.as_ptr() };
    let has = header.controllen >= 16 && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
    Some((n as usize, if has { (control.len as usize - 16) / 4 } else { 0 }))
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}

struct Guard {
    vdso: u64,
    /// Of the child.
    generation: u64,
    /// The main child's pid; 0 before there is one, or before the one that a template makes has told.
    pid: i64,
    /// Readable when a child has ended (signalfd).
    ended: i32,
    keep: bool,
    exited: bool,
}

/// ELF entry: rsp points at argc.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!("mov rdi, rsp", "xor ebp, ebp", "and rsp, -16", "call {main}", "ud2",
        main = sym main);
}

unsafe extern "C" fn main(stack: *const u64) -> ! {
    const TEMPLATE: u8 = TEMPLATE_NAME[NAME_LETTER];
    // SAFETY: argv[0] is one of the names of `abi`.
    if unsafe { *(*stack.add(1) as *const u8).add(NAME_LETTER) } == TEMPLATE {
        // SAFETY: as below.
        crate::template::begin(unsafe { find(stack, AT_SYSINFO_EHDR) });
    }
    // SAFETY: the kernel lays out argc, argv, envp, auxv on the initial stack.
    let (vdso, name) = unsafe { (find(stack, AT_SYSINFO_EHDR), find(stack, AT_EXECFN)) };
    match settle::prepare(vdso) {
        // SAFETY: the new stack is there; nothing of the old one is used any more.
        Some((top, vdso)) => unsafe {
            core::arch::asm!("mov rsp, {top}", "xor ebp, ebp", "call {live}", "ud2",
                top = in(reg) top & !15, live = sym nursery::live,
                in("rdi") vdso, in("rsi") name, options(noreturn));
        },
        None => nursery::live(vdso, 0),
    }
}

/// The life of a guard, from when it is made on, in namespaces of its own. `number` is a mount of a file with
/// the generation number, or of a whole file system with that; -1: it makes one itself.
pub fn live(vdso: u64, generation: u64, own_net: bool, number: (i32, bool)) -> ! {
    if syscall!(bare sys::GETPID) != 1 {
        // Outside a namespace of our own kill(-1) would end the machine.
        exit(1);
    }
    rooms::mount_proc();
    if own_net {
        rooms::loopback_up();
    }
    rooms::mount_generation(generation, number);
    let ended = child_events();
    let mut guard = Guard { vdso, generation, pid: 0, ended, keep: false, exited: false };
    send(guard_message::READY, 0);
    loop {
        guard.step();
    }
}

/// A signalfd of SIGCHLD, which is blocked from here on.
fn child_events() -> i32 {
    let mask = CHILD_ENDED;
    const NONBLOCK_CLOEXEC: u64 = 0o4000 | 0o2_000_000;
    syscall!(sys::SIGPROCMASK, 0, &raw const mask, 0, 8);
    let fd = syscall!(sys::SIGNALFD4, -1i64, &raw const mask, 8, NONBLOCK_CLOEXEC);
    if fd < 0 {
        exit(5);
    }
    fd as i32
}

/// The signal set of SIGCHLD.
const CHILD_ENDED: u64 = 1 << 16;

pub fn exit(code: u64) -> ! {
    loop {
        syscall!(sys::EXIT_GROUP, code);
    }
}

/// What exec says: an entry of the auxiliary vector.
unsafe fn find(stack: *const u64, kind: u64) -> u64 {
    // SAFETY: see main; each loop ends at the terminator the kernel put there.
    unsafe {
        let mut p = stack.add(1 + *stack as usize + 1);
        while *p != 0 {
            p = p.add(1);
        }
        p = p.add(1);
        while *p != 0 {
            if *p == kind {
                return *p.add(1);
            }
            p = p.add(2);
        }
    }
    0
}

fn send(kind: u32, a: u32) {
    let message = GuardMessage { kind, a, b: 0 };
    syscall!(sys::WRITE, GUARD_CONTROL_FD, &raw const message, 16);
}

impl Guard {
    fn step(&mut self) {
        let mut fds = [
            PollFd { fd: GUARD_CONTROL_FD, events: POLLIN, revents: 0 },
            PollFd { fd: GUARD_PAGER_FD, events: POLLIN, revents: 0 },
            PollFd { fd: self.ended, events: POLLIN, revents: 0 },
        ];
        syscall!(sys::POLL, fds.as_mut_ptr(), 3, -1i64);
        if fds[1].revents != 0 {
            empty_namespace();
        }
        if fds[0].revents != 0 {
            self.receive();
        }
        if fds[2].revents != 0 {
            let mut drained = MaybeUninit::<[u64; 16]>::uninit();
            syscall!(sys::READ, self.ended, drained.as_mut_ptr(), 128);
            self.reap();
        }
        if self.exited && !self.keep {
            exit(0);
        }
    }

    /// Reaps what has ended; the main child's status is reported. That of a template has told its pid
    /// before it makes any process, so if it has not, nobody but it can have ended here: be it that it
    /// could not, or that its word is still on its way.
    fn reap(&mut self) {
        loop {
            let mut status = 0u32;
            const WNOHANG: u64 = 1;
            let pid = syscall!(sys::WAIT4, -1i64, &raw mut status, WNOHANG, 0);
            if pid <= 0 {
                return;
            }
            if (pid == self.pid || self.pid == 0) && !self.exited {
                self.exited = true;
                send(guard_message::CHILD_EXITED, status);
            }
        }
    }

    fn receive(&mut self) {
        let mut packet = Packet::new();
        let mut control = MaybeUninit::<Control>::uninit();
        let received = receive(GUARD_CONTROL_FD, &raw mut packet as u64,
            size_of::<Packet>() as u64, &mut control);
        let Some((_, count)) = received else {
            // Nobody is left who could give orders: without a child there is nothing to guard.
            if self.pid == 0 || self.exited {
                exit(0);
            }
            // The pager still is there (its pidfd says so) but has let go of the child.
            empty_namespace();
        };
        // SAFETY: plain integers; only `count` of them are used.
        let control = unsafe { &*control.as_ptr() };
        let a = packet.message.a;
        match packet.message.kind {
            guard_message::HOLD_FD if count == 1 && a < GUARD_SLOTS => {
                syscall!(sys::DUP3, control.fds[0], GUARD_SLOT_BASE + a as i32, 0x80000);
                syscall!(sys::CLOSE, control.fds[0]);
            }
            guard_message::DROP_FD if a < GUARD_SLOTS => {
                syscall!(sys::CLOSE, GUARD_SLOT_BASE + a as i32);
            }
            guard_message::END => empty_namespace(),
            guard_message::KEEP => self.keep = a == 1,
            guard_message::ADOPT if self.pid == 0 && count == 0 => self.pid = i64::from(a),
            guard_message::HOLD_MAIN if self.pid == 0 && count == 1 => {
                self.pid = i64::from(a);
                syscall!(sys::DUP3, control.fds[0], GUARD_QUEUE_FD, 0x80000);
                syscall!(sys::CLOSE, control.fds[0]);
            }
            guard_message::FORK if self.pid == 0 && count as u32 == packet.order.fd_count => {
                self.fork(&packet.order, &control.fds);
            }
            guard_message::FORK_TREE if self.pid == 0 && count >= 2 => {
                // A session for those of its processes that begin none.
                syscall!(bare sys::SETSID);
                self.fork_tree(a, packet.message.b, &control.fds, count as u32);
            }
            _ => exit(3),
        }
    }

    fn fork(&mut self, order: &ForkOrder, fds: &[i32; FDS_MAX]) {
        // The read side of this socket is never read: what waits in it stays open.
        let mut queue = [-1i32; 2];
        syscall!(sys::SOCKETPAIR, 1, 5 | 0x80000, 0, queue.as_mut_ptr());
        let set_tid = order.pid;
        let pid = clone_child(&set_tid, order, fds);
        if pid == 0 {
            place_fds(order, fds, queue[1]);
            map_region(order);
            enter(order, 0, ENTRY_RESTORE, self.vdso, self.generation);
        }
        self.forked(pid, &queue, fds, order.fd_count);
    }

    /// Makes the root of a tree, which makes its children, and so forth.
    fn fork_tree(&mut self, entries: u32, mounts: u64, fds: &[i32; FDS_MAX], count: u32) {
        let mut queue = [-1i32; 2];
        syscall!(sys::SOCKETPAIR, 1, 5 | 0x80000, 0, queue.as_mut_ptr());
        let pid = tree::make(fds[0]);
        if pid == 0 {
            tree::mount(mounts, fds, count);
            tree::grow(entries, fds, queue[1], self.vdso, self.generation);
        }
        self.forked(pid, &queue, fds, count);
    }

    /// The rest of what the guard does when it has made the main child.
    fn forked(&mut self, pid: i64, queue: &[i32; 2], fds: &[i32; FDS_MAX], count: u32) {
        syscall!(sys::CLOSE, queue[1]);
        close_all(fds, count);
        // Out of the way of the slots: it came behind all that was attached.
        if queue[0] > GUARD_QUEUE_FD {
            syscall!(sys::DUP3, queue[0], GUARD_QUEUE_FD, 0x80000);
            syscall!(sys::CLOSE, queue[0]);
        }
        if pid < 0 {
            send(guard_message::FORK_FAILED, (-pid) as u32);
            exit(0);
        }
        self.pid = pid;
    }
}

pub fn close_all(fds: &[i32; FDS_MAX], count: u32) {
    let mut i = 0;
    while i < count as usize && i < FDS_MAX {
        syscall!(sys::CLOSE, fds[i]);
        i += 1;
    }
}

/// A new process, a copy of this one, in the cgroup and with the pid of the order.
pub fn clone_child(set_tid: &i32, order: &ForkOrder, fds: &[i32; FDS_MAX]) -> i64 {
    let in_cgroup = (order.cgroup as usize) < FDS_MAX;
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: if in_cgroup { INTO_CGROUP } else { 0 }, pidfd: 0, child_tid: 0, parent_tid: 0,
        exit_signal: 17, stack: 0, stack_size: 0, tls: 0,
        set_tid: if *set_tid == 0 { 0 } else { set_tid as *const i32 as u64 },
        set_tid_size: u64::from(*set_tid != 0),
        cgroup: if in_cgroup { fds[order.cgroup as usize] as u64 } else { 0 },
    };
    syscall!(sys::CLONE3, &raw const args, size_of::<CloneArgs>())
}

/// In the new process: the attached descriptors to their places, all others closed.
pub fn place_fds(order: &ForkOrder, fds: &[i32; FDS_MAX], queue: i32) {
    let base = order.fd_base;
    let mut i = 0;
    let mut to = base;
    while i < order.fd_count as usize && i < FDS_MAX {
        if to - base == FD_GUARD_QUEUE {
            to = base + FD_PROVIDED;
        }
        if i as u32 != order.cgroup {
            if syscall!(sys::DUP3, fds[i], to, 0) < 0 {
                exit(124);
            }
            to += 1;
        }
        i += 1;
    }
    if queue >= 0 {
        syscall!(sys::DUP3, queue, base + FD_GUARD_QUEUE, 0);
    }
    syscall!(sys::CLOSE_RANGE, 0, base - 1, 0);
    block_signals();
}

/// No handler of the program may run until its thread leaves, by a frame that has the thread's own mask:
/// stacks of ours have no room for one, and whoever waits at the gate has no stack at all. What came so
/// far told of the processes that make a tree (the guard blocks it): let in once, it is ignored.
fn block_signals() {
    const SETMASK: u64 = 2;
    let (none, all) = (0u64, u64::MAX);
    syscall!(sys::SIGPROCMASK, SETMASK, &raw const none, 0, 8);
    syscall!(sys::SIGPROCMASK, SETMASK, &raw const all, 0, 8);
}

/// In a process just executed: room for the plan.
pub fn map_region(order: &ForkOrder) {
    const FIXED_NOREPLACE_ANON_PRIVATE: u64 = 0x100000 | 0x20 | 2;
    let at = syscall!(sys::MMAP, order.region, order.region_len, 7,
        FIXED_NOREPLACE_ANON_PRIVATE, -1i64, 0);
    if at as u64 != order.region {
        exit(123);
    }
}

/// Reads the plan into its region, from `from` on, and goes to an entry of the code in there.
pub fn enter(order: &ForkOrder, from: u64, entry: u64, vdso: u64, generation: u64) -> ! {
    let mut done = from;
    while done < order.image_len {
        let n = syscall!(sys::PREAD, order.fd_base + FD_PLAN, order.region + done,
            order.image_len - done, done);
        if n <= 0 {
            exit(122);
        }
        done += n as u64;
    }
    // SAFETY: the region begins with a copy of this image; its entry takes the plan and the vdso.
    unsafe {
        core::arch::asm!("jmp rax", in("rax") order.region + entry,
            in("rdi") order.region + order.plan_offset, in("rsi") vdso,
            in("rcx") generation, options(noreturn));
    }
}

/// Ends every other process of the namespace, waits until they are gone, and leaves.
fn empty_namespace() -> ! {
    const EPERM: i64 = -1;
    // Checked at the start: we are pid 1 of a namespace of our own.
    if syscall!(sys::KILL, -1i64, 9) == EPERM {
        // A child that has not entered the user namespace yet is not ours to kill. The kernel does.
        exit(0);
    }
    loop {
        if syscall!(sys::WAIT4, -1i64, 0, 0x4000_0000, 0) == -10 {
            exit(0);
        }
        syscall!(sys::KILL, -1i64, 9);
    }
}
