//! A second process that keeps userfaultfds open when the first one is killed.
//!
//! When the last descriptor of a userfaultfd closes, missing pages read as zero. Guards hold
//! duplicates, but a fork of a child has its descriptor at the pager alone for a moment. The holder
//! shares the pager's descriptor table, so that every descriptor outlives a killed pager until the
//! guards have done their work.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long descriptors are kept at most after the death of the holder's creator.
const KEEP: Duration = Duration::from_secs(10);

/// The process that shares the caller's descriptor table. Dropping it ends and reaps it.
#[derive(Debug)]
pub struct Holder {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Holder {
    /// Starts the holder of the calling process. To be called while that has one thread.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn start() -> io::Result<Holder> {
        let me = rustix::process::getpid();
        let my_pidfd = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty())?;
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: as fork(2), with a shared descriptor table: no stack is given, so the new
        // process runs on a copy of this one; the kernel stores the pidfd in `pidfd` before it
        // returns. The caller has one thread, so no lock is left held in the copy.
        let pid = unsafe {
            libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize)
        };
        match pid {
            0 => hold(my_pidfd),
            pid if pid < 0 => Err(io::Error::last_os_error()),
            pid => {
                // The table is shared: closed here, the holder would lose it too.
                let _kept = my_pidfd.into_raw_fd();
                // SAFETY: the kernel has just made this descriptor for us.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Holder { pid: pid as libc::pid_t, pidfd })
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let mut status = 0;
        // SAFETY: waits for our own child; `status` lives across the call.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
    }
}

/// The holder's whole life. Allocates little and locks nothing: it is a copy of a running process.
fn hold(creator: OwnedFd) -> ! {
    detach();
    while !ended(creator.as_raw_fd(), None) {}
    let deadline = Instant::now() + KEEP;
    let guards = close_all_but_needed(creator.as_raw_fd());
    for guard in guards {
        ended(guard, Some(deadline));
    }
    // SAFETY: ends this process without running destructors of the copy.
    unsafe { libc::_exit(0) }
}

/// Signals for the creator's terminal or group are not for the holder.
fn detach() {
    // SAFETY: these calls touch only the calling process; the name is a C string.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"mitosis-hold".as_ptr());
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// Waits until the process of a pidfd ended, or the deadline passed; whether it ended.
fn ended(pidfd: RawFd, deadline: Option<Instant>) -> bool {
    let timeout = deadline
        .map_or(-1, |at| at.saturating_duration_since(Instant::now()).as_millis() as libc::c_int);
    let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives across the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
    ready > 0
}

/// Closes everything but userfaultfds and pidfds, so that nobody takes the dead creator for alive;
/// returns the pidfds.
fn close_all_but_needed(creator: RawFd) -> Vec<RawFd> {
    let mut pidfds = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return pidfds };
    let numbers: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in numbers {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        match link.to_str() {
            Some("anon_inode:[userfaultfd]") => {}
            Some(name) if name.contains("pidfd") => {
                // The creator's pidfd of this very process is in the shared table too.
                if fd != creator && !own(fd) && alive(fd) {
                    pidfds.push(fd);
                }
            }
            // SAFETY: the creator is dead and this process uses no other descriptor, so nobody
            // can mistake the number for another file afterwards.
            _ => unsafe {
                libc::close(fd);
            },
        }
    }
    pidfds
}

/// Whether a pidfd is of the calling process.
fn own(pidfd: RawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}")).unwrap_or_default();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.is_some_and(|pid| pid.trim() == std::process::id().to_string())
}

fn alive(pidfd: RawFd) -> bool {
    // SAFETY: the number was just listed as open, and nobody else uses this table.
    let pidfd = unsafe { BorrowedFd::borrow_raw(pidfd) };
    !ended(pidfd.as_raw_fd(), Some(Instant::now()))
}
