//! Which pages of another process hold data of its own (PAGEMAP_SCAN, Linux 6.7; else
//! `/proc/PID/pagemap`).

use crate::SysError;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_PFNZERO: u64 = 1 << 5;
/// Since Linux 6.16.
const IS_GUARD: u64 = 1 << 8;
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Which pages: their categories, those of `inverted` turned round, must have `all`, and one of
/// `any` if that is not zero.
struct Wanted {
    inverted: u64,
    all: u64,
    any: u64,
}

/// The page map of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    scan: bool,
}

/// Entries that are read for nothing rather than in another call.
const SKIP_PAGES: u64 = 256;

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    ///
    /// # Errors
    /// EPERM, ENOENT.
    pub fn open(pid: i32) -> Result<Pagemap, SysError> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| SysError::io("open", &path, e))?;
        Ok(Pagemap { file, scan: true })
    }

    /// Appends to `out` the address ranges in `[start, end)` whose pages are private data:
    /// present or swapped, not a file's and not the shared zero page.
    ///
    /// # Errors
    /// [`SysError::Call`]; a process that ended gives no ranges.
    pub fn private_ranges(
        &mut self,
        start: u64,
        end: u64,
        out: &mut Vec<(u64, u64)>,
    ) -> Result<(), SysError> {
        if self.scan {
            // Wanted: (present | swapped) & !file & !zero.
            let wanted = Wanted {
                inverted: IS_FILE | IS_PFNZERO,
                all: IS_FILE | IS_PFNZERO,
                any: IS_PRESENT | IS_SWAPPED,
            };
            match self.scan_ranges(start, end, &wanted, out) {
                Err(e) if e.is(libc::ENOTTY) || e.is(libc::EINVAL) => self.scan = false,
                done => return done,
            }
        }
        self.read_ranges(start, end, out)
    }

    /// The pages of `ranges` (page numbers, ends excluded) that nobody else maps; `None` if there
    /// are more than `max`. In the frozen fork of a running process these are the pages that the
    /// process has written since, for its own copy is another page from then on. Bit 56 of an
    /// entry, since Linux 4.2 (Documentation/admin-guide/mm/pagemap.rst).
    ///
    /// # Errors
    /// [`SysError::Call`]; a process that ended gives no pages.
    pub fn exclusive(
        &self,
        ranges: &[(u64, u64)],
        max: usize,
    ) -> Result<Option<Vec<u64>>, SysError> {
        let mut found = Vec::new();
        let mut wanted = ranges.iter().peekable();
        for group in ranges.chunk_by(|a, b| b.0.saturating_sub(a.1) <= SKIP_PAGES) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let room = self.entries(first.0, last.1, |page, bits| {
                if bits >> 63 == 0 || bits & (1 << 56) == 0 {
                    return true;
                }
                while wanted.next_if(|range| range.1 <= page).is_some() {}
                if wanted.peek().is_none_or(|range| range.0 > page) {
                    return true;
                }
                found.push(page);
                found.len() <= max
            })?;
            if !room {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }

    /// The pages of `ranges` that nobody else maps, as [`Pagemap::exclusive`] finds them, as ranges.
    ///
    /// # Errors
    /// As there.
    pub fn exclusive_ranges(&self, ranges: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, SysError> {
        let mut found = Vec::new();
        for &(start, end) in ranges {
            self.entries(start, end, |page, bits| {
                if bits >> 63 == 1 && bits & (1 << 56) != 0 {
                    push(&mut found, page, page + 1);
                }
                true
            })?;
        }
        Ok(found)
    }

    /// Shows each entry of the pages `[start, end)` until `each` wants no more; whether it wanted
    /// all that there were.
    fn entries(
        &self,
        start: u64,
        end: u64,
        mut each: impl FnMut(u64, u64) -> bool,
    ) -> Result<bool, SysError> {
        let mut entries = vec![0u8; 8 << 10];
        let mut at = start;
        while at < end {
            let want = ((end - at) as usize * 8).min(entries.len());
            let got = self
                .file
                .read_at(&mut entries[..want], at * 8)
                .map_err(|e| SysError::io("read pagemap", format!("page {at:#x}"), e))?;
            if got < 8 {
                break;
            }
            for entry in entries[..got - got % 8].chunks_exact(8) {
                let mut word = [0u8; 8];
                word.copy_from_slice(entry);
                if !each(at, u64::from_le_bytes(word)) {
                    return Ok(false);
                }
                at += 1;
            }
        }
        Ok(true)
    }

    /// Appends to `out` the guard regions in `[start, end)` (`MADV_GUARD_INSTALL`). A kernel that
    /// cannot tell them (before 6.16) tells none.
    ///
    /// # Errors
    /// As [`Pagemap::private_ranges`].
    pub fn guard_ranges(
        &mut self,
        start: u64,
        end: u64,
        out: &mut Vec<(u64, u64)>,
    ) -> Result<(), SysError> {
        let wanted = Wanted { inverted: 0, all: IS_GUARD, any: 0 };
        match self.scan_ranges(start, end, &wanted, out) {
            Err(e) if e.is(libc::ENOTTY) || e.is(libc::EINVAL) => Ok(()),
            done => done,
        }
    }

    fn scan_ranges(
        &self,
        start: u64,
        end: u64,
        wanted: &Wanted,
        out: &mut Vec<(u64, u64)>,
    ) -> Result<(), SysError> {
        let mut regions = [PageRegion::default(); 256];
        let mut at = start;
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start: at,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: wanted.inverted,
                category_mask: wanted.all,
                category_anyof_mask: wanted.any,
                // Only for regions not to be cut where something else changes.
                return_mask: if wanted.any == 0 { wanted.all } else { IS_PRESENT },
            };
            // SAFETY: `arg` is the struct this ioctl reads and writes; `vec` describes `regions`.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n < 0 {
                return Err(SysError::last("PAGEMAP_SCAN", format!("{at:#x}..{end:#x}")));
            }
            for region in &regions[..n as usize] {
                push(out, region.start, region.end);
            }
            if arg.walk_end <= at {
                break;
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    fn read_ranges(&self, start: u64, end: u64, out: &mut Vec<(u64, u64)>) -> Result<(), SysError> {
        self.entries(start / PAGE, end / PAGE, |page, bits| {
            // Bit 63 present, 62 swapped, 61 file-mapped or shared anonymous. The zero page cannot
            // be told here; taking it along is only a little waste.
            if bits >> 62 != 0 && bits & (1 << 61) == 0 {
                push(out, page * PAGE, (page + 1) * PAGE);
            }
            true
        })
        .map(drop)
    }
}

fn push(out: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match out.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => out.push((start, end)),
    }
}
