//! Shared mappings.
//!
//! Memory that is a machine's own, with a name or without, is one new object in each child, mapped wherever the parent mapped
//! it: its mappings show one another's changes, those of siblings and of the parent do not. Its
//! pages are fetched before the child runs: `madvise(MADV_DONTNEED)` means that a page is to be
//! found unchanged in shared memory but zero in private memory, and what is missing cannot tell.
//!
//! A writable shared mapping of a file shows the file of that name on the child's node.

use crate::plan::provided_base;
use crate::{RestoreError, ipc, memory, rare};
use mitosis_descriptor::{Backing, Descriptor, SharedObject, Vma, Vpn, vma_flags};
use mitosis_state::kinds::gift;
use mitosis_state::{Detail, List, Program, Provided, op, shm};
use mitosis_stub::abi::OP_LOAD;
use std::collections::BTreeMap;

/// Attached descriptors end below this distance from the base.
const KEPT_DISTANCE: u32 = 250;
const DUP3: u16 = 292;
const O_CLOEXEC: u64 = 0o2_000_000;
const MFD_ALLOW_SEALING: u64 = 2;
const CLOSE: u16 = 3;
const MMAP: u16 = 9;
const MPROTECT: u16 = 10;
const MADVISE: u16 = 28;
const FTRUNCATE: u16 = 77;
const FCHMOD: u16 = 91;
const FCHOWN: u16 = 93;
const OPENAT: u16 = 257;
const MEMFD_CREATE: u16 = 319;
const AT_FDCWD: u64 = -100i64 as u64;
const O_RDWR_CLOEXEC: u64 = 0o2_000_002;
const MFD_CLOEXEC: u64 = 1;
const MADV_POPULATE_READ: u64 = 22;
const MAP_SHARED_FIXED: u64 = 0x11;
const PROT_WRITE: u8 = 2;
const PROT_RW: u8 = 3;
/// Slot of the number of the object that is being mapped.
const SLOT_OBJECT: u8 = 3;
/// `Op::flags`: the slot is added to this argument.
const ARG_0: u16 = 1;
/// See [`ARG_0`].
const ARG_4: u16 = 1 << 4;

/// Makes each object and maps it, writable for now: it must be filled.
///
/// What descriptors name too stays open until these have been made, at the numbers of [`kept`].
///
/// Of several processes of a tree the first that has an object makes it and hands it to the others.
pub(crate) fn map(
    program: &mut Program,
    descriptor: &Descriptor,
    fd_base: u32,
    provided: &mut Vec<Provided>,
) -> Result<(), RestoreError> {
    let kept = kept(descriptor, fd_base);
    let tree = &descriptor.rare.tree.place;
    let handed = &tree.memory_from;
    let base = provided_base(fd_base);
    for (number, object) in descriptor.shared.iter().enumerate() {
        let place = kept.get(&(number as u32));
        let from = handed.iter().find(|(object, _)| *object as usize == number);
        match (from, ipc::segment(descriptor, number as u32)) {
            (Some(&(_, from)), _) => take(program, gift::socket(provided, base, from), from),
            (None, Some(segment)) => ipc::open(program, descriptor, segment, SLOT_OBJECT),
            (None, None) => make(program, object, place.is_some())?,
        }
        for vma in &descriptor.vmas {
            match vma.backing {
                Backing::Shared { object, offset } if object as usize == number => {
                    map_object(program, vma, PROT_RW, offset);
                }
                _ => {}
            }
        }
        if let Some(&place) = place {
            let args = [0, u64::from(place), O_CLOEXEC];
            with_object(program, DUP3, ARG_0, &args, "map-vmas: keep open");
        }
        with_object(program, CLOSE, ARG_0, &[0], "map-vmas: close");
    }
    for handed in &tree.memory_to {
        if let Some(&number) = kept.get(&handed.fd) {
            let socket = gift::socket(provided, base, handed.to);
            let what = "tree: hand over shared memory to member";
            gift::give(program, socket, &[number], what, handed.to);
        }
    }
    Ok(())
}

/// What another process of the tree has made.
fn take(program: &mut Program, socket: u32, from: u32) {
    let at = gift::take(program, socket, 1, "tree: shared memory of member", from);
    let mut load = op(0, OP_LOAD, &[at]);
    load.save = SLOT_OBJECT;
    program.push(List::Build, load, "tree: shared memory", Detail::None);
}

fn make(program: &mut Program, object: &SharedObject, open: bool) -> Result<(), RestoreError> {
    let mut make = match &object.at {
        Some(at) => op(OPENAT, 0, &shm::create(program, at).map_err(RestoreError::Incompatible)?),
        None => {
            let name = program.string(&object.name);
            let sealing = if open { MFD_ALLOW_SEALING } else { 0 };
            op(MEMFD_CREATE, 0, &[name, MFD_CLOEXEC | sealing])
        }
    };
    make.save = SLOT_OBJECT;
    let detail = Detail::Text(object.name.clone());
    program.push(List::Build, make, "map-vmas: shared memory", detail);
    with_object(program, FTRUNCATE, ARG_0, &[0, object.size], "map-vmas: ftruncate");
    if let Some(at) = &object.at {
        let owner = [0, u64::from(at.uid), u64::from(at.gid)];
        with_object(program, FCHOWN, ARG_0, &owner, "map-vmas: fchown");
        with_object(program, FCHMOD, ARG_0, &[0, u64::from(at.mode)], "map-vmas: fchmod");
    }
    Ok(())
}

/// Whether the process makes memory that has its name in a `/dev/shm` of its own.
pub fn has_names(descriptor: &Descriptor) -> bool {
    let objects = descriptor.shared.iter().any(|object| object.at.is_some());
    objects || descriptor.open_files.iter().any(shm::has_name)
}

/// Numbers of the objects that descriptors name too, by object.
fn kept(descriptor: &Descriptor, fd_base: u32) -> BTreeMap<u32, u32> {
    let open = descriptor.rare.open_objects.iter().enumerate();
    open.map(|(n, open)| (open.object, fd_base + KEPT_DISTANCE + n as u32)).collect()
}

/// The same for the kinds of open file, by device and inode.
pub(crate) fn open_objects(descriptor: &Descriptor, fd_base: u32) -> BTreeMap<(u64, u64), u32> {
    let kept = kept(descriptor, fd_base);
    let open = descriptor.rare.open_objects.iter();
    open.filter_map(|o| Some((o.file, *kept.get(&o.object)?))).collect()
}

/// How far from the base the numbers of what is kept end.
pub(crate) fn kept_end(descriptor: &Descriptor) -> u32 {
    KEPT_DISTANCE + descriptor.rare.open_objects.len() as u32
}

/// After the userfaultfd has been given away: fetches what the objects hold, and protects them as
/// they were.
pub(crate) fn fill(program: &mut Program, descriptor: &Descriptor, fd_base: u32) {
    let kept = kept(descriptor, fd_base);
    for vma in &descriptor.vmas {
        let Backing::Shared { object, offset } = vma.backing else { continue };
        for run in descriptor.pages.within(Vpn::of(vma.start), Vpn::of(vma.end)) {
            let (start, len) = (run.start.addr(), u64::from(run.count) << 12);
            let args = [start, len, MADV_POPULATE_READ];
            let detail = Detail::Range(start, start + len);
            program.call(List::Build, MADVISE, &args, "register: fetch shared memory", detail);
        }
        if let Some(place) = kept.get(&object).filter(|_| vma.flags & vma_flags::READ_ONLY != 0) {
            map_read_only(program, descriptor, vma, (*place, offset));
        } else if vma.prot != PROT_RW {
            let args = [vma.start, vma.end - vma.start, u64::from(vma.prot)];
            let detail = Detail::Range(vma.start, vma.end);
            program.call(List::Build, MPROTECT, &args, "register: protect", detail);
        }
    }
}

/// Maps it anew so that it can never be written: else the object could not be sealed against writing
/// (`F_SEAL_WRITE`, fcntl(2)).
fn map_read_only(
    program: &mut Program,
    descriptor: &Descriptor,
    vma: &Vma,
    (place, offset): (u32, u64),
) {
    let path = program.string(&format!("/proc/self/fd/{place}"));
    let mut open = op(OPENAT, 0, &[AT_FDCWD, path, O_CLOEXEC]);
    open.save = SLOT_OBJECT;
    program.push(List::Build, open, "map-vmas: open for reading", Detail::None);
    map_object(program, vma, vma.prot, offset);
    with_object(program, CLOSE, ARG_0, &[0], "map-vmas: close");
    rare::assign_keys_of(program, descriptor, vma);
    memory::advise_all(program, vma);
}

/// Whether it is mapped so that what is written goes to others.
pub(crate) fn is_writable(vma: &Vma) -> bool {
    vma.flags & vma_flags::SHARED != 0 && vma.prot & PROT_WRITE != 0
}

/// Maps this node's file of that name, as `open` and `mmap` in the parent would have.
pub(crate) fn map_file(program: &mut Program, vma: &Vma, path: &str, offset: u64) {
    let at = program.string(path);
    let mut open = op(OPENAT, 0, &[AT_FDCWD, at, O_RDWR_CLOEXEC]);
    open.save = SLOT_OBJECT;
    let detail = Detail::Text(path.to_owned());
    program.push(List::Build, open, "map-vmas: open, to share it,", detail);
    map_object(program, vma, vma.prot, offset);
    with_object(program, CLOSE, ARG_0, &[0], "map-vmas: close");
}

fn map_object(program: &mut Program, vma: &Vma, prot: u8, offset: u64) {
    let len = vma.end - vma.start;
    let args = [vma.start, len, u64::from(prot), MAP_SHARED_FIXED, 0, offset];
    with_object(program, MMAP, ARG_4, &args, "map-vmas: mmap shared");
}

fn with_object(program: &mut Program, nr: u16, flags: u16, args: &[u64], what: &'static str) {
    let mut op = op(nr, flags, args);
    op.slot = SLOT_OBJECT;
    program.push(List::Build, op, what, Detail::None);
}
