//! Fetching descriptors: the daemon's blocking side of the protocol.

use crate::wire::{self, Header, Kind, OwnerClocks, WireError};
use crate::{ForkError, SourceError};
use mitosis_descriptor::{Secret, SeedId};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most idle connections kept per node.
const IDLE_MAX: usize = 4;
/// Bytes by which a descriptor's buffer grows at most ahead of what has arrived.
const GROW: usize = 256 << 10;

/// Fetches descriptors over persistent connections: one round trip each once connected. Can be
/// used from several threads at once.
#[derive(Debug, Default)]
pub struct ControlClient {
    idle: Mutex<HashMap<String, Vec<TcpStream>>>,
}

impl From<WireError> for SourceError {
    fn from(error: WireError) -> SourceError {
        SourceError::Protocol(error.to_string())
    }
}

impl ControlClient {
    /// A client without connections.
    pub fn new() -> ControlClient {
        ControlClient::default()
    }

    /// Fetches the encoded descriptor of a seed from the node at `address` (`HOST:PORT`), and what
    /// that node's clocks show meanwhile.
    ///
    /// # Errors
    /// [`ForkError::Refused`] if that node refuses, [`ForkError::Unreachable`] if there is no
    /// answer within `timeout`, whatever the cause.
    pub fn fork(
        &self,
        address: &str,
        seed: SeedId,
        secret: &Secret,
        timeout: Duration,
    ) -> Result<(Vec<u8>, OwnerClocks), ForkError> {
        let deadline = Instant::now() + timeout;
        let access = wire::Access { seed, secret: *secret };
        let unreachable = |cause| ForkError::Unreachable { address: address.to_owned(), cause };
        // A pooled connection may have been closed by the other side meanwhile: only then is a
        // second attempt made, over a new connection.
        let pooled = self.pooled(address);
        let reused = pooled.as_ref().map(|stream| exchange(stream, &access, false, deadline));
        let (stream, answer) = match (pooled, reused) {
            (Some(stream), Some(Ok(answer))) => (stream, answer),
            _ => {
                let stream = connect(address, deadline).map_err(unreachable)?;
                let answer = exchange(&stream, &access, true, deadline).map_err(unreachable)?;
                (stream, answer)
            }
        };
        self.keep(address, stream);
        answer.ok_or_else(|| ForkError::Refused { address: address.to_owned() })
    }

    /// Asks the node at `address` whether it lets others read by RDMA: its device, or why not.
    ///
    /// # Errors
    /// [`SourceError`] if there is no answer within `timeout`.
    pub fn rdma_offer(
        &self,
        address: &str,
        timeout: Duration,
    ) -> Result<Result<String, String>, SourceError> {
        crate::rdma::ask(address, timeout)
    }

    fn pooled(&self, address: &str) -> Option<TcpStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(address)?.pop()
    }

    fn keep(&self, address: &str, stream: TcpStream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = idle.entry(address.to_owned()).or_default();
        if streams.len() < IDLE_MAX {
            streams.push(stream);
        }
    }
}

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
                return Ok(stream);
            }
            Err(e) => last = SourceError::io("connect", e),
        }
    }
    Err(last)
}

/// One request and its answer; `None` is a refusal.
fn exchange(
    stream: &TcpStream,
    access: &wire::Access,
    fresh: bool,
    deadline: Instant,
) -> Result<Option<(Vec<u8>, OwnerClocks)>, SourceError> {
    let mut out = Vec::new();
    if fresh {
        let hello = wire::Hello { version: wire::VERSION };
        out.extend(wire::control(Header::new(Kind::Hello), &hello)?);
    }
    out.extend(wire::control(Header { tag: 1, ..Header::new(Kind::Fork) }, access)?);
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
    let header = header(stream, deadline)?;
    match header.kind {
        Kind::Refused => Ok(None),
        Kind::Descriptor => {
            let bytes = body(stream, header.length as usize, deadline)?;
            Ok(Some((bytes, OwnerClocks::of(&header))))
        }
        other => Err(SourceError::Protocol(format!("unexpected frame {other:?}"))),
    }
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
