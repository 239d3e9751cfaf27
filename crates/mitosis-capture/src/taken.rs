//! What is read of threads that stand still.

use crate::timers::Timers;
use mitosis_descriptor::{Registers, Sched, SigInfo};
use mitosis_sys::procfs::{self, Status};
use mitosis_sys::ptrace::{Stopped, UserRegs, robust_list};
use mitosis_sys::{SysError, cpu, sched};

/// What was read of one thread.
#[derive(Clone)]
pub(crate) struct TakenThread {
    /// Id in its own pid namespace.
    pub tid: i32,
    /// Id as we see it.
    pub host_tid: i32,
    /// As it will run on: an interrupted wait that would show EINTR is rewound.
    pub regs: UserRegs,
    pub xstate: Vec<u8>,
    pub sigmask: u64,
    pub rseq: (u64, u32, u32),
    pub robust_list: (u64, u64),
    pub name: Vec<u8>,
    pub pending: Vec<SigInfo>,
    pub seccomp: Vec<Vec<u64>>,
    pub sched: Sched,
    /// The call that it makes again, where the kernel only says that it makes one again.
    pub restarts: Option<u64>,
    /// It holds AMX tile data, which is not carried.
    pub tiles_in_use: bool,
    /// What it may do, among else; not of the main thread.
    pub status: Option<Status>,
}

/// A wait with a time-out that our first stop interrupted. The kernel goes on with what is left of
/// it by restart_syscall(2), which means nothing in a child.
#[derive(Clone, Copy)]
pub(crate) struct Interrupted {
    /// Behind the `syscall` instruction.
    rip: u64,
    call: u64,
}

const RESTART_SYSCALL: u64 = 219;

impl Taken {
    /// What of the leading thread the next stop must know.
    pub(crate) fn interrupted(&self) -> Option<Interrupted> {
        let regs = &self.threads.first()?.regs;
        let restarts = regs.orig_rax as i64 >= 0 && regs.rax as i64 == -516;
        let call = Interrupted { rip: regs.rip, call: regs.orig_rax };
        (restarts && call.call != RESTART_SYSCALL).then_some(call)
    }
}

impl Interrupted {
    /// The call that a thread with such registers makes again, if it is this one.
    fn again(self, regs: &UserRegs) -> Option<u64> {
        let inside = regs.orig_rax == RESTART_SYSCALL && regs.rip == self.rip && restarts(regs.rax);
        let before = regs.rax == RESTART_SYSCALL && regs.rip == self.rip - 2;
        (inside || before).then_some(self.call)
    }
}

/// What was read of the process.
#[derive(Default)]
pub(crate) struct Taken {
    pub threads: Vec<TakenThread>,
    /// Signals that wait for the process.
    pub pending: Vec<SigInfo>,
    pub timers: Timers,
    /// Each thread waited in a system call.
    pub idle: bool,
    /// The leading one did.
    pub main_waits: bool,
}

impl Taken {
    /// Names and scheduling of the threads, read when they run again: these are not worth a longer
    /// stop.
    pub(crate) fn name_threads(&mut self, pid: i32) {
        for thread in &mut self.threads {
            let comm = procfs::text(pid, &format!("task/{}/comm", thread.host_tid));
            let comm = comm.or_else(|_| procfs::text(pid, "comm")).unwrap_or_default();
            thread.name = comm.trim_end_matches('\n').as_bytes().to_vec();
            // Of a thread that has ended since nothing is known any more.
            thread.sched = sched::scheduling(thread.host_tid).map(described).unwrap_or_default();
        }
    }
}

/// SIGKILL and SIGSTOP are no state to be carried.
pub(crate) fn waiting(signals: Vec<[u8; 128]>) -> Vec<SigInfo> {
    let trimmed = |info: [u8; 128]| {
        let len = info.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        SigInfo(info[..len].to_vec())
    };
    let carried = |info: &SigInfo| !matches!(info.signal(), 0 | 9 | 19);
    signals.into_iter().map(trimmed).filter(carried).collect()
}

fn described(all: sched::Scheduling) -> Sched {
    let sched::Scheduling { policy, flags, nice, priority, ioprio, cpus, reservation } = all;
    /// `RESET_ON_FORK`, `RECLAIM`, `DL_OVERRUN`.
    const FLAGS: u64 = 1 | 2 | 4;
    let may_run_on: u32 = cpus.iter().map(|word| word.count_ones()).sum();
    let everywhere = may_run_on >= sched::cpus_online();
    let cpus = if everywhere { Vec::new() } else { cpus };
    Sched { policy, flags: flags & FLAGS, nice, priority, ioprio, cpus, reservation }
}

/// Reads a thread; and whether it waited in a system call.
pub(crate) fn take_thread(
    pid: i32,
    stopped: &Stopped,
    foreign: bool,
    before: Option<Interrupted>,
) -> Result<(TakenThread, bool), SysError> {
    let host_tid = stopped.tid();
    let sigmask = stopped.sigmask()?;
    let mut regs = stopped.regs()?;
    let restarts = before.and_then(|before| before.again(&regs));
    let idle = match restarts {
        Some(call) => WAITS.contains(&call),
        None => waits(&regs) || is_about_to_wait(pid, &regs),
    };
    if shows_eintr(&regs) && !signal_pending(pid, host_tid, sigmask)? {
        regs.rax = regs.orig_rax;
        regs.rip -= 2;
        regs.orig_rax = u64::MAX;
    }
    let mut xstate = stopped.xstate()?;
    let tiles_in_use = tiles_in_use(&xstate);
    trim_xstate(&mut xstate);
    // Of the main thread the shadow tells.
    let wanted = foreign || host_tid != pid;
    let status = wanted.then(|| Status::of_thread(pid, host_tid)).transpose()?;
    let inner = status.as_ref().filter(|_| foreign).and_then(Status::inner_id);
    let taken = TakenThread {
        tid: inner.unwrap_or(host_tid),
        host_tid,
        regs,
        xstate,
        sigmask,
        rseq: stopped.rseq(),
        robust_list: robust_list(host_tid)?,
        name: Vec::new(),
        pending: Vec::new(),
        seccomp: stopped.seccomp_filters()?,
        sched: Sched::default(),
        restarts,
        tiles_in_use,
        status,
    };
    Ok((taken, idle))
}

/// System calls in which a thread waits for something to happen, holding nothing that others need:
/// no C library makes them in the middle of changing data of its own.
const WAITS: &[u64] = &[
    0, 43, 45, 47, 288, 299, // read, accept, recvfrom, recvmsg, accept4, recvmmsg
    7, 23, 270, 271, // poll, select, pselect6, ppoll
    232, 281, 441, // epoll_wait, epoll_pwait, epoll_pwait2
    35, 230, // nanosleep, clock_nanosleep
    61, 247, // wait4, waitid
    202, 449, // futex, futex_waitv
    34, 128, 130, // pause, rt_sigtimedwait, rt_sigsuspend
];

/// Whether it stands before such a call: where our first stop interrupted it, it has only just gone
/// on.
fn is_about_to_wait(pid: i32, regs: &UserRegs) -> bool {
    use std::os::unix::fs::FileExt;
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    if regs.orig_rax as i64 >= 0 || !WAITS.contains(&regs.rax) {
        return false;
    }
    let mut code = [0u8; 2];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"));
    let read = memory.and_then(|memory| memory.read_exact_at(&mut code, regs.rip));
    read.is_ok() && code == SYSCALL
}

/// Whether it was interrupted in such a call, before anything happened.
fn waits(regs: &UserRegs) -> bool {
    let interrupted = restarts(regs.rax) || shows_eintr(regs);
    interrupted && WAITS.contains(&regs.orig_rax)
}

/// System calls that show EINTR when a tracer interrupts them although no signal came
/// (signal(7), "interruption of system calls ... by stop signals").
const SHOW_EINTR: &[u64] = &[
    232, 281, 441, // epoll_wait, epoll_pwait, epoll_pwait2
    65, 220, // semop, semtimedop
    128, // rt_sigtimedwait
    208, 333, // io_getevents, io_pgetevents
    0, 1, 19, 20, 43, 44, 45, 46, 47, 288, 299, 307, // socket calls with a timeout
];
const EINTR: i64 = -4;

/// A wait that our stop interrupted, and no signal, must start again instead of showing EINTR.
fn shows_eintr(regs: &UserRegs) -> bool {
    let in_call = regs.orig_rax as i64 >= 0;
    in_call && regs.rax as i64 == EINTR && SHOW_EINTR.contains(&regs.orig_rax)
}

fn signal_pending(pid: i32, tid: i32, sigmask: u64) -> Result<bool, SysError> {
    let status = Status::of_thread(pid, tid)?;
    Ok((status.number("SigPnd", 16) | status.number("ShdPnd", 16)) & !sigmask != 0)
}

/// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (linux/errno.h).
fn restarts(result: u64) -> bool {
    matches!(-(result as i64), 512 | 513 | 514 | 516)
}

/// Registers as a child starts with them: any interrupted call is made again. In the parent the
/// kernel does that itself.
pub(crate) fn child_registers(taken: &TakenThread) -> Registers {
    let mut regs = taken.regs;
    if regs.orig_rax as i64 >= 0 && restarts(regs.rax) {
        regs.rax = regs.orig_rax;
        regs.rip -= 2;
    }
    if let Some(call) = taken.restarts {
        regs.rax = call;
    }
    Registers {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rip: regs.rip,
        cs: regs.cs,
        eflags: regs.eflags,
        rsp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
    }
}

/// XSTATE_BV of the XSAVE header: which features are not in their initial state.
const XSTATE_BV: usize = 512;

fn tiles_in_use(image: &[u8]) -> bool {
    const TILE_DATA: u64 = 1 << 18;
    let mut word = [0u8; 8];
    word.copy_from_slice(image.get(XSTATE_BV..XSTATE_BV + 8).unwrap_or(&[0; 8]));
    u64::from_le_bytes(word) & TILE_DATA != 0
}

/// Cuts AMX away: a frame with it would be read as SSE only by a task without the permission.
pub(crate) fn trim_xstate(image: &mut Vec<u8>) {
    let features = cpu::frame_features();
    image.truncate(cpu::xsave_bytes(features));
    if let Some(bytes) = image.get_mut(XSTATE_BV..XSTATE_BV + 8) {
        let mut word = [0u8; 8];
        word.copy_from_slice(bytes);
        bytes.copy_from_slice(&(u64::from_le_bytes(word) & features).to_le_bytes());
    }
}
