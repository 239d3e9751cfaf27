//! From a descriptor to a table of operations.

use crate::{
    NodeFacts, Placement, RestoreError, files, frame, hooks, identity, machine, memory, rare,
    seccomp, shared, signals, user, vdso, working_set, xstate,
};
use mitosis_descriptor::{Descriptor, MappedFile, Owner, PageIndex, Phase, Vpn};
use mitosis_state::{Detail, Image, List, Program, Provided, Region, code_len, op, shm};
use mitosis_stub::abi::{
    FD_PROVIDED, FD_STATUS, Gate, OP_ADOPTED, TEMPLATE_REGION, TEMPLATE_STACKS,
};
use mitosis_sys::SysError;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io::Write;
use std::mem::offset_of;
use std::sync::{Arc, OnceLock};

/// Whether a file of this node is the parent's, byte for byte.
pub trait ProvenFiles {
    /// True only if this node's file at that path is known to have exactly that content. Never
    /// computes anything on the fork path: unknown is `false`.
    fn proven(&self, file: &MappedFile) -> bool;

    /// Whether a file that the parent maps to share it with others is one of its machine's own, and
    /// this node has none: then the child gets a copy of the content.
    fn is_elsewhere(&self, _file: &MappedFile) -> bool {
        false
    }
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
    /// The node puts pages in place while the child is built, which waits for them.
    pub filled: bool,
    /// How its clocks go on.
    pub time: Time,
    /// Leave out what the program is told to call before it goes on.
    pub no_hooks: bool,
    /// The image of the parent's vdso, where it is not this node's: see [`crate::vdso_differs`].
    pub vdso: Option<Arc<[u8]>>,
    /// What is to be planned.
    pub part: Part,
    /// It is one of several processes of a tree: then a pid that none of these has, nor any of their
    /// threads, and that is for no other one to use.
    pub tree: Option<i32>,
    /// Pages that are in place already, ascending: for a [`Part::Rest`].
    pub placed: Vec<u64>,
    /// All are, but for what is shared: for a [`Part::Rest`] in a copy of the shadow.
    pub all_placed: bool,
}

/// How `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` of a child go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Time {
    /// As this node's, which are also its parent's.
    #[default]
    Same,
    /// In a time namespace, so that they continue its parent's.
    Shifted {
        /// Nanoseconds by which `CLOCK_MONOTONIC` is ahead of this node's.
        monotonic: i64,
    },
    /// As this node's, which are not its parent's: there are no time namespaces here.
    Foreign,
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
    /// A pid that neither it nor its threads have: for whoever makes it from a template.
    pub maker_pid: i32,
    /// Number of the first attached descriptor in the child.
    pub fd_base: u32,
    /// What stays of us in the child: to be left out when it is itself captured.
    pub resident: (u64, u64),
    /// Nanoseconds by which the child's `CLOCK_MONOTONIC` is ahead of this node's.
    pub monotonic_shift: i64,
    /// Address of the gate in the child.
    pub gate: u64,
    /// What the main thread calls before the gate is opened.
    pub hooks: Vec<String>,
    /// What it calls then, while others run.
    pub late_hooks: Vec<String>,
    /// It waits until the node has put the working set in place: see [`Provided::Filled`].
    pub filled: bool,
    /// The image in a file, once somebody needed it.
    file: OnceLock<Arc<File>>,
}

/// What a plan does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Part {
    /// All, in a process that has nothing yet.
    #[default]
    Whole,
    /// The memory that children begin with, and no more: a template.
    Memory,
    /// The rest, in a copy of a template.
    Rest,
}

impl RestorePlan {
    /// The image in a sealed file in memory, made once.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub fn image_file(&self) -> Result<Arc<File>, RestoreError> {
        if let Some(file) = self.file.get() {
            return Ok(Arc::clone(file));
        }
        let file = sealed_file("mitosis-plan", &self.image.bytes)?;
        Ok(Arc::clone(self.file.get_or_init(|| Arc::new(file))))
    }

    /// What is to be put in place of the working set, given in parts, each ascending. The pages are in
    /// the index, too.
    pub fn placement<'a>(&self, parts: impl Iterator<Item = &'a [u64]>) -> Placement {
        working_set::placement(&self.areas, &self.index, parts)
    }
}

/// Bytes in a file in memory that nobody can change.
pub(crate) fn sealed_file(name: &str, bytes: &[u8]) -> Result<File, RestoreError> {
    let failed = |call| {
        move |e: rustix::io::Errno| RestoreError::Sys {
            phase: Phase::Sandbox,
            source: SysError::io(call, "plan", e),
        }
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags).map_err(failed("memfd_create"))?;
    let mut file = File::from(file);
    file.write_all(bytes).map_err(|e| RestoreError::Sys {
        phase: Phase::Sandbox,
        source: SysError::io("write", "plan", e),
    })?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(failed("F_ADD_SEALS"))?;
    Ok(file)
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
    machine::compatible(descriptor, node)?;
    let (base, _) = region(descriptor)?;
    let here = memory::stage(base, node, 0);
    let kept = vdso::Kept::of(descriptor, node, request.vdso.as_deref(), here)?;
    let part = request.part;
    let relaid = xstate::relay(descriptor, node)?;
    let threads = relaid.as_deref().unwrap_or(&descriptor.threads);
    let features = descriptor.origin.xcr0 & node.xcr0;
    let hooks_len = hooks::len(descriptor, request);
    let gate = base + code_len();
    let go = gate + offset_of!(Gate, go) as u64;
    let confined_at = frame::frames_end(gate, threads);
    let confined = seccomp::lay(descriptor, node, confined_at, go)?;
    let hooks_at = (confined_at + confined.bytes.len() as u64).next_multiple_of(16);
    let frames_len = (hooks_at - gate).saturating_add(hooks_len).next_multiple_of(4096);
    let region = Region { base, code_len: code_len(), frames_len };
    let mut program = Program::new(region);
    let fd_base = fd_base(descriptor, part);
    let mut provided = Vec::new();
    let mut memory = memory::Memory::new(descriptor, fd_base, proven);
    memory.filled = request.filled && part != Part::Rest;
    let (pid, maker_pid) = pids(descriptor, request);
    (memory.pid, memory.adopted) = (pid, is_adopted(descriptor, request));
    let (mut hooks, mut monotonic_shift) = (hooks::Laid::default(), 0);
    if part == Part::Memory {
        program.thread(0, 0, 0);
        memory.plan(&mut program, node, kept.as_ref(), &mut provided, part)?;
    } else {
        let last = &confined.threads;
        let ends = descriptor.rare.ended_leader;
        frame::write_frames(&mut program, threads, last, ends, features, request.new_pid);
        program.write_frame(confined_at, &confined.bytes);
        hooks = hooks::lay(descriptor, request, hooks_at, base, gate);
        program.write_frame(hooks_at, &hooks.bytes);
        if descriptor.confinement(0).strict && hooks.any() {
            let why = "the parent's main thread is in seccomp's strict mode, in which it can call no hook \
                       (fork --hooks none)";
            return Err(RestoreError::Incompatible(why.into()));
        }
        open_gate(&mut program, gate, &hooks, hook_stack(descriptor), &confined);
        if request.tree.is_some() {
            await_others(&mut program, fd_base);
        } else if shared::has_names(descriptor) {
            shm::mount(&mut program);
        }
        monotonic_shift = enter_time(request.time, &mut program, &mut provided, fd_base);
        memory.placed = &request.placed;
        memory.all_placed = request.all_placed;
        memory.plan(&mut program, node, kept.as_ref(), &mut provided, part)?;
        program.time(List::Build, 1);
        files::plan(descriptor, &mut program, &mut provided, fd_base, (node, request))?;
        program.time(List::Build, 2);
        identity::plan(descriptor, node, request, &mut program);
        signals::plan(descriptor, node, request, &mut program)?;
        program.forget_ended();
        identity::plan_threads(descriptor, request, &mut program);
        rare::registers(&mut program, descriptor);
        rare::threads(&mut program, descriptor, node);
        identity::other_credentials(descriptor, node, &mut program);
        if is_adopted(descriptor, request) {
            let what = "sandbox: become the guard's";
            program.push(List::Build, op(0, OP_ADOPTED, &[]), what, Detail::None);
        }
        // Limits and the like must not stand in the way of what comes before.
        identity::limits(&descriptor.process, node, &mut program);
        files::change_root(descriptor, &mut program);
        if user::is_below(descriptor) {
            user::enter(descriptor, &mut program, &mut provided, fd_base);
        }
        files::finish(&mut program, fd_base);
        rare::process(&mut program, descriptor);
    }
    let filled = memory.waits();
    if filled && !provided.contains(&Provided::Filled) {
        working_set::wait(&mut program, &mut provided, fd_base);
    }
    descriptors_fit(descriptor, node, provided_base(fd_base) + provided.len() as u32)?;
    let room = if part == Part::Whole { 0 } else { TEMPLATE_REGION };
    let image = program.finish(gate, fd_base as i32 + FD_STATUS, room);
    if room > 0 && image.region_len > room - TEMPLATE_STACKS {
        let text = format!("a plan of {} bytes is too large for a template", image.region_len);
        return Err(RestoreError::Incompatible(text));
    }
    let (areas, index) = memory.missing()?;
    Ok(RestorePlan {
        resident: (region.base, region.resident_end()),
        program,
        image,
        provided,
        areas,
        index,
        owners: descriptor.owners.clone(),
        pid,
        maker_pid,
        fd_base,
        monotonic_shift,
        gate,
        hooks: hooks.names,
        late_hooks: hooks.late_names,
        filled,
        file: OnceLock::new(),
    })
}

/// Whether a child becomes its guard's only when another process that has made it is gone: one of a
/// template, and one whose guard has not the rights that it is made with. A tree's processes see to that
/// before they have plans.
fn is_adopted(descriptor: &Descriptor, request: &Request) -> bool {
    let (part, alone) = (request.part, request.tree.is_none());
    part == Part::Rest || (part == Part::Whole && alone && user::is_below(descriptor))
}

/// The child's pid, and one for whoever makes it. One that is adopted tells its guard its pid by its plan,
/// so it cannot be left to the kernel.
fn pids(descriptor: &Descriptor, request: &Request) -> (i32, i32) {
    let pid = match (request.new_pid, is_adopted(descriptor, request)) {
        (false, _) => descriptor.process.pid,
        (true, true) => 2,
        (true, false) => 0,
    };
    let taken = |candidate: i32| {
        candidate == pid || descriptor.threads.iter().any(|thread| thread.tid == candidate)
    };
    let maker = (2..).find(|candidate| !taken(*candidate)).unwrap_or(0);
    (pid, maker)
}

/// Where the main thread's calls have room: on its stack, below the red zone of the function that is
/// to go on (System V ABI, x86-64). A thread that is on another stack, such as a goroutine's few
/// kilobytes, has it where the kernel would let the main stack grow.
fn hook_stack(descriptor: &Descriptor) -> u64 {
    const RED_ZONE: u64 = 128;
    let (rsp, main) = (descriptor.threads[0].regs.rsp, descriptor.process.mm.start_stack);
    let around = |at: u64| descriptor.vmas.iter().find(|vma| vma.start <= at && at < vma.end);
    let top = match around(main) {
        Some(stack) if !(stack.start..stack.end).contains(&rsp) => stack.start,
        _ => rsp.saturating_sub(RED_ZONE),
    };
    top & !63
}

/// Writes what the main thread does before it lets all threads go, and how the others wait.
fn open_gate(
    program: &mut Program,
    gate: u64,
    hooks: &hooks::Laid,
    stack: u64,
    confined: &seccomp::Laid,
) {
    let mut fields = Vec::with_capacity(size_of::<Gate>());
    let stack = if hooks.any() { stack } else { 0 };
    let (calls, count) = (hooks.calls, hooks.names.len() as u64);
    let (late, late_count) = hooks.late;
    // The order of `Gate`.
    let (capset, awake) = (confined.capset, u64::from(!confined.asleep));
    let confine = u64::from(confined.others) << 32;
    for word in [0, calls, count, stack, 0, confine, capset, awake, late, late_count, 0] {
        fields.extend(word.to_le_bytes());
    }
    program.write_frame(gate, &fields);
}

/// No process of a tree goes on before all of them can: the node says when.
fn await_others(program: &mut Program, fd_base: u32) {
    const READ: u16 = 0;
    let room = program.data(b"?");
    let args = [u64::from(fd_base) + FD_STATUS as u64, room, 1];
    program.call_expect(List::Finish, READ, &args, 1, "tree: wait for the others", Detail::None);
}

/// First of all, since only a process with one thread may: from here on the vdso and every timer
/// follow the shifted clocks. Returns by how much `CLOCK_MONOTONIC` is ahead.
fn enter_time(
    time: Time,
    program: &mut Program,
    provided: &mut Vec<Provided>,
    fd_base: u32,
) -> i64 {
    const SETNS: u16 = 308;
    const CLONE_NEWTIME: u64 = 0x80;
    let Time::Shifted { monotonic } = time else { return 0 };
    let fd = provided_base(fd_base) + provided.len() as u32;
    provided.push(Provided::TimeNamespace);
    let args = [u64::from(fd), CLONE_NEWTIME];
    program.call(List::Build, SETNS, &args, "sandbox: setns time", Detail::None);
    program.time(List::Build, 0);
    monotonic
}

/// Number of the first provided descriptor in the child.
pub(crate) fn provided_base(fd_base: u32) -> u32 {
    fd_base + FD_PROVIDED as u32
}

/// Number of the first attached descriptor: above all of the parent's, and above the numbers that
/// whoever makes the child receives them at, from which they are put in place one by one.
///
/// A template's child is attached little and keeps its table of descriptors for life: the kernel
/// takes eight bytes for each number up to the highest that was ever used, in steps of a power of two,
/// but nothing as long as that is below 64.
fn fd_base(descriptor: &Descriptor, part: Part) -> u32 {
    /// In a template: its socket, what is always attached, and what no open file of the parent asks for.
    const BESIDES: usize = 16;
    let highest = descriptor.open_files.iter().map(mitosis_state::kinds::highest_number).max();
    let above = match part {
        Part::Rest => BESIDES + descriptor.open_files.len(),
        Part::Whole | Part::Memory => 512,
    };
    highest.map_or(0, |fd| fd + 1).max(above as u32)
}

/// What a child is built with lies above its own descriptors, and for a moment all must be open.
fn descriptors_fit(
    descriptor: &Descriptor,
    node: &NodeFacts,
    above: u32,
) -> Result<(), RestoreError> {
    /// `RLIMIT_NOFILE`.
    const NOFILE: usize = 7;
    let most = node.hard_limits.get(NOFILE).copied().unwrap_or(u64::MAX);
    if u64::from(above) <= most {
        return Ok(());
    }
    let highest = descriptor.open_files.iter().map(mitosis_state::kinds::highest_number).max();
    Err(RestoreError::Incompatible(format!(
        "the parent has descriptor {}; this node can build children with descriptors below {most} \
         only, of which it needs some itself (RLIMIT_NOFILE; fs.nr_open)",
        highest.unwrap_or(0)
    )))
}

/// Address and length of the region of a process with that memory from which children are copied.
///
/// # Errors
/// [`RestoreError::NoHole`].
pub fn region(descriptor: &Descriptor) -> Result<(u64, u64), RestoreError> {
    hole(descriptor).map(|base| (base, TEMPLATE_REGION)).ok_or(RestoreError::NoHole(HOLE))
}

/// The lowest free range for the restore region.
fn hole(descriptor: &Descriptor) -> Option<u64> {
    const MARGIN: u64 = 1 << 20;
    let mut at = HOLE_FROM;
    let vmas = descriptor.vmas.iter().map(|vma| (vma.start, vma.end));
    let rings = descriptor.rare.rings.iter().map(|ring| (ring.start, ring.end));
    let mut taken: Vec<(u64, u64)> = vmas.chain(rings).collect();
    taken.sort_unstable();
    for (start, end) in taken {
        if start >= at + HOLE + MARGIN {
            break;
        }
        if end > at {
            at = (end + MARGIN).next_multiple_of(4096);
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
        for hook in &self.hooks {
            writeln!(f, "hook         {hook}")?;
        }
        for hook in &self.late_hooks {
            writeln!(f, "late hook    {hook}")?;
        }
        let pages: u64 = self.areas.iter().map(|a| a.count).sum();
        let areas = self.areas.len();
        writeln!(f, "missing: {} pages in {areas} areas of {pages}", self.index.pages())
    }
}
