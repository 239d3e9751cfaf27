//! A node's service over real sockets: access, reads, ends.
#![allow(clippy::unwrap_used)]

use mitosis_descriptor::{Secret, SeedId, Vpn};
use mitosis_transport::wire::{self, Header, Kind};
use mitosis_transport::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SEED: SeedId = SeedId([1; 8]);
const SECRET: Secret = Secret([2; 32]);
const WAIT: Duration = Duration::from_secs(20);

type Image = (Arc<[u64]>, Arc<File>);
type Pages = (Arc<[u64]>, Arc<[u8]>);

struct Memory {
    state: Mutex<SeedState>,
    trail: Mutex<Vec<u64>>,
    image: Mutex<Option<Image>>,
    kept: Mutex<Option<Pages>>,
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
    fn trail(&self) -> Vec<u64> {
        self.trail.lock().unwrap().clone()
    }
    fn image(&self, most: usize) -> Option<(Arc<[u64]>, Arc<File>)> {
        self.image.lock().unwrap().clone().filter(|(pages, _)| pages.len() <= most)
    }
    fn kept(&self, wanted: &[u64]) -> Option<Vec<KeptPages>> {
        let (pages, memory) = self.kept.lock().unwrap().clone()?;
        let kept = |page| {
            let at = pages.iter().position(|other| other == page)?;
            KeptPages::new(Arc::clone(&memory), at..at + 1)
        };
        wanted.iter().map(kept).collect()
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
    fn vdso(&self, seed: SeedId, secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        let right = seed == SEED && *secret == SECRET;
        if right { Ok(vec![7; 8192].into()) } else { Err(Refused) }
    }
}

struct Running {
    address: SocketAddr,
    memory: Arc<Memory>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn start(config: ServerConfig) -> Running {
    let memory = Arc::new(Memory {
        state: Mutex::new(SeedState::Alive),
        trail: Mutex::default(),
        image: Mutex::default(),
        kept: Mutex::default(),
    });
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

/// All pages of a read, in their order, that `seen` brings from the front.
fn pages_of(source: &mut TcpSource, tag: u64, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        for event in see(source, 1).unwrap() {
            let Seen::Pages(of, first, pages) = event else { panic!("{event:?}") };
            assert_eq!((of, first as usize), (tag, all.len()));
            all.extend(pages);
        }
    }
    all
}

#[test]
fn pages_that_are_kept_come_from_memory_and_the_others_as_they_are_read() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    // In no order, and told apart from what is read by 100.
    let pages: Arc<[u64]> = (0..150).rev().step_by(2).collect();
    let memory = pages.iter().flat_map(|page| [*page as u8 + 100; 4096]).collect();
    *node.memory.kept.lock().unwrap() = Some((Arc::clone(&pages), memory));
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    assert!(source.gather(1, Handle(1), &sorted));
    let kept: Vec<u8> = sorted.iter().map(|page| *page as u8 + 100).collect();
    assert_eq!(pages_of(&mut source, 1, kept.len()), kept);
    // One page of a part that is not kept: then all of it is read. The next part is kept.
    let mut mixed: Vec<u64> = (0..wire::GATHERED as u64).collect();
    mixed.extend(&sorted);
    assert!(source.gather(2, Handle(1), &mixed));
    let want: Vec<u8> = (0..wire::GATHERED as u8).chain(kept).collect();
    assert_eq!(pages_of(&mut source, 2, want.len()), want);
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    assert!(source.gather(3, Handle(1), &sorted));
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Failed(3, ReadError::Revoked)]);
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
    let fork = |secret| client.fork(&address, (SEED, &secret), Want::default(), None, WAIT);
    let before = OwnerClocks::now();
    let fetched = fork(SECRET).unwrap();
    assert_eq!(fetched.descriptor.len(), 300_000);
    let after = OwnerClocks::now();
    assert!((before.monotonic..=after.monotonic).contains(&fetched.clocks.monotonic));
    assert!((before.boottime..=after.boottime).contains(&fetched.clocks.boottime));
    assert!(matches!(fork(Secret([0; 32])), Err(ForkError::Refused { .. })));
    // The server closes idle connections; the client must not be bothered.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fork(SECRET).unwrap().descriptor.len(), 300_000);
    drop(node);
    assert!(matches!(fork(SECRET), Err(ForkError::Unreachable { .. })));
}

/// The pages that a client gets behind a descriptor, each by its first byte.
fn behind(
    client: &ControlClient,
    address: &str,
    want: Want,
) -> Result<(Vec<u64>, Vec<u8>), ForkError> {
    let fetched = client.fork(address, (SEED, &SECRET), want, None, WAIT)?;
    assert_eq!(fetched.descriptor.len(), 300_000);
    let incoming = fetched.incoming.expect("nothing follows");
    let pages = client.list(&incoming)?;
    let mut seen = Vec::new();
    client.receive(incoming, pages.len(), |first, bytes| {
        assert_eq!(first, seen.len());
        seen.extend(bytes.chunks(4096).map(|page| page[0]));
        Ok(())
    })?;
    Ok((pages, seen))
}

#[test]
fn a_working_set_follows_the_descriptor_in_the_parts_that_are_asked_for() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    let ask = |have, want| behind(&client, &address, Want { have, want });
    assert_eq!(ask(0, 100).unwrap(), (vec![], vec![]));
    *node.memory.trail.lock().unwrap() = vec![7, 3, 4, 200, 5];
    assert_eq!(ask(0, 100).unwrap(), (vec![3, 4, 5, 7, 200], vec![3, 4, 5, 7, 200]));
    assert_eq!(ask(0, 2).unwrap().0, [3, 7]);
    assert_eq!(ask(2, 4).unwrap(), (vec![4, 200], vec![4, 200]));
    assert_eq!(ask(5, 100).unwrap().0, [] as [u64; 0]);
    // More than a chunk, and more than one frame of an image.
    let many: Vec<u64> = (0..600).collect();
    let bytes: Vec<u8> = many.iter().map(|page| *page as u8).collect();
    *node.memory.trail.lock().unwrap() = many.clone();
    assert_eq!(ask(0, 1024).unwrap(), (many.clone(), bytes.clone()));
    let path = std::env::temp_dir().join(format!("mitosis-image-{}", std::process::id()));
    let content: Vec<u8> = bytes.iter().flat_map(|byte| [!*byte; 4096]).collect();
    std::fs::write(&path, content).unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    *node.memory.image.lock().unwrap() = Some((Arc::from(many.clone()), file));
    let inverted: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    assert_eq!(ask(0, 1024).unwrap(), (many, inverted));
    // Another part, or a smaller one, comes from the memory itself.
    assert_eq!(ask(598, 1024).unwrap(), (vec![598, 599], vec![86, 87]));
    assert_eq!(ask(0, 2).unwrap(), (vec![0, 1], vec![0, 1]));
}

#[test]
fn a_page_of_a_working_set_that_cannot_be_read_is_an_error_and_no_page() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    *node.memory.trail.lock().unwrap() = (0..40).chain([2000]).collect();
    let failed = behind(&client, &address, Want { have: 0, want: 100 }).unwrap_err();
    assert!(failed.to_string().contains("0x7d0"), "{failed}");
    *node.memory.trail.lock().unwrap() = vec![1];
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    let revoked = behind(&client, &address, Want { have: 0, want: 100 }).unwrap_err();
    assert!(revoked.to_string().contains("revoked"), "{revoked}");
    // The connection of a failed one is not used again.
    *node.memory.state.lock().unwrap() = SeedState::Alive;
    assert_eq!(behind(&client, &address, Want { have: 0, want: 100 }).unwrap().1, [1]);
}

#[test]
fn a_working_set_that_nobody_asked_for_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lists: [&[u64]; 3] = [&[2, 1], &[1, 1], &[1, 2, 3]];
    let server = std::thread::spawn(move || {
        for pages in lists {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = wire::Hello { version: wire::VERSION };
            let list = wire::Pages { pages: pages.to_vec() };
            let answer = [
                wire::control(Header::new(Kind::Hello), &hello).unwrap(),
                Header { length: 1, tag: 1, ..Header::new(Kind::Descriptor) }.encode().to_vec(),
                vec![9],
                wire::control(Header { tag: 1, ..Header::new(Kind::WorkingSet) }, &list).unwrap(),
            ];
            stream.write_all(&answer.concat()).unwrap();
            // Until the client has had enough.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    for _ in lists {
        let client = ControlClient::new();
        let want = Want { have: 3, want: 5 };
        let fetched = client.fork(&address, (SEED, &SECRET), want, None, WAIT).unwrap();
        let listed = client.list(&fetched.incoming.unwrap());
        assert!(matches!(listed, Err(ForkError::Unreachable { .. })), "{listed:?}");
    }
    server.join().unwrap();
}

#[test]
fn nobody_waits_longer_than_told() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let client = ControlClient::new();
    let refused =
        client.fork(&address, (SEED, &SECRET), Want::default(), None, Duration::from_millis(200));
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

/// Of nodes, too, that hold a capability: their wishes cost the owner no memory.
#[test]
fn hundreds_of_descriptors_that_are_asked_for_at_once_are_not_held_at_once() {
    const ASKED: usize = 600;
    let node = start(ServerConfig::default());
    let hello =
        wire::control(Header::new(Kind::Hello), &wire::Hello { version: wire::VERSION }).unwrap();
    let access = wire::Access { seed: SEED, secret: SECRET };
    let ask = wire::ForkAsk { access, have: 0, want: 0, inline: u32::MAX };
    let ask = wire::control(Header::new(Kind::Fork), &ask).unwrap();
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(&[hello.clone(), ask.repeat(ASKED)].concat()).unwrap();
    let mut left = hello.len() + ASKED * (wire::HEADER + 300_000);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let got = stream.read(&mut buffer).unwrap();
        assert_ne!(got, 0, "{left} bytes are missing");
        left -= got;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100 << 10, "{peak} KiB for answers of {} KiB", ASKED * 300);
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

#[test]
fn the_vdso_is_given_to_whoever_holds_the_capability() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    let image = client.vdso(&address, SEED, &SECRET, WAIT).unwrap();
    assert_eq!(image, vec![7; 8192]);
    let refused = client.vdso(&address, SEED, &Secret([3; 32]), WAIT).unwrap_err();
    assert!(matches!(refused, ForkError::Refused { .. }), "{refused}");
    // The connections can be used again.
    let fetched = client.fork(&address, (SEED, &SECRET), Want::default(), None, WAIT).unwrap();
    assert_eq!(fetched.descriptor, vec![9; 300_000]);
}
