//! A pager, page servers with known content, and puppets as children.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part

use mitosis_descriptor::{Owner, PageIndex, PageRun, Secret, SeedId, Vpn};
use mitosis_pager::*;
use mitosis_sys::uffd::testing::{Order, Puppet, hash_page};
use mitosis_transport::{
    OpenSeed, ReadError, Refused, SeedService, SeedState, ServerConfig, serve,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const SEED: SeedId = SeedId(*b"testseed");
pub const SECRET: Secret = Secret([7; 32]);
pub const WAIT: Duration = Duration::from_secs(20);

/// The bytes of page `vpn` of the seed.
pub fn fill_page(vpn: u64, out: &mut [u8]) {
    for (i, word) in out.chunks_exact_mut(8).enumerate() {
        let value = (vpn * 512 + i as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
        word.copy_from_slice(&value.to_ne_bytes());
    }
}

pub fn expected(pages: impl Iterator<Item = Option<u64>>) -> u64 {
    let mut page = vec![0; 4096];
    pages.fold(0, |hash, vpn| {
        match vpn {
            Some(vpn) => fill_page(vpn, &mut page),
            None => page.fill(0),
        }
        hash_page(hash, &page)
    })
}

/// A seed whose memory is [`fill_page`].
pub struct TestSeed {
    pub state: AtomicU32,
    pub pages: AtomicU64,
    pub delay_ms: AtomicU64,
    pub fail_from: AtomicU64,
    pub trail: Mutex<Vec<u64>>,
    /// What children have told.
    pub learned: Mutex<Vec<u64>>,
}

impl TestSeed {
    pub fn set(&self, state: SeedState) {
        self.state.store(state as u32, Ordering::SeqCst);
    }
}

impl OpenSeed for TestSeed {
    fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
        let served = self.pages.fetch_add(count.into(), Ordering::SeqCst);
        if served >= self.fail_from.load(Ordering::SeqCst) {
            return Err(ReadError::Failed("made to fail".into()));
        }
        for (i, page) in out.chunks_exact_mut(4096).enumerate() {
            fill_page(source.0 + i as u64, page);
        }
        Ok(())
    }

    fn learn(&self, pages: &[u64]) {
        self.learned.lock().unwrap().extend(pages);
    }
    fn told(&self) -> bool {
        !self.trail.lock().unwrap().is_empty()
    }
    fn trail(&self) -> Vec<u64> {
        self.trail.lock().unwrap().clone()
    }

    fn state(&self) -> SeedState {
        match self.state.load(Ordering::SeqCst) {
            0 => SeedState::Alive,
            1 => SeedState::Expiring,
            2 => SeedState::Revoked,
            _ => SeedState::Lost,
        }
    }
}

struct Service(Arc<TestSeed>);

impl SeedService for Service {
    fn fork(&self, _: SeedId, _: &Secret) -> Result<Arc<[u8]>, Refused> {
        Err(Refused)
    }
    fn open(&self, seed: SeedId, secret: &Secret) -> Result<Arc<dyn OpenSeed>, Refused> {
        let right = seed == SEED && *secret == SECRET;
        if right { Ok(self.0.clone()) } else { Err(Refused) }
    }
}

/// A node that owns pages.
pub struct Server {
    pub address: SocketAddr,
    pub seed: Arc<TestSeed>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Server {
        Server::start_at("127.0.0.1:0".parse().unwrap())
    }

    pub fn start_at(address: SocketAddr) -> Server {
        let seed = Arc::new(TestSeed {
            state: AtomicU32::new(0),
            pages: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            fail_from: AtomicU64::new(u64::MAX),
            trail: Mutex::default(),
            learned: Mutex::default(),
        });
        let start = Instant::now();
        // A port that was in use a moment ago may be, for another moment.
        let listener = loop {
            match TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(e) if start.elapsed() > WAIT => panic!("{e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let service = Arc::new(Service(seed.clone()));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            serve(listener, service, ServerConfig::default(), flag).unwrap();
        });
        Server { address, seed, stop, thread: Some(thread) }
    }

    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn owner(&self) -> Owner {
        Owner { address: self.address.to_string(), seed: SEED, secret: SECRET }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);
/// Puppets are forks of the test: one at a time, so that none inherits another's sockets.
static FORK: Mutex<()> = Mutex::new(());

/// A pager in a thread.
pub struct Rig {
    pub client: PagerClient,
    pub socket: PathBuf,
    thread: Option<JoinHandle<Result<(), PagerError>>>,
}

impl Rig {
    pub fn start() -> Rig {
        Rig::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut PagerConfig)) -> Rig {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("mitosis-pager-test-{}-{number}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut config = PagerConfig::new(&socket);
        config.holder = false;
        config.page_timeout = Duration::from_millis(1500);
        change(&mut config);
        let thread = std::thread::spawn(move || run(config));
        let start = Instant::now();
        let client = loop {
            match PagerClient::connect(&socket, WAIT) {
                Ok(client) => break client,
                Err(e) if start.elapsed() > WAIT => panic!("{e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Rig { client, socket, thread: Some(thread) }
    }

    /// To a pager that runs as another process; it is not stopped with the rig.
    pub fn attach(socket: &str) -> Rig {
        let start = Instant::now();
        let client = loop {
            match PagerClient::connect(socket.as_ref(), WAIT) {
                Ok(client) => break client,
                Err(e) if start.elapsed() > WAIT => panic!("{e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Rig { client, socket: socket.into(), thread: None }
    }

    pub fn stats(&self, child: ChildId) -> ChildStats {
        self.client.stats().unwrap().into_iter().find(|s| s.child == child).unwrap()
    }

    /// Waits until the books satisfy a condition.
    pub fn until(
        &self,
        child: ChildId,
        what: &str,
        done: impl Fn(&ChildStats) -> bool,
    ) -> ChildStats {
        let start = Instant::now();
        loop {
            let stats = self.stats(child);
            if done(&stats) {
                return stats;
            }
            assert!(start.elapsed() < WAIT, "not {what}: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn until_ended(&self, child: ChildId) -> ChildStats {
        self.until(child, "ended", |stats| stats.state == ChildState::Ended)
    }

    /// Closes all connections and waits until the pager ends by itself.
    pub fn abandon(mut self) -> Result<(), PagerError> {
        let thread = self.thread.take().unwrap();
        drop(self);
        thread.join().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.client.shutdown();
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap().unwrap();
            }
        }
    }
}

/// A puppet that the pager serves.
pub struct TestChild {
    pub id: ChildId,
    pub puppet: Puppet,
    pub guard: OwnedFd,
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// How a child is to be.
pub struct Wanted {
    pub pages: u64,
    /// Pages from the start that are remote.
    pub remote: u64,
    pub eager: bool,
    pub local: Option<OwnedFd>,
    /// Pages that the seed names as touched by earlier children.
    pub trail: Option<(Arc<TestSeed>, Vec<u64>)>,
    /// Pages, from the start, that the child is said to have put in place.
    pub placed: Vec<u64>,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { pages: 64, remote: 64, eager: false, local: None, trail: None, placed: Vec::new() }
    }
}

pub fn child(rig: &Rig, owner: Owner, wanted: Wanted) -> TestChild {
    let _one = FORK.lock().unwrap_or_else(|e| e.into_inner());
    let (uffd_rx, uffd_tx) = pair();
    let puppet = Puppet::start(wanted.pages, &uffd_tx).unwrap();
    drop(uffd_tx);
    let (guard, guard_pager) = pair();
    let id = ChildId(NEXT.fetch_add(1, Ordering::SeqCst));
    let base = Vpn::of(puppet.base);
    let run = PageRun { start: base, count: wanted.remote as u32, owner: 0, source: base };
    if let Some((seed, pages)) = &wanted.trail {
        *seed.trail.lock().unwrap() = pages.iter().map(|page| base.0 + page).collect();
    }
    let runs = if wanted.remote > 0 { vec![run] } else { vec![] };
    let area = Area { start: base, count: wanted.pages, grows_down: false, wipe_on_fork: false };
    let source = match &wanted.local {
        None => OwnerSource::remote(owner).unwrap(),
        Some(_) => OwnerSource::local(owner, 0),
    };
    let add = AddChild {
        child: id,
        seed: SEED.to_string(),
        areas: vec![area],
        index: PageIndex::from_sorted(runs).unwrap(),
        owners: vec![source],
        placed_bytes: wanted.placed.len() as u64 * 4096,
        placed: wanted.placed.iter().map(|page| base.0 + page).collect(),
        held: 0,
        main: None,
        member: (0, 1),
        shape: None,
        eager: wanted.eager,
        independent: false,
    };
    let fds = ChildFds {
        uffd_rx: uffd_rx.as_fd(),
        guard: guard_pager.as_fd(),
        guard_pidfd: puppet.pidfd.as_fd(),
        local: wanted.local.iter().map(AsFd::as_fd).collect(),
    };
    rig.client.add_child(add, &fds).unwrap().done().unwrap();
    TestChild { id, puppet, guard }
}

impl TestChild {
    pub fn base(&self) -> u64 {
        self.puppet.base >> 12
    }

    pub fn order(&self, order: Order, args: [u64; 4]) -> u64 {
        self.puppet.order(order, args, WAIT).unwrap().0
    }

    /// The hash of `count` pages from `first`, which are those of the seed.
    pub fn check(&self, first: u64, count: u64) {
        let base = self.base();
        let want = expected((first..first + count).map(|p| Some(base + p)));
        assert_eq!(self.order(Order::Hash, [first, count, 0, 0]), want, "pages {first}+{count}");
    }

    pub fn check_zero(&self, first: u64, count: u64) {
        let want = expected((0..count).map(|_| None));
        assert_eq!(self.order(Order::Hash, [first, count, 0, 0]), want, "pages {first}+{count}");
    }
}
