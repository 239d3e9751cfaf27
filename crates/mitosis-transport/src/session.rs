//! One connection of a server: requests in, answers out, in order.

mod pages;

use crate::rdma::{Heard, Links};
use crate::server::TICK;
use crate::wire::{self, Header, Kind, WireError};
use crate::{OpenSeed, ReadError, SeedService, SeedState, ServerConfig};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Send buffer of a connection: what a first child waits for fits, so that its owner need not wait for the
/// reader. Of more, both sides would have to get from memory what the cache still holds of less.
const SEND_BUFFER: usize = 1 << 20;
/// Most bytes of answers kept for reuse.
const OUTPUT_KEPT: usize = 512 << 10;
/// Bytes of requests taken in at a time.
const INPUT: usize = 64 << 10;
/// Nice value of a thread whose answers nobody waits for.
const DEFERRED_NICE: i32 = 10;

/// Why a session is over.
pub(crate) enum End {
    /// Its peer is gone, or no peer of this protocol.
    Peer,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Peer
    }
}
impl From<WireError> for End {
    fn from(_: WireError) -> End {
        End::Peer
    }
}

/// Answers not yet sent. Its memory is kept and not cleared: pages are read right into it, and only
/// what was filled is sent.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    used: usize,
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// The next `count` bytes, to be filled by the caller, or given back by setting `used`.
    fn room(&mut self, count: usize) -> &mut [u8] {
        let (from, to) = (self.used, self.used + count);
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.used = to;
        &mut self.bytes[from..to]
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

/// A connection of a peer.
pub(crate) struct Session {
    stream: TcpStream,
    service: Arc<dyn SeedService>,
    config: ServerConfig,
    stop: Arc<AtomicBool>,
    handles: HashMap<u32, Option<Arc<dyn OpenSeed>>>,
    links: Links,
    input: Vec<u8>,
    filled: usize,
    taken: usize,
    output: Output,
    greeted: bool,
    /// The peer fetches ahead over this connection.
    deferred: bool,
}

impl Session {
    /// Takes over a connection just accepted.
    pub(crate) fn new(
        stream: TcpStream,
        service: Arc<dyn SeedService>,
        config: ServerConfig,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Session> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?.ip();
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(config.send_timeout))?;
        // Only faster with it.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&stream, SEND_BUFFER);
        Ok(Session {
            stream,
            service,
            config,
            stop,
            handles: HashMap::new(),
            links: Links::new(peer),
            input: vec![0; INPUT],
            filled: 0,
            taken: 0,
            output: Output::default(),
            greeted: false,
            deferred: false,
        })
    }

    /// Answers until the peer ends, breaks the protocol, or a bound is reached.
    pub(crate) fn run(&mut self) -> Result<(), End> {
        loop {
            let header = self.header()?;
            let body = self.body(header.length as usize)?;
            self.answer(header, &body)?;
            // One packet can ask for hundreds of descriptors, which are not to be here all at once.
            if self.output.used >= OUTPUT_KEPT {
                self.send()?;
            }
        }
    }

    /// Waits for at least `need` bytes of input.
    fn fill(&mut self, need: usize) -> Result<(), End> {
        if self.filled - self.taken >= need {
            return Ok(());
        }
        // Everything asked so far is answered before this side waits.
        self.send()?;
        self.input.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        let limit =
            if self.greeted { self.config.idle_timeout } else { self.config.handshake_timeout };
        let since = Instant::now();
        while self.filled < need {
            let got = match self.hear() {
                Some(Heard::Bell) => {
                    let endings = self.links.endings()?;
                    self.output.push(&endings);
                    self.send()?;
                    continue;
                }
                // A read would not hear the bell.
                Some(Heard::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
                Some(Heard::Peer) | None => self.stream.read(&mut self.input[self.filled..]),
            };
            match got {
                Ok(0) => return Err(End::Peer),
                Ok(got) => self.filled += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.load(Ordering::Acquire) || since.elapsed() >= limit {
                        return Err(End::Peer);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for whatever comes first, where there is more than the peer to hear of.
    fn hear(&self) -> Option<Heard> {
        self.links.bell().map(|bell| bell.wait(&self.stream, TICK))
    }

    fn header(&mut self) -> Result<Header, End> {
        self.fill(wire::HEADER)?;
        let mut bytes = [0; wire::HEADER];
        bytes.copy_from_slice(&self.input[self.taken..self.taken + wire::HEADER]);
        self.taken += wire::HEADER;
        Ok(Header::decode(&bytes)?)
    }

    fn body(&mut self, length: usize) -> Result<Vec<u8>, End> {
        if length > wire::LEARN_BODY_MAX {
            return Err(End::Peer);
        }
        self.fill(length)?;
        let body = self.input[self.taken..self.taken + length].to_vec();
        self.taken += length;
        Ok(body)
    }

    /// Sends what is there, with what follows in the same packet.
    fn send_before(&mut self) -> Result<(), End> {
        self.send_with(SendFlags::MORE)
    }

    fn send(&mut self) -> Result<(), End> {
        self.send_with(SendFlags::empty())
    }

    fn send_with(&mut self, flags: SendFlags) -> Result<(), End> {
        if self.output.used > 0 {
            let mut left = self.output.filled();
            while !left.is_empty() {
                match rustix::net::send(&self.stream, left, flags | SendFlags::NOSIGNAL) {
                    Ok(sent) => left = &left[sent..],
                    Err(Errno::INTR) => {}
                    // The bound on a peer that takes nothing, too.
                    Err(_) => return Err(End::Peer),
                }
            }
            self.output.used = 0;
            // A descriptor may have been large, and comes once.
            self.output.bytes.truncate(OUTPUT_KEPT);
            self.output.bytes.shrink_to(OUTPUT_KEPT);
        }
        Ok(())
    }

    fn answer(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        if !self.greeted {
            return self.greet(header, body);
        }
        match header.kind {
            Kind::Fork => self.fork(header, body),
            Kind::Begin => self.begin(header, body),
            Kind::Vdso => self.vdso(header, body),
            Kind::Lease => self.lease(header, body),
            Kind::Open => self.open(header, body),
            Kind::Close => {
                self.links.close(header.a);
                self.handles.remove(&header.a);
                Ok(())
            }
            Kind::Read => self.read(header),
            Kind::Gather => self.gather(header, body),
            Kind::Learn => self.learn(header, body),
            Kind::Ping => self.pong(),
            Kind::Rdma => {
                let seed = self.handles.get(&header.a).and_then(Option::as_deref);
                let answer = self.links.answer(&header, body, &*self.service, seed)?;
                self.output.push(&answer);
                Ok(())
            }
            _ => Err(End::Peer),
        }
    }

    fn greet(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        if header.kind != Kind::Hello {
            return Err(End::Peer);
        }
        let theirs: wire::Hello = wire::body(Kind::Hello, body)?;
        let ours = wire::Hello { version: wire::VERSION };
        self.output.push(&wire::control(Header::new(Kind::Hello), &ours)?);
        if theirs.version != wire::VERSION {
            self.send()?;
            return Err(End::Peer);
        }
        self.greeted = true;
        Ok(())
    }

    fn fork(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let ask: wire::ForkAsk = wire::body(Kind::Fork, body)?;
        match self.service.fork(ask.access.seed, &ask.access.secret) {
            Ok(bytes) if bytes.len() <= wire::DESCRIPTOR_MAX => {
                if let Some(place) = self.place(&ask, &bytes) {
                    let kind = Kind::DescriptorAt;
                    let head =
                        Header { kind, tag: header.tag, ..wire::OwnerClocks::now().header() };
                    self.output.push(&wire::control(head, &place)?);
                    return Ok(());
                }
                let length = bytes.len() as u32;
                let clocks = wire::OwnerClocks::now();
                let head = Header { length, tag: header.tag, ..clocks.header() };
                self.output.push(&head.encode());
                self.output.push(&bytes);
            }
            _ => self.refuse(header.tag),
        }
        Ok(())
    }

    /// Where a descriptor is for one who would rather read it than be sent it.
    fn place(&mut self, ask: &wire::ForkAsk, bytes: &[u8]) -> Option<wire::RdmaPlace> {
        if bytes.len() <= ask.inline as usize {
            return None;
        }
        let seed = self.service.open(ask.access.seed, &ask.access.secret).ok()?;
        self.links.place(&*self.service, &*seed, bytes)
    }

    fn vdso(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Vdso, body)?;
        match self.service.vdso(access.seed, &access.secret) {
            Ok(image) if image.len() <= wire::ANSWER_BODY_MAX => {
                let length = image.len() as u32;
                let tag = header.tag;
                let head = Header { length, tag, ..Header::new(Kind::VdsoImage) };
                self.output.push(&head.encode());
                self.output.push(&image);
            }
            _ => self.refuse(header.tag),
        }
        Ok(())
    }

    fn refuse(&mut self, tag: u64) {
        let head = Header { tag, ..Header::new(Kind::Refused) };
        self.output.push(&head.encode());
    }

    fn lease(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Lease, body)?;
        let head = match self.service.lease(access.seed, &access.secret) {
            Ok(lease) => {
                let time = u32::try_from(lease.time.as_millis()).unwrap_or(u32::MAX);
                let head = Header { tag: header.tag, ..Header::new(Kind::Leased) };
                Header { a: time, b: lease.working_set, ..head }
            }
            Err(_) => Header { tag: header.tag, ..Header::new(Kind::Refused) },
        };
        self.output.push(&head.encode());
        Ok(())
    }

    /// Sends the part of the working set that the other node lacks. It builds a child meanwhile.
    fn begin(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Begin, body)?;
        let (tag, want) = (header.tag, crate::Want { have: header.a, want: header.b });
        let Ok(seed) = self.service.open(access.seed, &access.secret) else {
            self.refuse(tag);
            return Ok(());
        };
        let image = seed.image(want.want as usize).filter(|_| want.have == 0);
        if let Some((pages, file)) = image {
            return self.image(tag, &*seed, &pages, &file);
        }
        let pages = want.part(seed.trail());
        let head = Header { tag, ..Header::new(Kind::WorkingSet) };
        self.output.push(&wire::control(head, &wire::Pages { pages: pages.clone() })?);
        self.send()?;
        self.single(tag, &*seed, &pages)
    }

    fn open(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Open, body)?;
        if header.b == 1 && !std::mem::replace(&mut self.deferred, true) {
            // This thread only. It stays slower than the rest if that is not allowed.
            let _ = rustix::process::nice(DEFERRED_NICE);
        }
        let taken = self.handles.contains_key(&header.a) || header.a == wire::DESCRIPTOR_HANDLE;
        if self.handles.len() >= wire::HANDLES_MAX || taken {
            return Err(End::Peer);
        }
        let opened = self.service.open(access.seed, &access.secret).ok();
        match &opened {
            None => {
                let head = Header { a: header.a, b: 1, ..Header::new(Kind::Refused) };
                self.output.push(&head.encode());
            }
            Some(seed) => {
                // The connection for what is fetched ahead has a sister that gets it.
                let pages = if self.deferred { Vec::new() } else { seed.trail() };
                if !pages.is_empty() {
                    let told = u32::from(seed.told());
                    let head = Header { a: header.a, b: told, ..Header::new(Kind::Trail) };
                    self.output.push(&wire::control(head, &wire::Pages { pages })?);
                }
            }
        }
        self.handles.insert(header.a, opened);
        Ok(())
    }

    fn learn(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let learned: wire::Pages = wire::body(Kind::Learn, body)?;
        if learned.pages.len() > wire::LEARN_PAGES_MAX {
            return Err(End::Peer);
        }
        if let Some(Some(seed)) = self.handles.get(&header.a) {
            seed.learn(&learned.pages);
        }
        Ok(())
    }

    fn fail(&mut self, tag: u64, error: &ReadError) -> Result<(), End> {
        self.output.push(&wire::error_frame(tag, error)?);
        Ok(())
    }

    fn pong(&mut self) -> Result<(), End> {
        let states = self.handles.iter().filter_map(|(handle, seed)| {
            let state = seed.as_ref()?.state();
            (state != SeedState::Alive).then_some((*handle, state))
        });
        let changed = states.collect();
        self.output.push(&wire::control(Header::new(Kind::Pong), &wire::Pong { changed })?);
        Ok(())
    }
}
