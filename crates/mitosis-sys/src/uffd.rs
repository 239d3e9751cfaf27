//! userfaultfd(2): serving the missing pages of another process.
//!
//! Addresses in this module belong to the served process. They are numbers here: nothing
//! dereferences them, so the operations are safe. What the kernel calls errors are mostly normal
//! ends (the page is already there, the mapping went away, the process died); they are named by
//! [`Stop`] so that no caller can take one for success.

mod holder;
pub mod testing;

pub use holder::Holder;

use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// linux/userfaultfd.h
const API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
const REGISTER_MODE_MISSING: u64 = 1;
const MODE_DONTWAKE: u64 = 1;
const MESSAGE: usize = 32;
/// Messages read at a time.
const BATCH: usize = 32;

/// Report forks with a userfaultfd of the new process.
pub const FEATURE_EVENT_FORK: u64 = 1 << 1;
/// Report moved mappings.
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// Report dropped pages.
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// Report removed mappings.
pub const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// Name the thread that faulted.
pub const FEATURE_THREAD_ID: u64 = 1 << 8;
/// All events: without them a page's history is not known, and it could come back wrong.
pub const FEATURES_EVENTS: u64 =
    FEATURE_EVENT_FORK | FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP;

/// Why placing pages stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The page is already there.
    Exists,
    /// The process is changing its mappings: read events, then decide anew.
    Again,
    /// The address space is gone.
    Gone,
    /// The range does not lie in one registered mapping.
    Unmapped,
    /// No memory, or the cgroup's limit.
    NoMemory,
    /// Anything else.
    Failed(Errno),
}

impl Stop {
    fn of(errno: Errno) -> Stop {
        match errno {
            Errno::EXIST => Stop::Exists,
            Errno::AGAIN => Stop::Again,
            Errno::SRCH => Stop::Gone,
            Errno::NOENT => Stop::Unmapped,
            Errno::NOMEM => Stop::NoMemory,
            other => Stop::Failed(other),
        }
    }
}

/// What an operation on a range did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Bytes done, from the start of the range.
    pub bytes: u64,
    /// Why it did no more; `None` also when it merely did a part and may be continued.
    pub stop: Option<Stop>,
}

/// Something that happened in the served process.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// The address touched.
        addr: u64,
        /// It was a write.
        write: bool,
        /// The thread's id in its own pid namespace, if [`FEATURE_THREAD_ID`] was asked for.
        thread: u32,
    },
    /// The process forked; this serves the new one.
    Fork(Uffd),
    /// A mapping moved.
    Remap {
        /// Old first byte.
        from: u64,
        /// New first byte.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Pages were dropped; touched again they are zero.
    Remove {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// A mapping was removed.
    Unmap {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    file: File,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RegisterArg {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// ZEROPAGE and CONTINUE have the same argument.
#[repr(C)]
struct RangeArg {
    range: Range,
    mode: u64,
    done: i64,
}

impl Uffd {
    /// Takes over a userfaultfd that someone else created, and makes it nonblocking.
    ///
    /// # Errors
    /// If its flags cannot be set.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Uffd> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Uffd { file: File::from(fd) })
    }

    /// Creates a userfaultfd for the calling process, without the API handshake.
    ///
    /// # Errors
    /// If the kernel has none, or the caller lacks the privilege.
    pub fn create() -> io::Result<Uffd> {
        // SAFETY: the call takes flags only.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(Uffd { file: File::from(fd) })
    }

    /// Another descriptor of the same userfaultfd.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    fn ioctl<T>(&self, request: libc::c_ulong, arg: &mut T) -> Result<(), Errno> {
        // SAFETY: `arg` is the structure that `request` takes (the constants encode its size), and
        // it lives across the call. The addresses in it are of the served process, or (the source
        // of COPY) point to a slice that the caller borrows across the call.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), request, arg as *mut T) };
        if done < 0 {
            let error = io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(())
    }

    /// The API handshake with the features wanted.
    ///
    /// # Errors
    /// If the kernel lacks one of them.
    pub fn api(&self, features: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_API, &mut ApiArg { api: API, features, ioctls: 0 })
    }

    /// Registers `[start, start + len)` of the creator's address space for missing pages.
    ///
    /// # Errors
    /// If there are no suitable mappings.
    pub fn register(&self, start: u64, len: u64) -> Result<(), Errno> {
        let range = Range { start, len };
        let mut arg = RegisterArg { range, mode: REGISTER_MODE_MISSING, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut arg)
    }

    /// Unregisters `[start, start + len)` and wakes who waits there.
    ///
    /// # Errors
    /// If nothing suitable is mapped there, or the address space is gone.
    pub fn unregister(&self, start: u64, len: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut Range { start, len })
    }

    /// Wakes who waits for pages of the range; they fault again if a page is still missing.
    ///
    /// # Errors
    /// If the range is no range.
    pub fn wake(&self, start: u64, len: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut Range { start, len })
    }

    /// Places pages at `dst`, which lie in one mapping, and wakes who waits for them if `wake`.
    pub fn copy(&self, dst: u64, pages: &[u8], wake: bool) -> Placed {
        let mode = if wake { 0 } else { MODE_DONTWAKE };
        let len = pages.len() as u64;
        let mut arg = CopyArg { dst, src: pages.as_ptr() as u64, len, mode, copied: 0 };
        let done = self.ioctl(UFFDIO_COPY, &mut arg);
        placed(done, arg.copied, len)
    }

    /// Places zeros in `[start, start + len)`, which lies in one mapping, and wakes.
    pub fn zeropage(&self, start: u64, len: u64) -> Placed {
        let mut arg = RangeArg { range: Range { start, len }, mode: 0, done: 0 };
        let done = self.ioctl(UFFDIO_ZEROPAGE, &mut arg);
        placed(done, arg.done, len)
    }

    /// Asks, without changing anything, whether `[start, start + len)` lies in one registered
    /// mapping of anonymous memory: `Ok(true)` if so. `Err` is [`Stop::Again`] or [`Stop::Gone`],
    /// or what the kernel said unexpectedly.
    ///
    /// The question is a CONTINUE, which anonymous memory refuses (EINVAL) only after the mapping
    /// was found.
    ///
    /// # Errors
    /// See above.
    pub fn registered(&self, start: u64, len: u64) -> Result<bool, Stop> {
        let mut arg = RangeArg { range: Range { start, len }, mode: MODE_DONTWAKE, done: 0 };
        match self.ioctl(UFFDIO_CONTINUE, &mut arg) {
            Err(Errno::INVAL) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Stop::of(errno)),
            // Only shared memory can be continued; nobody registers that here.
            Ok(()) => Err(Stop::Failed(Errno::INVAL)),
        }
    }

    /// Reads what has happened, up to a batch, into `events`. Returns whether there may be more.
    ///
    /// # Errors
    /// If the kernel cannot deliver, e.g. no descriptor is left for a fork (the event stays).
    pub fn read_events(&self, events: &mut Vec<Event>) -> io::Result<bool> {
        let mut buffer = [0u8; MESSAGE * BATCH];
        let got = match (&self.file).read(&mut buffer) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e),
        };
        for message in buffer[..got].chunks_exact(MESSAGE) {
            events.push(decode(message)?);
        }
        Ok(got == buffer.len())
    }
}

fn placed(done: Result<(), Errno>, bytes: i64, len: u64) -> Placed {
    match done {
        Ok(()) => Placed { bytes: len, stop: None },
        // A part is reported as EAGAIN with its length.
        Err(_) if bytes > 0 => Placed { bytes: bytes as u64, stop: None },
        Err(errno) => Placed { bytes: 0, stop: Some(Stop::of(errno)) },
    }
}

/// Decodes one `struct uffd_msg`.
fn decode(message: &[u8]) -> io::Result<Event> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    match message[0] {
        0x12 => {
            Ok(Event::Fault { addr: word(16), write: word(8) & 1 != 0, thread: word(24) as u32 })
        }
        0x13 => {
            // SAFETY: with a fork event the kernel installs this descriptor in the reader.
            let fd = unsafe { OwnedFd::from_raw_fd(word(8) as u32 as RawFd) };
            Ok(Event::Fork(Uffd::from_fd(fd)?))
        }
        0x14 => Ok(Event::Remap { from: word(8), to: word(16), len: word(24) }),
        0x15 => Ok(Event::Remove { start: word(8), end: word(16) }),
        0x16 => Ok(Event::Unmap { start: word(8), end: word(16) }),
        other => Err(io::Error::other(format!("unknown userfaultfd event {other:#x}"))),
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
