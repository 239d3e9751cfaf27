//! The address space: everything the new process had is unmapped, everything the parent had is
//! mapped, and what is missing is registered with a userfaultfd.

mod missing;
mod register;

use crate::NodeFacts;
use crate::plan::{Area, HOLE, Part, ProvenFiles, STAGE, provided_base};
use crate::{RestoreError, aio, ipc, rare, shared, vdso, working_set};
use mitosis_descriptor::{Backing, Descriptor, MmLayout, PageRun, Vma, vma_flags};
use mitosis_state::{Detail, List, Program, Provided, op};
use mitosis_stub::abi::SLOT_VDSO;
use register::SLOT_UFFD;

const MMAP: u16 = 9;
const MUNMAP: u16 = 11;
const MREMAP: u16 = 25;
const MADVISE: u16 = 28;
const PRCTL: u16 = 157;
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
const PR_SET_THP_DISABLE: u64 = 41;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
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
    /// The node's kernel has `MAP_DROPPABLE`.
    droppable: bool,
    /// See [`crate::Request`].
    pub placed: &'a [u64],
    /// See [`crate::Request`].
    pub all_placed: bool,
    /// See [`crate::Request`].
    pub filled: bool,
    /// What the pid of a child that is adopted will be.
    pub pid: i32,
    /// Its guard becomes its parent only when another process that made it is gone.
    pub adopted: bool,
}

impl<'a> Memory<'a> {
    pub(crate) fn new(
        descriptor: &'a Descriptor,
        fd_base: u32,
        proven: &dyn ProvenFiles,
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
            droppable: false,
            placed: &[],
            all_placed: false,
            filled: false,
            pid: 0,
            adopted: false,
        }
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
            self.register(program, part);
            return Ok(());
        }
        if part == Part::Rest {
            shared::map(program, self.descriptor, self.fd_base, provided)?;
        }
        self.register(program, part);
        if part == Part::Rest {
            let args = [PR_SET_THP_DISABLE, 0, 0, 0, 0];
            program.call(List::Build, PRCTL, &args, "register: thp_disable", Detail::None);
        }
        for vma in &self.descriptor.vmas {
            if !matches!(vma.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock) {
                advise(program, vma, &FORK_ADVICE);
            }
        }
        if self.waits() && !self.descriptor.shared.is_empty() {
            // What comes now maps memory anew, of which the pager must hear before a page is placed.
            working_set::wait(program, provided, self.fd_base);
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
