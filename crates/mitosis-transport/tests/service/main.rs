//! A node's service over real sockets: access, reads, ends.
#![allow(clippy::unwrap_used)]

mod bounds;
mod descriptors;
mod reads;

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
