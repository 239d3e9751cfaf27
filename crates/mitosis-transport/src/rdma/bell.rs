//! Waking the thread of a connection, which alone writes to it: a seed that its peer reads has ended.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Rung by whoever ends a seed, heard by the connection's thread.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    /// The peer did not answer in time when it was last told: it is not waited for again, until it does.
    silent: AtomicBool,
    /// Windows were closed before it said that nothing is on its way.
    overrun: AtomicBool,
}

impl Bell {
    /// A bell that nobody has rung.
    pub fn new() -> Result<Bell, Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd, silent: AtomicBool::new(false), overrun: AtomicBool::new(false) })
    }

    pub fn ring(&self) {
        // Full only when it was rung so often that it is heard anyway.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    pub fn was_silent(&self) {
        self.silent.store(true, Ordering::Release);
        self.overrun.store(true, Ordering::Release);
    }

    /// Whether windows were closed over its head since this was last asked. Its queue pair is not to get
    /// others then: a READ on its way could find one of them with the key of one that is closed.
    pub fn take_overrun(&self) -> bool {
        self.overrun.swap(false, Ordering::AcqRel)
    }

    pub fn answered(&self) {
        self.silent.store(false, Ordering::Release);
    }

    /// Waits until it is rung, or there is something to read from `stream`, no longer than `most`.
    pub fn wait(&self, stream: &TcpStream, most: Duration) -> Heard {
        let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(stream, PollFlags::IN)];
        match poll(&mut fds, Some(&most)) {
            Ok(0) | Err(Errno::INTR) => return Heard::Nothing,
            // What else fails, the read that follows will tell.
            Ok(_) | Err(_) => {}
        }
        let rung = fds[0].revents().contains(PollFlags::IN);
        if rung && rustix::io::read(&self.fd, &mut [0; 8]).is_ok() {
            Heard::Bell
        } else {
            Heard::Peer
        }
    }
}

/// What there was first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Bell,
    /// Something to read, or the end of it.
    Peer,
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn a_bell_is_heard_once_and_before_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, _) = listener.accept().unwrap();
        let bell = Bell::new().unwrap();
        assert_eq!(bell.wait(&here, Duration::from_millis(1)), Heard::Nothing);
        bell.ring();
        bell.ring();
        there.write_all(&[1]).unwrap();
        assert_eq!(bell.wait(&here, Duration::from_secs(60)), Heard::Bell);
        assert_eq!(bell.wait(&here, Duration::from_secs(60)), Heard::Peer);
    }
}
