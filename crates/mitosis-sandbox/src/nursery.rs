//! The process of which guards are copies.

use crate::numbers::Numbers;
use crate::{GuardImage, SandboxError};
use mitosis_sys::SysError;
use mitosis_sys::spawn::Lane;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, sockopt,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a guard, or word of one, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Makes guards, one at a time. The process is started with the first, and again if it has ended.
#[derive(Debug)]
pub struct Nursery {
    lane: Lane,
    process: Option<Process>,
    pub(crate) numbers: Option<Numbers>,
}

/// It ends, and is reaped, when this is dropped.
#[derive(Debug)]
struct Process {
    pidfd: OwnedFd,
    orders: OwnedFd,
}

impl Nursery {
    /// Its guards watch the pager behind `pager` (a pidfd).
    ///
    /// # Errors
    /// No descriptors.
    pub fn new(image: &GuardImage, pager: BorrowedFd<'_>) -> Result<Nursery, SandboxError> {
        let lane = Lane::new(image.as_fd(), Some(pager))?;
        Ok(Nursery { lane, process: None, numbers: Numbers::new() })
    }

    /// Has a guard made; [`Nursery::pid`] says which. `attached`: its control socket, and a mount of its number.
    /// `own`: whether it gets a network namespace, a user namespace, and as that mount a whole file system.
    pub(crate) fn order(
        &mut self,
        attached: &[BorrowedFd<'_>],
        generation: u64,
        own: [bool; 3],
    ) -> Result<(), SandboxError> {
        let [net, user, whole] = own.map(u64::from);
        let order: Vec<u8> =
            [generation, net, user, whole].iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut again = self.process.is_some();
        loop {
            let process = match self.process.take() {
                Some(process) => process,
                None => Process::start(&mut self.lane)?,
            };
            match send(&process.orders, &order, attached) {
                Ok(()) => {
                    self.process = Some(process);
                    return Ok(());
                }
                Err(Errno::PIPE | Errno::CONNRESET) if again => again = false,
                Err(e) => return Err(SysError::io("sendmsg", "nursery of guards", e).into()),
            }
        }
    }

    /// Ends its process, as somebody else might.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        let process = self.process.as_ref().expect("a process");
        pidfd_send_signal(&process.pidfd, Signal::KILL).expect("kill");
        let mut ended = [rustix::event::PollFd::new(&process.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).expect("end");
    }

    /// The pid of the guard last ordered.
    pub(crate) fn pid(&mut self) -> Result<Pid, SandboxError> {
        let answer = self.process.as_ref().map_or(Ok(0), |process| answer(&process.orders));
        let failed = |e| SandboxError::from(SysError::io("clone3", "guard", e));
        match answer {
            Ok(pid) if pid < 0 => Err(failed(Errno::from_raw_os_error(-pid))),
            Ok(pid) => Pid::from_raw(pid).ok_or_else(|| failed(Errno::SRCH)),
            Err(e) => {
                // What it would say next would be of another guard.
                self.process = None;
                Err(SandboxError::NotReady(format!("its nursery: {e}")))
            }
        }
    }
}

/// A pair of connected sockets that carry messages. On ours nothing is waited for longer than is usual.
pub(crate) fn pair(object: &'static str) -> Result<(OwnedFd, OwnedFd), SysError> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|e| SysError::io("socketpair", object, e))?;
    sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(TIMEOUT))
        .map_err(|e| SysError::io("SO_RCVTIMEO", object, e))?;
    Ok((ours, theirs))
}

fn send(orders: &OwnedFd, order: &[u8], attached: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(attached));
    let order = [IoSlice::new(order)];
    rustix::net::sendmsg(orders, &order, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// One message. The kernel takes no call with a time limit up again after this process was stopped
/// (signal(7)).
pub(crate) fn receive(socket: &OwnedFd, message: &mut [u8]) -> Result<usize, Errno> {
    let received = || rustix::net::recv(socket, &mut *message, RecvFlags::empty());
    rustix::io::retry_on_intr(received).map(|(received, _)| received)
}

/// A pid, or an error number below zero.
fn answer(orders: &OwnedFd) -> Result<i32, String> {
    let mut word = [0u8; 8];
    match receive(orders, &mut word) {
        Ok(8) => Ok(i64::from_le_bytes(word) as i32),
        Ok(n) => Err(format!("{n} bytes instead of a pid")),
        Err(e) => Err(e.to_string()),
    }
}

impl Process {
    fn start(lane: &mut Lane) -> Result<Process, SandboxError> {
        let (orders, theirs) = pair("nursery of guards")?;
        let (_, pidfd) = lane.nursery(theirs)?;
        Ok(Process { pidfd, orders })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}
