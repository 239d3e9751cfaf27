//! What the pager and a child's guard say to each other: 16 bytes, `{kind u32, a u32, b u64}`.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const CHILD_EXITED: u32 = 1;
const HOLD_FD: u32 = 2;
const DROP_FD: u32 = 3;
const KEEP: u32 = 5;
const FORK_FAILED: u32 = 18;
/// Slots in which a guard keeps duplicates. The userfaultfd of the main process is in none of them:
/// its stub sent it to the guard itself, where it stays open as long as the guard lives.
pub const SLOTS: u32 = 4096;

/// A message to a guard.
#[derive(Debug)]
pub enum ToGuard {
    /// Keep a duplicate of a userfaultfd.
    Hold(u32, OwnedFd),
    /// Close it.
    Drop(u32),
    /// Keep the namespace when the main process exits, or no longer.
    Keep(bool),
}

/// What a guard said.
#[derive(Debug, PartialEq, Eq)]
pub enum FromGuard {
    /// The main process exited, with a wait status.
    ChildExited(i32),
    /// There never was one: the error number of its creation.
    ForkFailed(i32),
    /// The guard closed its end: it is dead or dying.
    Closed,
    /// Nothing (more) for now.
    Nothing,
}

/// Sends a message without waiting.
pub fn send(socket: BorrowedFd<'_>, message: &ToGuard) -> Result<(), Errno> {
    let (kind, a) = match message {
        ToGuard::Hold(slot, _) => (HOLD_FD, *slot),
        ToGuard::Drop(slot) => (DROP_FD, *slot),
        ToGuard::Keep(keep) => (KEEP, u32::from(*keep)),
    };
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&a.to_le_bytes());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds;
    if let ToGuard::Hold(_, fd) = message {
        fds = [fd.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS);
        }
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives a message without waiting. A guard that ended before it read what it was sent last has reset
/// the connection; that is told once, and ahead of its own last words.
pub fn receive(socket: BorrowedFd<'_>) -> FromGuard {
    let mut bytes = [0u8; 16];
    loop {
        match rustix::net::recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => return FromGuard::Nothing,
            Err(_) | Ok((0, _)) => return FromGuard::Closed,
            Ok(_) => {
                let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                let a = i32::from_le_bytes(word(4));
                match u32::from_le_bytes(word(0)) {
                    CHILD_EXITED => return FromGuard::ChildExited(a),
                    FORK_FAILED => return FromGuard::ForkFailed(a),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn last_words_count_of_a_guard_that_was_told_something_as_it_ended() {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, guards) = pair.expect("socketpair");
        send(ours.as_fd(), &ToGuard::Keep(true)).expect("a message that nobody reads");
        let mut words = [0u8; 16];
        words[..4].copy_from_slice(&CHILD_EXITED.to_le_bytes());
        words[4..8].copy_from_slice(&(3i32 << 8).to_le_bytes());
        rustix::net::send(&guards, &words, SendFlags::empty()).expect("send");
        drop(guards);
        assert_eq!(receive(ours.as_fd()), FromGuard::ChildExited(3 << 8));
        assert_eq!(receive(ours.as_fd()), FromGuard::Closed);
    }
}
