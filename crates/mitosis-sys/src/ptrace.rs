//! ptrace(2) as types: a running thread has no registers to read, a stopped one resumes when it is
//! dropped. All of it must happen on the thread that seized (ptrace(2), "the tracer").

mod pending;
mod registers;
mod wait;

pub use registers::{UserRegs, robust_list};
pub use wait::{Event, Metronome, wait_event};

use crate::SysError;
use std::time::Instant;
use wait::classify;

const PTRACE_O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;
const PTRACE_O_EXITKILL: libc::c_int = 1 << 20;
const TRACE_FORKS: libc::c_int =
    libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;

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
