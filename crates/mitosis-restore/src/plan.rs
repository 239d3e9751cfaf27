//! From a descriptor to a table of operations.

use crate::{RestoreError, files, frame, identity, memory, rare, signals};
use mitosis_descriptor::{Descriptor, MappedFile, Owner, PageIndex, Vpn};
use mitosis_state::{Image, List, Program, Provided, Region, code_len};
use mitosis_stub::abi::{FD_PROVIDED, FD_STATUS};

/// What of this node matters to a plan.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// CRC-32 of the vdso.
    pub vdso_crc: u32,
    /// XSAVE features.
    pub xcr0: u64,
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
    /// A process can choose the ids of its timers here.
    pub timer_ids: bool,
    /// Capability bounding set of this node's daemon.
    pub cap_bounding: u64,
    /// Memory nodes that this node's daemon may use, one bit each.
    pub memory_nodes: Vec<u64>,
}

impl NodeFacts {
    /// Reads them from the calling process.
    ///
    /// # Errors
    /// `/proc/self` cannot be read.
    pub fn read() -> Result<NodeFacts, RestoreError> {
        memory::node_facts()
    }
}

/// Whether a file of this node is the parent's, byte for byte.
pub trait ProvenFiles {
    /// True only if this node's file at that path is known to have exactly that content. Never
    /// computes anything on the fork path: unknown is `false`.
    fn proven(&self, file: &MappedFile) -> bool;
}

/// What the caller wants of the child.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Do not keep the parent's pid and thread ids.
    pub new_pid: bool,
    /// Host name in a UTS namespace of its own.
    pub hostname: Option<String>,
    /// A network namespace of its own.
    pub own_net: bool,
}

/// A range of the child in which pages are missing: registered with its userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// First page.
    pub start: Vpn,
    /// Pages.
    pub count: u64,
    /// Grows downwards.
    pub grows_down: bool,
}

/// A plan: everything that will be done, before anything is done.
#[derive(Debug)]
pub struct RestorePlan {
    /// The operations.
    pub program: Program,
    /// The restore region's image.
    pub image: Image,
    /// Descriptors the node must supply, in this order.
    pub provided: Vec<Provided>,
    /// For the pager: where pages are missing.
    pub areas: Vec<Area>,
    /// For the pager: whose they are.
    pub index: PageIndex,
    /// For the pager: the owners.
    pub owners: Vec<Owner>,
    /// Wanted pid, 0 for any.
    pub pid: i32,
    /// Number of the first attached descriptor in the child.
    pub fd_base: u32,
    /// What stays of us in the child: to be left out when it is itself captured.
    pub resident: (u64, u64),
}

/// Space kept free for the region and the vdso's way through it.
pub(crate) const HOLE: u64 = 256 << 20;
/// Where in the hole the vdso waits.
pub(crate) const STAGE: u64 = HOLE - (1 << 20);
/// Lowest address tried for the hole: above what programs link to.
const HOLE_FROM: u64 = 0x10_0000_0000;
/// Above it is where exec puts stack and vdso.
const HOLE_TO: u64 = 0x7000_0000_0000;

/// Computes the plan.
///
/// # Errors
/// [`RestoreError`]: the machines differ, or something cannot be had here.
pub fn plan(
    descriptor: &Descriptor,
    node: &NodeFacts,
    request: &Request,
    proven: &dyn ProvenFiles,
) -> Result<RestorePlan, RestoreError> {
    compatible(descriptor, node)?;
    let base = hole(descriptor).ok_or(RestoreError::NoHole(HOLE))?;
    let frames_len = frame::frames_len(&descriptor.threads, &descriptor.process.seccomp);
    let region = Region { base, code_len: code_len(), frames_len };
    let mut program = Program::new(region);
    let gate = region.frames();
    let filters_at = frame::write_frames(&mut program, &descriptor.threads, request.new_pid);
    let seccomp = frame::write_filters(&mut program, filters_at, &descriptor.process.seccomp);

    let highest = descriptor.open_files.iter().flat_map(|f| &f.fds).map(|f| f.0).max();
    let fd_base = highest.map_or(0, |fd| fd + 1).max(512);
    let mut provided = Vec::new();
    let mut memory = memory::Memory::new(descriptor, fd_base, proven);
    memory.plan(&mut program, node, &mut provided)?;
    program.time(List::Build, 1);
    files::plan(descriptor, &mut program, &mut provided, fd_base, request)?;
    program.time(List::Build, 2);
    identity::plan(descriptor, node, request, &mut program);
    signals::plan(descriptor, node, request, &mut program)?;
    identity::plan_threads(descriptor, request, &mut program);
    rare::registers(&mut program, descriptor);
    rare::threads(&mut program, descriptor, node);
    // Limits and the like must not stand in the way of what comes before.
    identity::limits(&descriptor.process, node, &mut program);
    files::change_root(descriptor, &mut program);
    files::finish(&mut program, fd_base);
    rare::process(&mut program, descriptor);
    let image = program.finish(gate, fd_base as i32 + FD_STATUS, seccomp);
    let (areas, index) = memory.missing()?;
    Ok(RestorePlan {
        resident: (region.base, region.resident_end()),
        program,
        image,
        provided,
        areas,
        index,
        owners: descriptor.owners.clone(),
        pid: if request.new_pid { 0 } else { descriptor.process.pid },
        fd_base,
    })
}

/// Number of the first provided descriptor in the child.
pub(crate) fn provided_base(fd_base: u32) -> u32 {
    fd_base + FD_PROVIDED as u32
}

fn compatible(descriptor: &Descriptor, node: &NodeFacts) -> Result<(), RestoreError> {
    let origin = &descriptor.origin;
    if origin.vdso_crc != node.vdso_crc {
        return Err(RestoreError::Incompatible(format!(
            "the parent's kernel ({}) has another vdso than this node's: its clock code would \
             not work here",
            origin.kernel
        )));
    }
    let creds = &descriptor.process.creds;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let may_filter = creds.no_new_privs || creds.caps[2] & CAP_SYS_ADMIN != 0;
    if !descriptor.process.seccomp.is_empty() && !may_filter {
        return Err(RestoreError::Incompatible(
            "the parent has seccomp filters, but neither no_new_privs nor CAP_SYS_ADMIN: its \
             child could not install them"
                .into(),
        ));
    }
    let missing = origin.xcr0 & !node.xcr0 & !((1 << 17) | (1 << 18));
    if missing != 0 {
        return Err(RestoreError::Incompatible(format!(
            "the parent's CPU has register state that this node's lacks (XCR0 bits {missing:#x})"
        )));
    }
    Ok(())
}

/// The lowest free range for the restore region.
fn hole(descriptor: &Descriptor) -> Option<u64> {
    const MARGIN: u64 = 1 << 20;
    let mut at = HOLE_FROM;
    for vma in &descriptor.vmas {
        if vma.start >= at + HOLE + MARGIN {
            break;
        }
        if vma.end > at {
            at = (vma.end + MARGIN).next_multiple_of(4096);
        }
    }
    (at + HOLE <= HOLE_TO).then_some(at)
}

impl std::fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "region {:#x}, {} bytes", self.program.region.base, self.image.region_len)?;
        for (n, wanted) in self.provided.iter().enumerate() {
            writeln!(f, "needs {n}: {wanted:?}")?;
        }
        for (list, op, label) in self.program.labels() {
            writeln!(f, "{list:8} {:3} {label}", op.nr)?;
        }
        let pages: u64 = self.areas.iter().map(|a| a.count).sum();
        let areas = self.areas.len();
        writeln!(f, "missing: {} pages in {areas} areas of {pages}", self.index.pages())
    }
}
