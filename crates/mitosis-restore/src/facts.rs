//! What a node is, as far as its children can see.

use crate::{RestoreError, VdsoFunction, vdso};
use mitosis_descriptor::{Backing, Phase};
use mitosis_state::kinds::generic::{self, NamedGroup};
use mitosis_sys::kernel::Kernel;
use mitosis_sys::{cpu, procfs};

/// What of this node matters to a plan.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// CRC-32 of the vdso.
    pub vdso_crc: u32,
    /// What it exports.
    pub vdso_functions: Vec<VdsoFunction>,
    /// XSAVE features.
    pub xcr0: u64,
    /// Where its CPU has their state.
    pub xsave: Vec<mitosis_sys::cpu::Area>,
    /// Registers of CPUID that name instructions.
    pub cpuid: Vec<u32>,
    /// The node's own vdso parts relative to the vdso: name, distance below it, length.
    pub vdso_parts: Vec<(mitosis_descriptor::Backing, u64, u64)>,
    /// Hard limits of this node's daemon, in numeric order: a child's cannot be higher.
    pub hard_limits: Vec<u64>,
    /// `oom_score_adj` of this node's daemon.
    pub oom_score_adj: i32,
    /// CPUs on which this node's daemon, and so its children, may run; one bit each.
    pub cpus: Vec<u64>,
    /// Nice value of this node's daemon.
    pub nice: i32,
    /// What its kernel can do.
    pub kernel: Kernel,
    /// Capability bounding set of this node's daemon.
    pub cap_bounding: u64,
    /// All capabilities that its kernel has.
    pub caps: u64,
    /// Groups of generic netlink.
    pub generic_groups: Vec<NamedGroup>,
    /// Memory nodes that this node's daemon may use, one bit each.
    pub memory_nodes: Vec<u64>,
}

impl NodeFacts {
    /// Reads them from the calling process.
    ///
    /// # Errors
    /// `/proc/self` cannot be read.
    pub fn read() -> Result<NodeFacts, RestoreError> {
        let fail = |source| RestoreError::Sys { phase: Phase::Plan, source };
        let pid = std::process::id() as i32;
        let ranges = procfs::ranges(pid).map_err(fail)?;
        let vdso = ranges.iter().find(|m| m.name == "[vdso]").map_or(0, |m| m.start);
        let part = |m: &procfs::Mapping| {
            let backing = match m.name.as_str() {
                "[vdso]" => Backing::Vdso,
                "[vvar]" => Backing::Vvar,
                "[vvar_vclock]" => Backing::VvarVclock,
                _ => return None,
            };
            Some((backing, vdso - m.start, m.end - m.start))
        };
        let image = procfs::vdso(pid).map_err(fail)?;
        let limits = hard_limits();
        let status = procfs::Status::read(pid).map_err(fail)?;
        let oom = procfs::text(pid, "oom_score_adj").map_err(fail)?;
        let sched = mitosis_sys::sched::scheduling(0).map_err(fail)?;
        Ok(NodeFacts {
            vdso_crc: crc32fast::hash(&image),
            // A kernel can be told to have none (`vdso=0`).
            vdso_functions: vdso::functions(&image).unwrap_or_default(),
            xcr0: cpu::xcr0(),
            xsave: cpu::xsave_areas(cpu::frame_features()),
            cpuid: cpu::cpuid(),
            vdso_parts: ranges.iter().filter_map(part).collect(),
            hard_limits: limits,
            oom_score_adj: oom.trim().parse().unwrap_or(0),
            cpus: sched.cpus,
            nice: sched.nice,
            kernel: mitosis_sys::kernel::Kernel::probe(),
            cap_bounding: status.number("CapBnd", 16),
            caps: all_caps(),
            generic_groups: generic::groups().unwrap_or_default(),
            memory_nodes: memory_nodes(status.field("Mems_allowed")),
        })
    }
}

/// `kernel.cap_last_cap`, and all below it.
fn all_caps() -> u64 {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    // Those of Linux 5.9, which all later ones have.
    let last = last.trim().parse().unwrap_or(40u32).min(63);
    u64::MAX >> (63 - last)
}

/// `00000000,00000003`: the highest word first.
fn memory_nodes(text: &str) -> Vec<u64> {
    let words = text.split(',').rev().filter_map(|word| u64::from_str_radix(word, 16).ok());
    let words: Vec<u64> = words.collect();
    words.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 32)).collect()
}

fn hard_limits() -> Vec<u64> {
    use rustix::process::Resource as R;
    let order = [
        R::Cpu,
        R::Fsize,
        R::Data,
        R::Stack,
        R::Core,
        R::Rss,
        R::Nproc,
        R::Nofile,
        R::Memlock,
        R::As,
        R::Locks,
        R::Sigpending,
        R::Msgqueue,
        R::Nice,
        R::Rtprio,
        R::Rttime,
    ];
    order.iter().map(|r| rustix::process::getrlimit(*r).maximum.unwrap_or(u64::MAX)).collect()
}
