//! Runs inside the parent, in two steps, so that the parent stands still for little more than the
//! fork itself.
//!
//! First the leading thread says what only it can say and makes a helper, which shares memory,
//! directories and signal dispositions with the parent (CLONE_VM, CLONE_FS, CLONE_SIGHAND) but has
//! a copy of its fd table; the helper closes all of that and waits. Later, with the whole parent
//! stopped, the helper forks: so the shadow holds no file of the parent, and when the helper is
//! gone and reaped, the shadow belongs to init and the parent never had a child it could notice.

use crate::abi::{CaptureData, CaptureThread, SHARED_AREA, SharedPiece, TimerPlace};
use crate::sys::{self, syscall};

const PROT_READ: u64 = 1;
const RW: u64 = 3;
const PRIVATE_ANON_NORESERVE: u64 = 0x4022;
const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_SIGHAND: u64 = 0x800;
const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_NAME: u64 = 15;
const PR_GET_SECUREBITS: u64 = 27;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_GET_TIMERSLACK: u64 = 30;
const PR_MCE_KILL_GET: u64 = 34;
const PR_GET_NO_NEW_PRIVS: u64 = 39;
const PR_GET_SECCOMP: u64 = 21;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
/// Bits of the two words for memory nodes, plus the one that get_mempolicy(2) takes off.
const POLICY_NODES: u64 = 128;

/// rdi: the data; rsp: a stack of ours. Ends in a breakpoint that the tracer awaits. The tracer puts
/// the general registers back, and only these: the others, which the compiler may use to copy and
/// to clear, are kept here. (Its SSE instructions leave the upper halves of AVX registers alone.)
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "sub rsp, 512", "fxsave64 [rsp]",
        "call {main}", "fxrstor64 [rsp]", "int3", "ud2",
        main = sym leader);
}

/// As [`entry`], for the other threads.
#[unsafe(naked)]
pub unsafe extern "C" fn entry_thread() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "sub rsp, 512", "fxsave64 [rsp]",
        "call {main}", "fxrstor64 [rsp]", "int3", "ud2",
        main = sym describe_thread);
}

/// As [`entry`], for the timers.
#[unsafe(naked)]
pub unsafe extern "C" fn entry_timers() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "sub rsp, 512", "fxsave64 [rsp]",
        "call {main}", "fxrstor64 [rsp]", "int3", "ud2",
        main = sym describe_timers);
}

/// What of the timers only a thread of the process can say.
unsafe extern "C" fn describe_timers(data: *mut CaptureData) {
    // SAFETY: as in `describe_thread`.
    let out = unsafe { &mut *data };
    let base = out.itimers.as_mut_ptr();
    for which in 0..3usize {
        // SAFETY: which < 3.
        let slot = unsafe { base.add(which) };
        syscall!(sys::GETITIMER, which, slot);
    }
    let [table, count] = out.timers;
    let mut index = 0;
    while index < count {
        // SAFETY: the tracer made room for `count` of them.
        let place = unsafe { &mut *(table as *mut TimerPlace).add(index as usize) };
        syscall!(sys::TIMER_GETTIME, place.id, place.state.as_mut_ptr());
        index += 1;
    }
}

unsafe extern "C" fn describe_thread(out: *mut CaptureThread) {
    // SAFETY: the tracer passes its own region, which lives until this thread traps.
    let out = unsafe { &mut *out };
    syscall!(sys::PRCTL, PR_GET_TID_ADDRESS, &raw mut out.tid_address, 0, 0, 0);
    syscall!(sys::SIGALTSTACK, 0, out.altstack.as_mut_ptr());
    out.values[0] = syscall!(sys::PRCTL, PR_GET_TIMERSLACK, 0, 0, 0, 0);
    out.values[1] = syscall!(sys::PRCTL, PR_MCE_KILL_GET, 0, 0, 0, 0);
    out.values[2] = syscall!(sys::PRCTL, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    out.values[3] = syscall!(sys::PRCTL, PR_GET_SECCOMP, 0, 0, 0, 0);
    out.values[4] = syscall!(sys::PRCTL, PR_GET_SECUREBITS);
    out.policy = [0; 4];
    let (mode, nodes) = (&raw mut out.policy[1], &raw mut out.policy[2]);
    out.policy[0] = syscall!(sys::GET_MEMPOLICY, mode, nodes, POLICY_NODES, 0, 0) as u64;
}

unsafe extern "C" fn leader(data: *mut CaptureData) {
    // SAFETY: as above. The helper does not write before this thread has trapped.
    let out = unsafe { &mut *data };
    let mut word = 0i32;
    syscall!(sys::PRCTL, PR_GET_CHILD_SUBREAPER, &raw mut word);
    out.prctl[0] = i64::from(word);
    word = 0;
    syscall!(sys::PRCTL, PR_GET_PDEATHSIG, &raw mut word);
    out.prctl[1] = i64::from(word);
    out.prctl[2] = syscall!(sys::PRCTL, PR_GET_SECUREBITS);
    let thp = syscall!(sys::PRCTL, PR_GET_THP_DISABLE, 0, 0, 0, 0);
    out.prctl[3] = thp | syscall!(sys::PRCTL, PR_GET_DUMPABLE) << 8;
    out.values[0] = syscall!(sys::PRCTL, PR_GET_MDWE, 0, 0, 0, 0);
    out.values[1] = syscall!(sys::PRCTL, PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
    out.values[2] = 0;
    syscall!(sys::ARCH_PRCTL, ARCH_GET_XCOMP_PERM, &raw mut out.values[2]);
    // SAFETY: a field of the same region.
    unsafe { describe_thread(&raw mut out.thread) };
    out.timers = [0; 2];
    // SAFETY: the same region; no timer is asked for yet.
    unsafe { describe_timers(data) };
    out.helper = spawn_helper(out.helper_stack_top, data);
}

/// What may change until the fork is asked for right before it.
fn describe_process(out: &mut CaptureData) {
    out.brk = syscall!(sys::BRK, 0) as u64;
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
    // SAFETY: the helper runs on `stack_top`, which the tracer reserved for it and keeps mapped
    // until it has gone, and never returns from `helper`.
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
            in("rdi") CLONE_VM | CLONE_FS | CLONE_SIGHAND,
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
    // SAFETY: the tracer takes the trap and resumes behind it when the parent stands still; then
    // nobody else uses the data.
    let out = unsafe {
        core::arch::asm!("int3");
        &mut *data
    };
    describe_process(out);
    let pid = syscall!(sys::CLONE, out.shadow_flags, 0, 0, 0, 0);
    if pid == 0 {
        shadow(out);
    }
    out.shadow = pid;
    // SAFETY: as above. For a fork that failed: one that did not was told to the tracer already.
    unsafe { core::arch::asm!("int3") };
    loop {
        syscall!(sys::EXIT_GROUP, 0);
    }
}

/// Memory that is shared is not frozen by a fork: while the parent stands still the shadow copies
/// what holds data of it into private memory, which then takes the place of the mapping.
fn keep_shared([table, count]: [u64; 2]) -> i64 {
    let pieces = table as *const SharedPiece;
    // What the current area is copied to; 0 before the first.
    let (mut copy, mut area, mut len) = (0u64, 0u64, 0u64);
    let mut index = 0;
    while index < count {
        // SAFETY: the tracer wrote `count` pieces at `table`.
        let piece = unsafe { &*pieces.add(index as usize) };
        if piece.kind == SHARED_AREA {
            let done = replace(area, copy, len);
            if done < 0 {
                return done;
            }
            (area, len) = (piece.start, piece.len);
            let at = syscall!(sys::MMAP, 0, len, RW, PRIVATE_ANON_NORESERVE, -1i64, 0);
            let readable = syscall!(sys::MPROTECT, area, len, PROT_READ);
            if at < 0 || readable < 0 {
                return if at < 0 { at } else { readable };
            }
            copy = at as u64;
        } else {
            let to = copy + (piece.start - area);
            // SAFETY: the tracer keeps a piece within its area, and found data there: it is
            // mapped, and readable by now; `to` is as long and just mapped.
            unsafe {
                core::arch::asm!("rep movsb", inout("rcx") piece.len => _,
                    inout("rdi") to => _, inout("rsi") piece.start => _, options(nostack));
            }
        }
        index += 1;
    }
    replace(area, copy, len)
}

/// Puts the copy where the shared mapping was.
fn replace(area: u64, copy: u64, len: u64) -> i64 {
    const MAYMOVE_FIXED: u64 = 3;
    if len == 0 {
        return 0;
    }
    let at = syscall!(sys::MREMAP, copy, len, len, MAYMOVE_FIXED, area);
    if at < 0 { at } else { 0 }
}

/// The frozen copy; the tracer blocked all signals before. It traps once, for the tracer to let go
/// of it, and then waits for SIGKILL.
fn shadow(data: &mut CaptureData) -> ! {
    data.shared_result = keep_shared(data.shared);
    syscall!(bare sys::SETSID);
    let name = *b"mitosis-shadow\0\0";
    syscall!(sys::PRCTL, PR_SET_NAME, name.as_ptr());
    // SAFETY: the tracer takes the trap; the registers are not used afterwards.
    unsafe { core::arch::asm!("int3") };
    sleep()
}

/// How a shadow spends its life: it takes no signal but SIGKILL.
pub fn sleep() -> ! {
    let all = u64::MAX;
    loop {
        syscall!(sys::SIGSUSPEND, &raw const all, 8);
    }
}
