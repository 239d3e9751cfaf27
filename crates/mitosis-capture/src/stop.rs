//! Stopping every thread, reading what only a stopped thread shows, and letting all run on.

use crate::CaptureError;
use crate::taken::{Interrupted, Taken, take_thread, trim_xstate, waiting};
use mitosis_sys::procfs::{self, Status};
use mitosis_sys::ptrace::{Running, Stopped};
use mitosis_sys::{SysError, sched};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::time::{Duration, Instant};

/// The parent with all its threads stopped. Dropping it puts back what was changed in them and
/// lets them run on, whatever happened in between.
pub(crate) struct StoppedProcess {
    /// Or the thread that speaks for it.
    pub pid: i32,
    /// Its leading thread, if that has ended.
    pub ended: Option<i32>,
    /// The thread-group leader, or who speaks for it, first.
    pub threads: Vec<Stopped>,
    /// What was read, in the order of `threads`: what is put back.
    pub taken: Taken,
    /// When the first thread was told to stop.
    since: Instant,
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        self.put_back();
    }
}

impl StoppedProcess {
    /// Errors mean that the thread has been killed.
    fn put_back(&self) {
        for (stopped, taken) in self.threads.iter().zip(&self.taken.threads) {
            let _ = stopped.set_regs(&taken.regs);
            let _ = stopped.set_sigmask(taken.sigmask);
        }
    }
}

/// Where this thread runs, which matters to the parent. The thread ends with the capture.
///
/// In a stop it runs on the parent's CPU and before all others there: waking a task on the same CPU
/// takes 1-2 us, on another one 40-60, and while this thread waits for its turn the parent stands
/// still. A nice value is not enough: whoever has the CPU keeps it for a slice, 3 ms. Between the stops
/// it runs anywhere else: a busy parent would take whatever this thread does on its CPU for one long
/// stop.
pub(crate) struct Place {
    pid: i32,
    all: CpuSet,
}

impl Place {
    pub(crate) fn of(pid: i32) -> Place {
        let all = rustix::thread::sched_getaffinity(None).unwrap_or_default();
        Place { pid, all }
    }

    fn parents_cpu(&self) -> Option<usize> {
        Some(procfs::stat_field(&procfs::stat(self.pid).ok()?, 39) as usize)
    }

    /// Onto the parent's CPU.
    pub(crate) fn with_parent(&self) {
        let Some(cpu) = self.parents_cpu() else { return };
        let mut set = CpuSet::new();
        set.set(cpu);
        // Both are only optimisations: what is refused (a CPU outside our own cpuset) stays as it
        // is.
        if !sched::before_others() {
            let _ = rustix::process::setpriority_process(None, -20);
        }
        let _ = sched_setaffinity(None, &set);
    }

    /// Off it for a moment, with little to do until the next stop: cheaper than going elsewhere and
    /// coming back, and the parent runs meanwhile.
    pub(crate) fn let_parent_run(&self) {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }

    /// Away from it, where there is another one.
    pub(crate) fn beside_parent(&self) {
        let mut set = self.all;
        if let Some(cpu) = self.parents_cpu().filter(|_| self.all.count() > 1) {
            set.unset(cpu);
        }
        let _ = sched_setaffinity(None, &set);
        sched::as_others();
        let _ = rustix::process::setpriority_process(None, 0);
    }
}

/// Stops the leading thread only: enough to make the process do something.
pub(crate) fn stop_leader(pid: i32, deadline: Instant) -> Result<StoppedProcess, CaptureError> {
    stop_some(pid, None, deadline, |tid| tid == pid)
}

/// Seizes and stops every thread but a leading one that has `ended`, until a scan finds no new one.
pub(crate) fn stop(
    pid: i32,
    ended: Option<i32>,
    deadline: Instant,
) -> Result<StoppedProcess, CaptureError> {
    stop_some(pid, ended, deadline, |_| true)
}

fn stop_some(
    pid: i32,
    ended: Option<i32>,
    deadline: Instant,
    wanted: impl Fn(i32) -> bool,
) -> Result<StoppedProcess, CaptureError> {
    let since = Instant::now();
    let mut process =
        StoppedProcess { pid, ended, threads: Vec::new(), taken: Taken::default(), since };
    process.stop_rest(deadline, wanted)?;
    Ok(process)
}

/// `None` when the thread ended meanwhile.
fn seize(pid: i32, tid: i32) -> Result<Option<Running>, CaptureError> {
    match Running::seize(tid).and_then(|r| r.interrupt().map(|()| r)) {
        Ok(running) => Ok(Some(running)),
        Err(e) if tid != pid && (e.is(3) || matches!(e, SysError::Ended(_))) => Ok(None),
        Err(e) if e.is(3) => Err(CaptureError::Ended { phase: "stop", pid }),
        Err(e) if e.is(1) => {
            let why = "cannot be seized (another tracer, or ptrace is restricted: see \
                       `mitosis check`)";
            Err(CaptureError::Refused { pid, why: why.into() })
        }
        Err(e) => Err(CaptureError::sys("stop", pid)(e)),
    }
}

impl StoppedProcess {
    /// Seizes and stops the threads that are not stopped yet, until a scan finds no new one.
    pub(crate) fn stop_rest(
        &mut self,
        deadline: Instant,
        wanted: impl Fn(i32) -> bool,
    ) -> Result<(), CaptureError> {
        let pid = self.pid;
        loop {
            let mut tids =
                procfs::threads(pid).map_err(|_| CaptureError::Ended { phase: "stop", pid })?;
            tids.retain(|tid| wanted(*tid) && self.ended != Some(*tid));
            tids.retain(|tid| self.threads.iter().all(|t| t.tid() != *tid));
            if tids.is_empty() {
                break;
            }
            let running = tids.into_iter().filter_map(|tid| seize(pid, tid).transpose());
            let running = running.collect::<Result<Vec<Running>, CaptureError>>()?;
            self.stopping(running, deadline)?;
        }
        self.threads.sort_by_key(|t| (t.tid() != pid, t.tid()));
        let why = || "has a leading thread that has just ended: try again".into();
        let first = self.threads.first().filter(|first| first.tid() == pid);
        first.map(|_| ()).ok_or_else(|| CaptureError::Refused { pid, why: why() })
    }

    /// Waits for threads that were told to stop.
    pub(crate) fn stopping(
        &mut self,
        running: Vec<Running>,
        deadline: Instant,
    ) -> Result<(), CaptureError> {
        let (pid, begun) = (self.pid, Instant::now());
        if self.threads.is_empty() {
            self.since = begun;
        }
        for thread in running {
            let tid = thread.tid();
            match thread.wait_stopped(deadline) {
                Ok(stopped) => self.threads.push(stopped),
                Err(SysError::Ended(_)) if tid != pid => {}
                Err(SysError::Timeout { .. }) => {
                    let bound_ms = (Instant::now() - begun).as_millis() as u64;
                    let state = Status::of_thread(pid, tid)
                        .map(|s| format!(" (state {})", s.field("State")))
                        .unwrap_or_default();
                    return Err(CaptureError::NotStopped { pid, tid, bound_ms, state });
                }
                Err(e) => return Err(CaptureError::sys("stop", pid)(e)),
            }
        }
        Ok(())
    }

    /// Reads registers and the like of every thread, and blocks all signals for what follows.
    pub(crate) fn take_state(
        &mut self,
        foreign_pid_ns: bool,
        before: Option<Interrupted>,
    ) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("registers", self.pid);
        self.taken.idle = true;
        for stopped in &self.threads {
            let before = before.filter(|_| stopped.tid() == self.pid);
            let (taken, idle) =
                take_thread(self.pid, stopped, foreign_pid_ns, before).map_err(&fail)?;
            self.taken.idle &= idle;
            self.taken.main_waits |= idle && stopped.tid() == self.pid;
            self.taken.threads.push(taken);
            stopped.set_sigmask(u64::MAX).map_err(&fail)?;
        }
        Ok(())
    }

    /// Reads the registers of thread `n` again: it has gone a few steps.
    pub(crate) fn retake(&mut self, n: usize) -> Result<(), SysError> {
        let (stopped, taken) = (&self.threads[n], &mut self.taken.threads[n]);
        taken.regs = stopped.regs()?;
        taken.xstate = stopped.xstate()?;
        trim_xstate(&mut taken.xstate);
        Ok(())
    }

    /// Reads the signals that wait. They stay with the parent; a child has copies.
    pub(crate) fn take_pending(&mut self) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("registers", self.pid);
        self.taken.pending = waiting(self.threads[0].pending(true).map_err(&fail)?);
        for (stopped, taken) in self.threads.iter().zip(&mut self.taken.threads) {
            taken.pending = waiting(stopped.pending(false).map_err(&fail)?);
        }
        Ok(())
    }

    /// Lets all threads run on as they were; tells what was read and how long they stood still.
    pub(crate) fn release(mut self) -> (Taken, Duration) {
        self.put_back();
        let stood_still = self.since.elapsed();
        self.threads.clear();
        (std::mem::take(&mut self.taken), stood_still)
    }
}
