//! Where the pages of a seed are, and reading them.

use mitosis_descriptor::{Backing, Descriptor, PAGE_SIZE, Vpn};
use mitosis_sys::procfs;
use mitosis_transport::ReadError;
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Most pages whose table entries are looked at while a child's node waits: half a millisecond.
const LOOKED_AT_MAX: u64 = 64 << 10;

/// The frozen copy of a parent.
#[derive(Debug)]
pub(crate) struct Shadow {
    /// Its pid, as the host sees it.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// `/proc/PID/mem`. Read with pread only: `process_vm_readv` pins, and pinning unshares.
    pub mem: File,
    /// Held by who makes it do something.
    pub visit: Mutex<()>,
}

impl Shadow {
    /// Whether it still exists.
    pub fn alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0) | Err(rustix::io::Errno::INTR))
    }

    /// Kills it, and sees to it that no zombie stays. Ends within moments or not at all: a shadow never
    /// runs, so nothing holds it up.
    pub fn kill(&self) {
        let stat = procfs::stat(self.pid);
        // Fails once it has been reaped: else its pid was no other's when that was read.
        let its_own = pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok();
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        // ECHILD for one that is not a child of this process.
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        let Ok(stat) = stat else { return };
        let (parent, signal) = (procfs::stat_field(&stat, 4), procfs::stat_field(&stat, 38));
        // An init or subreaper that adopted it is sent a signal at its end, and reaps it. A parent that
        // is the init of its namespace had it as its child without one, and never waits for it.
        if its_own && signal == 0 && parent != 0 {
            mitosis_capture::end_shadow(self.pid, &self.pidfd, Some(parent as i32));
        }
    }
}

/// Where the owned pages of a seed are now.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In the shadow.
    Shadow(Arc<Shadow>),
    /// In a sparse file in memory: page `n` at offset `n * 4096`.
    Spool(Arc<File>),
    /// Nowhere.
    Gone(String),
}

/// Pages of a mapped file.
#[derive(Clone, Copy, Debug)]
struct FilePages {
    start: u64,
    end: u64,
    file: usize,
    offset: u64,
    size: u64,
}

/// The memory of a seed: which pages it answers for, and where they are.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Owned page ranges `[start, end)` in the seed's address space, ascending.
    owned: Vec<(u64, u64)>,
    mapped: Vec<FilePages>,
    files: Vec<Option<File>>,
    place: RwLock<Place>,
}

impl Memory {
    /// The memory of the seed that `descriptor` describes. `files` are its mapped files, open, in
    /// the order of the descriptor.
    pub fn new(descriptor: &Descriptor, files: Vec<Option<File>>, place: Place) -> Memory {
        let mine = descriptor.pages.runs().iter().filter(|run| run.owner == 0);
        let mut owned: Vec<(u64, u64)> =
            mine.map(|run| (run.source.0, run.source.0 + u64::from(run.count))).collect();
        owned.sort_unstable();
        let mapped = descriptor.vmas.iter().filter_map(|vma| match vma.backing {
            Backing::File { file, offset } => Some(FilePages {
                start: Vpn::of(vma.start).0,
                end: Vpn::of(vma.end).0,
                file: file as usize,
                offset,
                size: descriptor.files.get(file as usize)?.size,
            }),
            _ => None,
        });
        Memory { owned, mapped: mapped.collect(), files, place: RwLock::new(place) }
    }

    /// The memory of a seed without pages.
    #[cfg(test)]
    pub fn empty(place: Place) -> Memory {
        let place = RwLock::new(place);
        Memory { owned: Vec::new(), mapped: Vec::new(), files: Vec::new(), place }
    }

    /// Where the owned pages are now.
    pub fn place(&self) -> Place {
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The owned pages are somewhere else from now on. Returns where they were.
    pub fn replace(&self, place: Place) -> Place {
        let mut slot = self.place.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, place)
    }

    /// Owned page ranges, ascending.
    pub fn owned(&self) -> &[(u64, u64)] {
        &self.owned
    }

    /// Whether a page is among them.
    pub fn owns(&self, page: u64) -> bool {
        let at = self.owned.partition_point(|(_, end)| *end <= page);
        self.owned.get(at).is_some_and(|(start, _)| *start <= page)
    }

    /// Whether a page can be read here: one that it owns, or of a mapped file.
    pub fn has(&self, page: u64) -> bool {
        self.owns(page) || !self.mapped(page, page + 1).is_empty()
    }

    /// Number of owned pages.
    pub fn pages_owned(&self) -> u64 {
        self.owned.iter().map(|(start, end)| end - start).sum()
    }

    /// The owned pages that the parent has written since it was prepared, at most `max`; `None` if
    /// there are more, or that cannot be known. Reads the page table of the shadow, and no page.
    pub fn rewritten(&self, max: usize) -> Option<Vec<u64>> {
        let Place::Shadow(shadow) = self.place() else { return None };
        if self.pages_owned() > LOOKED_AT_MAX {
            return None;
        }
        let map = mitosis_sys::pagemap::Pagemap::open(shadow.pid).ok()?;
        map.exclusive(&self.owned, max).ok()?
    }

    /// Reads `count` pages at `source`; all of them or an error.
    pub fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        let bytes = u64::from(count) * PAGE_SIZE;
        if out.len() as u64 != bytes {
            return Err(ReadError::Failed(format!("{count} pages into {} bytes", out.len())));
        }
        let place = self.place();
        let (mut at, end) = (source.0, source.0.saturating_add(u64::from(count)));
        let mut rest = out;
        while at < end {
            let (until, from) = self.part(at, end)?;
            let (part, tail) = rest.split_at_mut(((until - at) * PAGE_SIZE) as usize);
            match from {
                None => read_owned(&place, at, part)?,
                Some(pages) => self.read_mapped(&pages, at, part)?,
            }
            (at, rest) = (until, tail);
        }
        Ok(())
    }

    /// The longest part from `at` that comes from one place: owned (`None`) or a mapped file.
    fn part(&self, at: u64, end: u64) -> Result<(u64, Option<FilePages>), ReadError> {
        let next = self.owned.partition_point(|(_, until)| *until <= at);
        let next = self.owned.get(next);
        if let Some((start, until)) = next
            && *start <= at
        {
            return Ok((end.min(*until), None));
        }
        let index = self.mapped.partition_point(|pages| pages.end <= at);
        match self.mapped.get(index) {
            Some(pages) if pages.start <= at => {
                let until = next.map_or(end, |(start, _)| end.min(*start)).min(pages.end);
                Ok((until, Some(*pages)))
            }
            _ => Err(ReadError::NotOwned(format!("page {at:#x}"))),
        }
    }

    /// The pages of mapped files in `[start, end)` that can be read and are not owned, ascending.
    pub fn mapped(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let first = self.mapped.partition_point(|pages| pages.end <= start);
        for pages in self.mapped[first..].iter().take_while(|pages| pages.start < end) {
            let open = self.files.get(pages.file).is_some_and(Option::is_some);
            let length = pages.size.saturating_sub(pages.offset).div_ceil(PAGE_SIZE);
            let until = pages.end.min(end).min(pages.start + length);
            let mut at = pages.start.max(start);
            while open && at < until {
                let next = self.owned.partition_point(|(_, end)| *end <= at);
                let (from, after) = self.owned.get(next).copied().unwrap_or((until, until));
                if at < from.min(until) {
                    found.push((at, from.min(until)));
                }
                at = after.max(at + 1);
            }
        }
        found
    }

    /// File bytes; zero after the end of the file within its last page, as in a mapping.
    fn read_mapped(&self, pages: &FilePages, at: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let failed = |what: String| ReadError::Failed(what);
        let Some(Some(file)) = self.files.get(pages.file) else {
            return Err(failed(format!("page {at:#x}: its file is not open here")));
        };
        let offset = pages.offset + (at - pages.start) * PAGE_SIZE;
        let last_page = offset + out.len() as u64 - PAGE_SIZE;
        if last_page >= pages.size {
            return Err(failed(format!("page {at:#x} is past the end of its file")));
        }
        let wanted = (out.len() as u64).min(pages.size - offset) as usize;
        file.read_exact_at(&mut out[..wanted], offset)
            .map_err(|e| failed(format!("page {at:#x} of a mapped file: {e}")))?;
        out[wanted..].fill(0);
        Ok(())
    }
}

fn read_owned(place: &Place, at: u64, out: &mut [u8]) -> Result<(), ReadError> {
    let offset = at * PAGE_SIZE;
    match place {
        // A shadow that is gone reads as the end of the file: short, never zeros.
        Place::Shadow(shadow) => shadow.mem.read_exact_at(out, offset).map_err(|e| {
            if shadow.alive() {
                ReadError::Failed(format!("page {at:#x} of the shadow: {e}"))
            } else {
                ReadError::Lost("its shadow died".into())
            }
        }),
        Place::Spool(file) => file
            .read_exact_at(out, offset)
            .map_err(|e| ReadError::Failed(format!("page {at:#x} of the spool: {e}"))),
        Place::Gone(reason) => Err(ReadError::Lost(reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Child, Command, Stdio};

    /// A real process as a shadow, with the first pages of its stack as owned pages.
    fn shadow() -> (Child, Arc<Shadow>, u64) {
        let child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let stack = loop {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            let maps = mitosis_sys::procfs::ranges(pid).unwrap();
            let stack = maps.iter().find(|m| m.name == "[stack]").map(|m| m.end);
            // Asleep (clock_nanosleep): it writes to its stack no more.
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
            match stack {
                Some(end) if exe.ends_with("sleep") && call.starts_with("230 ") => {
                    break end / PAGE_SIZE - 2;
                }
                _ => std::thread::yield_now(),
            }
        };
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
        (child, Arc::new(Shadow { pid, pidfd, mem, visit: Mutex::default() }), stack)
    }

    fn memory(place: Place, owned: Vec<(u64, u64)>, mapped: Vec<FilePages>, file: File) -> Memory {
        Memory { owned, mapped, files: vec![Some(file)], place: RwLock::new(place) }
    }

    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!(
            "mitosis-mem-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, bytes).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn owned_pages_come_from_a_living_shadow_and_never_from_a_dead_one() {
        let (mut child, shadow, at) = shadow();
        let place = Place::Shadow(Arc::clone(&shadow));
        let memory = memory(place, vec![(at, at + 2)], Vec::new(), file(b""));
        let mut expected = vec![0; 2 * PAGE_SIZE as usize];
        shadow.mem.read_exact_at(&mut expected, at * PAGE_SIZE).unwrap();
        assert!(expected.iter().any(|byte| *byte != 0));
        let mut got = vec![0; expected.len()];
        let read = memory.read(Vpn(at), 2, &mut got);
        let outside = memory.read(Vpn(at + 1), 2, &mut got.clone());
        shadow.kill();
        let dead = memory.read(Vpn(at), 1, &mut vec![0; PAGE_SIZE as usize]);
        let _ = child.wait();
        assert_eq!(read, Ok(()));
        assert_eq!(got, expected);
        assert!(matches!(outside, Err(ReadError::NotOwned(_))), "{outside:?}");
        assert!(matches!(dead, Err(ReadError::Lost(_))), "{dead:?}");
        assert!(!shadow.alive());
    }

    #[test]
    fn file_pages_end_with_zeros_and_nothing_comes_from_past_the_end() {
        let page = PAGE_SIZE as usize;
        let bytes: Vec<u8> = (0..page + 100).map(|n| n as u8 | 1).collect();
        let mapped = FilePages { start: 10, end: 14, file: 0, offset: 0, size: bytes.len() as u64 };
        let gone = Place::Gone("test".into());
        let memory = memory(gone, vec![(11, 12)], vec![mapped], file(&bytes));
        let mut out = vec![0xff; page];
        assert_eq!(memory.read(Vpn(10), 1, &mut out), Ok(()));
        assert_eq!(out, bytes[..page]);
        // Page 11 is dirty: its owner is the shadow, not the file.
        assert!(matches!(memory.read(Vpn(11), 1, &mut out), Err(ReadError::Lost(_))));
        assert!(matches!(memory.read(Vpn(12), 1, &mut out), Err(ReadError::Failed(_))));
        assert!(matches!(memory.read(Vpn(14), 1, &mut out), Err(ReadError::NotOwned(_))));
        // Not the dirty one, and nothing past the end.
        assert_eq!(memory.mapped(0, 100), [(10, 11)]);
        assert_eq!([9, 10, 11, 12].map(|page| memory.has(page)), [false, true, true, false]);
        let clean = Memory { owned: Vec::new(), ..memory };
        assert_eq!(clean.mapped(0, 100), [(10, 12)]);
        assert_eq!(clean.mapped(11, 100), [(11, 12)]);
        assert_eq!(clean.mapped(12, 100), []);
        assert_eq!(clean.read(Vpn(11), 1, &mut out), Ok(()));
        assert_eq!(out[..100], bytes[page..]);
        assert!(out[100..].iter().all(|byte| *byte == 0));
    }
}
