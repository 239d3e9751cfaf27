//! Who cannot be a parent, found out before anything is touched.

use crate::{CaptureError, aio, ipc, shared, timers, user};
use mitosis_state::pidfd_of;
use mitosis_sys::clock::{self, Clocks};
use mitosis_sys::procfs::{self, Status};

/// What was seen of the parent before it was stopped.
pub(crate) struct Facts {
    /// It has seccomp filters.
    pub seccomp: bool,
    /// Its pid namespace is not ours.
    pub foreign_pid_ns: bool,
    /// It has shared memory that a fork does not freeze.
    pub shared: bool,
    /// It may have System V objects.
    pub ipc: bool,
    /// It has contexts of asynchronous I/O.
    pub aio: bool,
    /// Timers of timer_create(2) that it has.
    pub timers: usize,
    /// It is pid 1 of its pid namespace.
    pub is_init: bool,
    /// By how much its clocks are ahead of this node's.
    pub clock_shift: Clocks,
    /// It may be set-uid or not dumpable.
    pub privileged: bool,
    /// Its pid, where its leading thread has ended and another one speaks for it.
    pub ended_leader: Option<i32>,
}

/// Kernel threads have this flag in `/proc/PID/stat` (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// The thread that speaks for a process: the leading one, or, where that has ended while others live, one of
/// these. A thread that has ended has no memory and no files; what `/proc` shows of a process it shows
/// under the id of each of its threads.
pub(crate) fn speaker(pid: i32) -> Result<i32, CaptureError> {
    let refused = |why: String| CaptureError::Refused { pid, why };
    let status = Status::read(pid).map_err(|_| CaptureError::NoSuchProcess(pid))?;
    let leader = status.number("Tgid", 10) as i32;
    if leader != pid {
        return Err(refused(format!("is a thread: name its process, {leader}")));
    }
    if !has_ended(&status) {
        return Ok(pid);
    }
    let lives = |tid: &i32| Status::of_thread(pid, *tid).is_ok_and(|status| !has_ended(&status));
    let threads = procfs::threads(pid).unwrap_or_default();
    let tid =
        threads.into_iter().find(lives).ok_or_else(|| refused("has ended (zombie)".into()))?;
    if pidfd_of(tid).is_err() {
        let why = "has a leading thread that has ended while others live, whose files only a kernel since \
                   Linux 6.9 shows";
        return Err(refused(why.into()));
    }
    Ok(tid)
}

fn has_ended(status: &Status) -> bool {
    status.field("State").starts_with(['Z', 'X'])
}

/// `pid` is that of its [`speaker`].
pub(crate) fn inspect(pid: i32, privileged: bool) -> Result<Facts, CaptureError> {
    let refused = |why: String| CaptureError::Refused { pid, why };
    let gone = |_| CaptureError::NoSuchProcess(pid);
    let status = Status::read(pid).map_err(gone)?;
    let stat = procfs::stat(pid).map_err(gone)?;
    if procfs::stat_field(&stat, 9) & PF_KTHREAD != 0 {
        return Err(refused("is a kernel thread".into()));
    }
    if pid == std::process::id() as i32 {
        return Err(refused("is this node's own daemon".into()));
    }
    let leader = status.number("Tgid", 10) as i32;
    if has_ended(&status) {
        return Err(refused("has ended (zombie)".into()));
    }
    let own = if leader == pid { status.clone() } else { Status::read(leader).map_err(gone)? };
    let tracer = status.number("TracerPid", 10);
    if tracer != 0 {
        return Err(refused(format!("is traced by process {tracer}: detach it first")));
    }
    if !privileged {
        refuse_privileged(&status).map_err(refused)?;
        refuse_not_dumpable(pid, &status).map_err(refused)?;
        refuse_confined(pid).map_err(refused)?;
    }
    user::refuse(pid).map_err(refused)?;
    refuse_32_bit(pid).map_err(refused)?;
    refuse_frozen(pid).map_err(refused)?;
    let ns = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    Ok(Facts {
        seccomp: status.number("Seccomp", 10) != 0,
        foreign_pid_ns: ns(&pid.to_string()) != ns("self"),
        shared: shared::any(pid)?,
        ipc: ipc::any(pid)?,
        aio: aio::any(pid)?,
        timers: timers::list(pid)?.len(),
        is_init: own.inner_id() == Some(1),
        clock_shift: clock_shift(pid)?,
        privileged,
        ended_leader: (leader != pid).then_some(leader),
    })
}

fn clock_shift(pid: i32) -> Result<Clocks, CaptureError> {
    let refused = |e: mitosis_sys::SysError| CaptureError::Refused { pid, why: e.to_string() };
    let own = clock::shift_of(std::process::id() as i32).map_err(refused)?;
    Ok(clock::shift_of(pid).map_err(refused)?.with(own, i64::saturating_sub))
}

/// Set-uid programs and those that made themselves non-dumpable do not want to be read.
fn refuse_privileged(status: &Status) -> Result<(), String> {
    let uids = status.numbers("Uid", 10);
    let gids = status.numbers("Gid", 10);
    let differ = |ids: &[u64]| ids.windows(2).any(|w| w[0] != w[1]);
    if differ(&uids) || differ(&gids) {
        return Err("runs with differing user or group ids (set-uid): refused by policy".into());
    }
    Ok(())
}

/// A child has the label that the node's daemon has with the machine's security module, which may
/// allow more than the parent's does.
fn refuse_confined(pid: i32) -> Result<(), String> {
    let of = |pid: &str| {
        let label = std::fs::read(format!("/proc/{pid}/attr/current")).unwrap_or_default();
        let label = String::from_utf8_lossy(&label).into_owned();
        label.trim_end_matches(['\0', '\n']).to_owned()
    };
    let label = of(&pid.to_string());
    if is_confined(&label) && label != of("self") {
        return Err(format!("is confined by a security module ({label}): refused by policy"));
    }
    Ok(())
}

/// AppArmor says `unconfined`, and SELinux has domains of such names, with `spc_t` for containers;
/// other modules say nothing, or nothing that restricts the process.
fn is_confined(label: &str) -> bool {
    let domain = label.split(':').nth(2);
    let free = |name: &str| name.contains("unconfined") || name == "spc_t" || name == "kernel_t";
    let apparmor = [" (enforce)", " (kill)", " (prompt)"].iter().any(|mode| label.ends_with(mode));
    apparmor || domain.is_some_and(|domain| !free(domain))
}

fn refuse_32_bit(pid: i32) -> Result<(), String> {
    use std::os::unix::fs::FileExt;
    let path = format!("/proc/{pid}/exe");
    let mut ident = [0u8; 20];
    let file =
        std::fs::File::open(&path).map_err(|e| format!("has no readable executable: {e}"))?;
    file.read_exact_at(&mut ident, 0).map_err(|e| format!("has an unreadable executable: {e}"))?;
    if ident[..5] != *b"\x7fELF\x02" {
        return Err("is not a 64-bit ELF program".into());
    }
    Ok(())
}

/// The owner of /proc/PID files is root when the process is not dumpable (proc(5)), or who is that in its
/// user namespace. Of a process of root it shows later, to itself.
fn refuse_not_dumpable(pid: i32, status: &Status) -> Result<(), String> {
    let owner = |path: String| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|m| m.uid()).unwrap_or(0)
    };
    let uid = status.numbers("Uid", 10).get(1).copied().unwrap_or(0);
    if u64::from(owner(format!("/proc/{pid}/environ"))) != uid {
        return Err("is not dumpable (prctl PR_SET_DUMPABLE): refused by policy".into());
    }
    Ok(())
}

/// A task in a frozen v1 cgroup never stops; in a frozen v2 cgroup it can be seized but not run.
fn refuse_frozen(pid: i32) -> Result<(), String> {
    let cgroups = procfs::text(pid, "cgroup").map_err(|e| e.to_string())?;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next(), fields.next(), fields.next().unwrap_or(""));
        let state = match controllers {
            Some("freezer") => format!("/sys/fs/cgroup/freezer{path}/freezer.state"),
            Some("") => format!("/sys/fs/cgroup/unified{path}/cgroup.events"),
            _ => continue,
        };
        let text = std::fs::read_to_string(&state)
            .or_else(|_| std::fs::read_to_string(state.replace("/unified", "")))
            .unwrap_or_default();
        if text.contains("FROZEN") || text.contains("FREEZING") || text.contains("frozen 1") {
            return Err(format!("is in a frozen cgroup ({path}): thaw it first"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels_that_confine_are_told_from_others() {
        let confining = ["docker-default (enforce)", "system_u:system_r:container_t:s0:c1,c2"];
        let others = [
            "",
            "unconfined",
            "snap.tool (complain)",
            "_",
            "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023",
            "system_u:system_r:unconfined_service_t:s0",
            "system_u:system_r:spc_t:s0",
        ];
        assert!(confining.iter().all(|label| super::is_confined(label)));
        assert!(!others.iter().any(|label| super::is_confined(label)));
    }
}
