//! Packets of the control socket: one message each, with descriptors, large bodies in a memfd.

use crate::PagerError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Most bytes sent in the packet itself.
const INLINE_MAX: usize = 32 << 10;
/// Most bytes of a message, in a memfd.
const BODY_MAX: u64 = 256 << 20;
/// Most descriptors in one packet, the memfd included.
pub const FDS_MAX: usize = 200;

const INLINE: u8 = 0;
const MEMFD: u8 = 1;

fn memfd(body: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("mitosis-message", flags)?;
    let file = File::from(fd);
    file.write_all_at(body, 0)?;
    // Sealed, so that the reader's size check holds while it reads.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Sends one message with its descriptors.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let spill = if body.len() > INLINE_MAX { Some(memfd(&body)?) } else { None };
    let mut all: Vec<BorrowedFd<'_>> = Vec::with_capacity(fds.len() + 1);
    all.extend(spill.as_ref().map(AsFd::as_fd));
    all.extend_from_slice(fds);
    if all.len() > FDS_MAX {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let mark = [if spill.is_some() { MEMFD } else { INLINE }];
    let inline: &[u8] = if spill.is_some() { &[] } else { &body };
    let parts = [IoSlice::new(&mark), IoSlice::new(inline)];
    rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn spilled(fds: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    if fds.is_empty() {
        return Err(io::Error::other("a message announced a memfd and brought none"));
    }
    let fd = fds.remove(0);
    let seals = rustix::fs::fcntl_get_seals(&fd)?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return Err(io::Error::other("a message came in an unsealed memfd"));
    }
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if size > BODY_MAX {
        return Err(io::Error::other("a message is too large"));
    }
    let mut body = vec![0; size as usize];
    file.read_exact_at(&mut body, 0)?;
    Ok(body)
}

/// Receives one message. `Ok(None)` at the end of the connection; `WouldBlock` as usual.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; INLINE_MAX + 1];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
            // A capture runs under a timer whose signals may come while its pager is slow.
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let cut = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    if got.flags.intersects(cut) {
        return Err(io::Error::other("a message was cut"));
    }
    let body = match bytes[..got.bytes].split_first() {
        None => return Ok(None),
        Some((&INLINE, body)) => body.to_vec(),
        Some((&MEMFD, [])) => spilled(&mut fds)?,
        Some(_) => return Err(io::Error::other("not a message of this protocol")),
    };
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(Some((message, fds))),
        _ => Err(io::Error::other("a malformed message")),
    }
}

/// As [`receive`], with an end of the connection and a timeout as errors.
pub fn expect<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    timeout_ms: u64,
) -> Result<(T, Vec<OwnedFd>), PagerError> {
    wait(socket, timeout_ms)?;
    match receive(socket) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(PagerError::Gone),
        Err(cause) => match cause.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Err(PagerError::Gone),
            _ => Err(PagerError::system("receive from the pager", cause)),
        },
    }
}

/// Waits until there is something to receive. By poll(2) and not by the socket's own timeout: a
/// thread that captures is sent a signal at every tick of its metronome, and a receive that is begun
/// anew after each of them would never be over.
fn wait(socket: BorrowedFd<'_>, timeout_ms: u64) -> Result<(), PagerError> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(PagerError::Timeout(timeout_ms)),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(PagerError::system("wait for the pager", cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Reply;
    use mitosis_sys::ptrace::Metronome;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::sync::mpsc::sync_channel;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair")
    }

    /// A pager that says nothing must not hold a capture, whose thread is sent signals all the time.
    #[test]
    fn signals_do_not_make_a_wait_endless() {
        let (here, there) = pair();
        let (done, told) = sync_channel(1);
        std::thread::spawn(move || {
            let _beat = Metronome::start().expect("a metronome");
            let got = expect::<Reply>(here.as_fd(), 200).map(drop);
            let _ = done.send(got);
        });
        let got = told.recv_timeout(Duration::from_secs(20)).expect("it waits without an end");
        assert!(matches!(got, Err(PagerError::Timeout(200))), "{got:?}");
        drop(there);
    }

    #[test]
    fn a_message_and_the_end_of_the_connection_are_told_apart() {
        let (here, there) = pair();
        send(there.as_fd(), &Reply::Done, &[]).expect("sent");
        assert!(matches!(expect::<Reply>(here.as_fd(), 200), Ok((Reply::Done, _))));
        drop(there);
        assert!(matches!(expect::<Reply>(here.as_fd(), 200), Err(PagerError::Gone)));
    }
}
