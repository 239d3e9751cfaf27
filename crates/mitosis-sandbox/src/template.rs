//! A process that will be a template.

use crate::{GuardImage, SandboxError};
use mitosis_sys::SysError;
use mitosis_sys::spawn::Lane;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use std::os::fd::{AsFd, OwnedFd};

/// A process without memory of its own yet, in its node's namespaces, that waits for its one order.
/// It ends, and is reaped, when this is dropped.
#[derive(Debug)]
pub struct Blank {
    /// Its pid.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Where it takes the order (SOCK_SEQPACKET).
    pub control: OwnedFd,
}

impl Blank {
    /// Starts one.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind.
    pub fn start(image: &GuardImage) -> Result<Blank, SandboxError> {
        let (control, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| SysError::io("socketpair", "template", e))?;
        let (pid, pidfd) = Lane::new(image.as_fd(), None)?.template(theirs)?;
        Ok(Blank { pid, pidfd, control })
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}
