//! Reads over TCP: one nonblocking connection per owner's node, shared by all children, with many
//! reads in flight.

use crate::wire::{self, Header, Kind};
use crate::{Handle, PageSource, ReadRequest, SourceError, SourceEvent};
use mitosis_descriptor::{Secret, SeedId};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes received at a time; reused, so it stays in the cache.
const INPUT: usize = 512 << 10;
/// Most bytes of requests not yet taken by the kernel; a peer that lets them pile up is stuck.
const OUTPUT_MAX: usize = 8 << 20;

/// A data frame whose pages are still arriving.
#[derive(Clone, Copy)]
struct Arriving {
    tag: u64,
    next: u32,
    left: u32,
}

/// A connection to the node of an owner.
pub struct TcpSource {
    socket: OwnedFd,
    output: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    taken: usize,
    filled: usize,
    arriving: Option<Arriving>,
    greeted: bool,
    /// Nobody waits for what is read.
    deferred: bool,
    /// Answers about RDMA, for whoever asked.
    rdma: Vec<(u32, wire::RdmaSaid)>,
}

impl TcpSource {
    /// Starts to connect; requests may be queued at once and follow the connection without waiting
    /// for anything. A failure to connect appears in [`PageSource::flush`] or [`PageSource::poll`].
    ///
    /// # Errors
    /// If there is no way to begin.
    pub fn connect(address: SocketAddr) -> Result<TcpSource, SourceError> {
        let failed = |e: Errno| SourceError::io("connect", e);
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
        let socket = socket.map_err(failed)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(failed(e)),
        }
        let hello = wire::Hello { version: wire::VERSION };
        Ok(TcpSource {
            socket,
            output: wire::control(Header::new(Kind::Hello), &hello)?,
            sent: 0,
            input: vec![0; INPUT],
            taken: 0,
            filled: 0,
            arriving: None,
            greeted: false,
            deferred: false,
            rdma: Vec::new(),
        })
    }

    /// Queues a frame.
    pub(crate) fn queue(&mut self, frame: &[u8]) {
        self.output.extend_from_slice(frame);
    }

    /// Answers about RDMA that have come: handle and answer.
    pub(crate) fn take_rdma(&mut self) -> Vec<(u32, wire::RdmaSaid)> {
        std::mem::take(&mut self.rdma)
    }

    /// Receives what fits; whether there may be more. `None`: nothing there.
    fn receive(&mut self) -> Result<Option<bool>, SourceError> {
        if self.taken > 0 {
            self.input.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
        loop {
            let room = &mut self.input[self.filled..];
            let asked = room.len();
            match rustix::net::recv(&self.socket, room, RecvFlags::empty()) {
                Ok((0, _)) => return Err(SourceError::Closed),
                Ok((got, _)) => {
                    self.filled += got;
                    return Ok(Some(got == asked));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(SourceError::io("receive", e)),
            }
        }
    }

    /// Gives out the whole pages at hand of the frame that is arriving; its bytes, or 0.
    fn give_pages(&mut self, frame: Arriving, sink: &mut dyn FnMut(SourceEvent<'_>)) -> usize {
        let pages = ((self.filled - self.taken) / wire::PAGE).min(frame.left as usize);
        if pages == 0 {
            return 0;
        }
        let bytes = pages * wire::PAGE;
        let data = &self.input[self.taken..self.taken + bytes];
        sink(SourceEvent::Pages { tag: frame.tag, first: frame.next, bytes: data });
        self.taken += bytes;
        let left = frame.left - pages as u32;
        let next = frame.next + pages as u32;
        self.arriving = (left > 0).then_some(Arriving { left, next, ..frame });
        bytes
    }

    /// Takes the next control frame, or the header of a data frame; `false` if it is not there yet.
    fn take_frame(&mut self, sink: &mut dyn FnMut(SourceEvent<'_>)) -> Result<bool, SourceError> {
        let at = self.taken;
        let Some(bytes) = self.input[at..self.filled].first_chunk::<{ wire::HEADER }>() else {
            return Ok(false);
        };
        let header = Header::decode(bytes)?;
        if header.kind == Kind::Data {
            if !self.greeted {
                return Err(SourceError::Protocol("data before hello".into()));
            }
            self.taken += wire::HEADER;
            self.arriving = Some(Arriving { tag: header.tag, next: header.a, left: header.b });
            return Ok(true);
        }
        let length = header.length as usize;
        if length > wire::PAGES_BODY_MAX {
            return Err(SourceError::Protocol(format!("unexpected frame {:?}", header.kind)));
        }
        let start = at + wire::HEADER;
        if self.filled - start < length {
            return Ok(false);
        }
        self.taken = start + length;
        let body = &self.input[start..start + length];
        if !self.greeted {
            self.greeted = greeted(&header, body)?;
            return Ok(true);
        }
        if header.kind == Kind::RdmaAnswer {
            // Taken after each poll.
            self.rdma.push((header.a, wire::body(Kind::RdmaAnswer, body)?));
            return Ok(true);
        }
        control_frame(&header, body, sink)?;
        Ok(true)
    }
}

impl std::fmt::Debug for TcpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpSource").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn greeted(header: &Header, body: &[u8]) -> Result<bool, SourceError> {
    if header.kind != Kind::Hello {
        return Err(SourceError::Protocol("no hello".into()));
    }
    let hello: wire::Hello = wire::body(Kind::Hello, body)?;
    if hello.version != wire::VERSION {
        let (theirs, ours) = (hello.version, wire::VERSION);
        let text = format!("the node speaks version {theirs}, this one {ours}");
        return Err(SourceError::Protocol(text));
    }
    Ok(true)
}

fn control_frame(
    header: &Header,
    body: &[u8],
    sink: &mut dyn FnMut(SourceEvent<'_>),
) -> Result<(), SourceError> {
    match header.kind {
        Kind::Error => {
            let error = wire::body(Kind::Error, body)?;
            sink(SourceEvent::Failed { tag: header.tag, error });
        }
        Kind::Refused if header.b == 1 => {
            sink(SourceEvent::Refused { handle: Handle(header.a) });
        }
        Kind::Trail => {
            let trail: wire::Pages = wire::body(Kind::Trail, body)?;
            let (handle, told) = (Handle(header.a), header.b == 1);
            sink(SourceEvent::Trail { handle, told, pages: trail.pages });
        }
        Kind::Pong => {
            let pong: wire::Pong = wire::body(Kind::Pong, body)?;
            sink(SourceEvent::Pong);
            for (handle, state) in pong.changed {
                sink(SourceEvent::State { handle: Handle(handle), state });
            }
        }
        other => return Err(SourceError::Protocol(format!("unexpected frame {other:?}"))),
    }
    Ok(())
}

impl PageSource for TcpSource {
    fn open(&mut self, handle: Handle, seed: SeedId, secret: &Secret) {
        let deferred = u32::from(self.deferred);
        let header = Header { a: handle.0, b: deferred, ..Header::new(Kind::Open) };
        let access = wire::Access { seed, secret: *secret };
        // The body has a fixed size far below the limit.
        if let Ok(frame) = wire::control(header, &access) {
            self.output.extend(frame);
        }
    }

    fn defer(&mut self) {
        self.deferred = true;
    }

    fn close(&mut self, handle: Handle) {
        let header = Header { a: handle.0, ..Header::new(Kind::Close) };
        self.output.extend_from_slice(&header.encode());
    }

    fn submit(&mut self, reads: &[ReadRequest]) {
        for read in reads {
            let header = Header {
                length: 0,
                kind: Kind::Read,
                tag: read.tag,
                a: read.handle.0,
                b: read.count,
                c: read.source.0,
            };
            self.output.extend_from_slice(&header.encode());
        }
    }

    fn gather(&mut self, tag: u64, handle: Handle, pages: &[u64]) -> bool {
        let header = Header { tag, a: handle.0, ..Header::new(Kind::Gather) };
        let frame = wire::control(header, &wire::Pages { pages: pages.to_vec() });
        // So many fit the body, whatever the numbers are.
        frame.map(|frame| self.output.extend(frame)).is_ok()
    }

    fn learn(&mut self, handle: Handle, pages: &[u64]) {
        // As many as fit the body whatever the numbers are.
        for part in pages.chunks(wire::LEARN_PAGES_MAX) {
            let header = Header { a: handle.0, ..Header::new(Kind::Learn) };
            if let Ok(frame) = wire::control(header, &wire::Pages { pages: part.to_vec() }) {
                self.output.extend(frame);
            }
        }
    }

    fn ping(&mut self) {
        self.output.extend_from_slice(&Header::new(Kind::Ping).encode());
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        while self.sent < self.output.len() {
            match rustix::net::send(&self.socket, &self.output[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => {}
                // Not connected yet, or the buffer is full: EPOLLOUT will tell.
                Err(Errno::AGAIN) if self.output.len() <= OUTPUT_MAX => return Ok(()),
                Err(Errno::AGAIN) => {
                    return Err(SourceError::Protocol("requests are not taken".into()));
                }
                Err(e) => return Err(SourceError::io("send", e)),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    fn poll(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError> {
        let mut given = 0;
        let mut more = true;
        loop {
            loop {
                match self.arriving {
                    Some(frame) => match self.give_pages(frame, sink) {
                        0 => break,
                        bytes => given += bytes,
                    },
                    None => {
                        if !self.take_frame(sink)? {
                            break;
                        }
                    }
                }
            }
            if given >= budget || !more {
                return Ok(more);
            }
            // A receive that left room has emptied the socket: what it brought is given out in
            // one more round, without asking again.
            match self.receive()? {
                None => return Ok(false),
                Some(full) => more = full,
            }
        }
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn wants_write(&self) -> bool {
        self.sent < self.output.len()
    }
}
