//! The shadow's mappings and which of its pages hold data.

use crate::shared::{Kept, is_shared};
use crate::{CaptureError, InheritedPages};
use mitosis_descriptor::{Backing, MappedFile, PageIndex, PageRun, Vma, Vpn, vma_flags};
use mitosis_sys::pagemap::Pagemap;
use mitosis_sys::procfs::{self, Mapping};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// The memory part of a descriptor.
pub(crate) struct Memory {
    pub vmas: Vec<Vma>,
    pub files: Vec<MappedFile>,
    /// Opened, in the order of `files`.
    pub opened: Vec<Option<File>>,
    pub pages: PageIndex,
}

/// Reads the memory of `shadow`, leaving out the ranges in `ours`.
pub(crate) fn read(
    shadow: i32,
    ours: &[(u64, u64)],
    inherited: Option<&InheritedPages>,
    kept: Option<&Kept>,
) -> Result<Memory, CaptureError> {
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
    };
    let mut keys: Vec<(String, u64)> = Vec::new();
    let mut pagemap = Pagemap::open(shadow).map_err(&fail)?;
    let mut runs = Vec::new();
    for mapping in mappings {
        if ours.iter().any(|(start, end)| mapping.start < *end && mapping.end > *start) {
            continue;
        }
        let Some(backing) = backing(mapping, inherited.is_some(), kept)? else { continue };
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
            if backing == Backing::Anonymous {
                let mut guards = Vec::new();
                pagemap.guard_ranges(mapping.start, mapping.end, &mut guards).map_err(&fail)?;
                if let Some(&(start, end)) = guards.first() {
                    let what = "a guard region (MADV_GUARD_INSTALL)".into();
                    return Err(CaptureError::Memory { start, end, what });
                }
            }
            owned_runs(mapping, &present, inherited, &mut runs);
        }
        memory.vmas.push(Vma {
            start: mapping.start,
            end: mapping.end,
            prot: prot(&mapping.perms),
            flags: flags(mapping),
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

/// What the mapping shows; `None` for what every process has anyway.
fn backing(
    mapping: &Mapping,
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
        name if name.starts_with("/SYSV") => return refuse("System V shared memory".into()),
        _ => {}
    }
    if mapping.has(b"ht") {
        return refuse("hugetlb memory".into());
    }
    if mapping.has(b"io") || mapping.has(b"pf") {
        return refuse(format!("device memory ({})", mapping.name));
    }
    if !child_of_ours && (mapping.has(b"um") || mapping.has(b"uw") || mapping.has(b"ui")) {
        return refuse("registered with a userfaultfd of its own".into());
    }
    if is_shared(mapping) {
        let Some(object) = kept.and_then(|kept| kept.object_of(mapping)) else {
            return refuse("shared memory that is newer than the first look: try again".into());
        };
        return Ok(Some(Backing::Shared { object, offset: mapping.offset }));
    }
    if mapping.perms[3] == b's' && mapping.inode == 0 {
        return refuse(format!("a shared mapping of no file ({})", mapping.name));
    }
    if mapping.inode != 0 {
        return Ok(Some(Backing::File { file: 0, offset: mapping.offset }));
    }
    Ok(Some(Backing::Anonymous))
}

fn prot(perms: &[u8; 4]) -> u8 {
    u8::from(perms[0] == b'r') | u8::from(perms[1] == b'w') << 1 | u8::from(perms[2] == b'x') << 2
}

fn flags(mapping: &Mapping) -> u16 {
    let table = [
        (b"gd", vma_flags::GROWSDOWN),
        (b"lo", vma_flags::LOCKED),
        (b"nr", vma_flags::NORESERVE),
        (b"hg", vma_flags::HUGEPAGE),
        (b"nh", vma_flags::NOHUGEPAGE),
        (b"dd", vma_flags::DONTDUMP),
        (b"wf", vma_flags::WIPEONFORK),
        (b"ac", vma_flags::ACCOUNTED),
        (b"sl", vma_flags::SEALED),
        (b"dp", vma_flags::DROPPABLE),
    ];
    let shared = if mapping.perms[3] == b's' { vma_flags::SHARED } else { 0 };
    table.iter().filter(|(f, _)| mapping.has(f)).fold(shared, |all, (_, bit)| all | bit)
}

/// Present pages are the shadow's own; of the rest, those that were still remote in the parent
/// keep their owner.
fn owned_runs(
    mapping: &Mapping,
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
    let mut at = mapping.start;
    for &(start, end) in present {
        gap(at, start, out);
        out.push(own(start, end));
        at = end;
    }
    gap(at, mapping.end, out);
}
