//! The newborn shadow, from its first stop to the state in which it stays.

use crate::gadget::{Gadget, WAIT4, WALL_WNOHANG};
use crate::refuse::Facts;
use crate::shared::Kept;
use crate::{CaptureError, Shadow, stop};
use mitosis_sys::ptrace::{Metronome, Stopped};
use mitosis_sys::{SysError, procfs};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::File;
use std::time::{Duration, Instant};

/// A shadow that is still traced. Dropping it kills it.
pub(crate) struct NewShadow {
    /// At its first instruction, or where it has set itself up if that was waited for.
    pub stopped: Option<Stopped>,
    /// The shared memory that it has made its own; then it has set itself up already.
    pub kept: Option<Kept>,
}

impl Drop for NewShadow {
    fn drop(&mut self) {
        if let Some(stopped) = &self.stopped {
            kill(stopped.tid());
        }
    }
}

pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Lets the shadow set itself up and then leaves it alone for good: asleep in a system call, or,
/// where a seccomp filter would kill it for that, stopped.
pub(crate) fn settle(
    mut new: NewShadow,
    parent: i32,
    facts: &Facts,
) -> Result<(Shadow, Option<Kept>), CaptureError> {
    let lost = || CaptureError::Internal("the shadow was not seen".into());
    let stopped = new.stopped.as_mut().ok_or_else(lost)?;
    let pid = stopped.tid();
    let fail = CaptureError::sys("shadow", pid);
    if new.kept.is_none() {
        stopped.follow_forks(true).map_err(&fail)?;
        stopped.resume().map_err(&fail)?;
        stopped.wait_trap(Instant::now() + Duration::from_secs(5)).map_err(&fail)?;
    }
    let raw = Pid::from_raw(pid).ok_or_else(lost)?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        .map_err(|e| fail(SysError::io("pidfd_open", pid, e)))?;
    let path = format!("/proc/{pid}/mem");
    let mem = File::open(&path).map_err(|e| fail(SysError::io("open", path, e)))?;
    if let Some(stopped) = new.stopped.take() {
        const SIGSTOP: i32 = 19;
        stopped.detach(if facts.seccomp { SIGSTOP } else { 0 });
    }
    let child_of = facts.is_init.then_some(parent);
    Ok((Shadow { pid, pidfd, mem, child_of }, new.kept.take()))
}

/// Makes `parent` reap a shadow that was cloned as its child and has ended: a zombie that it
/// cannot see, but `ps` can.
pub(crate) fn reap(parent: i32, shadow: i32) -> Result<(), CaptureError> {
    let fail = CaptureError::sys("shadow", parent);
    let _metronome = Metronome::start().map_err(&fail)?;
    let status = procfs::Status::read(shadow).map_err(&fail)?;
    let inner = status.inner_id().unwrap_or(shadow) as u64;
    let facts = crate::refuse::inspect(parent, true)?;
    let gadget = Gadget::find(parent)?;
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut process = stop::stop_leader(parent, deadline)?;
    process.take_state(facts.foreign_pid_ns, None)?;
    let args = [inner, 0, WALL_WNOHANG, 0, 0, 0];
    process.threads[0].inject(gadget.address, WAIT4, args, deadline).map_err(&fail)?;
    drop(process.release());
    Ok(())
}
