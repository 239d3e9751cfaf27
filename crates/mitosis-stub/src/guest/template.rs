//! A template: a process that has the memory that children of a seed begin with, and runs nothing
//! but this loop. On order it makes a child, which is a copy of it, in the namespaces of a guard.
//!
//! The template itself enters no namespace but for its children's pids. Another process, which
//! shares its memory and its descriptors for that moment, enters them and makes the child; when it ends, the child
//! becomes the guard's.
//!
//! A child of a guard that has none of the node's rights is made in the same way, by a process that is not
//! a template and has nothing that the child could begin with.

use crate::abi::*;
use crate::guard::{self, Control, FDS_MAX, exit};
use crate::restore::{CloneArgs, Frame, adopted, report, run};
use crate::sys::{self, syscall};
use crate::tree;
use core::mem::MaybeUninit;

/// The status socket of a template, on which orders come, in its loop.
const ORDERS: i32 = 3;
const NEWPID: u64 = 0x2000_0000;
/// NEWNS | NEWUTS | NEWIPC | NEWNET
const OTHERS: u64 = 0x2_0000 | 0x400_0000 | 0x800_0000 | 0x4000_0000;

/// With `FORK` without what follows the [`ForkOrder`] in it.
#[repr(C, align(8))]
struct Begin {
    message: GuardMessage,
    order: TemplateOrder,
}

/// In a process just executed: takes its one order, as a guard would, and becomes what it says.
pub fn begin(vdso: u64) -> ! {
    // What ps(1) shows: its arguments go with the rest of this program's memory.
    const NAME: &[u8; 16] = b"mitosis-templat\0";
    const PR_SET_NAME: u64 = 15;
    let name = *NAME;
    syscall!(sys::PRCTL, PR_SET_NAME, name.as_ptr());
    let mut packet = MaybeUninit::<Begin>::uninit();
    let mut control = MaybeUninit::<Control>::uninit();
    let (to, len) = (packet.as_mut_ptr() as u64, size_of::<Begin>());
    let received = guard::receive(GUARD_CONTROL_FD, to, len as u64, &mut control);
    // SAFETY: plain integers, all of them received; only as many descriptors are used as came.
    let (packet, control) = unsafe { (&*packet.as_ptr(), &*control.as_ptr()) };
    let order = &packet.order.fork;
    let short = size_of::<GuardMessage>() + size_of::<ForkOrder>();
    match received {
        Some((n, count)) if n == short && count == order.fd_count as usize => {}
        Some((n, count)) if n == len && packet.message.kind >= guard_message::MAKE => {
            make_one(packet, &control.fds, count, vdso)
        }
        _ => exit(3),
    }
    guard::place_fds(order, &control.fds, -1);
    guard::map_region(order);
    guard::enter(order, 0, ENTRY_TEMPLATE, vdso, 0)
}

/// Makes a child from nothing, or the root of a tree, and is no template.
fn make_one(packet: &Begin, fds: &[i32; FDS_MAX], count: usize, vdso: u64) -> ! {
    const ANON_PRIVATE: u64 = 0x22;
    let order = &packet.order;
    let stack = syscall!(sys::MMAP, 0, TEMPLATE_STACKS / 2, 3, ANON_PRIVATE, -1i64, 0);
    if stack < 0 || order.fork.fd_count < 3 || count != order.fork.fd_count as usize + 2 {
        exit(3);
    }
    let is_tree = packet.message.kind == guard_message::MAKE_TREE;
    let tree = if is_tree { Some((packet.message.a, packet.message.b)) } else { None };
    obey(order, fds, stack as u64 + TEMPLATE_STACKS / 2, Some(Fresh { vdso, tree }));
    exit(0)
}

/// rdi: the plan; rsi: address of the process's vdso. Its stack is at the end of the region.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!(
        "mov rsp, [rdi + {end}]", "xor ebp, ebp", "call {main}", "ud2",
        end = const core::mem::offset_of!(Plan, region_end),
        main = sym main,
    );
}

unsafe extern "C" fn main(plan: *const Plan, vdso: u64) -> ! {
    // SAFETY: the node wrote the plan; this is its last use before it goes.
    let plan = unsafe { &*plan };
    let mut frame = Frame::new();
    frame.status.times[0] = sys::now();
    frame.slots[SLOT_VDSO] = vdso;
    run(plan, plan.build, LIST_BUILD, &mut frame);
    syscall!(sys::DUP3, plan.status_fd, ORDERS, 0x80000);
    syscall!(sys::CLOSE_RANGE, ORDERS + 1, u32::MAX, 0);
    frame.status.times[4] = sys::now();
    frame.status.kind = STATUS_STARTED;
    report(ORDERS, &frame.status);
    let (from, end) = (plan.resident_end, plan.region_end);
    // Its plan is done: where the children's are to be there is nothing to copy.
    const DONTNEED: u64 = 4;
    syscall!(sys::MADVISE, from, end - TEMPLATE_STACKS - from, DONTNEED);
    while serve(end - TEMPLATE_STACKS / 2) {}
    exit(0)
}

/// rdi: one past the end of the region, where its stack is.
#[unsafe(naked)]
pub unsafe extern "C" fn entry_serve() {
    core::arch::naked_asm!("mov rsp, rdi", "xor ebp, ebp", "call {main}", "ud2",
        main = sym serve_frozen);
}

/// A shadow, which has all the memory. It outlives those who give it orders, for its pages are needed:
/// then it waits as before, for SIGKILL or another socket.
unsafe extern "C" fn serve_frozen(end: u64) -> ! {
    while serve(end - TEMPLATE_STACKS / 2) {}
    syscall!(sys::CLOSE_RANGE, 0, u32::MAX, 0);
    let all = u64::MAX;
    loop {
        syscall!(sys::SIGSUSPEND, &raw const all, 8);
    }
}

#[derive(Clone, Copy)]
struct Fresh {
    /// Where its vdso is.
    vdso: u64,
    /// It is the root of a tree of so many processes, with these file systems.
    tree: Option<(u32, u64)>,
}

/// What the process that makes the child is told, and tells: they share their memory.
struct Job<'a> {
    order: &'a TemplateOrder,
    fds: &'a [i32; FDS_MAX],
    /// Of a process that has no region yet, for a child that begins with nothing.
    fresh: Option<Fresh>,
    failed: u64,
    result: i64,
}

impl Job<'_> {
    /// Descriptor `n` behind those of the child: 0 the guard's pidfd, 1 the queue.
    fn behind(&self, n: usize) -> i32 {
        let at = self.order.fork.fd_count as usize + n;
        if at < FDS_MAX { self.fds[at] } else { -1 }
    }

    fn guard(&self) -> i32 {
        self.behind(0)
    }

    /// Where a failure is told: of a tree, the last of those before the guard's.
    fn status(&self) -> i32 {
        let last = self.order.fork.fd_count as usize - 1;
        let at = if let Some(Fresh { tree: Some(_), .. }) = self.fresh { last } else { FD_STATUS as usize };
        self.fds[at % FDS_MAX]
    }
}

/// Takes one order and makes a child. False: there is nobody any more who could give one.
fn serve(maker_stack: u64) -> bool {
    let mut order = MaybeUninit::<TemplateOrder>::uninit();
    let mut control = MaybeUninit::<Control>::uninit();
    let (to, len) = (order.as_mut_ptr() as u64, size_of::<TemplateOrder>());
    let received = guard::receive(ORDERS, to, len as u64, &mut control);
    // SAFETY: plain integers, all of them received; only as many descriptors are used as came.
    let (order, control) = unsafe { (&*order.as_ptr(), &*control.as_ptr()) };
    let (own, fds) = (order.fork.fd_count as usize, &control.fds);
    match received {
        Some((n, count)) if n == len && own >= 3 && count == own + 2 => {}
        Some(_) => exit(3),
        None => return false,
    }
    obey(order, fds, maker_stack, None);
    true
}

/// Makes the child of an order. `maker_stack`: one past the end of where the maker's is.
fn obey(order: &TemplateOrder, fds: &[i32; FDS_MAX], maker_stack: u64, fresh: Option<Fresh>) {
    let mut job = Job { order, fds, fresh, failed: MAKE_ENTER_PID, result: 0 };
    job.result = syscall!(sys::SETNS, job.guard(), NEWPID);
    if job.result >= 0 {
        make(&mut job, maker_stack);
    }
    if job.result < 0 {
        let mut frame = Frame::new();
        frame.status.kind = STATUS_FAILED;
        frame.status.list = LIST_MAKE;
        frame.status.op = job.failed;
        frame.status.result = job.result;
        report(job.status(), &frame.status);
        guard::close_all(fds, order.fork.fd_count + 2);
    }
}

/// Makes the maker and waits until it is gone.
fn make(job: &mut Job<'_>, maker_stack: u64) {
    const VM_FILES_VFORK: u64 = 0x100 | 0x400 | 0x4000;
    let pid = job.order.maker_pid;
    let args = CloneArgs {
        flags: VM_FILES_VFORK, pidfd: 0, child_tid: 0, parent_tid: 0, exit_signal: 17,
        stack: maker_stack - TEMPLATE_STACKS / 2, stack_size: TEMPLATE_STACKS / 2, tls: 0,
        set_tid: &raw const pid as u64, set_tid_size: 1, cgroup: 0,
    };
    job.failed = MAKE_MAKER;
    let made: i64;
    // SAFETY: the maker runs on a stack of its own and never returns from `maker`; this process waits
    // until it has ended, so `job` outlives its use.
    unsafe {
        core::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f",
            "xor ebp, ebp", "mov rdi, r12", "call {maker}", "ud2",
            "2:",
            maker = sym maker,
            inlateout("rax") sys::CLONE3 => made,
            in("rdi") &raw const args, in("rsi") size_of::<CloneArgs>(),
            in("r12") core::ptr::from_mut(job),
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if made < 0 {
        job.result = made;
        return;
    }
    syscall!(sys::WAIT4, made, 0, 0, 0);
}

unsafe extern "C" fn maker(job: *mut Job<'_>) -> ! {
    // SAFETY: the template waits meanwhile.
    let job = unsafe { &mut *job };
    job.failed = MAKE_ENTER;
    job.result = syscall!(sys::SETNS, job.guard(), OTHERS);
    if job.result >= 0 {
        job.failed = MAKE_CHILD;
        if let Some(Fresh { vdso, tree: Some((entries, mounts)) }) = job.fresh {
            // A session for those of its processes that begin none.
            syscall!(bare sys::SETSID);
            job.result = tree::make(job.fds[0]);
            if job.result == 0 {
                if adopted() < 0 {
                    exit(125);
                }
                tree::mount(mounts, job.fds, job.order.fork.fd_count - 1);
                tree::grow(entries, job.fds, job.behind(1), vdso, job.order.generation);
            }
            exit(0);
        }
        let set_tid = job.order.fork.pid;
        let pid = guard::clone_child(&set_tid, &job.order.fork, job.fds);
        if pid == 0 {
            // From here on a copy: of the job, of the stack, of everything.
            guard::place_fds(&job.order.fork, job.fds, job.behind(1));
            let (order, generation) = (&job.order.fork, job.order.generation);
            if let Some(Fresh { vdso, .. }) = job.fresh {
                guard::map_region(order);
                guard::enter(order, 0, ENTRY_RESTORE, vdso, generation);
            }
            guard::enter(order, job.order.shared_len, ENTRY_RESTORE, 0, generation);
        }
        job.result = pid;
        if pid > 0 {
            // In the template, too: when the child goes on, nothing that it holds is held elsewhere.
            guard::close_all(job.fds, job.order.fork.fd_count + 2);
        }
    }
    exit(0)
}
