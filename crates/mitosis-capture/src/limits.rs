//! A parent that sits at its cgroup's limits must not be harmed by the fork.
//!
//! The helper and the shadow need two pids, and the shadow's page tables need memory, all charged
//! to the parent's cgroups. Where there is no room, the limits are raised by just that much for
//! the moment of the fork; then the shadow is moved to the daemon's cgroups. Its page tables stay
//! charged where they were made, so a memory limit stays higher by as much.

use crate::CaptureError;
use mitosis_sys::procfs::{self, Status};
use std::fs;
use std::path::{Path, PathBuf};

/// Limits raised for a moment. Dropping it puts them back; of a memory limit all but what the shadow
/// takes, so that the parent has as much room as before.
#[derive(Debug, Default)]
pub(crate) struct Raised {
    limits: Vec<RaisedLimit>,
}

#[derive(Debug)]
struct RaisedLimit {
    file: PathBuf,
    usage_file: PathBuf,
    old: u64,
    usage: u64,
    memory: bool,
}

/// Pids needed: the helper and the shadow.
const PIDS: u64 = 2;
/// Kernel memory needed besides page tables: two tasks with stacks.
const KERNEL_BYTES: u64 = 512 << 10;

/// One limit of one cgroup hierarchy.
struct Limit {
    controller: &'static str,
    limit: &'static str,
    usage: &'static str,
}

const V1: [Limit; 2] = [
    Limit { controller: "pids", limit: "pids.max", usage: "pids.current" },
    Limit { controller: "memory", limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes" },
];
const V2: [Limit; 2] = [
    Limit { controller: "pids", limit: "pids.max", usage: "pids.current" },
    Limit { controller: "memory", limit: "memory.max", usage: "memory.current" },
];

/// The cgroup directories of a process: hierarchy root, path in it, controllers (empty for v2).
fn cgroups(pid: i32) -> Vec<(PathBuf, String, String)> {
    let text = procfs::text(pid, "cgroup").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let root = match controllers {
                "" if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
                    PathBuf::from("/sys/fs/cgroup")
                }
                "" => PathBuf::from("/sys/fs/cgroup/unified"),
                named if named.starts_with("name=") => PathBuf::from("/sys/fs/cgroup/systemd"),
                named => Path::new("/sys/fs/cgroup").join(named.split(',').next()?),
            };
            Some((root, path.to_owned(), controllers.to_owned()))
        })
        .collect()
}

/// Makes room for the fork of `pid` where its cgroups have none.
///
/// # Errors
/// A limit is reached and cannot be raised.
pub(crate) fn make_room(pid: i32) -> Result<Raised, CaptureError> {
    let status = Status::read(pid).map_err(|_| CaptureError::NoSuchProcess(pid))?;
    // The shadow's page tables, twice over, and its copy of shared memory.
    let kilobytes = |key| status.number(key, 10) << 10;
    let bytes = KERNEL_BYTES + 2 * kilobytes("VmPTE") + kilobytes("RssShmem");
    let mut raised = Raised::default();
    for (root, path, controllers) in cgroups(pid) {
        let table = if controllers.is_empty() { &V2 } else { &V1 };
        for limit in table {
            if !controllers.is_empty() && !controllers.split(',').any(|c| c == limit.controller) {
                continue;
            }
            let need = if limit.controller == "pids" { PIDS } else { bytes };
            raised.raise_all(pid, &root, &path, limit, need)?;
        }
    }
    Ok(raised)
}

impl Raised {
    /// A limit holds for the cgroup and all above it.
    fn raise_all(
        &mut self,
        pid: i32,
        root: &Path,
        path: &str,
        limit: &Limit,
        need: u64,
    ) -> Result<(), CaptureError> {
        let mut dir = root.join(path.trim_start_matches('/'));
        while dir.starts_with(root) && dir != root {
            self.raise(pid, &dir, limit, need)?;
            if !dir.pop() {
                break;
            }
        }
        Ok(())
    }

    fn raise(
        &mut self,
        pid: i32,
        dir: &Path,
        limit: &Limit,
        need: u64,
    ) -> Result<(), CaptureError> {
        let (file, usage_file) = (dir.join(limit.limit), dir.join(limit.usage));
        let (Some(max), Some(usage)) = (number(&file), number(&usage_file)) else {
            return Ok(()); // "max", or no such controller here
        };
        if usage.saturating_add(need) <= max {
            return Ok(());
        }
        let wanted = usage.max(max).saturating_add(need);
        fs::write(&file, wanted.to_string()).map_err(|e| CaptureError::Refused {
            pid,
            why: format!(
                "is at its limit {} = {max}, and it cannot be raised for the fork: {e}",
                file.display()
            ),
        })?;
        let memory = limit.controller == "memory";
        self.limits.push(RaisedLimit { file, usage_file, old: max, usage, memory });
        Ok(())
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        for raised in &self.limits {
            let taken = match number(&raised.usage_file) {
                Some(now) if raised.memory => now.saturating_sub(raised.usage),
                _ => 0,
            };
            // Where it fails the limit stays higher than it was, which harms nobody.
            let _ = fs::write(&raised.file, (raised.old + taken).to_string());
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Moves the shadow out of the parent's cgroups into the daemon's, hierarchy by hierarchy where
/// they differ (a v1 move takes milliseconds; the parent already runs again).
pub(crate) fn adopt(shadow: i32) {
    let ours = cgroups(std::process::id() as i32);
    for (root, path, controllers) in cgroups(shadow) {
        let Some((_, home, _)) = ours.iter().find(|(_, _, c)| *c == controllers) else { continue };
        if *home != path {
            let file = root.join(home.trim_start_matches('/')).join("cgroup.procs");
            // Best effort: without it the shadow counts as one process of the parent's.
            let _ = fs::write(file, shadow.to_string());
        }
    }
}
