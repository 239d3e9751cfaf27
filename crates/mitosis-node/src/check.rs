//! What this machine can do, each with its reason and the knob to turn.

use mitosis_sys::{cpu, procfs, uffd::Uffd};
use mitosis_transport::Device;
use serde::Serialize;
use std::path::Path;

/// How well something works here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should.
    Ok,
    /// In a lesser, documented way.
    Degraded,
    /// Not.
    Missing,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Degraded => "degraded",
            Verdict::Missing => "missing",
        })
    }
}

/// One thing a node needs or uses.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// How well it works here.
    pub verdict: Verdict,
    /// Whether a node cannot run without it.
    pub needed: bool,
    /// What was found.
    pub reason: String,
    /// What to turn; `-` when there is nothing to turn.
    pub knob: String,
}

/// Effective capabilities, by number (capabilities(7)).
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

struct Machine {
    caps: u64,
    release: (u32, u32),
    release_text: String,
}

impl Machine {
    fn read() -> Machine {
        let caps = procfs::Status::read(std::process::id() as i32);
        let caps = caps.map_or(0, |status| status.number("CapEff", 16));
        let uname = rustix::system::uname();
        let release_text = uname.release().to_string_lossy().into_owned();
        let mut numbers = release_text.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Machine { caps, release: (number(), number()), release_text }
    }

    fn has(&self, cap: u32) -> bool {
        self.caps & (1 << cap) != 0
    }

    fn since(&self, major: u32, minor: u32) -> bool {
        self.release >= (major, minor)
    }
}

fn item(name: &str, needed: bool, verdict: Verdict, reason: impl Into<String>, knob: &str) -> Item {
    Item { name: name.into(), verdict, needed, reason: reason.into(), knob: knob.into() }
}

fn either(
    name: &str,
    good: bool,
    bad: Verdict,
    reasons: (impl Into<String>, impl Into<String>),
    knob: &str,
) -> Item {
    let needed = bad == Verdict::Missing;
    match good {
        true => item(name, needed, Verdict::Ok, reasons.0, "-"),
        false => item(name, needed, bad, reasons.1, knob),
    }
}

/// Looks at everything.
pub fn check() -> Vec<Item> {
    let mut items = machine_items();
    items.push(rdma());
    items
}

/// All but devices, which a node opens by itself and can do without.
fn machine_items() -> Vec<Item> {
    let machine = Machine::read();
    vec![
        kernel(&machine),
        userfaultfd(),
        ptrace(&machine),
        pids(&machine),
        namespaces(&machine),
        memory_map(&machine),
        pagemap(&machine),
        cgroups(),
        resource(&machine),
        pid_max(),
        scale(),
        time_namespaces(),
        either(
            "timers",
            Path::new("/proc/self/timers").exists(),
            Verdict::Missing,
            ("timers of a parent can be seen", "no /proc/PID/timers: timers would be lost unseen"),
            "CONFIG_CHECKPOINT_RESTORE=y",
        ),
        unix_peers(),
        xsave(),
    ]
}

/// The first thing that a node cannot run without and that is not here.
pub(crate) fn missing() -> Option<Item> {
    machine_items().into_iter().find(|item| item.needed && item.verdict == Verdict::Missing)
}

fn kernel(machine: &Machine) -> Item {
    let text = &machine.release_text;
    let good = machine.since(5, 15) && cfg!(target_arch = "x86_64");
    let reasons = (format!("Linux {text}"), format!("Linux {text}, want 5.15 on x86-64"));
    either("kernel", good, Verdict::Missing, reasons, "a newer kernel")
}

fn userfaultfd() -> Item {
    let (good, reason) = match Uffd::create() {
        Ok(_) => (true, String::new()),
        Err(e) => (false, e.to_string()),
    };
    let knob = "CONFIG_USERFAULTFD=y; CAP_SYS_PTRACE or sysctl vm.unprivileged_userfaultfd=1";
    either("userfaultfd", good, Verdict::Missing, ("kernel faults too", reason), knob)
}

fn ptrace(machine: &Machine) -> Item {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let scope = scope.ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let (good, reason) = match (scope, machine.has(CAP_SYS_PTRACE)) {
        (3, _) => (false, "yama forbids attaching altogether".to_owned()),
        (_, true) => (true, format!("CAP_SYS_PTRACE, yama ptrace_scope {scope}")),
        (_, false) => (false, "no CAP_SYS_PTRACE".to_owned()),
    };
    let knob = "CAP_SYS_PTRACE; sysctl kernel.yama.ptrace_scope below 3";
    either("ptrace", good, Verdict::Missing, (reason.clone(), reason), knob)
}

fn pids(machine: &Machine) -> Item {
    let good = machine.has(CAP_SYS_ADMIN) || machine.has(CAP_CHECKPOINT_RESTORE);
    let reasons = ("pidfd, clone3 with chosen pids", "no CAP_CHECKPOINT_RESTORE, no CAP_SYS_ADMIN");
    either("process ids", good, Verdict::Missing, reasons, "CAP_CHECKPOINT_RESTORE")
}

fn namespaces(machine: &Machine) -> Item {
    let absent: Vec<&str> = ["pid", "mnt", "uts", "ipc", "net"]
        .into_iter()
        .filter(|name| !Path::new(&format!("/proc/self/ns/{name}")).exists())
        .collect();
    let good = absent.is_empty() && machine.has(CAP_SYS_ADMIN);
    let bad = match absent.is_empty() {
        true => "no CAP_SYS_ADMIN".to_owned(),
        false => format!("the kernel has no {} namespaces", absent.join(", ")),
    };
    let knob = "CAP_SYS_ADMIN; CONFIG_NAMESPACES=y";
    either("namespaces", good, Verdict::Missing, ("pid, mnt, uts, ipc, net", bad), knob)
}

fn time_namespaces() -> Item {
    let spaces = crate::time::Spaces::probe();
    let (good, why) = (spaces.impossible().is_none(), spaces.impossible().unwrap_or_default());
    let bad = format!("{why}: monotonic clocks of children of other nodes jump");
    let reasons = ("monotonic clocks of parents are continued", bad);
    let knob = "CONFIG_TIME_NS=y; CAP_SYS_ADMIN and CAP_SYS_TIME";
    either("time namespaces", good, Verdict::Degraded, (reasons.0.to_owned(), reasons.1), knob)
}

fn memory_map(machine: &Machine) -> Item {
    let good = machine.has(CAP_SYS_RESOURCE)
        || machine.has(CAP_CHECKPOINT_RESTORE)
        || machine.has(CAP_SYS_ADMIN);
    let reasons = ("PR_SET_MM_MAP", "none of the capabilities for PR_SET_MM_MAP");
    either("memory layout", good, Verdict::Missing, reasons, "CAP_CHECKPOINT_RESTORE")
}

fn pagemap(machine: &Machine) -> Item {
    let reasons = ("PAGEMAP_SCAN", "no PAGEMAP_SCAN before Linux 6.7: /proc/PID/pagemap is read");
    either("page tables", machine.since(6, 7), Verdict::Degraded, reasons, "a newer kernel")
}

fn cgroups() -> Item {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
    let v1 = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v1: Vec<&str> = v1
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|name| !name.is_empty() && !name.starts_with("name="))
        .collect();
    let (verdict, reason) = match (v2, hybrid, v1.is_empty()) {
        (Some(controllers), _, _) => (Verdict::Ok, format!("v2: {}", controllers.trim())),
        (None, true, _) => (Verdict::Ok, format!("hybrid; v1: {}", v1.join(" "))),
        (None, false, false) => (Verdict::Degraded, format!("v1 only: {}", v1.join(" "))),
        (None, false, true) => (Verdict::Degraded, "none mounted".to_owned()),
    };
    let knob = if verdict == Verdict::Ok { "-" } else { "mount cgroup2 at /sys/fs/cgroup" };
    item("cgroups", false, verdict, reason, knob)
}

fn resource(machine: &Machine) -> Item {
    let reasons = (
        "CAP_SYS_RESOURCE",
        "no CAP_SYS_RESOURCE: a child's hard limits cannot be above this node's",
    );
    let good = machine.has(CAP_SYS_RESOURCE);
    either("resource limits", good, Verdict::Degraded, reasons, "CAP_SYS_RESOURCE")
}

fn pid_max() -> Item {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let text = text.trim().to_owned();
    let good = text.parse::<u64>().is_ok_and(|max| max >= 4_194_304);
    let bad = format!("pid_max {text}: a parent with a larger pid needs fork --new-pid");
    let reasons = (format!("pid_max {text}"), bad);
    either("pid range", good, Verdict::Degraded, reasons, "sysctl kernel.pid_max=4194304")
}

/// A limit of the kernel, and how many of what it counts a child takes.
struct Limit {
    path: &'static str,
    each: u64,
}

/// What bounds the number of children. With its guard a child is two processes and one namespace of
/// each kind; it takes about 12 open files in the whole system, those of node and pager included.
const LIMITS: [Limit; 8] = [
    Limit { path: "kernel/pid_max", each: 2 },
    Limit { path: "kernel/threads-max", each: 2 },
    Limit { path: "fs/file-max", each: 12 },
    Limit { path: "user/max_pid_namespaces", each: 1 },
    Limit { path: "user/max_mnt_namespaces", each: 1 },
    Limit { path: "user/max_uts_namespaces", each: 1 },
    Limit { path: "user/max_ipc_namespaces", each: 1 },
    Limit { path: "user/max_net_namespaces", each: 1 },
];

/// Descriptors of the pager for each child, which has more of them than the node.
const FDS_EACH: u64 = 4;
/// Children for which a node should have room.
const CHILDREN: u64 = 10_000;

/// For how many children there is room, and what is the first to run out. `vm.max_map_count` is each
/// child's own.
fn scale() -> Item {
    let room = |limit: &Limit| {
        let text = std::fs::read_to_string(Path::new("/proc/sys").join(limit.path)).ok()?;
        let most: u64 = text.trim().parse().ok()?;
        Some((most / limit.each, format!("{} {most}", limit.path.replace('/', "."))))
    };
    let fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let fds = fds.map(|most| (most / FDS_EACH, format!("RLIMIT_NOFILE {most}")));
    let Some((children, why)) = LIMITS.iter().filter_map(room).chain(fds).min() else {
        return item("children", false, Verdict::Ok, "no limit known", "-");
    };
    let reason = format!("room for about {children}: {why}");
    let knob = match why.split_once(' ') {
        Some(("RLIMIT_NOFILE", _)) => "LimitNOFILE=1048576 of the node's unit",
        Some((name, _)) if name.starts_with("user") => "sysctl user.max_*_namespaces",
        Some((name, _)) if name.starts_with("fs") => "sysctl fs.file-max",
        _ => "sysctl kernel.pid_max=4194304, kernel.threads-max",
    };
    either("children", children >= CHILDREN, Verdict::Degraded, (reason.clone(), reason), knob)
}

fn unix_peers() -> Item {
    let reasons = ("who is whose peer can be seen", "unix sockets that are connected are refused");
    let good = mitosis_state::knows_unix_peers();
    either("unix sockets", good, Verdict::Degraded, reasons, "modprobe unix_diag")
}

fn xsave() -> Item {
    let features = cpu::frame_features();
    let bytes = cpu::xsave_bytes(features);
    let reason = format!("{bytes} bytes of register state (XCR0 {:#x})", cpu::xcr0());
    item("xsave", false, Verdict::Ok, reason, "-")
}

fn rdma() -> Item {
    let wanted = std::env::var("MITOSIS_RDMA_DEVICE").ok();
    let knob = "an RDMA NIC, or: rdma link add rxe0 type rxe netdev NIC; package ibverbs-providers";
    match Device::open(wanted.as_deref()) {
        Ok(device) => {
            item("rdma", false, Verdict::Ok, format!("device {}", device.describe()), "-")
        }
        Err(e) => item("rdma", false, Verdict::Degraded, format!("{e}; pages go over TCP"), knob),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_a_reason_and_a_knob() {
        for item in check() {
            assert!(!item.name.is_empty() && !item.reason.is_empty() && !item.knob.is_empty());
            assert!(item.verdict == Verdict::Ok || item.knob != "-" || !item.needed);
        }
    }
}
