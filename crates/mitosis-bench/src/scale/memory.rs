//! What children take, from outside: of the machine, and of each process.

use super::group::Group;
use crate::error::BenchError;
use mitosis_lab::Node;

/// The lines of proc_meminfo(5) that are compared, and what the difference is called.
pub const LINES: [(&str, &str); 10] = [
    ("MemAvailable:", "everything"),
    ("AnonPages:", "anonymous pages, of all processes"),
    ("PageTables:", "page tables, of all processes"),
    ("KernelStack:", "kernel stacks"),
    ("SUnreclaim:", "kernel objects"),
    ("SReclaimable:", "kernel objects that it drops when it must"),
    ("Shmem:", "files in memory"),
    ("Percpu:", "kernel memory of each processor"),
    ("MemFree:", "not free any more, with what the kernel would drop"),
    (CHARGED, "charged to the memory cgroup of the nodes"),
];

/// No line: what the cgroup of the lab says.
const CHARGED: &str = "charged";

/// KiB of each line, in the order of [`LINES`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Meminfo([u64; LINES.len()]);

impl Meminfo {
    /// Now.
    pub fn now(group: Option<&Group>) -> Result<Meminfo, BenchError> {
        let text = std::fs::read_to_string("/proc/meminfo");
        let text = text.map_err(BenchError::io("memory", "/proc/meminfo"))?;
        let mut all = Meminfo::default();
        for (value, (name, _)) in all.0.iter_mut().zip(LINES) {
            let number = match name {
                CHARGED => Some(group.and_then(Group::kib).unwrap_or(0)),
                _ => kib(&text, name),
            };
            *value = number.ok_or_else(|| BenchError::wrong("memory", format!("no {name}")))?;
        }
        Ok(all)
    }

    /// MiB that are available.
    pub fn available_mib(&self) -> u64 {
        self.0[0] / 1024
    }

    /// KiB that each of `count` took since `before`, by line.
    pub fn each(&self, before: &Meminfo, count: usize) -> [f64; LINES.len()] {
        std::array::from_fn(|line| {
            let grown = self.0[line] as f64 - before.0[line] as f64;
            let less_is_more = LINES[line].0.starts_with("Mem");
            (if less_is_more { -grown } else { grown }) / count as f64
        })
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// KiB of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Pages that nobody else has.
    pub private: f64,
    /// Page tables, but for the first level.
    pub tables: f64,
    /// Open descriptors.
    pub fds: f64,
}

/// What the process takes that its node calls `pid`.
pub fn taken(node: &Node, pid: u32) -> Result<Taken, BenchError> {
    let dir = node.proc_dir(pid);
    let failed = || BenchError::io("memory", dir.display());
    let status = std::fs::read_to_string(dir.join("status")).map_err(failed())?;
    let fds = std::fs::read_dir(dir.join("fd")).map_err(failed())?.count();
    Ok(Taken {
        private: node.memory(pid)?.private as f64 / 1024.0,
        tables: kib(&status, "VmPTE:").unwrap_or(0) as f64,
        fds: fds as f64,
    })
}

/// The parent of the process that its node calls `pid`.
pub fn parent(node: &Node, pid: u32) -> Result<u32, BenchError> {
    let path = node.proc_dir(pid).join("stat");
    let stat = std::fs::read_to_string(&path).map_err(BenchError::io("parent", path.display()))?;
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let parent = fields.split(' ').nth(1).and_then(|pid| pid.parse().ok());
    parent.ok_or_else(|| BenchError::wrong("parent", format!("{}: {stat}", path.display())))
}
