//! Reading a frozen copy of a process: what `/proc/PID/mem` and `process_vm_readv` each do to it.

use super::fork::ScratchChild;
use super::{PAGE_BYTES, Pages, elapsed_ns, last_error, scratch_child};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// How the shadow's memory is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadVia {
    /// pread on `/proc/PID/mem`.
    ProcMem,
    /// process_vm_readv: never in the product, since it unshares what it reads.
    VmReadv,
}

/// What one pass over a shadow's memory cost.
#[derive(Clone, Copy, Debug)]
pub struct ShadowRead {
    /// Nanoseconds per page read.
    pub ns_per_page: f64,
    /// Proportional set size of the shadow before, in KiB.
    pub pss_before_kib: u64,
    /// Proportional set size of the shadow after, in KiB.
    pub pss_after_kib: u64,
}

/// Forks a shadow of this process, with `pages` populated and shared copy-on-write, and reads all
/// of `pages` in it, `chunk` pages at a time.
///
/// # Errors
/// What fork, the reading or `/proc` says.
pub fn read_shadow(pages: &Pages, via: ReadVia, chunk: usize) -> io::Result<ShadowRead> {
    let chunk = chunk.max(1);
    let shadow = scratch_child()?;
    let mem = File::open(format!("/proc/{}/mem", shadow.pid()))?;
    let mut buffer = vec![1_u8; chunk * PAGE_BYTES];
    let pss_before_kib = pss_kib(&shadow)?;
    let start = Instant::now();
    for first in (0..pages.count()).step_by(chunk) {
        let count = chunk.min(pages.count() - first);
        let into = &mut buffer[..count * PAGE_BYTES];
        match via {
            ReadVia::ProcMem => mem.read_exact_at(into, pages.addr(first) as u64)?,
            ReadVia::VmReadv => vm_read(&shadow, pages.addr(first), into)?,
        }
    }
    let spent_ns = elapsed_ns(start);
    let pss_after_kib = pss_kib(&shadow)?;
    let ns_per_page = spent_ns as f64 / pages.count() as f64;
    Ok(ShadowRead { ns_per_page, pss_before_kib, pss_after_kib })
}

fn vm_read(shadow: &ScratchChild, addr: usize, into: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` is exactly `into`; `remote` is never dereferenced in this process.
    let count = unsafe {
        libc::process_vm_readv(shadow.pid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    match count {
        n if usize::try_from(n) == Ok(into.len()) => Ok(()),
        n if n < 0 => Err(last_error("process_vm_readv")),
        n => Err(io::Error::other(format!("process_vm_readv: {n} of {} bytes", into.len()))),
    }
}

fn pss_kib(shadow: &ScratchChild) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", shadow.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other("no Pss in smaps_rollup"))
}
