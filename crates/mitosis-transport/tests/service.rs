//! A node's service over real sockets: access, reads, ends.
#![allow(clippy::unwrap_used)]

use mitosis_descriptor::{Secret, SeedId, Vpn};
use mitosis_transport::wire::{self, Header, Kind};
use mitosis_transport::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SEED: SeedId = SeedId([1; 8]);
const SECRET: Secret = Secret([2; 32]);
const WAIT: Duration = Duration::from_secs(20);

struct Memory {
    state: Mutex<SeedState>,
}

impl OpenSeed for Memory {
    fn read(&self, source: Vpn, _: u32, out: &mut [u8]) -> Result<(), ReadError> {
        if source.0 >= 1000 {
            return Err(ReadError::NotOwned(format!("page {:#x}", source.0)));
        }
        for (i, page) in out.chunks_mut(4096).enumerate() {
            page.fill((source.0 + i as u64) as u8);
        }
        Ok(())
    }
    fn state(&self) -> SeedState {
        *self.state.lock().unwrap()
    }
}

struct Node(Arc<Memory>);

impl SeedService for Node {
    fn fork(&self, seed: SeedId, secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        let right = seed == SEED && *secret == SECRET;
        if right { Ok(vec![9; 300_000].into()) } else { Err(Refused) }
    }
    fn open(&self, seed: SeedId, secret: &Secret) -> Result<Arc<dyn OpenSeed>, Refused> {
        let right = seed == SEED && *secret == SECRET;
        if right { Ok(self.0.clone()) } else { Err(Refused) }
    }
}

struct Running {
    address: SocketAddr,
    memory: Arc<Memory>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn start(config: ServerConfig) -> Running {
    let memory = Arc::new(Memory { state: Mutex::new(SeedState::Alive) });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (service, flag) = (Arc::new(Node(memory.clone())), stop.clone());
    let thread = std::thread::spawn(move || serve(listener, service, config, flag).unwrap());
    Running { address, memory, stop, thread: Some(thread) }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking());
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Pages(u64, u32, Vec<u8>),
    Failed(u64, ReadError),
    Refused(u32),
    Pong,
    State(u32, SeedState),
}

/// Polls until `count` events were seen; pages are given by the first byte of each.
fn see(source: &mut TcpSource, count: usize) -> Result<Vec<Seen>, SourceError> {
    let mut seen = Vec::new();
    let start = Instant::now();
    while seen.len() < count && start.elapsed() < WAIT {
        source.flush()?;
        source.poll(1 << 20, &mut |event| {
            seen.push(match event {
                SourceEvent::Pages { tag, first, bytes } => {
                    assert!(bytes.chunks(4096).all(|p| p.iter().all(|b| *b == p[0])));
                    Seen::Pages(tag, first, bytes.chunks(4096).map(|page| page[0]).collect())
                }
                SourceEvent::Failed { tag, error } => Seen::Failed(tag, error),
                SourceEvent::Refused { handle } => Seen::Refused(handle.0),
                SourceEvent::Pong => Seen::Pong,
                SourceEvent::Direct { tag, .. } => panic!("read {tag} by RDMA"),
                SourceEvent::Fell { why, .. } => panic!("{why}"),
                SourceEvent::Reach { pages, .. } => panic!("{pages} by RDMA"),
                SourceEvent::State { handle, state } => Seen::State(handle.0, state),
                other => panic!("{other:?}"),
            });
        })?;
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(seen)
}

fn request(tag: u64, handle: u32, source: u64, count: u32) -> ReadRequest {
    ReadRequest { tag, handle: Handle(handle), source: Vpn(source), count }
}

#[test]
fn reads_follow_the_connection_without_waiting() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.submit(&[request(7, 1, 40, 1), request(8, 1, 50, 2)]);
    let seen = see(&mut source, 2).unwrap();
    assert_eq!(seen, [Seen::Pages(7, 0, vec![40]), Seen::Pages(8, 0, vec![50, 51])]);
}

#[test]
fn a_large_read_comes_whole_in_parts() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.submit(&[request(1, 1, 100, 500)]);
    let mut next = 0;
    while next < 500 {
        for event in see(&mut source, 1).unwrap() {
            let Seen::Pages(1, first, pages) = event else { panic!("{event:?}") };
            assert_eq!(first, next);
            next += pages.len() as u32;
        }
    }
}

#[test]
fn errors_are_errors_and_never_pages() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.open(Handle(2), SEED, &Secret([3; 32]));
    source.submit(&[request(1, 1, 2000, 1), request(2, 2, 1, 1), request(3, 5, 1, 1)]);
    let seen = see(&mut source, 4).unwrap();
    assert!(
        matches!(
            &seen[..],
            [
                Seen::Refused(2),
                Seen::Failed(1, ReadError::NotOwned(_)),
                Seen::Failed(2, ReadError::Refused),
                Seen::Failed(3, ReadError::Refused),
            ]
        ),
        "{seen:?}"
    );
}

#[test]
fn a_revoked_seed_is_told_and_not_read() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.ping();
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Pong]);
    *node.memory.state.lock().unwrap() = SeedState::Expiring;
    source.ping();
    source.submit(&[request(1, 1, 5, 1)]);
    let told = [Seen::Pong, Seen::State(1, SeedState::Expiring), Seen::Pages(1, 0, vec![5])];
    assert_eq!(see(&mut source, 3).unwrap(), told);
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    source.ping();
    source.submit(&[request(2, 1, 5, 1)]);
    let told =
        [Seen::Pong, Seen::State(1, SeedState::Revoked), Seen::Failed(2, ReadError::Revoked)];
    assert_eq!(see(&mut source, 3).unwrap(), told);
}

#[test]
fn a_seed_is_let_go_when_its_last_reader_is() {
    let node = start(ServerConfig::default());
    let open = |handles: &[u32]| {
        let mut source = TcpSource::connect(node.address).unwrap();
        for handle in handles {
            source.open(Handle(*handle), SEED, &SECRET);
        }
        source.ping();
        see(&mut source, 1).unwrap();
        source
    };
    let alone = Arc::strong_count(&node.memory);
    let (mut first, second) = (open(&[1, 2]), open(&[1]));
    assert_eq!(Arc::strong_count(&node.memory), alone + 3);
    first.close(Handle(2));
    first.ping();
    see(&mut first, 1).unwrap();
    assert_eq!(Arc::strong_count(&node.memory), alone + 2);
    drop((first, second));
    let start = Instant::now();
    while Arc::strong_count(&node.memory) > alone {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_descriptor_takes_one_round_trip_and_a_stale_connection_is_replaced() {
    let node = start(ServerConfig { idle_timeout: Duration::ZERO, ..ServerConfig::default() });
    let client = ControlClient::new();
    let address = node.address.to_string();
    let fork = |secret| client.fork(&address, SEED, &secret, WAIT);
    let before = OwnerClocks::now();
    let (bytes, clocks) = fork(SECRET).unwrap();
    assert_eq!(bytes.len(), 300_000);
    let after = OwnerClocks::now();
    assert!((before.monotonic..=after.monotonic).contains(&clocks.monotonic));
    assert!((before.boottime..=after.boottime).contains(&clocks.boottime));
    assert!(matches!(fork(Secret([0; 32])), Err(ForkError::Refused { .. })));
    // The server closes idle connections; the client must not be bothered.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fork(SECRET).unwrap().0.len(), 300_000);
    drop(node);
    assert!(matches!(fork(SECRET), Err(ForkError::Unreachable { .. })));
}

#[test]
fn nobody_waits_longer_than_told() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let client = ControlClient::new();
    let refused = client.fork(&address, SEED, &SECRET, Duration::from_millis(200));
    assert!(matches!(refused, Err(ForkError::Unreachable { .. })), "{refused:?}");
}

/// What a server answers to raw bytes before it closes.
fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // Closed with unread input, a connection is reset: the end all the same.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn nonsense_ends_its_connection_only() {
    let node = start(ServerConfig::default());
    let hello =
        wire::control(Header::new(Kind::Hello), &wire::Hello { version: wire::VERSION }).unwrap();
    let old = wire::control(Header::new(Kind::Hello), &wire::Hello { version: 77 }).unwrap();
    let read = Header { b: 1, ..Header::new(Kind::Read) }.encode();
    let unexpected = [hello.clone(), Header::new(Kind::Refused).encode().to_vec()].concat();
    assert_eq!(raw(node.address, &[0xff; 64]), []);
    assert_eq!(raw(node.address, &read), [], "a read before hello");
    assert_eq!(raw(node.address, &old), hello, "another version is told ours");
    assert_eq!(raw(node.address, &unexpected).len() % hello.len(), 0);
    let mut source = TcpSource::connect(node.address).unwrap();
    source.ping();
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Pong]);
}

#[test]
fn connections_are_bounded_and_must_greet() {
    let config = ServerConfig {
        connections_max: 2,
        handshake_timeout: Duration::ZERO,
        ..ServerConfig::default()
    };
    let node = start(config);
    let mut held: Vec<TcpSource> = Vec::new();
    for _ in 0..2 {
        let mut source = TcpSource::connect(node.address).unwrap();
        source.ping();
        see(&mut source, 1).unwrap();
        held.push(source);
    }
    assert_eq!(raw(node.address, &[]), [], "one too many");
    drop(held);
    // A silent one is closed; whether it was admitted does not matter.
    assert_eq!(raw(node.address, &[]), []);
}

#[test]
fn an_owner_that_speaks_nonsense_is_an_error() {
    for garbage in [
        vec![0xffu8; 100],
        Header { b: 1, length: 4096, ..Header::new(Kind::Data) }.encode().to_vec(),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut source = TcpSource::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&garbage).unwrap();
        let result = see(&mut source, 1);
        assert!(matches!(result, Err(SourceError::Protocol(_))), "{result:?}");
    }
}
