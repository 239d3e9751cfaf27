//! A bare fork: what it costs, and short-lived children to measure against.

use super::{Pages, elapsed_ns, last_error};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// A child of ours that is killed and reaped on drop.
pub struct ScratchChild {
    pid: libc::pid_t,
}

impl ScratchChild {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// What waitpid says, or an end that was not exit(0).
    pub fn wait(self) -> io::Result<()> {
        let this = std::mem::ManuallyDrop::new(self);
        let mut status = 0;
        // SAFETY: our own child, reaped here and not again, since its drop no longer runs.
        if unsafe { libc::waitpid(this.pid, &raw mut status, 0) } != this.pid {
            return Err(last_error("waitpid"));
        }
        match status {
            0 => Ok(()),
            status => Err(io::Error::other(format!("the helper ended with status {status:#x}"))),
        }
    }
}

impl Drop for ScratchChild {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: `pid` is our own child, not reaped before, so the number cannot be another's.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, 0);
        }
    }
}

/// Forks a child that runs `body` and ends. `body` must not allocate, lock or panic: only the
/// forking thread exists in the child, and locks of others may be held there for ever.
pub(super) fn fork_with(body: impl FnOnce()) -> io::Result<ScratchChild> {
    // SAFETY: the child runs only `body`, bound by the rule above, then ends without destructors.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(last_error("fork")),
        0 => {
            body();
            // SAFETY: ends this child only; no exit handler of the parent runs.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(ScratchChild { pid }),
    }
}

/// A frozen copy of this process, the way a shadow is one: it sleeps until it is dropped.
///
/// # Errors
/// What fork says.
pub fn scratch_child() -> io::Result<ScratchChild> {
    fork_with(|| {
        loop {
            // SAFETY: sleeps; a signal ends either the sleep or the process.
            unsafe { libc::pause() };
        }
    })
}

/// Nanoseconds that each of `runs` plain forks keeps the caller, with `pages` mapped. With
/// `first_instruction` it is the time until the child's first own instruction instead.
///
/// # Errors
/// What fork or pipe says, or a child that ended without a word.
pub fn fork_cost(pages: &Pages, runs: usize, first_instruction: bool) -> io::Result<Vec<u64>> {
    let mut samples = Vec::with_capacity(runs);
    let anchor = pages.read(0);
    for _ in 0..runs {
        let (rx, tx) = pipe()?;
        let start = Instant::now();
        let child = fork_with(|| {
            let now = elapsed_ns(start).to_ne_bytes();
            write_all(&tx, &now);
        })?;
        let caller_ns = elapsed_ns(start);
        drop(tx);
        let child_ns = read_u64(&rx)?;
        drop(child);
        samples.push(if first_instruction { child_ns } else { caller_ns });
    }
    assert_eq!(anchor, pages.read(0));
    Ok(samples)
}

/// A close-on-exec pipe: read end, write end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(last_error("pipe2"));
    }
    // SAFETY: both are new, open, and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Writes without allocating, so that a forked child may call it; a lost write shows up as a
/// short read on the other side.
pub(super) fn write_all(fd: &impl AsRawFd, bytes: &[u8]) {
    // SAFETY: `bytes` is readable for its whole length.
    unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
}

fn read_u64(fd: &OwnedFd) -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    let count = read(fd, &mut bytes)?;
    if count != bytes.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the forked child said nothing"));
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// One read(2), repeated after a signal.
pub(super) fn read(fd: &impl AsRawFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: `into` is writable for its whole length.
        let count = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
        if count >= 0 {
            return Ok(count.unsigned_abs());
        }
        let error = last_error("read");
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// Pins the calling thread to `cpu`, or lets it run anywhere again with `None`.
pub(super) fn pin(cpu: Option<usize>) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain bits, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let all = 0..libc::CPU_SETSIZE as usize;
    for bit in all.filter(|bit| cpu.is_none_or(|cpu| cpu == *bit)) {
        // SAFETY: `bit` is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(bit, &mut set) };
    }
    // SAFETY: `set` is live and of the given size.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if done == 0 { Ok(()) } else { Err(last_error("sched_setaffinity")) }
}

/// A memfd of `bytes` zero bytes.
pub(super) fn memfd(bytes: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"mitosis-floor".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(last_error("memfd_create"));
    }
    // SAFETY: new, open, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    truncate(&fd, bytes)?;
    Ok(fd)
}

fn truncate(fd: &OwnedFd, bytes: usize) -> io::Result<()> {
    let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: plain numbers.
    let done = unsafe { libc::ftruncate(fd.as_raw_fd(), len) };
    if done == 0 { Ok(()) } else { Err(last_error("ftruncate")) }
}

/// Writes whole pages at a page offset of a memfd.
pub(super) fn pwrite(fd: BorrowedFd<'_>, bytes: &[u8], page: usize) -> io::Result<()> {
    let at = libc::off_t::try_from(page * super::PAGE_BYTES).map_err(io::Error::other)?;
    // SAFETY: `bytes` is readable for its whole length.
    let done = unsafe { libc::pwrite(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at) };
    if usize::try_from(done) == Ok(bytes.len()) { Ok(()) } else { Err(last_error("pwrite")) }
}
