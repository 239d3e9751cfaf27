//! ptrace(2) as types: a running thread has no registers to read, a stopped one resumes when it is
//! dropped. All of it must happen on the thread that seized (ptrace(2), "the tracer").

mod pending;

use crate::SysError;
use std::time::{Duration, Instant};

/// `struct user_regs_struct`.
pub type UserRegs = libc::user_regs_struct;

const PTRACE_O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;
const PTRACE_O_EXITKILL: libc::c_int = 1 << 20;
const TRACE_FORKS: libc::c_int =
    libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const NT_X86_XSTATE: usize = 0x202;
/// Room for any XSAVE image ptrace may give (AMX included).
const XSTATE_BYTES_MAX: usize = 16 << 10;

/// ptrace(2) with an address and a data word.
///
/// # Safety
/// `data` must be what `request` expects: a value, or a pointer valid for the size it reads or
/// writes.
unsafe fn ptrace(
    request: libc::c_uint,
    tid: i32,
    addr: usize,
    data: usize,
) -> Result<libc::c_long, std::io::Error> {
    // SAFETY: passed on from the caller.
    let r = unsafe { libc::ptrace(request as _, tid, addr, data) };
    if r < 0 { Err(std::io::Error::last_os_error()) } else { Ok(r) }
}

/// What a wait told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Stopped by a signal about to be delivered (5 is also a breakpoint or a finished step).
    Signal(i32),
    /// A `PTRACE_EVENT_*` stop.
    Ptrace(i32),
    /// Ended, with the raw wait status.
    Ended(i32),
}

fn classify(status: i32) -> Event {
    if libc::WIFSTOPPED(status) {
        match status >> 16 {
            0 => Event::Signal(libc::WSTOPSIG(status)),
            event => Event::Ptrace(event),
        }
    } else {
        Event::Ended(status)
    }
}

/// How often a wait looks at its deadline.
const TICK: Duration = Duration::from_millis(20);

/// Interrupts the blocking calls of the thread that made it, every [`TICK`], so that waits can
/// have an end.
///
/// Polling would be simpler, but on the tracee's own CPU it takes half the time from the very
/// thing it waits for; and waking up from another CPU takes longer than the whole operation.
#[derive(Debug)]
pub struct Metronome(libc::timer_t);

extern "C" fn beat(_: libc::c_int) {}

impl Metronome {
    /// Starts it for the calling thread (timer_create(2), SIGEV_THREAD_ID).
    ///
    /// # Errors
    /// EAGAIN over the limit of queued signals.
    pub fn start() -> Result<Metronome, SysError> {
        let signal = libc::SIGRTMIN() + 7;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: all-zero is valid for these plain structs; the handler does nothing, which is
        // safe in any context; the timer is deleted when this value is dropped.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = beat as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut());
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(SysError::last("timer_create", "metronome"));
            }
            let tick = libc::timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as i64 };
            let every = libc::itimerspec { it_interval: tick, it_value: tick };
            libc::timer_settime(timer, 0, &every, std::ptr::null_mut());
        }
        Ok(Metronome(timer))
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        // SAFETY: made by timer_create and deleted only here.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Waits for an event of thread `tid`, or of any tracee of the calling thread if `tid` is -1.
/// The calling thread must have a [`Metronome`], or the deadline passes unnoticed.
///
/// # Errors
/// [`SysError::Timeout`] at `deadline`; [`SysError::Call`] if there is nothing to wait for.
pub fn wait_event(tid: i32, deadline: Instant) -> Result<(i32, Event), SysError> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        let got = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if got > 0 {
            return Ok((got, classify(status)));
        }
        let error = SysError::last("waitpid", tid);
        if error.is(libc::ECHILD) {
            return Err(SysError::Ended(tid));
        }
        if !error.is(libc::EINTR) {
            return Err(error);
        }
        if Instant::now() >= deadline {
            return Err(SysError::Timeout { what: "stop of thread", tid });
        }
    }
}

/// A seized thread that runs.
#[derive(Debug)]
pub struct Running {
    tid: i32,
}

/// A seized thread that is stopped. Dropping it lets it run on, untraced.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    /// Signal to deliver when it is let go (a SIGSTOP that arrived meanwhile, say).
    deliver: i32,
    gone: bool,
}

impl Running {
    /// Seizes a thread (PTRACE_SEIZE). Seccomp filters are suspended for it where the kernel
    /// allows, so that injected calls do not meet the tenant's filter.
    ///
    /// # Errors
    /// EPERM (another tracer, or not allowed), ESRCH.
    pub fn seize(tid: i32) -> Result<Running, SysError> {
        let options = PTRACE_O_SUSPEND_SECCOMP as usize;
        // SAFETY: SEIZE takes options as its data word.
        let first = unsafe { ptrace(libc::PTRACE_SEIZE, tid, 0, options) };
        if first.is_err() {
            // SAFETY: as above. Kernels without SUSPEND_SECCOMP say EINVAL, or EPERM.
            unsafe { ptrace(libc::PTRACE_SEIZE, tid, 0, 0) }
                .map_err(|e| SysError::io("PTRACE_SEIZE", tid, e))?;
        }
        Ok(Running { tid })
    }

    /// Thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks it to stop (PTRACE_INTERRUPT); does not wait.
    ///
    /// # Errors
    /// [`SysError::Call`] when it has ended.
    pub fn interrupt(&self) -> Result<(), SysError> {
        // SAFETY: no memory involved.
        unsafe { ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0) }
            .map_err(|e| SysError::io("PTRACE_INTERRUPT", self.tid, e))?;
        Ok(())
    }

    /// Lets it run on if it has stopped meanwhile: a process that a signal has stopped stops once more
    /// after the stop that was asked for. Does not wait.
    ///
    /// # Errors
    /// [`SysError::Ended`].
    pub fn keep_on(&self) -> Result<(), SysError> {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(self.tid, &mut status, flags) } <= 0 {
            return Ok(());
        }
        let signal = match classify(status) {
            Event::Ptrace(_) => 0,
            Event::Signal(signal) => signal,
            Event::Ended(_) => return Err(SysError::Ended(self.tid)),
        };
        // SAFETY: CONT takes the signal as its data word.
        unsafe { ptrace(libc::PTRACE_CONT, self.tid, 0, signal as usize) }
            .map_err(|e| SysError::io("PTRACE_CONT", self.tid, e))?;
        Ok(())
    }

    /// Waits until it has stopped. Signals that arrive first are delivered first.
    ///
    /// # Errors
    /// [`SysError::Ended`], [`SysError::Timeout`]; on timeout the thread stays seized until the
    /// calling thread ends.
    pub fn wait_stopped(self, deadline: Instant) -> Result<Stopped, SysError> {
        loop {
            match wait_event(self.tid, deadline)?.1 {
                Event::Ptrace(_) => return Ok(Stopped { tid: self.tid, deliver: 0, gone: false }),
                Event::Signal(signal) => {
                    // SAFETY: CONT takes the signal as its data word.
                    unsafe { ptrace(libc::PTRACE_CONT, self.tid, 0, signal as usize) }
                        .map_err(|e| SysError::io("PTRACE_CONT", self.tid, e))?;
                }
                Event::Ended(_) => return Err(SysError::Ended(self.tid)),
            }
        }
    }
}

impl Stopped {
    /// A tracee that the kernel attached by itself (a fork of one), now stopped.
    pub fn attached(tid: i32) -> Stopped {
        Stopped { tid, deliver: 0, gone: false }
    }

    /// Thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// General registers.
    ///
    /// # Errors
    /// ESRCH when it was killed meanwhile.
    pub fn regs(&self) -> Result<UserRegs, SysError> {
        // SAFETY: all-zero is a valid user_regs_struct.
        let mut regs: UserRegs = unsafe { std::mem::zeroed() };
        // SAFETY: GETREGS writes one user_regs_struct.
        unsafe { ptrace(libc::PTRACE_GETREGS, self.tid, 0, &raw mut regs as usize) }
            .map_err(|e| self.error("PTRACE_GETREGS", e))?;
        Ok(regs)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// ESRCH when it was killed meanwhile.
    pub fn set_regs(&self, regs: &UserRegs) -> Result<(), SysError> {
        // SAFETY: SETREGS reads one user_regs_struct.
        unsafe {
            ptrace(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(regs) as usize)
                .map_err(|e| self.error("PTRACE_SETREGS", e))?;
        }
        Ok(())
    }

    /// The XSAVE image in its standard (not compacted) format.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn xstate(&self) -> Result<Vec<u8>, SysError> {
        let mut image = vec![0u8; XSTATE_BYTES_MAX];
        let mut iov =
            libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: XSTATE_BYTES_MAX };
        // SAFETY: the iovec describes `image`.
        unsafe { ptrace(libc::PTRACE_GETREGSET, self.tid, NT_X86_XSTATE, &raw mut iov as usize) }
            .map_err(|e| self.error("PTRACE_GETREGSET", e))?;
        image.truncate(iov.iov_len);
        Ok(image)
    }

    /// Blocked signals.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn sigmask(&self) -> Result<u64, SysError> {
        let mut mask = 0u64;
        // SAFETY: writes `addr` = 8 bytes.
        unsafe { ptrace(PTRACE_GETSIGMASK, self.tid, 8, &raw mut mask as usize) }
            .map_err(|e| self.error("PTRACE_GETSIGMASK", e))?;
        Ok(mask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn set_sigmask(&self, mask: u64) -> Result<(), SysError> {
        // SAFETY: reads `addr` = 8 bytes.
        unsafe { ptrace(PTRACE_SETSIGMASK, self.tid, 8, &raw const mask as usize) }
            .map_err(|e| self.error("PTRACE_SETSIGMASK", e))?;
        Ok(())
    }

    /// The registered rseq area: address, length, signature; zeros when there is none or the
    /// kernel cannot tell (before 5.13).
    pub fn rseq(&self) -> (u64, u32, u32) {
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut c = Configuration::default();
        let size = size_of::<Configuration>();
        // SAFETY: writes at most `addr` = size bytes.
        let r =
            unsafe { ptrace(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, size, &raw mut c as usize) };
        if r.is_ok() { (c.pointer, c.size, c.signature) } else { (0, 0, 0) }
    }

    /// Seccomp filters as 8-byte BPF instructions, the one installed first first.
    ///
    /// # Errors
    /// EACCES when the calling process is itself confined by seccomp.
    pub fn seccomp_filters(&self) -> Result<Vec<Vec<u64>>, SysError> {
        let mut filters = Vec::new();
        loop {
            let index = filters.len();
            // SAFETY: with a null pointer the kernel only says how long the filter is.
            let len = match unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) } {
                Ok(len) => len as usize,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
                Err(e) => return Err(self.error("PTRACE_SECCOMP_GET_FILTER", e)),
            };
            let mut code = vec![0u64; len];
            // SAFETY: writes `len` instructions of 8 bytes.
            unsafe {
                ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, code.as_mut_ptr() as usize)
            }
            .map_err(|e| self.error("PTRACE_SECCOMP_GET_FILTER", e))?;
            filters.push(code);
        }
        filters.reverse();
        Ok(filters)
    }

    /// From now on forks of this thread are attached by themselves.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn follow_forks(&self, exit_kill: bool) -> Result<(), SysError> {
        let kill = if exit_kill { PTRACE_O_EXITKILL } else { 0 };
        for seccomp in [PTRACE_O_SUSPEND_SECCOMP, 0] {
            let options = (TRACE_FORKS | kill | seccomp) as usize;
            // SAFETY: options are a plain word.
            match unsafe { ptrace(libc::PTRACE_SETOPTIONS as _, self.tid, 0, options) } {
                Ok(_) => return Ok(()),
                Err(e) if seccomp == 0 => return Err(self.error("PTRACE_SETOPTIONS", e)),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Lets it run until its next event.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn resume(&self) -> Result<(), SysError> {
        // SAFETY: no memory involved.
        unsafe { ptrace(libc::PTRACE_CONT, self.tid, 0, 0) }
            .map_err(|e| self.error("PTRACE_CONT", e))?;
        Ok(())
    }

    /// Lets it run and stay traced.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn run(mut self) -> Result<Running, SysError> {
        let done = self.resume();
        self.gone = true;
        done.map(|()| Running { tid: self.tid })
    }

    /// One that was resumed: it runs, traced.
    pub fn traced(mut self) -> Running {
        self.gone = true;
        Running { tid: self.tid }
    }

    /// Executes one instruction, which must be a `syscall` at `gadget`, as system call `nr`, and
    /// returns its result. Registers are left changed; the caller restores them.
    ///
    /// # Errors
    /// The thread ended or did not finish by `deadline`.
    pub fn inject(
        &mut self,
        gadget: u64,
        nr: u64,
        args: [u64; 6],
        deadline: Instant,
    ) -> Result<i64, SysError> {
        let mut regs = self.regs()?;
        regs.rip = gadget;
        regs.rax = nr;
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        self.set_regs(&regs)?;
        self.step(deadline)?;
        Ok(self.regs()?.rax as i64)
    }

    /// Executes one instruction. A stop signal that comes first is kept for later; all others are
    /// blocked by the caller.
    ///
    /// # Errors
    /// As [`Stopped::inject`].
    pub fn step(&mut self, deadline: Instant) -> Result<(), SysError> {
        loop {
            // SAFETY: no memory involved.
            unsafe { ptrace(libc::PTRACE_SINGLESTEP, self.tid, 0, 0) }
                .map_err(|e| self.error("PTRACE_SINGLESTEP", e))?;
            match wait_event(self.tid, deadline)?.1 {
                Event::Signal(libc::SIGTRAP) => return Ok(()),
                event => self.keep(event)?,
            }
        }
    }

    /// Waits for a breakpoint or the end of a step. A stop signal that comes first is kept for
    /// later; all others are blocked by the caller.
    ///
    /// # Errors
    /// As [`Stopped::inject`].
    pub fn wait_trap(&mut self, deadline: Instant) -> Result<(), SysError> {
        loop {
            match wait_event(self.tid, deadline)?.1 {
                Event::Signal(libc::SIGTRAP) => return Ok(()),
                event => self.absorb(event)?,
            }
        }
    }

    /// Deals with an event that is not the awaited one, and resumes.
    ///
    /// # Errors
    /// [`SysError::Ended`] if that is what happened.
    pub fn absorb(&mut self, event: Event) -> Result<(), SysError> {
        self.keep(event)?;
        self.resume()
    }

    fn keep(&mut self, event: Event) -> Result<(), SysError> {
        match event {
            Event::Signal(libc::SIGSTOP) => self.deliver = libc::SIGSTOP,
            Event::Signal(signal @ (libc::SIGSEGV | libc::SIGILL | libc::SIGBUS)) => {
                let at = self.regs().map(|r| r.rip).unwrap_or(0);
                return Err(SysError::Unexpected(format!(
                    "injected code met signal {signal} at {at:#x} in thread {}",
                    self.tid
                )));
            }
            Event::Signal(_) | Event::Ptrace(_) => {}
            Event::Ended(_) => {
                self.gone = true;
                return Err(SysError::Ended(self.tid));
            }
        }
        Ok(())
    }

    /// Lets it go with `signal` (0 for none).
    pub fn detach(mut self, signal: i32) {
        self.deliver = if signal == 0 { self.deliver } else { signal };
    }

    fn error(&self, call: &'static str, e: std::io::Error) -> SysError {
        if e.raw_os_error() == Some(libc::ESRCH) {
            SysError::Ended(self.tid)
        } else {
            SysError::io(call, self.tid, e)
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.gone {
            // SAFETY: the data word is a signal number. Failure means that the thread has ended.
            let _ = unsafe { ptrace(libc::PTRACE_DETACH, self.tid, 0, self.deliver as usize) };
        }
    }
}

/// Head and length of a thread's robust futex list (get_robust_list(2)).
///
/// # Errors
/// EPERM, ESRCH.
pub fn robust_list(tid: i32) -> Result<(u64, u64), SysError> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer and one length.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if r < 0 { Err(SysError::last("get_robust_list", tid)) } else { Ok((head, len)) }
}

/// Whether two descriptors of a process name one open file description (kcmp(2), KCMP_FILE).
///
/// # Errors
/// EPERM, ESRCH, ENOSYS.
pub fn same_file(pid: i32, a: u32, b: u32) -> Result<bool, SysError> {
    // SAFETY: plain integers.
    let r = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, 0, a, b) };
    if r < 0 { Err(SysError::last("kcmp", pid)) } else { Ok(r == 0) }
}

/// As [`same_file`], for descriptors of two processes: pid and number of each.
///
/// # Errors
/// As [`same_file`].
pub fn same_file_of(a: (i32, u32), b: (i32, u32)) -> Result<bool, SysError> {
    // SAFETY: plain integers.
    let r = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, 0, a.1, b.1) };
    if r < 0 { Err(SysError::last("kcmp", a.0)) } else { Ok(r == 0) }
}

/// Whether two processes have one memory, or one table of open files (`CLONE_VM`, `CLONE_FILES`).
///
/// # Errors
/// EPERM, ESRCH.
pub fn shares_memory_or_files(a: i32, b: i32) -> Result<bool, SysError> {
    const KCMP_VM: i32 = 1;
    const KCMP_FILES: i32 = 2;
    for kind in [KCMP_VM, KCMP_FILES] {
        // SAFETY: plain integers.
        match unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, 0, 0) } {
            r if r < 0 => return Err(SysError::last("kcmp", a)),
            0 => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// A registration of an epoll instance, as kcmp(2) wants it named (`struct kcmp_epoll_slot`).
#[repr(C)]
struct EpollSlot {
    epoll: u32,
    target: u32,
    nth: u32,
}

/// Whether the `nth` registration of descriptor `target` in the epoll instance `epoll` is of the
/// file that `candidate` names (kcmp(2), KCMP_EPOLL_TFD, Linux 4.13); both are of a process. The number
/// may have been closed and given to another file meanwhile, while a duplicate keeps the registration
/// alive.
///
/// # Errors
/// EPERM, ESRCH; ENOENT if there is no such registration.
pub fn watches_file(
    (pid, epoll): (i32, u32),
    (target, nth): (u32, u32),
    (holder, candidate): (i32, u32),
) -> Result<bool, SysError> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = EpollSlot { epoll, target, nth };
    let at = &raw const slot;
    // SAFETY: the kernel reads one slot, which lives until the call returns.
    let r = unsafe { libc::syscall(libc::SYS_kcmp, holder, pid, KCMP_EPOLL_TFD, candidate, at) };
    if r < 0 { Err(SysError::last("kcmp", format!("{pid}: epoll {epoll}"))) } else { Ok(r == 0) }
}
