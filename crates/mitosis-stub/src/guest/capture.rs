//! Runs inside the stopped parent: says what only the process itself can say, then forks the
//! shadow by way of a short-lived helper, so that the parent never has a child it could notice.
//!
//! The helper shares memory with the parent (CLONE_VM) but has a copy of its fd table; it closes
//! all of that and forks. So the shadow holds no file of the parent, and when the helper is gone
//! and reaped, the shadow belongs to init.

use crate::abi::{CaptureData, CaptureThread};
use crate::sys::{self, syscall};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_VFORK: u64 = 0x4000;
const WALL: u64 = 0x4000_0000;
const PR_GET_PDEATHSIG: u64 = 2;
const PR_SET_NAME: u64 = 15;
const PR_GET_SECUREBITS: u64 = 27;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;

/// rdi: the data; rsp: a stack of ours. Ends in a breakpoint that the tracer awaits.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "int3", "ud2",
        main = sym leader);
}

/// As [`entry`], for the other threads.
#[unsafe(naked)]
pub unsafe extern "C" fn entry_thread() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "int3", "ud2",
        main = sym describe_thread);
}

unsafe extern "C" fn describe_thread(out: *mut CaptureThread) {
    // SAFETY: the tracer passes its own region, which lives until this thread traps.
    let out = unsafe { &mut *out };
    syscall!(sys::PRCTL, PR_GET_TID_ADDRESS, &raw mut out.tid_address, 0, 0, 0);
    syscall!(sys::SIGALTSTACK, 0, out.altstack.as_mut_ptr());
}

unsafe extern "C" fn leader(data: *mut CaptureData) {
    // SAFETY: as above. The helper writes through the same memory, but only while we wait for it.
    let out = unsafe { &mut *data };
    describe_process(out);
    // SAFETY: a field of the same region.
    unsafe { describe_thread(&raw mut out.thread) };
    if out.prctl[0] == 1 {
        // Else the orphaned shadow would become the parent's own child.
        syscall!(sys::PRCTL, PR_SET_CHILD_SUBREAPER, 0);
    }
    out.helper = spawn_helper(out.helper_stack_top, data);
    if out.helper > 0 {
        syscall!(sys::WAIT4, out.helper, 0, WALL, 0);
    }
    if out.prctl[0] == 1 {
        syscall!(sys::PRCTL, PR_SET_CHILD_SUBREAPER, 1);
    }
}

fn describe_process(out: &mut CaptureData) {
    out.brk = syscall!(sys::BRK, 0) as u64;
    let mut word = 0i32;
    syscall!(sys::PRCTL, PR_GET_CHILD_SUBREAPER, &raw mut word);
    out.prctl[0] = i64::from(word);
    word = 0;
    syscall!(sys::PRCTL, PR_GET_PDEATHSIG, &raw mut word);
    out.prctl[1] = i64::from(word);
    out.prctl[2] = syscall!(sys::PRCTL, PR_GET_SECUREBITS);
    out.prctl[3] = syscall!(sys::PRCTL, PR_GET_THP_DISABLE, 0, 0, 0, 0);
    let base = out.sigactions.as_mut_ptr();
    for signal in 1..=64usize {
        // SAFETY: signal - 1 < 64.
        let slot = unsafe { base.add(signal - 1) };
        syscall!(sys::SIGACTION, signal, 0, slot, 8);
    }
}

/// clone(2) of the helper on a stack of its own; returns in the parent only.
fn spawn_helper(stack_top: u64, data: *mut CaptureData) -> i64 {
    let result: i64;
    // SAFETY: the helper runs on `stack_top`, which the tracer reserved for it, and never returns
    // from `helper`; CLONE_VFORK keeps us asleep until it has gone.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {helper}",
            "ud2",
            "2:",
            helper = sym helper,
            inlateout("rax") sys::CLONE => result,
            in("rdi") CLONE_VM | CLONE_FS | CLONE_VFORK,
            in("rsi") stack_top,
            in("rdx") 0u64, in("r10") 0u64, in("r8") 0u64,
            in("r12") data,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

unsafe extern "C" fn helper(data: *mut CaptureData) -> ! {
    syscall!(sys::CLOSE_RANGE, 0, u32::MAX, 0);
    // SAFETY: memory is shared with the parent, which sleeps in vfork.
    let flags = unsafe { (*data).shadow_flags };
    let pid = syscall!(sys::CLONE, flags, 0, 0, 0, 0);
    if pid == 0 {
        shadow();
    }
    // SAFETY: memory is shared with the parent, which sleeps in vfork.
    unsafe { (*data).shadow = pid };
    loop {
        syscall!(sys::EXIT_GROUP, 0);
    }
}

/// The frozen copy; the tracer blocked all signals before. It traps once, for the tracer to let go of it, and then waits for SIGKILL.
fn shadow() -> ! {
    syscall!(bare sys::SETSID);
    let name = *b"mitosis-shadow\0\0";
    syscall!(sys::PRCTL, PR_SET_NAME, name.as_ptr());
    // SAFETY: the tracer takes the trap; the registers are not used afterwards.
    unsafe { core::arch::asm!("int3") };
    let all = u64::MAX;
    loop {
        syscall!(sys::SIGSUSPEND, &raw const all, 8);
    }
}
