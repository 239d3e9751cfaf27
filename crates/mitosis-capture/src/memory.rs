//! The shadow's mappings and which of its pages hold data.

use crate::shared::{AIO, Kept, is_huge};
use crate::{CaptureError, InheritedPages, dontfork};
use mitosis_descriptor::{Backing, MappedFile, PageIndex, PageRun, Ring, Vma, Vpn, vma_flags};
use mitosis_state::shm;
use mitosis_sys::pagemap::Pagemap;
use mitosis_sys::procfs::{self, Mapping};
use mitosis_sys::userns;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

const PROT_EXEC: u8 = 4;

/// The memory part of a descriptor.
pub(crate) struct Memory {
    pub vmas: Vec<Vma>,
    pub files: Vec<MappedFile>,
    /// Opened, in the order of `files`.
    pub opened: Vec<Option<File>>,
    pub pages: PageIndex,
    /// Guard regions.
    pub guards: Vec<(u64, u64)>,
    /// Protection keys.
    pub keys: Vec<(u64, u64, u8)>,
    /// Where the main stack begins.
    pub stack: Option<u64>,
}

/// What has been seen of it already.
pub(crate) struct Looks<'a> {
    /// Pages that the parent has not fetched yet.
    pub inherited: Option<&'a InheritedPages>,
    /// The shared part.
    pub kept: Option<&'a Kept>,
    /// What the parent keeps from its forks.
    pub dontfork: &'a [dontfork::Range],
    /// Rings of asynchronous I/O: no memory of its own.
    pub rings: &'a [Ring],
}

/// Reads the memory of `shadow`, leaving out the ranges in `ours`.
pub(crate) fn read(
    shadow: i32,
    ours: &[(u64, u64)],
    looks: &Looks<'_>,
) -> Result<Memory, CaptureError> {
    let Looks { inherited, kept, dontfork, rings } = *looks;
    let fail = CaptureError::sys("describe", shadow);
    let read;
    let mappings = match kept {
        Some(kept) => &kept.mappings,
        None => {
            read = procfs::mappings(shadow).map_err(&fail)?;
            &read
        }
    };
    let mut memory = Memory {
        vmas: Vec::with_capacity(mappings.len()),
        files: Vec::new(),
        opened: Vec::new(),
        pages: PageIndex::default(),
        guards: Vec::new(),
        keys: Vec::new(),
        stack: mappings.iter().find(|m| m.name == "[stack]").map(|m| m.start),
    };
    let other_users = userns::place(shadow).map_err(&fail)? != userns::Place::Here;
    let mut keys: Vec<(String, u64)> = Vec::new();
    let mut pagemap = Pagemap::open(shadow).map_err(&fail)?;
    let mut runs = Vec::new();
    for mapping in &dontfork::mark(outside(mappings, ours), dontfork) {
        if rings.iter().any(|ring| (ring.start, ring.end) == (mapping.start, mapping.end)) {
            continue;
        }
        let shared = shm::is_shared(shadow, mapping);
        if other_users && !shared {
            refuse_elsewhere(shadow, mapping)?;
        }
        let Some(backing) = backing((mapping, shared), inherited.is_some(), kept)? else {
            continue;
        };
        let backing = match backing {
            Backing::File { offset, .. } => {
                let file = memory.file_of(shadow, mapping, &mut keys);
                Backing::File { file, offset }
            }
            other => other,
        };
        if !matches!(backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock) {
            let mut present = Vec::new();
            if mapping.perms[3] == b'p' || matches!(backing, Backing::Shared { .. }) {
                pagemap.private_ranges(mapping.start, mapping.end, &mut present).map_err(&fail)?;
            }
            let mut guards = Vec::new();
            pagemap.guard_ranges(mapping.start, mapping.end, &mut guards).map_err(&fail)?;
            for (start, end) in without(mapping, &guards) {
                owned_runs((start, end), &present, inherited, &mut runs);
            }
            memory.guards.extend(guards);
        }
        // The kernel gives what can only be executed a key of its own accord, in the child too.
        if mapping.protection_key != 0 && prot(&mapping.perms) != PROT_EXEC {
            memory.keys.push((mapping.start, mapping.end, mapping.protection_key as u8));
        }
        memory.vmas.push(Vma {
            start: mapping.start,
            end: mapping.end,
            prot: prot(&mapping.perms),
            flags: flags(mapping, shared),
            backing,
        });
    }
    memory.pages = PageIndex::from_sorted(runs)
        .map_err(|run| CaptureError::Internal(format!("page runs out of order at {run:?}")))?;
    Ok(memory)
}

impl Memory {
    /// Index of the file behind `mapping`. It is opened by way of the mapping itself, so that a
    /// file that was replaced or deleted since is the right one all the same.
    fn file_of(&mut self, pid: i32, mapping: &Mapping, keys: &mut Vec<(String, u64)>) -> u32 {
        let key = (mapping.dev.clone(), mapping.inode);
        if let Some(at) = keys.iter().position(|k| *k == key) {
            return at as u32;
        }
        let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
        let by_path = || {
            let file = File::open(&mapping.name).ok()?;
            (file.metadata().ok()?.ino() == mapping.inode).then_some(file)
        };
        let file = File::open(exact).ok().or_else(by_path);
        let size = file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        keys.push(key);
        self.files.push(MappedFile { path: mapping.name.clone(), size, hash: None });
        self.opened.push(file);
        keys.len() as u32 - 1
    }
}

/// A shared mapping of a file is opened again by path, and may be written.
fn refuse_elsewhere(pid: i32, mapping: &Mapping) -> Result<(), CaptureError> {
    let Mapping { start, end, name, .. } = mapping;
    let exact = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
    let of_file = mapping.perms[3] == b's' && name.starts_with('/');
    if of_file && userns::is_elsewhere(&exact, name) {
        let what = format!("a shared mapping of {name} {}", userns::ELSEWHERE);
        return Err(CaptureError::Memory { start: *start, end: *end, what });
    }
    Ok(())
}

/// What the mapping shows; `None` for what every process has anyway.
fn backing(
    (mapping, shared): (&Mapping, bool),
    child_of_ours: bool,
    kept: Option<&Kept>,
) -> Result<Option<Backing>, CaptureError> {
    let refuse =
        |what: String| Err(CaptureError::Memory { start: mapping.start, end: mapping.end, what });
    match mapping.name.as_str() {
        "[vdso]" => return Ok(Some(Backing::Vdso)),
        "[vvar]" => return Ok(Some(Backing::Vvar)),
        "[vvar_vclock]" => return Ok(Some(Backing::VvarVclock)),
        "[vsyscall]" => return Ok(None),
        name if name.starts_with("anon_inode:[io_uring]") => {
            return refuse("an io_uring ring".into());
        }
        name if name.starts_with(AIO) => {
            return refuse("an asynchronous I/O context that is new: try again".into());
        }
        _ => {}
    }
    if is_huge(mapping) && !shared {
        // A child has it as ordinary memory, for which huge pages are advised.
        let own = mapping.name.starts_with("/anon_hugepage");
        let what = "a private mapping of hugetlb memory that has a name";
        return if own { Ok(Some(Backing::Anonymous)) } else { refuse(what.into()) };
    }
    if mapping.has(b"io") || mapping.has(b"pf") {
        return refuse(format!("device memory ({})", mapping.name));
    }
    if !child_of_ours && (mapping.has(b"um") || mapping.has(b"uw") || mapping.has(b"ui")) {
        return refuse(CaptureError::OF_USERFAULTFD.into());
    }
    if shared {
        let Some(object) = kept.and_then(|kept| kept.object_of(mapping)) else {
            return refuse("shared memory that is newer than the first look: try again".into());
        };
        return Ok(Some(Backing::Shared { object, offset: mapping.offset }));
    }
    if mapping.perms[3] == b's' && mapping.inode == 0 {
        return refuse(format!("a shared mapping of no file ({})", mapping.name));
    }
    if mapping.inode != 0 && !mapping.name.starts_with('/') {
        return refuse(format!("a mapping of what no path leads to ({})", mapping.name));
    }
    if mapping.inode != 0 {
        return Ok(Some(Backing::File { file: 0, offset: mapping.offset }));
    }
    Ok(Some(Backing::Anonymous))
}

fn prot(perms: &[u8; 4]) -> u8 {
    u8::from(perms[0] == b'r') | u8::from(perms[1] == b'w') << 1 | u8::from(perms[2] == b'x') << 2
}

fn flags(mapping: &Mapping, shared_memory: bool) -> u16 {
    let table = [
        (b"gd", vma_flags::GROWSDOWN),
        (b"lo", vma_flags::LOCKED),
        (b"nr", vma_flags::NORESERVE),
        (b"hg", vma_flags::HUGEPAGE),
        (b"ht", vma_flags::HUGEPAGE),
        (b"nh", vma_flags::NOHUGEPAGE),
        (b"dd", vma_flags::DONTDUMP),
        (b"wf", vma_flags::WIPEONFORK),
        (b"ac", vma_flags::ACCOUNTED),
        (b"sl", vma_flags::SEALED),
        (b"dp", vma_flags::DROPPABLE),
        (b"dc", vma_flags::DONTFORK),
    ];
    let shared = if mapping.perms[3] == b's' { vma_flags::SHARED } else { 0 };
    // Of System V memory that says how it was attached, of a memfd that it may be sealed.
    let never_written = shared_memory && !mapping.has(b"mw");
    let read_only = if never_written { vma_flags::READ_ONLY } else { 0 };
    let first = shared | read_only;
    table.iter().filter(|(f, _)| mapping.has(f)).fold(first, |all, (_, bit)| all | bit)
}

/// The mappings without what is ours. The kernel may have made one of ours and its neighbour.
fn outside(mappings: &[Mapping], ours: &[(u64, u64)]) -> Vec<Mapping> {
    let mut left = mappings.to_vec();
    for range in ours {
        let parts = left.into_iter().flat_map(|mapping| cut(mapping, *range));
        left = parts.filter(|(_, inside)| !inside).map(|(mapping, _)| mapping).collect();
    }
    left
}

/// A mapping cut at the ends of a range: its parts in order, and whether each lies in the range.
pub(crate) fn cut(mapping: Mapping, (start, end): (u64, u64)) -> Vec<(Mapping, bool)> {
    if mapping.end <= start || end <= mapping.start {
        return vec![(mapping, false)];
    }
    let (from, to) = (start.max(mapping.start), end.min(mapping.end));
    let parts = [(mapping.start, from), (from, to), (to, mapping.end)];
    let part = |(first, last): (u64, u64)| {
        let offset = mapping.offset + (first - mapping.start);
        let part = Mapping { start: first, end: last, offset, ..mapping.clone() };
        (part, (first, last) == (from, to))
    };
    parts.into_iter().filter(|(first, last)| first < last).map(part).collect()
}

/// What is left of a mapping without its guard regions: what lay there is gone.
fn without(mapping: &Mapping, guards: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::with_capacity(guards.len() + 1);
    let mut at = mapping.start;
    for &(start, end) in guards {
        if at < start {
            left.push((at, start));
        }
        at = end;
    }
    if at < mapping.end {
        left.push((at, mapping.end));
    }
    left
}

/// Present pages of a range are the shadow's own; of the rest, those that were still remote in the
/// parent keep their owner.
fn owned_runs(
    (first, last): (u64, u64),
    present: &[(u64, u64)],
    inherited: Option<&InheritedPages>,
    out: &mut Vec<PageRun>,
) {
    let own = |start: u64, end: u64| PageRun {
        start: Vpn::of(start),
        count: ((end - start) >> 12) as u32,
        owner: 0,
        source: Vpn::of(start),
    };
    let gap = |start: u64, end: u64, out: &mut Vec<PageRun>| {
        let Some(inherited) = inherited.filter(|_| start < end) else { return };
        for mut run in inherited.index.within(Vpn::of(start), Vpn::of(end)) {
            run.owner += 1;
            out.push(run);
        }
    };
    let mut at = first;
    let inside = present.iter().map(|&(start, end)| (start.max(first), end.min(last)));
    for (start, end) in inside.filter(|(start, end)| start < end) {
        gap(at, start, out);
        out.push(own(start, end));
        at = end;
    }
    gap(at, last, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_cut_out_of_a_mapping_that_it_was_merged_with() {
        let whole = Mapping {
            start: 0x1000,
            end: 0x9000,
            perms: *b"rw-p",
            offset: 0,
            dev: "00:00".into(),
            inode: 0,
            name: String::new(),
            flags: Vec::new(),
            protection_key: 0,
        };
        let ranges = |ours: &[(u64, u64)]| -> Vec<(u64, u64)> {
            outside(std::slice::from_ref(&whole), ours).iter().map(|m| (m.start, m.end)).collect()
        };
        assert_eq!(ranges(&[(0x3000, 0x4000)]), [(0x1000, 0x3000), (0x4000, 0x9000)]);
        assert_eq!(ranges(&[(0, 0x2000), (0x8000, 0xa000)]), [(0x2000, 0x8000)]);
        assert_eq!(ranges(&[(0x1000, 0x9000)]), []);
        assert_eq!(ranges(&[(0x9000, 0xa000)]), [(0x1000, 0x9000)]);
    }
}
