//! Waiting for tracees, with an end to each wait: waitpid(2) itself has none.

use crate::SysError;
use std::time::{Duration, Instant};

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

pub(super) fn classify(status: i32) -> Event {
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
