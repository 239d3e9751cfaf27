//! One connection as a blocking stream of frames: nothing is waited for beyond a deadline.

use crate::SourceError;
use crate::wire::{self, Header, Kind};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Bytes by which a descriptor's buffer grows at most ahead of what has arrived.
const GROW: usize = 256 << 10;
/// Receive buffer of a connection: what the other side sends of a working set while this one plans
/// must fit.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Pages received before it is told.
const CHUNK_PAGES: usize = 32;
/// Tag of the one request under way on a connection.
const TAG: u64 = 1;

fn left(deadline: Instant) -> Result<Duration, SourceError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(SourceError::io("wait for an answer", io::ErrorKind::TimedOut));
    }
    Ok(left)
}

pub(crate) fn connect(address: &str, deadline: Instant) -> Result<TcpStream, SourceError> {
    let resolved = address.to_socket_addrs().map_err(|e| SourceError::io("resolve", e))?;
    let mut last = SourceError::io("resolve", io::ErrorKind::NotFound);
    for candidate in resolved {
        match TcpStream::connect_timeout(&candidate, left(deadline)?) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|e| SourceError::io("connect", e))?;
                // Only faster with it.
                let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(
                    &stream,
                    RECEIVE_BUFFER,
                );
                return Ok(stream);
            }
            Err(e) => last = SourceError::io("connect", e),
        }
    }
    Err(last)
}

/// One request and the head of its answer.
pub(super) fn exchange<T: serde::Serialize>(
    stream: &TcpStream,
    head: Header,
    ask: &T,
    fresh: bool,
    deadline: Instant,
) -> Result<Header, SourceError> {
    let mut out = Vec::new();
    if fresh {
        let hello = wire::Hello { version: wire::VERSION };
        out.extend(wire::control(Header::new(Kind::Hello), &hello)?);
    }
    out.extend(wire::control(Header { tag: TAG, ..head }, ask)?);
    stream.set_write_timeout(Some(left(deadline)?)).map_err(|e| SourceError::io("send", e))?;
    let mut writer = stream;
    writer.write_all(&out).map_err(|e| SourceError::io("send", e))?;
    if fresh {
        let header = header(stream, deadline)?;
        if header.kind != Kind::Hello {
            return Err(SourceError::Protocol("no hello".into()));
        }
        let body = body(stream, header.length as usize, deadline)?;
        let hello: wire::Hello = wire::body(Kind::Hello, &body)?;
        if hello.version != wire::VERSION {
            let (theirs, ours) = (hello.version, wire::VERSION);
            let text = format!("the node speaks version {theirs}, this one {ours}");
            return Err(SourceError::Protocol(text));
        }
    }
    header(stream, deadline)
}

pub(super) fn ping(stream: &TcpStream, fresh: bool, deadline: Instant) -> Result<(), SourceError> {
    let head = exchange(stream, Header::new(Kind::Ping), &(), fresh, deadline)?;
    if head.kind != Kind::Pong {
        return Err(unexpected(head.kind));
    }
    body(stream, head.length as usize, deadline).map(drop)
}

pub(super) fn take_list(
    stream: &TcpStream,
    header: &Header,
    most: usize,
    deadline: Instant,
) -> Result<Vec<u64>, SourceError> {
    if header.kind != Kind::WorkingSet {
        return Err(unexpected(header.kind));
    }
    let list = body(stream, header.length as usize, deadline)?;
    let wire::Pages { pages } = wire::body(Kind::WorkingSet, &list)?;
    if pages.len() > most || !pages.is_sorted_by(|a, b| a < b) {
        return Err(SourceError::Protocol("a working set that was not asked for".into()));
    }
    Ok(pages)
}

pub(super) fn unexpected(kind: Kind) -> SourceError {
    SourceError::Protocol(format!("unexpected frame {kind:?}"))
}

/// Takes the pages of a list off a connection, in order.
pub(super) fn take_pages(
    stream: &TcpStream,
    pages: &mut [u8],
    deadline: Instant,
    mut progress: impl FnMut(&[u8]),
) -> Result<(), SourceError> {
    let count = pages.len() / wire::PAGE;
    let mut taken = 0;
    while taken < count {
        let head = header(stream, deadline)?;
        let mut left = head.b as usize;
        match head.kind {
            Kind::Data if head.a as usize == taken && left <= count - taken => {}
            Kind::Error => {
                let body = body(stream, head.length as usize, deadline)?;
                let error: crate::ReadError = wire::body(Kind::Error, &body)?;
                return Err(SourceError::Protocol(format!("the working set: {error}")));
            }
            other => return Err(unexpected(other)),
        }
        while left > 0 {
            let part = left.min(CHUNK_PAGES);
            let (from, to) = (taken * wire::PAGE, (taken + part) * wire::PAGE);
            read_full(stream, &mut pages[from..to], deadline)?;
            progress(&pages[..to]);
            taken += part;
            left -= part;
        }
    }
    Ok(())
}

pub(crate) fn header(stream: &TcpStream, deadline: Instant) -> Result<Header, SourceError> {
    let mut bytes = [0; wire::HEADER];
    read_full(stream, &mut bytes, deadline)?;
    Ok(Header::decode(&bytes)?)
}

/// Reads a body without believing its length: memory grows with what has arrived.
pub(crate) fn body(
    stream: &TcpStream,
    length: usize,
    deadline: Instant,
) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let at = bytes.len();
        bytes.resize(at + GROW.min(length - at), 0);
        read_full(stream, &mut bytes[at..], deadline)?;
    }
    Ok(bytes)
}

fn read_full(
    mut stream: &TcpStream,
    mut out: &mut [u8],
    deadline: Instant,
) -> Result<(), SourceError> {
    while !out.is_empty() {
        stream
            .set_read_timeout(Some(left(deadline)?))
            .map_err(|e| SourceError::io("receive", e))?;
        match stream.read(out) {
            Ok(0) => return Err(SourceError::Closed),
            Ok(got) => out = &mut out[got..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(SourceError::io("receive", io::ErrorKind::TimedOut));
            }
            Err(e) => return Err(SourceError::io("receive", e)),
        }
    }
    Ok(())
}
