//! Bare userfaultfd faults, and the two ways to fill them: copy into anonymous memory, or let a
//! private mapping of a memfd continue with a page of its cache.

use super::fork::{ScratchChild, fork_with, memfd, pin, pwrite, read, write_all};
use super::{PAGE_BYTES, Pages, elapsed_ns, last_error};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const MODE_MISSING: u64 = 1;
const MODE_MINOR: u64 = 1 << 2;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_MINOR: u64 = 1 << 2;

/// What lies behind the pages that fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Anonymous memory, filled by `UFFDIO_COPY` from a hot buffer.
    Anonymous,
    /// A private mapping of a fresh memfd: written there first, then `UFFDIO_CONTINUE`.
    FreshMemfd,
    /// A private mapping of a memfd that holds the page already: `UFFDIO_CONTINUE` alone, as for
    /// the second child of a node.
    CachedMemfd,
}

/// Pages under a userfaultfd, with what fills them.
struct Field {
    pages: Pages,
    cache: Option<OwnedFd>,
    uffd: OwnedFd,
    backing: Backing,
    hot: Vec<u8>,
}

impl Field {
    fn new(backing: Backing, count: usize, window: usize) -> io::Result<Self> {
        let minor = if backing == Backing::Anonymous { 0 } else { MODE_MINOR };
        Self::with_mode(backing, count, window, MODE_MISSING | minor)
    }

    fn with_mode(backing: Backing, count: usize, window: usize, mode: u64) -> io::Result<Self> {
        let uffd = open()?;
        let (pages, cache) = match backing {
            Backing::Anonymous => (Pages::anonymous(count)?, None),
            Backing::FreshMemfd | Backing::CachedMemfd => {
                let fd = memfd(count * PAGE_BYTES)?;
                if backing == Backing::CachedMemfd {
                    Pages::shared_of(fd.as_fd(), count)?.populate();
                }
                let pages = Pages::private_of(fd.as_fd(), count)?;
                (pages, Some(fd))
            }
        };
        let len = (count * PAGE_BYTES) as u64;
        let mut register = [pages.addr(0) as u64, len, mode, 0];
        ioctl(&uffd, UFFDIO_REGISTER, &mut register, "UFFDIO_REGISTER")?;
        Ok(Field { pages, cache, uffd, backing, hot: vec![7; window * PAGE_BYTES] })
    }

    /// Fills `count` pages from `first` on. Allocates nothing: a forked child calls it.
    fn place(&self, first: usize, count: usize) -> io::Result<()> {
        let to = self.pages.addr(first) as u64;
        let len = (count * PAGE_BYTES) as u64;
        match (self.backing, &self.cache) {
            (Backing::FreshMemfd, Some(cache)) => {
                pwrite(cache.as_fd(), &self.hot[..count * PAGE_BYTES], first)?;
                ioctl(&self.uffd, UFFDIO_CONTINUE, &mut [to, len, 0, 0], "UFFDIO_CONTINUE")
            }
            (Backing::CachedMemfd, _) => {
                ioctl(&self.uffd, UFFDIO_CONTINUE, &mut [to, len, 0, 0], "UFFDIO_CONTINUE")
            }
            _ => {
                let mut copy = [to, self.hot.as_ptr() as u64, len, 0, 0];
                ioctl(&self.uffd, UFFDIO_COPY, &mut copy, "UFFDIO_COPY")
            }
        }
    }

    /// Answers `faults` faults, `window` pages each, then returns. With a `socket` each answer
    /// waits for one round trip there: 8 bytes out, one page back.
    fn serve(
        &self,
        faults: usize,
        window: usize,
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut page = [0_u8; PAGE_BYTES];
        for _ in 0..faults {
            let (addr, _) = next_fault(&self.uffd)?;
            if let Some(socket) = socket {
                round_trip(socket, &mut page)?;
            }
            let page = (addr - self.pages.addr(0)) / PAGE_BYTES;
            self.place(page, window.min(self.pages.count() - page))?;
        }
        Ok(())
    }

    /// Nanoseconds of one read of a page.
    fn touch(&self, page: usize) -> u64 {
        let start = Instant::now();
        self.pages.read(page);
        elapsed_ns(start)
    }

    /// A process that answers the faults of this one.
    fn server(
        &self,
        faults: usize,
        window: usize,
        cpu: Option<usize>,
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<ScratchChild> {
        fork_with(|| {
            let served = pin(cpu).and_then(|()| self.serve(faults, window, socket));
            if served.is_err() {
                // Let the faulting thread run on: it learns of the failure from the status.
                let len = (self.pages.count() * PAGE_BYTES) as u64;
                let mut range = [self.pages.addr(0) as u64, len];
                let _ = ioctl(&self.uffd, UFFDIO_UNREGISTER, &mut range, "UFFDIO_UNREGISTER");
                // SAFETY: ends this child only.
                unsafe { libc::_exit(1) };
            }
        })
    }
}

/// Nanoseconds of each of `runs` missing faults that another process answers with `window` pages;
/// the faults are `window` pages apart. `cpus` pins (faulting thread, server); `None` lets the
/// scheduler choose, as it does for the product.
///
/// # Errors
/// What userfaultfd, mmap or fork says.
pub fn fault_latency(
    backing: Backing,
    runs: usize,
    window: usize,
    cpus: Option<(usize, usize)>,
) -> io::Result<Vec<u64>> {
    let field = Field::new(backing, runs * window, window)?;
    let server = field.server(runs, window, cpus.map(|(_, server)| server), None)?;
    pin(cpus.map(|(toucher, _)| toucher))?;
    let samples = (0..runs).map(|run| field.touch(run * window)).collect();
    pin(None)?;
    server.wait()?;
    Ok(samples)
}

/// Nanoseconds of each of `runs` missing faults that another process answers with a page after one
/// round trip on `socket`, whose other end answers 8 bytes with a page: the least that a remote
/// fault can consist of, in one chain.
///
/// # Errors
/// What userfaultfd, mmap or fork says, or a server that could not do its part.
pub fn remote_fault_latency(socket: BorrowedFd<'_>, runs: usize) -> io::Result<Vec<u64>> {
    let field = Field::new(Backing::Anonymous, runs, 1)?;
    let server = field.server(runs, 1, None, Some(socket))?;
    let samples = (0..runs).map(|run| field.touch(run)).collect();
    server.wait()?;
    Ok(samples)
}

/// Nanoseconds of each of `runs` ordinary first writes to anonymous memory, no userfaultfd.
///
/// # Errors
/// What mmap says.
pub fn plain_fault_latency(runs: usize) -> io::Result<Vec<u64>> {
    let mut pages = Pages::anonymous(runs)?;
    let mut samples = Vec::with_capacity(runs);
    for run in 0..runs {
        let start = Instant::now();
        pages.write(run, 1);
        samples.push(elapsed_ns(start));
    }
    Ok(samples)
}

/// Nanoseconds per page of filling `total` pages.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// The placing itself.
    pub place_ns: f64,
    /// One read of each page afterwards: free unless the mechanism leaves work to the reader.
    pub touch_ns: f64,
}

/// Fills `total` pages `window` at a time, without any fault or wake-up, and reads them.
///
/// # Errors
/// What userfaultfd or mmap says.
pub fn bulk_place(backing: Backing, total: usize, window: usize) -> io::Result<Bulk> {
    let field = Field::new(backing, total, window)?;
    let start = Instant::now();
    for first in (0..total).step_by(window) {
        field.place(first, window.min(total - first))?;
    }
    let placed = elapsed_ns(start);
    let start = Instant::now();
    for page in 0..total {
        field.pages.read(page);
    }
    let touched = elapsed_ns(start);
    let per = |ns: u64| ns as f64 / total as f64;
    Ok(Bulk { place_ns: per(placed), touch_ns: per(touched) })
}

/// Receives `total` pages from `socket`, `window` at a time, and places each `window` with one call for
/// each run: one run if `step` is 1, else single pages, `step` pages apart. What of paging nobody can leave
/// out who gets pages from a stream. Returns nanoseconds per page.
///
/// # Errors
/// What userfaultfd, mmap or the socket says.
pub fn receive_and_place(
    socket: BorrowedFd<'_>,
    total: usize,
    window: usize,
    step: usize,
) -> io::Result<f64> {
    let step = step.max(1);
    let mut field = Field::new(Backing::Anonymous, total * step, window)?;
    let run = if step == 1 { window } else { 1 };
    let start = Instant::now();
    for first in (0..total).step_by(window) {
        let count = window.min(total - first);
        read_exact(socket, &mut field.hot[..count * PAGE_BYTES])?;
        for at in (0..count).step_by(run) {
            let to = field.pages.addr((first + at) * step) as u64;
            let from = field.hot[at * PAGE_BYTES..].as_ptr() as u64;
            let bytes = (run.min(count - at) * PAGE_BYTES) as u64;
            ioctl(&field.uffd, UFFDIO_COPY, &mut [to, from, bytes, 0, 0], "UFFDIO_COPY")?;
        }
    }
    Ok(elapsed_ns(start) as f64 / total as f64)
}

/// What a page shows after it was filled, dropped with `MADV_DONTNEED` and read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropOutcome {
    /// A MISSING event: the pager decides, as for a page that never came.
    Missing,
    /// A MINOR event: the pager decides; the cache still holds the old content.
    Minor,
    /// No event at all; the byte read.
    Silent(u8),
}

/// Fills one page, drops it, reads it again, and tells what happened and how long that read took
/// in nanoseconds (with an event: until a zero page was placed). With `minor` false a memfd is
/// registered for MISSING alone.
///
/// # Errors
/// What userfaultfd, mmap or fork says.
pub fn dropped_page(backing: Backing, minor: bool) -> io::Result<(DropOutcome, u64)> {
    let mode = if minor { MODE_MISSING | MODE_MINOR } else { MODE_MISSING };
    let mut field = Field::with_mode(backing, 1, 1, mode)?;
    if backing == Backing::Anonymous || minor {
        field.place(0, 1)?;
    } else {
        // Not registered for it, so the page comes from the cache by itself.
        field.pages.read(0);
    }
    field.pages.drop_pages(0, 1)?;
    let (rx, tx) = super::fork::pipe()?;
    let server = fork_with(|| {
        if let Ok((addr, flags)) = next_fault(&field.uffd) {
            write_all(&tx, &[u8::from(flags & FLAG_MINOR != 0)]);
            let mut zero = [addr as u64, PAGE_BYTES as u64, 0, 0];
            let _ = ioctl(&field.uffd, UFFDIO_ZEROPAGE, &mut zero, "UFFDIO_ZEROPAGE");
        }
    })?;
    drop(tx);
    let start = Instant::now();
    let byte = field.pages.read(0);
    let spent_ns = elapsed_ns(start);
    if byte != 0 {
        return Ok((DropOutcome::Silent(byte), spent_ns));
    }
    let mut kind = [0_u8];
    let told = read(&rx, &mut kind)?;
    drop(server);
    let outcome = match (told, kind[0]) {
        (0, _) => DropOutcome::Silent(byte),
        (_, 1) => DropOutcome::Minor,
        _ => DropOutcome::Missing,
    };
    Ok((outcome, spent_ns))
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is checked before it is used.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(last_error("userfaultfd"));
    }
    // SAFETY: new, open, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = [0xAA, FEATURE_MISSING_SHMEM | FEATURE_MINOR_SHMEM, 0];
    ioctl(&fd, UFFDIO_API, &mut api, "UFFDIO_API")?;
    Ok(fd)
}

fn ioctl<const N: usize>(
    uffd: &OwnedFd,
    request: u64,
    argument: &mut [u64; N],
    what: &str,
) -> io::Result<()> {
    // SAFETY: each request is given the structure of 64-bit words that it is defined for; the
    // memory it changes is a `Field` of our own.
    let done = unsafe { libc::ioctl(uffd.as_raw_fd(), request, argument.as_mut_ptr()) };
    if done == 0 { Ok(()) } else { Err(last_error(what)) }
}

/// 8 bytes out, one page back. The length is little endian, as the other end expects it.
fn round_trip(socket: BorrowedFd<'_>, page: &mut [u8; PAGE_BYTES]) -> io::Result<()> {
    write_all(&socket, &(PAGE_BYTES as u64).to_le_bytes());
    read_exact(socket, page)
}

fn read_exact(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match read(&socket, &mut bytes[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(())
}

/// The next page fault: page address and flags.
fn next_fault(uffd: &OwnedFd) -> io::Result<(usize, u64)> {
    let mut message = [0_u8; 32];
    let count = read(uffd, &mut message)?;
    if count != message.len() || message[0] != EVENT_PAGEFAULT {
        return Err(io::Error::other("userfaultfd: not a page fault"));
    }
    let word = |at: usize| {
        let mut bytes = [0_u8; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let addr = usize::try_from(word(16)).map_err(io::Error::other)?;
    Ok((addr & !(PAGE_BYTES - 1), word(8)))
}
