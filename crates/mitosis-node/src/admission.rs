//! Whether a node takes more children.
//!
//! A machine out of memory is worse than a fork that is refused: the kernel's OOM killer chooses whom
//! it likes. So below one bound on what is available templates go, for they are caches, and below half
//! of it forks are refused. What counts is the machine's memory, and that of the cgroups with a limit
//! that this daemon is in, for its children are there too.

use crate::error::NodeError;
use crate::node::Node;
use mitosis_descriptor::Phase;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Without `--memory-min-mib`: this part of the memory.
const MEMORY_SHARE: u64 = 32;
/// What a child may cost before anything is known of it: an idle one of a small program, its guard
/// included. What it uses later nobody knows.
const CHILD_BYTES: u64 = 512 << 10;
/// How long one look at the memory is good for.
const SAMPLED: Duration = Duration::from_millis(20);
/// What is wanted of it stands at its beginning.
const MEMINFO_BYTES: usize = 512;

/// What the machine and the cgroups have, in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    available: u64,
    total: u64,
}

/// The bounds of a node, and who is about to be counted.
#[derive(Debug)]
pub(crate) struct Admission {
    /// As configured; `None` is a share of the memory.
    memory_min: Option<u64>,
    /// 0: no bound.
    children_max: usize,
    /// Children that were admitted and are not in the table yet.
    starting: Mutex<usize>,
    sampled: Mutex<Option<(Instant, Memory)>>,
    /// proc_meminfo(5), open: it is read on the way of a fork.
    meminfo: Option<File>,
    groups: Vec<Group>,
}

/// Children that were admitted; given back when they are in the table, or failed.
pub(crate) struct Admitted<'a> {
    admission: &'a Admission,
    count: usize,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        *lock(&self.admission.starting) -= self.count;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// With these bounds.
    pub fn new(memory_min: Option<u64>, children_max: usize) -> Admission {
        let (starting, sampled) = (Mutex::default(), Mutex::default());
        let (meminfo, groups) = (File::open("/proc/meminfo").ok(), Group::mine());
        Admission { memory_min, children_max, starting, sampled, meminfo, groups }
    }

    fn memory(&self) -> Memory {
        let mut sampled = lock(&self.sampled);
        match *sampled {
            Some((at, memory)) if at.elapsed() < SAMPLED => memory,
            _ => {
                let memory = self.look();
                *sampled = Some((Instant::now(), memory));
                memory
            }
        }
    }

    /// What is available. Where the kernel does not say, everything.
    fn look(&self) -> Memory {
        let mut text = [0; MEMINFO_BYTES];
        let read = self.meminfo.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = std::str::from_utf8(&text[..read.unwrap_or(0)]).unwrap_or_default();
        let number = |name: &str| line_number(text, name).map(|kib| kib << 10);
        let total = number("MemTotal:").unwrap_or(u64::MAX);
        let machine = Memory { available: number("MemAvailable:").unwrap_or(total), total };
        let groups = self.groups.iter().filter_map(Group::memory);
        groups.fold(machine, |least, one| if one.available < least.available { one } else { least })
    }

    fn least(&self, memory: Memory) -> u64 {
        self.memory_min.unwrap_or(memory.total / MEMORY_SHARE)
    }

    /// Whether caches have to go: less than twice what forks are refused at.
    pub fn is_short(&self) -> bool {
        let memory = self.memory();
        memory.available < self.least(memory).saturating_mul(2)
    }

    /// Admits `count` children, or says why not. Templates go first.
    ///
    /// # Errors
    /// No room for them.
    pub fn admit(&self, node: &Node, count: usize) -> Result<Admitted<'_>, NodeError> {
        let admitted = {
            let mut starting = lock(&self.starting);
            if self.children_max > 0 {
                let live = node.children.live().len() + *starting;
                if live + count > self.children_max {
                    let most = self.children_max;
                    let cause = format!("{live} children live here, --children-max is {most}");
                    return Err(refused(cause));
                }
            }
            *starting += count;
            Admitted { admission: self, count }
        };
        if self.room(count).is_err() {
            node.templates.clear();
            *lock(&self.sampled) = None;
        }
        match self.room(count) {
            Ok(()) => Ok(admitted),
            Err(cause) => Err(refused(cause)),
        }
    }

    /// Whether there is room for so many children: all those that are being started count.
    ///
    /// # Errors
    /// What is missing.
    pub fn room(&self, count: usize) -> Result<(), String> {
        let memory = self.memory();
        let least = self.least(memory);
        let starting = (*lock(&self.starting)).max(count) as u64;
        if memory.available >= least.saturating_add(starting * CHILD_BYTES) {
            return Ok(());
        }
        let (have, least) = (memory.available >> 20, least >> 20);
        Err(format!("{have} MiB of memory available, --memory-min-mib is {least}"))
    }
}

/// The error of a fork that is refused.
pub(crate) fn refused(cause: String) -> NodeError {
    NodeError::step(Phase::Sandbox, "admission", cause)
}

fn line_number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A memory cgroup: its directory, and the names that its files have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    dir: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` with what can be dropped.
    inactive: &'static str,
}

impl Group {
    fn v2(dir: PathBuf) -> Group {
        let (limit, usage, inactive) = ("memory.max", "memory.current", "inactive_file ");
        Group { dir, limit, usage, inactive }
    }

    fn v1(dir: PathBuf) -> Group {
        let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        Group { dir, limit, usage, inactive: "total_inactive_file " }
    }

    /// Those of this process that have a limit, from its own up. What a cgroup namespace hides cannot
    /// be seen, and so does not count.
    fn mine() -> Vec<Group> {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut all = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (root, make): (&str, fn(PathBuf) -> Group) = match controllers {
                "" => ("/sys/fs/cgroup", Group::v2),
                _ if controllers.split(',').any(|one| one == "memory") => {
                    ("/sys/fs/cgroup/memory", Group::v1)
                }
                _ => continue,
            };
            let root = Path::new(root);
            let own = root.join(path.trim_start_matches('/'));
            let up = own.ancestors().take_while(|dir| dir.starts_with(root));
            all.extend(up.map(|dir| make(dir.to_owned())).filter(|group| group.memory().is_some()));
        }
        all
    }

    /// Its limit, and what is left of it; `None` without a limit.
    fn memory(&self) -> Option<Memory> {
        let read = |name: &str| std::fs::read_to_string(self.dir.join(name)).ok();
        let total = read(self.limit)?.trim().parse::<u64>().ok()?;
        // What v1 shows for no limit.
        if total > 1 << 60 {
            return None;
        }
        let used = read(self.usage)?.trim().parse::<u64>().ok()?;
        let dropped = line_number(&read("memory.stat")?, self.inactive).unwrap_or(0);
        Some(Memory { available: total.saturating_sub(used.saturating_sub(dropped)), total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_with_a_limit_counts_and_what_it_could_drop_is_there() {
        let dir = std::env::temp_dir().join(format!("mitosis-admission-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        let group = Group::v2(dir.clone());
        put("memory.max", "max\n");
        assert!(group.memory().is_none());
        put("memory.max", "1000000\n");
        put("memory.current", "900000\n");
        put("memory.stat", "anon 5\ninactive_file 100000\nactive_file 7\n");
        let memory = group.memory().unwrap();
        assert_eq!((memory.available, memory.total), (200_000, 1_000_000));
        let mut admission = Admission::new(Some(150_000), 0);
        admission.groups = vec![group.clone()];
        assert!(admission.is_short());
        put("memory.current", "1200000\n");
        assert_eq!(group.memory().unwrap().available, 0);
        let no = admission.room(1);
        assert!(no.is_err_and(|cause| cause.contains("--memory-min-mib")));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(group.memory().is_none());
    }

    #[test]
    fn there_is_room_where_nothing_is_wanted() {
        let admission = Admission::new(Some(0), 0);
        assert!(admission.room(1).is_ok() && !admission.is_short());
        let much = Admission::new(Some(u64::MAX), 0);
        assert!(much.room(1).is_err() && much.is_short());
    }
}
