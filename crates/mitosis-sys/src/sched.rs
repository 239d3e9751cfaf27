//! How a thread is scheduled (sched(7)).

use crate::SysError;

/// What sched_getattr(2), ioprio_get(2) and sched_getaffinity(2) say of a thread.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// I/O class and level; 0 when none was set.
    pub ioprio: u32,
    /// CPUs it may run on, one bit each.
    pub cpus: Vec<u64>,
    /// Of `SCHED_DEADLINE`: runtime, deadline and period in nanoseconds.
    pub reservation: [u64; 3],
}

/// Of linux/sched.h.
const SCHED_DEADLINE: u32 = 6;

/// `struct sched_attr`, first version (linux/sched/types.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// How thread `tid` (0: the calling one) is scheduled.
///
/// # Errors
/// ESRCH when there is no such thread.
pub fn scheduling(tid: i32) -> Result<Scheduling, SysError> {
    let attributes = attributes(tid)?;
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: plain integers.
    let ioprio = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    if ioprio < 0 {
        return Err(SysError::last("ioprio_get", tid));
    }
    let mut cpus = vec![0u64; 128];
    let (len, at) = (cpus.len() * 8, cpus.as_mut_ptr());
    // SAFETY: writes at most `len` bytes to `cpus`.
    let got = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, len, at) };
    if got < 0 {
        return Err(SysError::last("sched_getaffinity", tid));
    }
    cpus.truncate(got as usize / 8);
    while cpus.last() == Some(&0) {
        cpus.pop();
    }
    let Attributes { policy, flags, nice, priority, runtime, deadline, period, .. } = attributes;
    // Of others the kernel tells its own slice here (Linux 6.12).
    let reservation = if policy == SCHED_DEADLINE { [runtime, deadline, period] } else { [0; 3] };
    Ok(Scheduling { policy, flags, nice, priority, ioprio: ioprio as u32, cpus, reservation })
}

/// sched_getattr(2).
fn attributes(tid: i32) -> Result<Attributes, SysError> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: writes at most `size` bytes to `attributes`.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size, 0) };
    if done < 0 { Err(SysError::last("sched_getattr", tid)) } else { Ok(attributes) }
}

/// While there is one, a thread under `SCHED_DEADLINE` may fork: what it makes is under
/// `SCHED_OTHER` (`SCHED_FLAG_RESET_ON_FORK`), without which it may make nothing (sched(7)). Its
/// reservation stays as it is, so nobody else can get it meanwhile.
#[derive(Debug)]
pub struct MayFork {
    tid: i32,
    before: Option<Attributes>,
}

impl MayFork {
    /// From now on.
    ///
    /// # Errors
    /// EPERM.
    pub fn begin(tid: i32) -> Result<MayFork, SysError> {
        const RESET_ON_FORK: u64 = 1;
        let before = attributes(tid)?;
        if before.policy != SCHED_DEADLINE || before.flags & RESET_ON_FORK != 0 {
            return Ok(MayFork { tid, before: None });
        }
        set_attributes(tid, &Attributes { flags: before.flags | RESET_ON_FORK, ..before })?;
        Ok(MayFork { tid, before: Some(before) })
    }
}

impl Drop for MayFork {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // What it has can be set; a thread that has ended needs nothing.
            let _ = set_attributes(self.tid, before);
        }
    }
}

/// sched_setattr(2).
fn set_attributes(tid: i32, attributes: &Attributes) -> Result<(), SysError> {
    // SAFETY: reads `attributes`, whose size it says.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, attributes, 0) };
    if done < 0 { Err(SysError::last("sched_setattr", tid)) } else { Ok(()) }
}

/// While there is one, the thread that made it waits, when it wakes, until whoever has the processor
/// pauses, instead of taking it away (`SCHED_BATCH`, sched(7)). Where that is not allowed nothing
/// changes.
#[derive(Debug)]
pub struct Patience {
    /// Not to be sent to another thread.
    of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Patience {
    /// From now on.
    #[must_use]
    pub fn begin() -> Patience {
        set_policy(libc::SCHED_BATCH, 0);
        Patience { of_this_thread: std::marker::PhantomData }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        as_others();
    }
}

/// Puts the calling thread before all that are not of real-time (`SCHED_FIFO`, sched(7)): when it
/// wakes, or comes to another CPU, it runs at once, and not at the end of somebody's slice. Gives
/// whether that is allowed (CAP_SYS_NICE; with groups of real-time, a share of it).
pub fn before_others() -> bool {
    set_policy(libc::SCHED_FIFO, 1)
}

/// Ends [`before_others`].
pub fn as_others() {
    set_policy(libc::SCHED_OTHER, 0);
}

fn set_policy(policy: i32, priority: i32) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: reads `parameters`; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

/// CPUs of this machine that are online.
pub fn cpus_online() -> u32 {
    // SAFETY: plain integers.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_calling_thread_may_run_somewhere() {
        let all = super::scheduling(0).expect("sched_getattr");
        assert!(all.cpus.iter().any(|word| *word != 0) && (-20..20).contains(&all.nice));
    }
}
