//! Builds a child from inside: performs the plan's tables of operations, makes the threads, opens
//! the gate for all of them at once and leaves through rt_sigreturn at the parent's instruction.

use crate::abi::*;
use crate::sys::{self, syscall};
use core::sync::atomic::{AtomicU32, Ordering};

/// rdi: the plan; rsi: address of the process's vdso; rcx: its generation number. Switches to the
/// plan's stack.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!(
        // rsp <- threads[0].stack_top
        "mov rax, [rdi + {threads}]",
        "add rax, [rdi + {region}]",
        "mov rsp, [rax + {stack_top}]",
        "mov rdx, rcx",
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        threads = const core::mem::offset_of!(Plan, threads),
        region = const core::mem::offset_of!(Plan, region),
        stack_top = const core::mem::offset_of!(ThreadPlan, stack_top),
        main = sym main,
    );
}

pub struct Frame {
    pub slots: [u64; SLOTS],
    pub status: Status,
}

impl Frame {
    /// All zero. By hand: the compiler would call memset, which would need a relocation.
    #[inline(always)]
    pub fn new() -> Frame {
        let mut frame = core::mem::MaybeUninit::<Frame>::uninit();
        let bytes = core::mem::size_of::<Frame>();
        // SAFETY: fills exactly the frame; all-zero integers are valid.
        unsafe {
            core::arch::asm!("rep stosb", inout("rcx") bytes => _,
                inout("rdi") frame.as_mut_ptr() => _, in("al") 0u8, options(nostack));
            frame.assume_init()
        }
    }
}

unsafe extern "C" fn main(plan: *const Plan, vdso: u64, generation: u64) -> ! {
    // SAFETY: the node wrote the plan; it stays as it is until the region is unmapped.
    let plan = unsafe { &*plan };
    let mut frame = Frame::new();
    frame.status.times[0] = sys::now();
    frame.slots[SLOT_VDSO] = vdso;
    run(plan, plan.build, LIST_BUILD, &mut frame);
    let threads = (plan.region + plan.threads.0) as *const ThreadPlan;
    // SAFETY: entry 0 always exists.
    let me = unsafe { &*threads };
    let mut index = 1;
    while index < plan.threads.1 {
        // SAFETY: index < count.
        spawn(plan, unsafe { threads.add(index as usize) }, index, &frame.status);
        index += 1;
    }
    run(plan, me.ops, LIST_THREAD, &mut frame);
    // SAFETY: the gate lies in the region.
    let ready = unsafe { &*(plan.gate as *const AtomicU32) };
    while u64::from(ready.load(Ordering::Acquire)) + 1 < plan.threads.1 {
        let seen = ready.load(Ordering::Acquire);
        if u64::from(seen) + 1 < plan.threads.1 {
            syscall!(sys::FUTEX, plan.gate, 0, seen, 0, 0, 0);
        }
    }
    frame.status.times[3] = sys::now();
    run(plan, plan.identity, LIST_IDENTITY, &mut frame);
    frame.status.times[4] = sys::now();
    frame.status.kind = STATUS_STARTED;
    report(plan.status_fd, &frame.status);
    run(plan, plan.finish, LIST_FINISH, &mut frame);
    // SAFETY: the gate lies in the region; no thread but this one touches that word.
    unsafe { (&raw mut (*(plan.gate as *mut Gate)).generation).write(generation) };
    // SAFETY: everything is in place; this is the way out.
    unsafe { leave(plan.gate + 4, plan.resident_end, plan.region_end, me.frame + 8) }
}

/// A thread's [`LastCall`]s, whose address is in the word below what `rbx` holds; changes `rbp` and what
/// calls change. Without a stack: by a jump to the label 8 behind it.
macro_rules! last_calls {
    () => {
        "mov rbp, [rbx - 8]
        xor r10d, r10d
        xor r8d, r8d
        xor r9d, r9d
        test rbp, rbp
        jz 8f
        7:
        mov rax, [rbp]
        test rax, rax
        jz 8f
        mov rdi, [rbp + 8]
        mov rsi, [rbp + 16]
        mov rdx, [rbp + 24]
        syscall
        add rbp, 32
        test rax, rax
        jz 7b
        ud2
        8:"
    };
}
const _: () = assert!(core::mem::size_of::<LastCall>() == 32);

/// Drops what is not needed of the region, installs the tenant's seccomp filters and gives away what only
/// that needed, opens the gate and returns to the parent's instruction. Under a filter only what the planner
/// has found to be let through is called any more, with all arguments that are not used 0, and what the
/// program's hooks call.
#[unsafe(naked)]
unsafe extern "C" fn leave(go: u64, resident: u64, end: u64, frame: u64) -> ! {
    core::arch::naked_asm!(
        "mov r12, rdi", "mov r14, rsi", "mov r15, rdx", "mov rbx, rcx",
        // munmap(resident, end - resident): no stack from here on.
        "mov eax, 11", "mov rdi, r14", "mov rsi, r15", "sub rsi, r14", "syscall",
        last_calls!(),
        // Threads that confine themselves: before the program runs, which could write to their lists.
        "mov eax, [r12 + {confine}]", "test eax, eax", "jz 6f",
        "mov dword ptr [r12 + {begin}], 1",
        "5:", "pause", "cmp [r12 + {done}], eax", "jb 5b",
        "6:",
        // The program's own hooks, on its own stack.
        "cmp qword ptr [r12 + {hooks}], 0", "je 6f",
        "mov rsp, [r12 + {stack}]", "lea rdi, [r12 - 4]", "call {run}",
        "6:",
        "mov r13, [r12 + {awake}]",
        "mov dword ptr [r12], 1",
        "xor r10d, r10d", "xor r8d, r8d", "xor r9d, r9d",
        "test r13, r13", "jnz 5f",
        // futex(go, FUTEX_WAKE, INT_MAX)
        "mov eax, 202", "mov rdi, r12", "mov esi, 1", "mov edx, 0x7fffffff", "syscall",
        "5:",
        // What may wait for another thread.
        "cmp qword ptr [r12 + {late}], 0", "je 4f",
        "mov rsp, [r12 + {stack}]", "lea rdi, [r12 - 4]", "call {run_late}",
        "xor r10d, r10d", "xor r8d, r8d", "xor r9d, r9d",
        "4:",
        // exit(code), where uc_link, which nobody reads, is the code plus one.
        "xor esi, esi", "xor edx, edx",
        "mov rdi, [rbx + 8]", "dec rdi", "js 9f",
        "mov eax, 60", "syscall", "ud2",
        "9:",
        "xor edi, edi",
        "mov rsp, rbx", "mov eax, 15", "syscall", "ud2",
        awake = const core::mem::offset_of!(Gate, awake) - core::mem::offset_of!(Gate, go),
        // From the go word.
        hooks = const core::mem::offset_of!(Gate, hooks) - core::mem::offset_of!(Gate, go),
        stack = const core::mem::offset_of!(Gate, stack) - core::mem::offset_of!(Gate, go),
        run = sym crate::hook::run,
        late = const core::mem::offset_of!(Gate, late) + 8 - core::mem::offset_of!(Gate, go),
        run_late = sym crate::hook::run_late,
        confine = const core::mem::offset_of!(Gate, confine) - core::mem::offset_of!(Gate, go),
        begin = const core::mem::offset_of!(Gate, begin) - core::mem::offset_of!(Gate, go),
        done = const core::mem::offset_of!(Gate, done) - core::mem::offset_of!(Gate, go),
    );
}

/// A thread's way out: says that it is ready, confines itself further than all threads are when it is its time,
/// waits for the gate without a stack, then returns through its frame. From the moment it is ready the leader
/// may unmap the plan and all stacks: only registers, the gate and the frame are used. Where a filter will be
/// installed that forbids futex(2) it must not be asleep in a call that nobody may end: it spins.
#[unsafe(naked)]
unsafe extern "C" fn leave_thread(go: u64, frame: u64) -> ! {
    core::arch::naked_asm!(
        "mov r12, rdi", "mov rbx, rsi", "mov r13, [rdi + {awake}]", "mov r14d, [rdi + {confine}]",
        "xor r8d, r8d", "xor r9d, r9d",
        // The count of the ready is the word before the gate; futex(count, FUTEX_WAKE, 1).
        "lock inc dword ptr [r12 - 4]",
        "mov eax, 202", "lea rdi, [r12 - 4]", "mov esi, 1", "mov edx, 1", "syscall",
        "test r14d, r14d", "jz 2f",
        "4:", "pause", "cmp dword ptr [r12 + {begin}], 0", "je 4b",
        last_calls!(),
        "lock inc dword ptr [r12 + {done}]",
        "2:",
        "cmp dword ptr [r12], 0", "jne 3f",
        "pause",
        "test r13, r13", "jnz 2b",
        "mov eax, 202", "mov rdi, r12", "xor esi, esi", "xor edx, edx", "xor r10d, r10d", "syscall",
        "jmp 2b",
        "3:",
        "xor edi, edi", "xor esi, esi", "xor edx, edx", "xor r10d, r10d",
        "mov rsp, rbx", "mov eax, 15", "syscall", "ud2",
        awake = const core::mem::offset_of!(Gate, awake) - core::mem::offset_of!(Gate, go),
        confine = const core::mem::offset_of!(Gate, confine) - core::mem::offset_of!(Gate, go),
        begin = const core::mem::offset_of!(Gate, begin) - core::mem::offset_of!(Gate, go),
        done = const core::mem::offset_of!(Gate, done) - core::mem::offset_of!(Gate, go),
    );
}

#[repr(C)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
const THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000;

fn spawn(plan: &Plan, thread: *const ThreadPlan, index: u64, status: &Status) {
    // SAFETY: points into the plan.
    let t = unsafe { &*thread };
    let tid = t.tid;
    let args = CloneArgs {
        flags: THREAD_FLAGS, pidfd: 0, child_tid: 0, parent_tid: 0, exit_signal: 0,
        stack: t.stack_top - STACK_BYTES, stack_size: STACK_BYTES, tls: 0,
        set_tid: if tid == 0 { 0 } else { &raw const tid as u64 },
        set_tid_size: u64::from(tid != 0), cgroup: 0,
    };
    let result: i64;
    // SAFETY: the new thread runs on its own stack and never returns from `thread_main`.
    unsafe {
        core::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f",
            "xor ebp, ebp", "mov rdi, r12", "mov rsi, r13", "mov rdx, r14", "call {main}", "ud2",
            "2:",
            main = sym thread_main,
            inlateout("rax") sys::CLONE3 => result,
            in("rdi") &raw const args, in("rsi") core::mem::size_of::<CloneArgs>(),
            in("r12") plan, in("r13") thread, in("r14") index,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if result < 0 {
        fail(plan, status, LIST_THREAD + index as u32, u64::MAX, result);
    }
}

/// Bytes of stack of each thread until it leaves.
const STACK_BYTES: u64 = 2048;

unsafe extern "C" fn thread_main(plan: *const Plan, thread: *const ThreadPlan, index: u64) -> ! {
    // SAFETY: both lie in the region.
    let (plan, thread) = unsafe { (&*plan, &*thread) };
    let mut frame = Frame::new();
    run(plan, thread.ops, LIST_THREAD + index as u32, &mut frame);
    if thread.flags & THREAD_OTHER == 0 {
        run(plan, plan.identity, LIST_IDENTITY, &mut frame);
    }
    // SAFETY: the planner wrote it; it changes with `go` at the earliest.
    let gate = unsafe { &*(plan.gate as *const Gate) };
    if gate.capset != 0 && thread.flags == 0 {
        // Only who installs filters needs more than what is left in the end.
        let result = syscall!(sys::CAPSET, gate.capset, gate.capset + 8);
        if result < 0 {
            fail(plan, &frame.status, LIST_THREAD + index as u32, u64::MAX, result);
        }
    }
    // SAFETY: the frame is this thread's own.
    unsafe { leave_thread(plan.gate + 4, thread.frame + 8) }
}

pub fn run(plan: &Plan, list: (u64, u64), name: u32, frame: &mut Frame) {
    let ops = (plan.region + list.0) as *const Op;
    let mut index = 0;
    while index < list.1 {
        // SAFETY: index < count.
        let op = unsafe { &*ops.add(index as usize) };
        let result = perform(op, frame);
        if op.save != SAVE_NONE {
            frame.slots[op.save as usize & (SLOTS - 1)] = result as u64;
        }
        let wrong = if op.flags & OP_EXPECT != 0 { result as u64 != op.expect } else { result < 0 };
        if wrong && op.flags & OP_IGNORE == 0 {
            fail(plan, &frame.status, name, index, result);
        }
        index += 1;
    }
}

fn perform(op: &Op, frame: &mut Frame) -> i64 {
    let value = frame.slots[op.slot as usize & (SLOTS - 1)];
    if op.flags & OP_TIME != 0 {
        let now = sys::now();
        let index = if op.args[0] < 6 { op.args[0] as usize } else { 5 };
        frame.status.times[index] = now;
        return 0;
    }
    if op.flags & OP_STORE32 != 0 {
        // SAFETY: the planner names an address of the child's own memory.
        unsafe { (op.args[0] as *mut u32).write_volatile(value as u32) };
        return 0;
    }
    if op.flags & OP_ADOPTED != 0 {
        return adopted();
    }
    let mut args = op.args;
    let mut bit = 0;
    while bit < 6 {
        if op.flags & (1 << bit) != 0 {
            args[bit] = args[bit].wrapping_add(value);
        }
        bit += 1;
    }
    if op.flags & OP_ENDED != 0 {
        return ended(args[0] as i32);
    }
    if op.flags & OP_LOAD != 0 {
        // SAFETY: the planner names an address at which the child has a word.
        return unsafe { (args[0] as *const i64).read_volatile() };
    }
    // SAFETY: this is the child's own, new address space; the plan may do what it likes in it.
    unsafe { sys::call(u64::from(op.nr), args) }
}

/// Waits until the process that made this one is gone, and so its parent is the guard.
pub fn adopted() -> i64 {
    let mut turn = 0;
    while turn < 1_000_000 {
        if syscall!(bare sys::GETPPID) == 1 {
            return 0;
        }
        syscall!(bare sys::SCHED_YIELD);
        turn += 1;
    }
    -110 // ETIMEDOUT
}

/// A pidfd of a process of this namespace that has ended and been waited for; or one with a pid, which is
/// still to be waited for.
fn ended(pid: i32) -> i64 {
    const VM_PIDFD_VFORK: u64 = 0x100 | 0x1000 | 0x4000;
    const WALL: u64 = 0x4000_0000;
    let mut pidfd = -1i32;
    let args = CloneArgs {
        flags: VM_PIDFD_VFORK, pidfd: &raw mut pidfd as u64, child_tid: 0, parent_tid: 0,
        exit_signal: 0, stack: 0, stack_size: 0, tls: 0,
        set_tid: if pid == 0 { 0 } else { &raw const pid as u64 },
        set_tid_size: u64::from(pid != 0), cgroup: 0,
    };
    let made: i64;
    // SAFETY: the process does not touch memory: it ends with its first instructions, and this one
    // waits until it has.
    unsafe {
        core::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f",
            "mov eax, 60", "xor edi, edi", "syscall", "ud2",
            "2:",
            inlateout("rax") sys::CLONE3 => made,
            inlateout("rdi") &raw const args => _, in("rsi") core::mem::size_of::<CloneArgs>(),
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if made < 0 {
        return made;
    }
    // SAFETY: the kernel wrote it.
    let pidfd = i64::from(unsafe { (&raw const pidfd).read_volatile() });
    if pid != 0 {
        syscall!(sys::CLOSE, pidfd);
        return made;
    }
    syscall!(sys::WAIT4, made, 0, WALL, 0);
    pidfd
}

fn fail(plan: &Plan, status: &Status, list: u32, op: u64, result: i64) -> ! {
    let mut status = *status;
    status.kind = STATUS_FAILED;
    status.list = list;
    status.op = op;
    status.result = result;
    report(plan.status_fd, &status);
    loop {
        syscall!(sys::EXIT_GROUP, 126);
    }
}

pub fn report(fd: i32, status: &Status) {
    syscall!(sys::WRITE, fd, status as *const Status, core::mem::size_of::<Status>());
}
