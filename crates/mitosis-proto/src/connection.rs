//! JSON lines with file descriptors over a unix stream socket.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longest line either side accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Most descriptors that travel with one line.
const FDS_MAX: usize = 4;

/// Why a line did not cross.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The other side hung up.
    #[error("control: the other side closed the connection")]
    Closed,
    /// The socket failed, or a timeout of [`Connection::timeout`] passed.
    #[error("control: socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The line is not what was expected.
    #[error("control: malformed line: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The line is longer than [`LINE_BYTES_MAX`].
    #[error("control: line longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

/// One side of a control connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    pending: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Wraps a connected stream.
    pub fn new(stream: UnixStream) -> Connection {
        Connection { stream, pending: Vec::new(), fds: Vec::new() }
    }

    /// The socket, for polling.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Bounds each later wait for the other side; `None` waits for ever.
    ///
    /// # Errors
    /// When the socket refuses the option.
    pub fn timeout(&self, limit: Option<Duration>) -> Result<(), ConnectionError> {
        self.stream.set_read_timeout(limit)?;
        self.stream.set_write_timeout(limit)?;
        Ok(())
    }

    /// Sends one line, with descriptors beside its first byte.
    ///
    /// # Errors
    /// [`ConnectionError::Socket`] when it could not be sent whole.
    pub fn send<T: Serialize>(
        &mut self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sent = if fds.is_empty() { 0 } else { self.send_with_fds(&line, fds)? };
        (&self.stream).write_all(&line[sent..])?;
        Ok(())
    }

    fn send_with_fds(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(std::io::Error::from(Errno::TOOBIG).into());
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, flags)
        })
        .map_err(std::io::Error::from)?;
        Ok(sent)
    }

    /// Receives one line and the descriptors that came with it.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] at the end of the stream, others as their names say.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ConnectionError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.pending.split_off(searched + at + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                let fds = std::mem::take(&mut self.fds);
                return Ok((serde_json::from_slice(&line)?, fds));
            }
            searched = self.pending.len();
            if searched > LINE_BYTES_MAX {
                return Err(ConnectionError::TooLong);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), ConnectionError> {
        let mut bytes = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
        .map_err(std::io::Error::from)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > FDS_MAX {
            return Err(std::io::Error::from(Errno::TOOBIG).into());
        }
        if received.bytes == 0 {
            return Err(ConnectionError::Closed);
        }
        self.pending.extend_from_slice(&bytes[..received.bytes]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ForkRequest, Reply, Request};
    use std::os::fd::AsFd;

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (Connection::new(a), Connection::new(b))
    }

    #[test]
    fn a_request_crosses_with_its_fds() {
        let (mut a, mut b) = pair();
        let request = Request::Fork(ForkRequest::new("mitosis://h:1/x#y"));
        let stdio = std::fs::File::open("/dev/null").unwrap();
        a.send(&request, &[stdio.as_fd(), stdio.as_fd(), stdio.as_fd()]).unwrap();
        a.send(&Request::Children, &[]).unwrap();
        let (got, fds) = b.receive::<Request>().unwrap();
        assert_eq!(got, request);
        assert_eq!(fds.len(), 3);
        let (got, fds) = b.receive::<Request>().unwrap();
        assert_eq!(got, Request::Children);
        assert!(fds.is_empty());
    }

    #[test]
    fn the_end_of_the_stream_is_not_a_message() {
        let (a, mut b) = pair();
        drop(a);
        assert!(matches!(b.receive::<Reply>(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn garbage_is_refused() {
        let (a, mut b) = pair();
        a.stream().write_all(b"{\"fork\":3}\n").unwrap();
        assert!(matches!(b.receive::<Request>(), Err(ConnectionError::Malformed(_))));
    }

    #[test]
    fn a_long_reply_crosses() {
        let (mut a, mut b) = pair();
        let text = Reply::Error { code: crate::ErrorCode::Failed, message: "x".repeat(1 << 20) };
        let sent = text.clone();
        let sender = std::thread::spawn(move || a.send(&sent, &[]).unwrap());
        assert_eq!(b.receive::<Reply>().unwrap().0, text);
        sender.join().unwrap();
    }
}
