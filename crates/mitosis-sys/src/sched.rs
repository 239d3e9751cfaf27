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
}

/// `struct sched_attr`, first version (linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
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
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: writes at most `size` bytes to `attributes`.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size, 0) };
    if done < 0 {
        return Err(SysError::last("sched_getattr", tid));
    }
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
    let Attributes { policy, flags, nice, priority, .. } = attributes;
    Ok(Scheduling { policy, flags, nice, priority, ioprio: ioprio as u32, cpus })
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
        set_policy(libc::SCHED_BATCH);
        Patience { of_this_thread: std::marker::PhantomData }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        set_policy(libc::SCHED_OTHER);
    }
}

fn set_policy(policy: i32) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads `parameters`; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
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
