//! The address space: everything the new process had is unmapped, everything the parent had is
//! mapped, and what is missing is registered with a userfaultfd.

use crate::NodeFacts;
use crate::plan::{Area, HOLE, Part, ProvenFiles, STAGE, provided_base};
use crate::{RestoreError, aio, ipc, rare, shared, vdso, working_set};
use mitosis_descriptor::{Backing, Descriptor, MmLayout, PageIndex, PageRun, Vma, Vpn, vma_flags};
use mitosis_state::{Detail, List, Program, Provided, op};
use mitosis_stub::abi::{FD_GUARD_QUEUE, FD_PAGER, FD_UFFD, SLOT_VDSO, guard_message};

const MMAP: u16 = 9;
const MUNMAP: u16 = 11;
const IOCTL: u16 = 16;
const MREMAP: u16 = 25;
const MADVISE: u16 = 28;
const SENDMSG: u16 = 46;
const CLOSE: u16 = 3;
const DUP3: u16 = 292;
const PRCTL: u16 = 157;
const USERFAULTFD: u16 = 323;
const MSEAL: u16 = 462;

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
/// Since Linux 6.11; in place of MAP_PRIVATE.
const MAP_DROPPABLE: u64 = 8;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_STACK: u64 = 0x20000;
const MREMAP_MAYMOVE_FIXED: u64 = 3;
/// TASK_SIZE_MAX with 47-bit addresses: nothing of user space lies above.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
const O_CLOEXEC_NONBLOCK: u64 = 0o2_000_000 | 0o4000;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP
const UFFD_EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
/// Slot of the fresh userfaultfd's number.
const SLOT_UFFD: u8 = 1;
/// A hole of at most so many pages between two runs is registered with them: fewer VMAs, and the
/// pager answers it with zeros in one window.
const JOIN_PAGES: u64 = 32;
/// More attached files than this are not worth a message; the rest comes from the owner.
const FILES_MAX: usize = 160;

/// The memory part of a plan.
pub(crate) struct Memory<'a> {
    descriptor: &'a Descriptor,
    fd_base: u32,
    /// For each mapped file: whether this node's copy may be used.
    usable: Vec<bool>,
    /// For each mapped file: whether it is the parent's machine's alone.
    elsewhere: Vec<bool>,
    /// For each mapped file: its number in the child, once provided.
    numbers: Vec<Option<u32>>,
    areas: Vec<Area>,
    runs: Vec<PageRun>,
    /// See [`crate::Request`].
    working_set: &'a [usize],
    /// The node's kernel has `MAP_DROPPABLE`.
    droppable: bool,
    /// See [`crate::Request`].
    pub placed: &'a [u64],
    /// See [`crate::Request`].
    pub all_placed: bool,
}

impl<'a> Memory<'a> {
    pub(crate) fn new(
        descriptor: &'a Descriptor,
        fd_base: u32,
        proven: &dyn ProvenFiles,
        working_set: &'a [usize],
    ) -> Memory<'a> {
        let mut usable: Vec<bool> = descriptor.files.iter().map(|f| proven.proven(f)).collect();
        let mut count = 0;
        for usable in usable.iter_mut().filter(|u| **u) {
            count += 1;
            *usable = count <= FILES_MAX;
        }
        let elsewhere: Vec<bool> =
            descriptor.files.iter().map(|file| proven.is_elsewhere(file)).collect();
        usable.iter_mut().zip(&elsewhere).for_each(|(usable, elsewhere)| *usable &= !elsewhere);
        let numbers = vec![None; usable.len()];
        Memory {
            descriptor,
            fd_base,
            usable,
            elsewhere,
            numbers,
            areas: Vec::new(),
            runs: Vec::new(),
            working_set,
            droppable: false,
            placed: &[],
            all_placed: false,
        }
    }

    /// Areas and runs for the pager.
    ///
    /// # Errors
    /// Runs that make no index: without one the pager would take every page for zero.
    pub(crate) fn missing(self) -> Result<(Vec<Area>, PageIndex), RestoreError> {
        let index = PageIndex::from_sorted(self.runs).map_err(|run| {
            let (start, count) = (run.start.0, run.count);
            RestoreError::Incompatible(format!("page run {start:#x}+{count:#x} out of order"))
        })?;
        Ok((self.areas, index))
    }

    pub(crate) fn plan(
        &mut self,
        program: &mut Program,
        node: &NodeFacts,
        kept: Option<&vdso::Kept>,
        provided: &mut Vec<Provided>,
        part: Part,
    ) -> Result<(), RestoreError> {
        self.droppable = node.kernel.droppable;
        if part == Part::Rest {
            // The template has mapped all this: here only what is missing in it counts.
            let mut done = Program::new(program.region);
            self.map_all(&mut done, &mut Vec::new(), part);
            self.leave_out();
        } else {
            self.clear(program, node);
            rare::allocate_keys(program, self.descriptor);
            if part == Part::Memory {
                // A huge page would hold zeros where pages are missing.
                let args = [PR_SET_THP_DISABLE, 1, 0, 0, 0];
                program.call(List::Build, PRCTL, &args, "template: thp_disable", Detail::None);
            } else {
                shared::map(program, self.descriptor, self.fd_base, provided)?;
            }
            self.map_all(program, provided, part);
            rare::memory(program, self.descriptor, node);
            rare::assign_keys(program, self.descriptor);
            match kept {
                Some(kept) => kept.map(program, self.fd_base),
                None => self.place_vdso(program, node)?,
            }
            self.layout(program, provided);
        }
        if part == Part::Memory {
            self.register(program, provided, part);
            return Ok(());
        }
        if part == Part::Rest {
            shared::map(program, self.descriptor, self.fd_base, provided)?;
        }
        self.register(program, provided, part);
        if part == Part::Rest {
            let args = [PR_SET_THP_DISABLE, 0, 0, 0, 0];
            program.call(List::Build, PRCTL, &args, "register: thp_disable", Detail::None);
        }
        for vma in &self.descriptor.vmas {
            if !matches!(vma.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock) {
                advise(program, vma, &FORK_ADVICE);
            }
        }
        shared::fill(program, self.descriptor, self.fd_base);
        ipc::settle(program, self.descriptor);
        ipc::rest(program, self.descriptor, SLOT_UFFD);
        aio::make(program, self.descriptor, SLOT_UFFD);
        self.seal(program);
        Ok(())
    }

    fn map_all(&mut self, program: &mut Program, provided: &mut Vec<Provided>, part: Part) {
        for vma in &self.descriptor.vmas {
            // Each child has shared memory of its own.
            let wanted = match vma.backing {
                Backing::Shared { .. } => part != Part::Memory,
                _ => !self.all_placed,
            };
            if wanted {
                self.map(program, vma, provided);
            }
        }
    }

    /// What nobody may change any more: when all is in place.
    fn seal(&self, program: &mut Program) {
        for vma in self.descriptor.vmas.iter().filter(|vma| rare::is_sealed(vma)) {
            let detail = Detail::Range(vma.start, vma.end);
            let args = [vma.start, vma.end - vma.start, 0];
            program.call(List::Build, MSEAL, &args, "map-vmas: mseal", detail);
        }
    }

    /// Moves the vdso into the hole and unmaps everything else.
    fn clear(&self, program: &mut Program, node: &NodeFacts) {
        let base = program.region.base;
        for &(_, below, len) in &node.vdso_parts {
            let from = 0u64.wrapping_sub(below);
            let to = stage(base, node, below);
            let mut op = op(MREMAP, 1, &[from, len, len, MREMAP_MAYMOVE_FIXED, to]);
            op.slot = SLOT_VDSO as u8;
            program.push(List::Build, op, "unmap: set the vdso aside", Detail::None);
        }
        let detail = Detail::Range(0, base);
        program.call(List::Build, MUNMAP, &[0, base], "unmap: munmap", detail);
        let end = base + HOLE;
        let detail = Detail::Range(end, TASK_SIZE);
        program.call(List::Build, MUNMAP, &[end, TASK_SIZE - end], "unmap: munmap", detail);
    }

    fn place_vdso(&self, program: &mut Program, node: &NodeFacts) -> Result<(), RestoreError> {
        let base = program.region.base;
        for vma in &self.descriptor.vmas {
            let is_part =
                matches!(vma.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock);
            if !is_part {
                continue;
            }
            let part = node.vdso_parts.iter().find(|p| p.0 == vma.backing);
            let Some(&(_, below, len)) = part.filter(|p| p.2 == vma.end - vma.start) else {
                return Err(RestoreError::Incompatible(format!(
                    "the parent's {:?} has another size than this node's",
                    vma.backing
                )));
            };
            let args = [stage(base, node, below), len, len, MREMAP_MAYMOVE_FIXED, vma.start];
            let what = "map-vmas: place the vdso at";
            program.call(List::Build, MREMAP, &args, what, Detail::Range(vma.start, vma.end));
        }
        // Parts the parent did not have (it unmapped them, or its kernel has none).
        for &(backing, below, len) in &node.vdso_parts {
            if !self.descriptor.vmas.iter().any(|v| v.backing == backing) {
                let args = [stage(base, node, below), len];
                program.call_ignore(List::Build, MUNMAP, &args, "unmap: spare vdso part");
            }
        }
        Ok(())
    }

    fn map(&mut self, program: &mut Program, vma: &Vma, provided: &mut Vec<Provided>) {
        match vma.backing {
            Backing::Anonymous => {
                map_anonymous(program, vma, (vma.start, vma.end), self.droppable);
                self.missing_in(vma, None);
            }
            // Mapped already, object by object.
            Backing::Shared { .. } => self.missing_in(vma, None),
            Backing::File { file, offset }
                if shared::is_writable(vma) && !self.elsewhere[file as usize] =>
            {
                let path = &self.descriptor.files[file as usize].path;
                shared::map_file(program, vma, path, offset);
            }
            Backing::File { file, offset } if self.usable[file as usize] => {
                let fd = self.number(file, provided);
                let shared = vma.flags & vma_flags::SHARED != 0;
                let kind = if shared { MAP_SHARED } else { MAP_PRIVATE };
                let flags = kind | MAP_FIXED | noreserve(vma);
                let args = [
                    vma.start,
                    vma.end - vma.start,
                    u64::from(vma.prot),
                    flags,
                    u64::from(fd),
                    offset,
                ];
                let detail = Detail::Range(vma.start, vma.end);
                program.call(List::Build, MMAP, &args, "map-vmas: mmap file", detail);
                self.overlay(program, vma);
            }
            Backing::File { file, offset } => {
                // Nothing here is proven to be the parent's file: its bytes come from the owner.
                map_anonymous(program, vma, (vma.start, vma.end), self.droppable);
                let size = self.descriptor.files[file as usize].size;
                self.missing_in(vma, Some(size.saturating_sub(offset)));
            }
            Backing::Vdso | Backing::Vvar | Backing::VvarVclock => return,
        }
        advise(program, vma, &ADVICE);
    }

    fn number(&mut self, file: u32, provided: &mut Vec<Provided>) -> u32 {
        let at = file as usize;
        *self.numbers[at].get_or_insert_with(|| {
            provided.push(Provided::MappedFile(self.descriptor.files[at].path.clone()));
            provided_base(self.fd_base) + provided.len() as u32 - 1
        })
    }

    /// Dirty pages of a private file mapping become memory laid over it, so that they are lazy.
    fn overlay(&mut self, program: &mut Program, vma: &Vma) {
        let runs: Vec<PageRun> = self.runs_of(vma).collect();
        let mut at = 0;
        while at < runs.len() {
            let mut end = at + 1;
            while end < runs.len() && runs[end].start == runs[end - 1].end() {
                end += 1;
            }
            let (first, last) = (runs[at].start, runs[end - 1].end());
            map_anonymous(program, vma, (first.addr(), last.addr()), self.droppable);
            self.areas.push(Area { start: first, count: last.0 - first.0, grows_down: false });
            at = end;
        }
        self.runs.extend(runs);
    }

    /// What the template has is not missing, and where nothing else is, nothing is registered.
    fn leave_out(&mut self) {
        let mut placed = self.placed.iter().copied().peekable();
        let mut runs = Vec::with_capacity(self.runs.len());
        for run in std::mem::take(&mut self.runs) {
            while placed.next_if(|page| *page < run.start.0).is_some() {}
            let mut from = run.start;
            while let Some(page) = placed.next_if(|page| *page < run.end().0) {
                runs.extend((from.0 < page).then(|| run.clip(from, Vpn(page))));
                from = Vpn(page + 1);
            }
            runs.extend((from < run.end()).then(|| run.clip(from, run.end())));
        }
        self.runs = runs;
        let runs = &self.runs;
        self.areas.retain_mut(|area| {
            let end = area.start.0 + area.count;
            let first = runs.partition_point(|run| run.end() <= area.start);
            let after = runs.partition_point(|run| run.start.0 < end);
            if first >= after {
                return false;
            }
            // A stack keeps its room to grow.
            if !area.grows_down {
                let last = runs[after - 1].end().0.min(end);
                area.start = area.start.max(runs[first].start);
                area.count = last - area.start.0;
            }
            true
        });
    }

    fn runs_of(&self, vma: &Vma) -> impl Iterator<Item = PageRun> + use<'a> {
        self.descriptor.pages.within(Vpn::of(vma.start), Vpn::of(vma.end))
    }

    /// Notes what is missing in an anonymous mapping. With `file_bytes` all pages up to that many
    /// bytes hold data: those of no run are the owner's file.
    fn missing_in(&mut self, vma: &Vma, file_bytes: Option<u64>) {
        let mut runs: Vec<PageRun> = self.runs_of(vma).collect();
        if let Some(bytes) = file_bytes {
            let pages = bytes.div_ceil(4096);
            let end = Vpn::of(vma.start).0 + pages.min((vma.end - vma.start) >> 12);
            fill_gaps(&mut runs, Vpn::of(vma.start), Vpn(end));
        }
        let grows_down = vma.flags & vma_flags::GROWSDOWN != 0;
        if grows_down && !runs.is_empty() {
            let start = Vpn::of(vma.start);
            let count = (vma.end - vma.start) >> 12;
            self.areas.push(Area { start, count, grows_down });
        } else {
            self.join_areas(&runs);
        }
        self.runs.extend(runs);
    }

    fn join_areas(&mut self, runs: &[PageRun]) {
        let from = self.areas.len();
        for run in runs {
            match self.areas[from..].last_mut() {
                Some(last) if run.start.0 - (last.start.0 + last.count) <= JOIN_PAGES => {
                    last.count = run.end().0 - last.start.0;
                }
                _ => self.areas.push(Area {
                    start: run.start,
                    count: u64::from(run.count),
                    grows_down: false,
                }),
            }
        }
    }

    /// prctl(PR_SET_MM, PR_SET_MM_MAP): what /proc shows, and where brk(2) is.
    fn layout(&self, program: &mut Program, provided: &mut Vec<Provided>) {
        provided.push(Provided::Executable(self.descriptor.process.exe.clone()));
        let exe = provided_base(self.fd_base) + provided.len() as u32 - 1;
        let mm: &MmLayout = &self.descriptor.process.mm;
        let auxv = program.words(&mm.auxv);
        let auxv_len = (mm.auxv.len() * 8) as u64;
        let words = [
            mm.start_code,
            mm.end_code,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.brk,
            mm.start_stack,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
            auxv,
            auxv_len | u64::from(exe) << 32,
        ];
        let map = program.words(&words);
        let args = [PR_SET_MM, PR_SET_MM_MAP, map, 104, 0];
        program.call(List::Build, PRCTL, &args, "map-vmas: PR_SET_MM_MAP", Detail::None);
    }

    /// The userfaultfd: made, registered, given to the pager and to the guard, closed. Between, what
    /// is here of the working set is put in place: nobody else knows of the descriptor yet. A template
    /// has one for that alone.
    fn register(&self, program: &mut Program, provided: &mut Vec<Provided>, part: Part) {
        if self.areas.is_empty() {
            return;
        }
        let uffd = u64::from(self.fd_base) + FD_UFFD as u64;
        let mut make = op(USERFAULTFD, 0, &[O_CLOEXEC_NONBLOCK]);
        make.save = SLOT_UFFD;
        program.push(List::Build, make, "register: userfaultfd", Detail::None);
        let mut dup = op(DUP3, 1, &[0, uffd, 0]);
        dup.slot = SLOT_UFFD;
        program.push(List::Build, dup, "register: dup3", Detail::None);
        let mut close = op(CLOSE, 1, &[0]);
        close.slot = SLOT_UFFD;
        program.push(List::Build, close, "register: close", Detail::None);
        let api = program.words(&[UFFD_API, UFFD_EVENTS, 0]);
        let what = "register: UFFDIO_API";
        program.call(List::Build, IOCTL, &[uffd, UFFDIO_API, api], what, Detail::None);
        // One call for areas without a gap between them, of however many mappings they are.
        let touch =
            |a: &Area, b: &Area| a.start.0 + a.count == b.start.0 && !a.grows_down && !b.grows_down;
        for areas in self.areas.chunk_by(touch) {
            let (start, pages) = (areas[0].start.addr(), areas.iter().map(|area| area.count));
            let len = pages.sum::<u64>() << 12;
            let range = program.words(&[start, len, UFFDIO_REGISTER_MODE_MISSING, 0]);
            let detail = Detail::Range(start, start + len);
            let args = [uffd, UFFDIO_REGISTER, range];
            program.call(List::Build, IOCTL, &args, "register: UFFDIO_REGISTER", detail);
        }
        if part != Part::Rest {
            working_set::place(program, self.working_set, uffd, |wanted| {
                provided.push(wanted);
                provided_base(self.fd_base) + provided.len() as u32 - 1
            });
        }
        // A guard that has made its child holds what waits in a socket that it never reads; one that has
        // adopted it takes the descriptor, which is less: no socket, and no message for life.
        let hold = u128::from(guard_message::HOLD_MAIN).to_le_bytes();
        let to_guard: &[u8] = if part == Part::Rest { &hold } else { b"u" };
        let receivers = [
            (FD_GUARD_QUEUE, to_guard, "register: give the userfaultfd to the guard"),
            (FD_PAGER, &b"u"[..], "register: give the userfaultfd to the pager"),
        ];
        for (to, bytes, what) in receivers.into_iter().filter(|_| part != Part::Memory) {
            let message = program.message(bytes, &[uffd as u32]);
            let (to, len) = (u64::from(self.fd_base) + to as u64, bytes.len() as u64);
            program.call_expect(List::Build, SENDMSG, &[to, message, 0], len, what, Detail::None);
        }
        program.call(List::Build, CLOSE, &[uffd], "register: close", Detail::None);
    }
}

/// Where a part of the vdso waits: same distances as in the node's own process.
pub(crate) fn stage(base: u64, node: &NodeFacts, below: u64) -> u64 {
    let deepest = node.vdso_parts.iter().map(|p| p.1).max().unwrap_or(0);
    base + STAGE + deepest - below
}

fn noreserve(vma: &Vma) -> u64 {
    if vma.flags & vma_flags::NORESERVE != 0 { MAP_NORESERVE } else { 0 }
}

fn map_anonymous(program: &mut Program, vma: &Vma, (start, end): (u64, u64), droppable: bool) {
    let grows = if vma.flags & vma_flags::GROWSDOWN != 0 { MAP_GROWSDOWN | MAP_STACK } else { 0 };
    // A kernel that has none would drop none: what it also means, the other flags say.
    let droppable = droppable && vma.flags & vma_flags::DROPPABLE != 0;
    let kind = if droppable { MAP_DROPPABLE } else { MAP_PRIVATE };
    let flags = kind | MAP_ANONYMOUS | MAP_FIXED | grows | noreserve(vma);
    let args = [start, end - start, u64::from(vma.prot), flags, u64::MAX, 0];
    program.call(List::Build, MMAP, &args, "map-vmas: mmap", Detail::Range(start, end));
}

/// madvise(2) of the kernel, by the flag that it leaves.
const ADVICE: [(u16, u64); 3] =
    [(vma_flags::HUGEPAGE, 14), (vma_flags::NOHUGEPAGE, 15), (vma_flags::DONTDUMP, 16)];
/// What would not reach a process that is forked: last, in the child itself.
const FORK_ADVICE: [(u16, u64); 2] = [(vma_flags::WIPEONFORK, 18), (vma_flags::DONTFORK, 10)];

/// All advice, for a mapping that was made anew when the others had theirs.
pub(crate) fn advise_all(program: &mut Program, vma: &Vma) {
    advise(program, vma, &ADVICE);
    advise(program, vma, &FORK_ADVICE);
}

fn advise(program: &mut Program, vma: &Vma, table: &[(u16, u64)]) {
    let (start, len) = (vma.start, vma.end - vma.start);
    for (_, advice) in table.iter().filter(|(flag, _)| vma.flags & flag != 0) {
        let args = [start, len, *advice];
        program.call_ignore(List::Build, MADVISE, &args, "map-vmas: madvise");
    }
    // LOCKED is not restored: mlock(2) would fetch every page before the child could run.
}

/// Adds runs of owner 0 for all pages of `[start, end)` that are in no run.
fn fill_gaps(runs: &mut Vec<PageRun>, start: Vpn, end: Vpn) {
    // A mapping can have more pages than one run can count.
    let own = |from: Vpn, to: Vpn, out: &mut Vec<PageRun>| {
        let mut from = from;
        while from < to {
            let count = u32::try_from(to.0 - from.0).unwrap_or(u32::MAX);
            out.push(PageRun { start: from, count, owner: 0, source: from });
            from.0 += u64::from(count);
        }
    };
    let mut out = Vec::with_capacity(2 * runs.len() + 1);
    let mut at = start;
    for run in runs.iter() {
        if at < run.start && at < end {
            own(at, Vpn(run.start.0.min(end.0)), &mut out);
        }
        out.push(*run);
        at = run.end();
    }
    if at < end {
        own(at, end, &mut out);
    }
    *runs = out;
}
