//! Counting what a node holds, so that a test can show that nothing was left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::error::LabError;
use crate::node::Node;
use crate::proc;

/// What a node holds at one moment. Two that are equal leave nothing unexplained.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    /// Processes by command name, zombies as `NAME (zombie)`.
    pub processes: BTreeMap<String, usize>,
    /// Open descriptors as `PROCESS: KIND`; kinds are `socket`, `/memfd:x`, `anon_inode:[x]`, ...
    pub descriptors: BTreeMap<String, usize>,
    /// Namespaces of each type that processes of the node are in.
    pub namespaces: BTreeMap<String, usize>,
    /// Lines in the node's mount table.
    pub mounts: usize,
    /// Directories of control groups that carry the node's name.
    pub cgroups: usize,
    /// Files in the node's own `/run`, `/tmp`, `/var/lib` and `/dev/shm`.
    pub files: usize,
}

impl Census {
    pub(crate) fn take(node: &Node) -> Result<Self, LabError> {
        let mut census = Self {
            processes: BTreeMap::new(),
            descriptors: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            mounts: proc::read(&node.proc_dir(1).join("mountinfo"))?.lines().count(),
            cgroups: named_directories(Path::new("/sys/fs/cgroup"), node.name()),
            files: 0,
        };
        for own in ["/run", "/tmp", "/var/lib", "/dev/shm"] {
            census.files += files_below(&node.host_path(own));
        }
        let mut namespaces = BTreeSet::new();
        for pid in node.pids()? {
            census.add_process(&node.proc_dir(pid), &mut namespaces);
        }
        for (kind, _) in namespaces {
            *census.namespaces.entry(kind).or_default() += 1;
        }
        Ok(census)
    }

    /// Adds one process; one that ended meanwhile counts as far as it could be read.
    fn add_process(&mut self, dir: &Path, namespaces: &mut BTreeSet<(String, String)>) {
        let Ok(stat) = fs::read_to_string(dir.join("stat")) else { return };
        let Some((head, rest)) = stat.rsplit_once(") ") else { return };
        let name = head.split_once(" (").map_or(head, |(_, name)| name);
        let zombie = if rest.starts_with('Z') { " (zombie)" } else { "" };
        *self.processes.entry(format!("{name}{zombie}")).or_default() += 1;
        for (_, link) in links(&dir.join("fd")) {
            *self.descriptors.entry(format!("{name}: {}", kind_of(&link))).or_default() += 1;
        }
        namespaces.extend(links(&dir.join("ns")).into_iter().filter(|(k, _)| !k.contains("_for_")));
    }

    /// The number of processes of all names, zombies included.
    pub fn process_count(&self) -> usize {
        self.processes.values().sum()
    }

    /// The number of zombies.
    pub fn zombie_count(&self) -> usize {
        let zombies = self.processes.iter().filter(|(name, _)| name.ends_with("(zombie)"));
        zombies.map(|(_, count)| count).sum()
    }

    /// What differs between this count and a `later` one, a line each; empty if they are equal.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let tables = [
            ("process", &self.processes, &later.processes),
            ("descriptor", &self.descriptors, &later.descriptors),
            ("namespace", &self.namespaces, &later.namespaces),
        ];
        for (what, before, after) in tables {
            let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let count = |table: &BTreeMap<String, usize>| table.get(key).copied().unwrap_or(0);
                if count(before) != count(after) {
                    lines.push(format!("{what} {key}: {} -> {}", count(before), count(after)));
                }
            }
        }
        let numbers = [
            ("mounts", self.mounts, later.mounts),
            ("cgroups", self.cgroups, later.cgroups),
            ("files", self.files, later.files),
        ];
        let changed = numbers.iter().filter(|(_, before, after)| before != after);
        lines.extend(changed.map(|(what, before, after)| format!("{what}: {before} -> {after}")));
        lines
    }
}

/// Names and targets of the symbolic links in a directory; none if it cannot be read any more.
fn links(dir: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let link = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((name, target.to_string_lossy().into_owned()))
    };
    entries.filter_map(Result::ok).filter_map(link).collect()
}

/// The kind of a descriptor: its link without the inode number; all plain files are `file`.
fn kind_of(link: &str) -> String {
    if link.starts_with("/memfd:") || link.starts_with("anon_inode:") {
        return link.trim_end_matches(" (deleted)").to_owned();
    }
    if link.starts_with('/') {
        return "file".to_owned();
    }
    link.split(':').next().unwrap_or(link).to_owned()
}

fn named_directories(root: &Path, name: &str) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    let mut count = 0;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let named = entry.path().to_string_lossy().contains(name);
            count += usize::from(named) + named_directories(&entry.path(), name);
        }
    }
    count
}

fn files_below(root: &Path) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    let below = |entry: fs::DirEntry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Shared host directories are somebody else's; they are mounts, and mounts are counted.
        let shared = is_dir && is_mount_point(&entry.path());
        1 + if is_dir && !shared { files_below(&entry.path()) } else { 0 }
    };
    entries.filter_map(Result::ok).map(below).sum()
}

fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    dir.parent().is_some_and(|parent| device(parent) != device(dir))
}
