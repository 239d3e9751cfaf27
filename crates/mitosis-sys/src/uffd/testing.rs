//! A puppet: a process with registered memory that touches it as told. For tests and benchmarks of
//! what serves userfaultfds; no part of the product uses it.

use super::{FEATURES_EVENTS, Uffd};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

const PAGE: u64 = 4096;

/// What a puppet can be told. Pages count from the start of its registered region; the spare
/// region of the same size follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Order {
    /// Hash of `b` pages from page `a`.
    Hash = 1,
    /// Writes value `b` to the first word of page `a`.
    Write = 2,
    /// MADV_DONTNEED on `b` pages from `a`.
    Drop = 3,
    /// Unmaps `b` pages from `a`.
    Unmap = 4,
    /// Moves `b` pages from `a` to page `c`, with a new size of `d` pages.
    Move = 5,
    /// Forks; the new process hashes `b` pages from `a`, answers and exits.
    ForkHash = 6,
    /// Forks and executes `/bin/true`; answers when that has ended.
    ForkExec = 7,
    /// Touches `b` pages from `a`, in steps of `c` pages; answers with their number.
    Touch = 8,
    /// Forks; the new process takes orders on the second socket from now on.
    ForkStay = 9,
    /// Exits with status `a`.
    Exit = 10,
    /// First word of page `a`.
    Peek = 11,
    /// Hash of `d` pages from `c`, while another thread of execution in the same memory drops
    /// `b` pages from `a`, one by one and over and over.
    HashInStorm = 12,
}

/// The process. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Puppet {
    pid: libc::pid_t,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// First byte of the registered region.
    pub base: u64,
    /// Pages in the registered region, and in the spare one.
    pub pages: u64,
    reserved: u64,
    first: OwnedFd,
    second: OwnedFd,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1 as RawFd; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel fills an array of two, which lives across the call.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    // SAFETY: the kernel has just made these descriptors for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

impl Puppet {
    /// Starts a puppet whose userfaultfd goes to `uffd_tx`, as a stub would send it.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn start(pages: u64, uffd_tx: &OwnedFd) -> io::Result<Puppet> {
        let reserved = 2 * pages * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation; nothing else lives there.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), reserved as usize, libc::PROT_NONE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base as u64;
        let (first, first_child) = pair()?;
        let (second, second_child) = pair()?;
        let mut pidfd: RawFd = -1;
        // SAFETY: as fork(2). The new process runs `life` only, which neither allocates nor locks.
        let pid = unsafe {
            let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
            libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize)
        };
        if pid == 0 {
            let me = Life { base, pages, socket: first_child.as_raw_fd() };
            me.run(second_child.as_raw_fd(), uffd_tx.as_raw_fd());
        }
        check(pid)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Puppet { pid: pid as libc::pid_t, pidfd, base, pages, reserved, first, second })
    }

    fn exchange(socket: &OwnedFd, message: [u64; 5], timeout: Duration) -> io::Result<(u64, u64)> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        set_socket_timeout(socket, Timeout::Recv, Some(timeout))?;
        let mut bytes = [0; 40];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(message) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        rustix::net::send(socket, &bytes, rustix::net::SendFlags::NOSIGNAL)?;
        let mut reply = [0u8; 16];
        let (got, _) = rustix::net::recv(socket, &mut reply[..], rustix::net::RecvFlags::empty())?;
        if got != reply.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut result, mut ns) = ([0; 8], [0; 8]);
        result.copy_from_slice(&reply[..8]);
        ns.copy_from_slice(&reply[8..]);
        Ok((u64::from_ne_bytes(result), u64::from_ne_bytes(ns)))
    }

    /// Gives an order; returns its result and the nanoseconds it took inside the puppet.
    ///
    /// # Errors
    /// If there is no answer in time, or the puppet is gone.
    pub fn order(&self, order: Order, args: [u64; 4], timeout: Duration) -> io::Result<(u64, u64)> {
        let [a, b, c, d] = args;
        Self::exchange(&self.first, [order as u64, a, b, c, d], timeout)
    }

    /// As [`Puppet::order`], to the process made by [`Order::ForkStay`].
    ///
    /// # Errors
    /// If there is no answer in time, or the process is gone.
    pub fn order_fork(
        &self,
        order: Order,
        args: [u64; 4],
        timeout: Duration,
    ) -> io::Result<(u64, u64)> {
        let [a, b, c, d] = args;
        Self::exchange(&self.second, [order as u64, a, b, c, d], timeout)
    }

    /// The puppet's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let mut status = 0;
        // SAFETY: waits for our own child, then gives back our own reservation.
        unsafe {
            libc::waitpid(self.pid, &raw mut status, 0);
            libc::munmap(self.base as *mut libc::c_void, self.reserved as usize);
        }
    }
}

/// One step of [`hash_page`].
fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Adds a page to the hash that [`Order::Hash`] answers; it starts at 0.
pub fn hash_page(hash: u64, page: &[u8]) -> u64 {
    page.chunks_exact(8).fold(hash, |hash, bytes| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        mix(hash, u64::from_ne_bytes(word))
    })
}

/// The child's side. Runs in a fork of a process with many threads: no allocation, no lock.
struct Life {
    base: u64,
    pages: u64,
    socket: RawFd,
}

impl Life {
    fn run(mut self, second: RawFd, uffd_tx: RawFd) -> ! {
        close_others([self.socket, second, uffd_tx]);
        if self.set_up(uffd_tx).is_err() {
            exit(99);
        }
        loop {
            let mut message = [0u64; 5];
            // SAFETY: the buffer is 40 bytes and lives across the call.
            let got = unsafe { libc::recv(self.socket, message.as_mut_ptr().cast(), 40, 0) };
            if got != 40 {
                exit(98);
            }
            let start = now();
            if let Some(result) = self.obey(message, second) {
                self.reply(result, now() - start);
            }
        }
    }

    fn set_up(&self, uffd_tx: RawFd) -> io::Result<()> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let (base, len) = (self.base as *mut libc::c_void, (self.pages * PAGE) as usize);
        // SAFETY: replaces a part of our own reservation; the signal is for this process.
        let mapped = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::mmap(base, len, protection, flags, -1, 0)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let uffd = Uffd::create()?;
        uffd.api(FEATURES_EVENTS)?;
        uffd.register(self.base, self.pages * PAGE)?;
        send_fd(uffd_tx, uffd.file.as_raw_fd())
    }

    fn reply(&self, result: u64, ns: u64) {
        let reply = [result, ns];
        // SAFETY: 16 bytes that live across the call.
        unsafe { libc::send(self.socket, reply.as_ptr().cast(), 16, libc::MSG_NOSIGNAL) };
    }

    fn at(&self, page: u64) -> *mut libc::c_void {
        (self.base + page * PAGE) as *mut libc::c_void
    }

    fn word(&self, page: u64, index: u64) -> u64 {
        // SAFETY: the test asks for pages that are mapped; a mistake ends the puppet only.
        unsafe { self.at(page).cast::<u64>().add(index as usize).read_volatile() }
    }

    fn hash(&self, first: u64, count: u64) -> u64 {
        let words = (0..count * 512).map(|i| self.word(first, i));
        words.fold(0, mix)
    }

    fn obey(&mut self, [order, a, b, c, d]: [u64; 5], second: RawFd) -> Option<u64> {
        let len = (b * PAGE) as usize;
        // SAFETY: all of these act on the puppet's own region, as the test asked.
        unsafe {
            Some(match order {
                1 => self.hash(a, b),
                2 => {
                    self.at(a).cast::<u64>().write_volatile(b);
                    0
                }
                3 => libc::madvise(self.at(a), len, libc::MADV_DONTNEED) as u64,
                4 => libc::munmap(self.at(a), len) as u64,
                5 => {
                    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    let new = (d * PAGE) as usize;
                    u64::from(libc::mremap(self.at(a), len, new, how, self.at(c)) != self.at(c))
                }
                6 => return self.fork_hash(a, b),
                7 => fork_exec(),
                8 => (a..a + b).step_by(c.max(1) as usize).map(|p| (self.word(p, 0), 1).1).sum(),
                9 => {
                    let pid = fork();
                    if pid == 0 {
                        self.socket = second;
                        return None;
                    }
                    pid as u64
                }
                10 => exit(a as i32),
                11 => self.word(a, 0),
                12 => self.hash_in_storm([a, b, c, d]),
                _ => u64::MAX,
            })
        }
    }

    fn hash_in_storm(&self, [a, b, c, d]: [u64; 4]) -> u64 {
        const STACK: usize = 64 << 10;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let other = Storm { first: self.base + a * PAGE, pages: b, stop };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a process in the same memory, on a stack of its own. It uses `other`, which
        // lives until that process was waited for.
        unsafe {
            let stack = libc::mmap(std::ptr::null_mut(), STACK, protection, flags, -1, 0);
            let argument = (&raw const other).cast_mut().cast();
            let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::SIGCHLD;
            let pid = libc::clone(storm, stack.byte_add(STACK), flags, argument);
            let hash = self.hash(c, d);
            other.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            if pid < 0 || reap(pid.into()) != 0 {
                return u64::MAX;
            }
            libc::munmap(stack, STACK);
            hash
        }
    }

    /// The new process answers; the old one only waits for it.
    fn fork_hash(&self, first: u64, count: u64) -> Option<u64> {
        match fork() {
            0 => {
                self.reply(self.hash(first, count), 0);
                exit(0)
            }
            pid if pid > 0 => {
                reap(pid);
                None
            }
            _ => Some(u64::MAX),
        }
    }
}

/// A puppet must not keep its creator's connections open.
fn close_others(mut keep: [RawFd; 3]) {
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if first < fd {
            // SAFETY: nothing in this process uses the descriptors closed here.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// What the other thread of execution needs.
struct Storm {
    first: u64,
    pages: u64,
    stop: std::sync::atomic::AtomicBool,
}

/// Drops pages until told to stop.
extern "C" fn storm(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `hash_in_storm` passes its own `Storm`, and waits for this process before it ends.
    let storm = unsafe { &*argument.cast::<Storm>() };
    while !storm.stop.load(std::sync::atomic::Ordering::Relaxed) {
        for page in 0..storm.pages {
            let at = (storm.first + page * PAGE) as *mut libc::c_void;
            // SAFETY: pages of the puppet's own region, which only the storm touches.
            unsafe {
                libc::madvise(at, PAGE as usize, libc::MADV_DONTNEED);
                at.cast::<u64>().read_volatile();
            }
        }
    }
    0
}

fn fork() -> libc::c_long {
    // SAFETY: as fork(2), from a process with one thread.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) };
    if pid == 0 {
        // SAFETY: for this process only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    }
    pid
}

fn reap(pid: libc::c_long) -> i32 {
    let mut status = 0;
    // SAFETY: waits for our own child; `status` lives across the call.
    unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, 0) };
    status
}

fn fork_exec() -> u64 {
    let pid = fork();
    if pid == 0 {
        let path = c"/bin/true";
        let (args, env) = ([path.as_ptr(), std::ptr::null()], [std::ptr::null()]);
        // SAFETY: C strings and null-terminated arrays that live across the call.
        unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
        exit(97);
    }
    reap(pid) as u64
}

fn exit(status: i32) -> ! {
    // SAFETY: ends this process without running anything of the copy.
    unsafe { libc::_exit(status) }
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure, which lives across the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sends one descriptor with one byte.
fn send_fd(socket: RawFd, fd: RawFd) -> io::Result<()> {
    let byte = 1u8;
    let mut part = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
    let mut space = [0u64; 8];
    // SAFETY: the header describes `part` and `space`, which live across the call; the control
    // message fits `space`, which is aligned for it.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let control = libc::CMSG_FIRSTHDR(&raw const message);
        (*control).cmsg_level = libc::SOL_SOCKET;
        (*control).cmsg_type = libc::SCM_RIGHTS;
        (*control).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(control).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    };
    check(sent as libc::c_long).map(drop)
}
