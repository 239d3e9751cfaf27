//! A control group for each child, made with its guard, ahead of time: what a child and all that it
//! starts may use together (cgroups(7)).
//!
//! Joining a version 1 hierarchy takes the kernel milliseconds, a version 2 one microseconds. So the
//! guard joins before anybody asks for it, and its child is born there; a copy of a template is born in
//! the version 2 group and moved in the others. A group is used once, and removed when all is over.

use crate::SandboxError;
use mitosis_sys::SysError;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where control groups are mounted (file-hierarchy(7), cgroups(7)).
const MOUNT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to let go of a group whose processes have ended.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(200);

/// What each child may use. Nothing set: children have no groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads, the guard included.
    pub pids: Option<u64>,
}

/// The directories below which each child gets one of its own.
#[derive(Clone, Debug)]
pub struct Groups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    dir: PathBuf,
    unified: bool,
    /// Files of a group, and what is written there.
    settings: Vec<(&'static str, u64)>,
}

/// The groups of one child: one in each hierarchy that limits it. Removed by [`remove`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// Directories in version 1 hierarchies.
    separate: Vec<PathBuf>,
    /// Directory in the version 2 hierarchy.
    unified: Option<PathBuf>,
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SandboxError {
    let path = path.display().to_string();
    move |e| SandboxError::Sys(SysError::io(call, path, e))
}

impl Groups {
    /// Makes the directories for the children of node `name`; `None` if there is nothing to limit.
    ///
    /// # Errors
    /// [`SandboxError::NoGroup`]: no hierarchy here has a controller that is needed, or it is not ours to
    /// use; with what may help.
    pub fn new(name: &str, limits: Limits) -> Result<Option<Groups>, SandboxError> {
        let wanted: Vec<(&'static str, [&'static str; 2], u64)> = [
            limits.memory.map(|bytes| ("memory", ["memory.limit_in_bytes", "memory.max"], bytes)),
            limits.pids.map(|count| ("pids", ["pids.max", "pids.max"], count)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut groups = Groups { hierarchies: Vec::new() };
        let mut unified = Vec::new();
        for (controller, [file, unified_file], value) in wanted {
            match separate(&own, controller) {
                Some(parent) => {
                    let dir = directory(&parent, name)?;
                    let settings = vec![(file, value)];
                    groups.hierarchies.push(Hierarchy { dir, unified: false, settings });
                }
                None => unified.push((controller, unified_file, value)),
            }
        }
        if !unified.is_empty() {
            let controllers: Vec<&str> = unified.iter().map(|(name, ..)| *name).collect();
            let dir = delegated(&own, name, &controllers)?;
            let settings = unified.iter().map(|(_, file, value)| (*file, *value)).collect();
            groups.hierarchies.push(Hierarchy { dir, unified: true, settings });
        }
        Ok(Some(groups))
    }

    /// A group with its limits, in which nobody is yet.
    ///
    /// # Errors
    /// mkdir(2), write(2); nothing is left behind.
    pub fn make(&self, name: &str) -> Result<Group, SandboxError> {
        let mut group = Group::default();
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.dir.join(name);
            let set = || -> Result<(), SandboxError> {
                make(&dir)?;
                for (file, value) in &hierarchy.settings {
                    let path = dir.join(file);
                    fs::write(&path, value.to_string()).map_err(failed("write", &path))?;
                }
                Ok(())
            };
            let done = set();
            match hierarchy.unified {
                true => group.unified = Some(dir.clone()),
                false => group.separate.push(dir.clone()),
            }
            if let Err(error) = done {
                remove(&group.paths());
                return Err(error);
            }
        }
        Ok(group)
    }

    /// The end of the node: what nobody is in any more goes. What stays goes when the next daemon of that
    /// name starts.
    pub fn end(&self) {
        for hierarchy in &self.hierarchies {
            sweep(&hierarchy.dir);
            let _ = fs::remove_dir(&hierarchy.dir);
        }
    }
}

impl Group {
    /// Moves a process into it.
    ///
    /// # Errors
    /// write(2) to `cgroup.procs`.
    pub fn enter(&self, pid: i32) -> Result<(), SandboxError> {
        self.paths().iter().try_for_each(|dir| join(dir, pid))
    }

    /// Moves a process that was born in the version 2 group into the others.
    ///
    /// # Errors
    /// As [`Group::enter`].
    pub fn enter_separate(&self, pid: i32) -> Result<(), SandboxError> {
        self.separate.iter().try_for_each(|dir| join(dir, pid))
    }

    /// For `CLONE_INTO_CGROUP`: the version 2 group, if there is one.
    ///
    /// # Errors
    /// open(2).
    pub fn unified(&self) -> Result<Option<OwnedFd>, SandboxError> {
        let open = |dir: &PathBuf| fs::File::open(dir).map_err(failed("open", dir));
        Ok(self.unified.as_ref().map(open).transpose()?.map(OwnedFd::from))
    }

    /// Its directories.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.separate.iter().chain(&self.unified).cloned().collect()
    }
}

/// Removes the groups of a child that has ended. One that the kernel still holds goes with the next
/// [`Groups::end`].
pub fn remove(paths: &[PathBuf]) {
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    for path in paths {
        while fs::remove_dir(path).is_err_and(|e| e.raw_os_error() == Some(EBUSY))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The limit in bytes, if the kernel has ended a process of this group for want of memory: by what it has
/// counted in `memory.events` of version 2, `memory.oom_control` of version 1.
pub fn out_of_memory(paths: &[PathBuf]) -> Option<u64> {
    let files = [("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes")];
    let killed = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        count.is_some_and(|count: u64| count > 0)
    };
    let limit = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    paths.iter().find_map(|dir| {
        let (_, max) = files.iter().find(|(counted, _)| killed(dir.join(counted)))?;
        limit(dir.join(max))
    })
}

const EBUSY: i32 = 16;

fn make(dir: &Path) -> Result<(), SandboxError> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(failed("mkdir", dir)(e)),
        _ => Ok(()),
    }
}

fn join(dir: &Path, pid: i32) -> Result<(), SandboxError> {
    let path = dir.join("cgroup.procs");
    fs::write(&path, pid.to_string()).map_err(failed("write", &path))
}

/// The directory for the children of this daemon. Those of earlier ones go, as far as nobody is in them.
fn directory(parent: &Path, name: &str) -> Result<PathBuf, SandboxError> {
    let prefix = format!("mitosis-{name}.");
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let pid =
            entry.file_name().to_str().and_then(|own| own.strip_prefix(&prefix)?.parse().ok());
        let ended = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
        if pid.is_some_and(ended) {
            let path = entry.path();
            sweep(&path);
            let _ = fs::remove_dir(path);
        }
    }
    let dir = parent.join(format!("{prefix}{}", std::process::id()));
    make(&dir)?;
    Ok(dir)
}

/// Removes the groups in a directory that nobody is in: those of children that live stay (EBUSY).
fn sweep(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let _ = fs::remove_dir(entry.path());
    }
}

/// This process's directory in the version 1 hierarchy of a controller, if there is one.
fn separate(own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        names.split(',').any(|name| name == controller).then_some(path)
    })?;
    let mount = Path::new(MOUNT).join(controller);
    let dir = mount.join(path.trim_start_matches('/'));
    // What a namespace hides is not there under that name.
    [dir, mount].into_iter().find(|dir| dir.join("cgroup.procs").exists())
}

/// A directory below this process's own version 2 group whose groups can have these controllers. A group
/// that gives controllers on can have no processes but in the root: then this one moves to a
/// group beside its children's.
fn delegated(own: &str, name: &str, controllers: &[&str]) -> Result<PathBuf, SandboxError> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let root = Path::new(MOUNT);
    let root = if root.join("cgroup.controllers").exists() { root } else { &root.join("unified") };
    let mine = format!("mitosis-{name}.node");
    // A daemon of this name has moved there before.
    let path = path.strip_suffix(mine.as_str()).unwrap_or(path);
    let parent = root.join(path.trim_start_matches('/'));
    let there = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    if let Some(lacks) = controllers.iter().find(|c| !there.split_whitespace().any(|t| t == **c)) {
        return Err(SandboxError::NoGroup(format!(
            "{} has no controller {lacks}: delegate it (systemd: Delegate=yes)",
            parent.display()
        )));
    }
    let wanted: String = controllers.iter().map(|name| format!("+{name} ")).collect();
    let give = |dir: &Path| {
        let path = dir.join("cgroup.subtree_control");
        fs::write(&path, wanted.trim()).map_err(|e| (path, e))
    };
    if let Err((_, e)) = give(&parent)
        && e.raw_os_error() == Some(EBUSY)
    {
        let mine = parent.join(mine);
        make(&mine)?;
        join(&mine, std::process::id() as i32)?;
        give(&parent).map_err(|(path, e)| {
            SandboxError::NoGroup(format!(
                "{}: {e}: other processes are in the node's own control group",
                path.display()
            ))
        })?;
    }
    let dir = directory(&parent, name)?;
    give(&dir).map_err(|(path, e)| failed("write", &path)(e))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limits_no_groups() {
        assert!(Groups::new("test", Limits::default()).expect("nothing to do").is_none());
    }

    #[test]
    fn a_group_out_of_memory_is_known_by_what_the_kernel_counts() {
        let base = std::env::temp_dir().join(format!("mitosis-group-{}", std::process::id()));
        let version1 = [("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")];
        let version2 = [("memory.events", "low 0\nmax 12\noom 1\noom_kill 1\n")];
        let clean = [("memory.events", "max 12\noom 1\noom_kill 0\n")];
        let limits = [("memory.limit_in_bytes", "4096\n"), ("memory.max", "8192\n")];
        for (files, expected) in [(version1, Some(4096)), (version2, Some(8192)), (clean, None)] {
            fs::create_dir_all(&base).expect("directory");
            for (name, text) in files.into_iter().chain(limits) {
                fs::write(base.join(name), text).expect("file");
            }
            let found = out_of_memory(&[base.join("another"), base.clone()]);
            fs::remove_dir_all(&base).expect("removed");
            assert_eq!(found, expected);
        }
        assert_eq!(out_of_memory(&[]), None);
    }

    /// Where a controller is to be had, a process in a group is limited by it, and nothing stays.
    #[test]
    fn a_group_holds_its_limit_and_goes() {
        let name = format!("unit-{}", std::process::id());
        let limits = Limits { memory: None, pids: Some(7) };
        let groups = match Groups::new(&name, limits) {
            Ok(Some(groups)) => groups,
            Err(SandboxError::NoGroup(why)) => return eprintln!("none here: {why}"),
            other => panic!("{other:?}"),
        };
        let group = groups.make("one").expect("group");
        let paths = group.paths();
        assert_eq!(fs::read_to_string(paths[0].join("pids.max")).expect("pids.max").trim(), "7");
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let entered = group.enter(sleeper.id() as i32);
        let member = fs::read_to_string(paths[0].join("cgroup.procs")).expect("cgroup.procs");
        let _ = sleeper.kill();
        let _ = sleeper.wait();
        entered.expect("entered");
        assert_eq!(member.trim(), sleeper.id().to_string());
        remove(&paths);
        groups.end();
        assert!(!paths[0].exists() && !paths[0].parent().expect("parent").exists());
    }
}
