//! Shared memory that no path leads to: a fork does not freeze it, so the newborn shadow makes it
//! its own while the parent still stands still.
//!
//! Only what holds data is copied. Which that is tells the kernel's object behind the mapping
//! (`SEEK_DATA`, which also knows what is swapped out); reading a hole would fill it, in the parent
//! too.

use crate::CaptureError;
use crate::gadget::check;
use mitosis_descriptor::{OpenObject, SharedObject};
use mitosis_state::shm;
pub(crate) use mitosis_state::shm::AIO;
pub(crate) use mitosis_state::tree::SYSV;
use mitosis_state::tree::{FileKey, mapping_key};
use mitosis_stub::abi::{CaptureData, SHARED_AREA, SHARED_DATA};
use mitosis_sys::SysError;
use mitosis_sys::procfs::{self, Mapping};
use mitosis_sys::ptrace::Stopped;
use rustix::fs::SeekFrom;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

/// Pieces that fit the table; a process with more is refused.
pub(crate) const PIECES_MAX: usize = 8192;
/// Bytes of a piece in the table.
pub(crate) const PIECE_BYTES: usize = 24;

/// The shadow's memory as it was before it made the shared part its own.
pub(crate) struct Kept {
    /// All mappings.
    pub mappings: Vec<Mapping>,
    /// Device and inode of each object, in the order of `objects`.
    pub keys: Vec<FileKey>,
    /// Those that are System V segments: index of the object, and its id.
    pub segments: Vec<(u32, i32)>,
    /// The shared objects.
    pub objects: Vec<SharedObject>,
    /// Those that descriptors name too.
    pub open: Vec<OpenObject>,
}

impl Kept {
    /// Index of the object behind a mapping.
    pub fn object_of(&self, mapping: &Mapping) -> Option<u32> {
        let key = mapping_key(mapping);
        let at = self.keys.iter().position(|own| *own == key)?;
        Some(at as u32)
    }
}

/// Whether it is of hugetlbfs.
pub(crate) fn is_huge(mapping: &Mapping) -> bool {
    mapping.has(b"ht")
}

/// Whether the process has such memory.
pub(crate) fn any(pid: i32) -> Result<bool, CaptureError> {
    let ranges = procfs::ranges(pid).map_err(CaptureError::sys("inspect", pid))?;
    Ok(ranges.iter().any(|mapping| shm::is_shared(pid, mapping)))
}

/// Where the injected code looks.
pub(crate) struct Place {
    /// Its data.
    pub data: u64,
    /// Room for [`PIECES_MAX`] pieces.
    pub table: u64,
}

/// Makes the shadow, which stands at its first instruction, copy its shared memory. When this
/// returns it has done so, and the parent may write again. Objects in `open` are wanted by others
/// too.
pub(crate) fn keep(
    shadow: &mut Stopped,
    parent: i32,
    place: &Place,
    open: &BTreeSet<FileKey>,
    deadline: Instant,
) -> Result<Kept, CaptureError> {
    let pid = shadow.tid();
    let fail = CaptureError::sys("shadow", pid);
    let mappings = procfs::mappings(pid).map_err(&fail)?;
    let mut kept = Kept {
        mappings,
        keys: Vec::new(),
        segments: Vec::new(),
        objects: Vec::new(),
        open: Vec::new(),
    };
    let mut pieces: Vec<[u64; 3]> = Vec::new();
    for mapping in kept.mappings.iter().filter(|m| shm::is_shared(pid, m)) {
        let file = object(pid, mapping).map_err(&fail)?;
        let meta = file.metadata().map_err(|e| fail(SysError::io("fstat", &mapping.name, e)))?;
        let key = mapping_key(mapping);
        if !kept.keys.contains(&key) {
            let segment = mapping.name.starts_with(SYSV);
            if open.contains(&key) || !segment && is_open(parent, &meta)? {
                let object = kept.objects.len() as u32;
                // No descriptor has a segment, whatever its number is.
                let device = if segment { u64::MAX } else { meta.dev() };
                kept.open.push(OpenObject { object, file: (device, meta.ino()) });
            }
            let name = mapping.name.trim_end_matches(" (deleted)").trim_start_matches('/');
            let name = name.trim_start_matches("memfd:").chars().take(100).collect();
            if segment {
                kept.segments.push((kept.objects.len() as u32, mapping.inode as i32));
            }
            kept.keys.push(key);
            let at = shm::named(parent, &mapping.name, &meta);
            kept.objects.push(SharedObject { name, size: meta.len(), at });
        }
        pieces.push([SHARED_AREA, mapping.start, mapping.end - mapping.start]);
        let find = if is_huge(mapping) { huge_data } else { data };
        find(&file, mapping, &mut pieces).map_err(&fail)?;
    }
    if pieces.len() > PIECES_MAX {
        let why = "has shared memory in more pieces than can be copied while it stands still";
        return Err(CaptureError::Refused { pid: parent, why: why.into() });
    }
    write(pid, place, &pieces).map_err(&fail)?;
    shadow.follow_forks(true).map_err(&fail)?;
    shadow.resume().map_err(&fail)?;
    shadow.wait_trap(deadline).map_err(&fail)?;
    check("copy of the shared memory", result(pid, place).map_err(&fail)?)?;
    Ok(kept)
}

/// The object behind the mapping, however it was made.
fn object(pid: i32, mapping: &Mapping) -> Result<File, SysError> {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    File::open(&path).map_err(|e| SysError::io("open", path, e))
}

/// Whether a descriptor names the object as well.
fn is_open(parent: i32, meta: &std::fs::Metadata) -> Result<bool, CaptureError> {
    let fds = procfs::descriptors(parent).map_err(CaptureError::sys("files", parent))?;
    let same = |fd: i32| {
        std::fs::metadata(format!("/proc/{parent}/fd/{fd}"))
            .is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino()))
    };
    Ok(fds.into_iter().any(same))
}

/// Appends the parts of the mapping that hold data.
fn data(file: &File, mapping: &Mapping, out: &mut Vec<[u64; 3]>) -> Result<(), SysError> {
    let fail = |e: rustix::io::Errno| SysError::io("lseek", &mapping.name, e);
    let end = mapping.offset + (mapping.end - mapping.start);
    let mut at = mapping.offset;
    while at < end && out.len() <= PIECES_MAX {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) if from < end => from,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(fail(e)),
        };
        let to = rustix::fs::seek(file, SeekFrom::Hole(from)).map_err(fail)?;
        let to = to.next_multiple_of(4096).min(end);
        let from = (from & !4095).max(mapping.offset);
        out.push([SHARED_DATA, mapping.start + (from - mapping.offset), to - from]);
        at = to;
    }
    Ok(())
}

/// As [`data`] in hugetlbfs, which does not tell where its files have holes. Read as files, unlike as
/// memory, holes are not filled.
fn huge_data(file: &File, mapping: &Mapping, out: &mut Vec<[u64; 3]>) -> Result<(), SysError> {
    const PIECE: u64 = 2 << 20;
    let fail = |e: std::io::Error| SysError::io("pread", &mapping.name, e);
    if file.metadata().map_err(fail)?.blocks() == 0 {
        return Ok(());
    }
    let mut content = vec![0u8; PIECE as usize];
    let len = mapping.end - mapping.start;
    for at in (0..len).step_by(PIECE as usize).take(PIECES_MAX) {
        let piece = &mut content[..PIECE.min(len - at) as usize];
        let got = file.read_at(piece, mapping.offset + at).map_err(fail)?;
        if piece[..got].iter().any(|byte| *byte != 0) {
            out.push([SHARED_DATA, mapping.start + at, piece.len() as u64]);
        }
    }
    Ok(())
}

/// Tells the shadow: in its own copy of the region, which the parent does not see.
fn write(pid: i32, place: &Place, pieces: &[[u64; 3]]) -> Result<(), SysError> {
    let path = format!("/proc/{pid}/mem");
    let mem = OpenOptions::new().write(true).open(&path);
    let mem = mem.map_err(|e| SysError::io("open", &path, e))?;
    let bytes: Vec<u8> = pieces.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let told: Vec<u8> =
        [place.table, pieces.len() as u64].iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = place.data + offset_of!(CaptureData, shared) as u64;
    mem.write_all_at(&bytes, place.table)
        .and_then(|()| mem.write_all_at(&told, at))
        .map_err(|e| SysError::io("write", path, e))
}

fn result(pid: i32, place: &Place) -> Result<i64, SysError> {
    let path = format!("/proc/{pid}/mem");
    let mut word = [0u8; 8];
    let at = place.data + offset_of!(CaptureData, shared_result) as u64;
    File::open(&path)
        .and_then(|mem| mem.read_exact_at(&mut word, at))
        .map_err(|e| SysError::io("read", path, e))?;
    Ok(i64::from_le_bytes(word))
}
