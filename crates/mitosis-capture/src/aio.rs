//! Contexts of asynchronous I/O (`io_setup(2)`), looked at while the process stands still.
//!
//! A completion that nobody has read yet can be seen in the ring; a request that is under way cannot.
//! It stays the parent's.

use crate::CaptureError;
use crate::shared::AIO;
use mitosis_descriptor::Ring;
use mitosis_sys::SysError;
use mitosis_sys::procfs::{self, Mapping};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// `AIO_RING_MAGIC` of fs/aio.c.
const MAGIC: u32 = 0xa10a_10a1;

/// Whether it is the ring of a context.
pub(crate) fn is_ring(mapping: &Mapping) -> bool {
    mapping.name.starts_with(AIO) && mapping.inode != 0
}

/// Whether the process has one.
pub(crate) fn any(pid: i32) -> Result<bool, CaptureError> {
    let ranges = procfs::ranges(pid).map_err(CaptureError::sys("inspect", pid))?;
    Ok(ranges.iter().any(is_ring))
}

/// All of them.
pub(crate) fn take(pid: i32) -> Result<Vec<Ring>, CaptureError> {
    let fail = CaptureError::sys("inspect", pid);
    let path = format!("/proc/{pid}/mem");
    let mem = File::open(&path).map_err(|e| fail(SysError::io("open", &path, e)))?;
    let ranges = procfs::ranges(pid).map_err(&fail)?;
    let mut rings = Vec::new();
    for mapping in ranges.iter().filter(|mapping| is_ring(mapping)) {
        let refuse = |what: &str| {
            let (start, end) = (mapping.start, mapping.end);
            Err(CaptureError::Memory { start, end, what: format!("asynchronous I/O {what}") })
        };
        // struct aio_ring: id, nr, head, tail, magic.
        let mut bytes = [0u8; 20];
        let read = mem.read_exact_at(&mut bytes, mapping.start);
        read.map_err(|e| fail(SysError::io("read", &path, e)))?;
        let word = |n: usize| {
            let mut word = [0u8; 4];
            word.copy_from_slice(&bytes[4 * n..4 * n + 4]);
            u32::from_le_bytes(word)
        };
        if word(4) != MAGIC {
            return refuse("in a form that is not known");
        }
        if word(2) != word(3) {
            return refuse("with completions that nobody has read: try again");
        }
        rings.push(Ring { start: mapping.start, end: mapping.end, events: word(1) });
    }
    Ok(rings)
}
