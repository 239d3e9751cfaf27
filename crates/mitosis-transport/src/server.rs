//! The owner's side: one blocking thread per connection, because a hand-over costs more than a
//! read.

use crate::wire::{self, Header, Kind, WireError};
use crate::{OpenSeed, ReadError, SeedService, SeedState};
use mitosis_descriptor::Vpn;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pages read and sent at a time: large enough to amortise the calls, small enough for the cache.
const CHUNK_PAGES: u32 = 32;
/// Bytes of requests taken in at a time.
const INPUT: usize = 64 << 10;
/// How often a blocked connection looks at the stop flag.
const TICK: Duration = Duration::from_millis(500);
/// How often the listener does.
const TICK_ACCEPT: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Most connections at once; further ones are closed at once.
    pub connections_max: usize,
    /// Time for the first frame of a connection.
    pub handshake_timeout: Duration,
    /// A connection that sends nothing for so long is closed.
    pub idle_timeout: Duration,
    /// A peer that takes no answer for so long is cut off.
    pub send_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            connections_max: 256,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            send_timeout: Duration::from_secs(20),
        }
    }
}

/// Live connections, so that a stop can end them.
#[derive(Default)]
struct Connections {
    count: AtomicUsize,
    next: AtomicUsize,
    streams: Mutex<HashMap<usize, TcpStream>>,
}

impl Connections {
    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a connection from the table however its thread ends.
struct Registered {
    all: Arc<Connections>,
    id: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.streams().remove(&self.id);
        self.all.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves the seeds of a node until `stop` is set; then ends all connections and returns.
///
/// # Errors
/// If the listener itself fails. Trouble with one connection ends that connection only.
pub fn serve(
    listener: TcpListener,
    service: Arc<dyn SeedService>,
    config: ServerConfig,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    let all = Arc::new(Connections::default());
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Acquire) {
        if !readable(&listener, TICK_ACCEPT)? {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => admit(stream, &all, &service, &config, &stop),
            // The peer may be gone again, or descriptors short for a moment: go on either way.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    for stream in all.streams().values() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    // Bounded: a shut-down socket ends its thread's next call.
    let deadline = Instant::now() + Duration::from_secs(5);
    while all.count.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn readable(listener: &TcpListener, timeout: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn admit(
    stream: TcpStream,
    all: &Arc<Connections>,
    service: &Arc<dyn SeedService>,
    config: &ServerConfig,
    stop: &Arc<AtomicBool>,
) {
    if all.count.fetch_add(1, Ordering::AcqRel) >= config.connections_max {
        all.count.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let id = all.next.fetch_add(1, Ordering::Relaxed);
    let registered = Registered { all: Arc::clone(all), id };
    if let Ok(copy) = stream.try_clone() {
        all.streams().insert(id, copy);
    }
    let (service, config, stop) = (Arc::clone(service), config.clone(), Arc::clone(stop));
    // A thread that cannot be started drops its closure, and so the connection.
    let _ = std::thread::Builder::new().name("page-server".into()).stack_size(256 << 10).spawn(
        move || {
            let _registered = registered;
            // Of this thread alone. Somewhere a process waits for each answer; without the
            // privilege it waits longer on a busy machine.
            let _ = rustix::process::setpriority_process(None, -10);
            if let Ok(mut connection) = Connection::new(stream, service, config, stop) {
                // The reason a connection ended is of no use here: its peer sees it end.
                let _ = connection.run();
            }
        },
    );
}

enum End {
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

struct Connection {
    stream: TcpStream,
    service: Arc<dyn SeedService>,
    config: ServerConfig,
    stop: Arc<AtomicBool>,
    handles: HashMap<u32, Option<Arc<dyn OpenSeed>>>,
    input: Vec<u8>,
    filled: usize,
    taken: usize,
    output: Vec<u8>,
    greeted: bool,
}

impl Connection {
    fn new(
        stream: TcpStream,
        service: Arc<dyn SeedService>,
        config: ServerConfig,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Connection> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(config.send_timeout))?;
        Ok(Connection {
            stream,
            service,
            config,
            stop,
            handles: HashMap::new(),
            input: vec![0; INPUT],
            filled: 0,
            taken: 0,
            output: Vec::new(),
            greeted: false,
        })
    }

    fn run(&mut self) -> Result<(), End> {
        loop {
            let header = self.header()?;
            let body = self.body(header.length as usize)?;
            self.answer(header, &body)?;
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
            match self.stream.read(&mut self.input[self.filled..]) {
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

    fn send(&mut self) -> Result<(), End> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output)?;
            self.output.clear();
        }
        Ok(())
    }

    fn answer(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        if !self.greeted {
            return self.greet(header, body);
        }
        match header.kind {
            Kind::Fork => self.fork(header, body),
            Kind::Open => self.open(header, body),
            Kind::Close => {
                self.handles.remove(&header.a);
                Ok(())
            }
            Kind::Read => self.read(header),
            Kind::Learn => self.learn(header, body),
            Kind::Ping => self.pong(),
            _ => Err(End::Peer),
        }
    }

    fn greet(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        if header.kind != Kind::Hello {
            return Err(End::Peer);
        }
        let theirs: wire::Hello = wire::body(Kind::Hello, body)?;
        let ours = wire::Hello { version: wire::VERSION };
        self.output.extend(wire::control(Header::new(Kind::Hello), &ours)?);
        if theirs.version != wire::VERSION {
            self.send()?;
            return Err(End::Peer);
        }
        self.greeted = true;
        Ok(())
    }

    fn fork(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Fork, body)?;
        match self.service.fork(access.seed, &access.secret) {
            Ok(bytes) if bytes.len() <= wire::DESCRIPTOR_MAX => {
                let length = bytes.len() as u32;
                let head = Header { length, tag: header.tag, ..Header::new(Kind::Descriptor) };
                self.output.extend_from_slice(&head.encode());
                self.output.extend_from_slice(&bytes);
            }
            _ => {
                let head = Header { tag: header.tag, ..Header::new(Kind::Refused) };
                self.output.extend_from_slice(&head.encode());
            }
        }
        Ok(())
    }

    fn open(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let access: wire::Access = wire::body(Kind::Open, body)?;
        if self.handles.len() >= wire::HANDLES_MAX || self.handles.contains_key(&header.a) {
            return Err(End::Peer);
        }
        let opened = self.service.open(access.seed, &access.secret).ok();
        match &opened {
            None => {
                let head = Header { a: header.a, b: 1, ..Header::new(Kind::Refused) };
                self.output.extend_from_slice(&head.encode());
            }
            Some(seed) => {
                let pages = seed.trail();
                if !pages.is_empty() {
                    let head = Header { a: header.a, ..Header::new(Kind::Trail) };
                    self.output.extend(wire::control(head, &wire::Pages { pages })?);
                }
            }
        }
        self.handles.insert(header.a, opened);
        Ok(())
    }

    fn learn(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let learned: wire::Pages = wire::body(Kind::Learn, body)?;
        if learned.pages.len() > wire::TRAIL_PAGES_MAX {
            return Err(End::Peer);
        }
        if let Some(Some(seed)) = self.handles.get(&header.a) {
            seed.learn(&learned.pages);
        }
        Ok(())
    }

    fn read(&mut self, header: Header) -> Result<(), End> {
        let seed = match self.handles.get(&header.a) {
            Some(Some(seed)) => Arc::clone(seed),
            _ => return self.fail(header.tag, &ReadError::Refused),
        };
        let mut done = 0;
        while done < header.b {
            let count = CHUNK_PAGES.min(header.b - done);
            let bytes = count as usize * wire::PAGE;
            let head = Header {
                length: bytes as u32,
                kind: Kind::Data,
                tag: header.tag,
                a: done,
                b: count,
                c: 0,
            };
            let at = self.output.len();
            self.output.extend_from_slice(&head.encode());
            self.output.resize(at + wire::HEADER + bytes, 0);
            let out = &mut self.output[at + wire::HEADER..];
            if let Err(error) = checked_read(&*seed, Vpn(header.c + u64::from(done)), count, out) {
                self.output.truncate(at);
                return self.fail(header.tag, &error);
            }
            done += count;
            if self.output.len() >= CHUNK_PAGES as usize * wire::PAGE {
                self.send()?;
            }
        }
        Ok(())
    }

    fn fail(&mut self, tag: u64, error: &ReadError) -> Result<(), End> {
        self.output.extend(wire::error_frame(tag, error)?);
        Ok(())
    }

    fn pong(&mut self) -> Result<(), End> {
        let states = self.handles.iter().filter_map(|(handle, seed)| {
            let state = seed.as_ref()?.state();
            (state != SeedState::Alive).then_some((*handle, state))
        });
        let changed = states.collect();
        self.output.extend(wire::control(Header::new(Kind::Pong), &wire::Pong { changed })?);
        Ok(())
    }
}

/// A read, between two looks at the state: what was revoked meanwhile is not sent.
fn checked_read(
    seed: &dyn OpenSeed,
    source: Vpn,
    count: u32,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let usable = |state| match state {
        SeedState::Alive | SeedState::Expiring => Ok(()),
        SeedState::Revoked => Err(ReadError::Revoked),
        SeedState::Lost => Err(ReadError::Lost("its memory is gone".into())),
    };
    usable(seed.state())?;
    seed.read(source, count, out)?;
    usable(seed.state())
}
