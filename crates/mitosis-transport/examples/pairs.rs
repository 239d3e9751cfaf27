//! What the seeds that share a queue pair do to each other: nothing.
//!
//! An owner's node and a reader in one process, over the device that is named (or the first that is
//! active). A seed ends while another one is read; a seed ends whose reader does not listen, so that its
//! next READ is an error; each time every page of the other one comes, and is right. Prints a line for
//! each, and ends with status 1 when one is wrong. Run by the RDMA suite.

use mitosis_descriptor::{Secret, SeedId, Vpn};
use mitosis_transport::rdma::{Calls, Export, Exporter, Networks, Pinning, SeedMemory, connector};
use mitosis_transport::{
    Device, Handle, OpenSeed, PageSource, ReadError, ReadRequest, Refused, SeedService, SeedState,
    ServerConfig, SourceEvent,
};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Fault = Box<dyn std::error::Error>;

const PAGE: usize = 4096;
const PAGES: u64 = 2048;
/// Pages of one read.
const READ: u32 = 64;
/// Reads of all pages of a seed.
const READS: u64 = PAGES / READ as u64;
const LIMIT: Duration = Duration::from_secs(60);

/// The word at the beginning of a page.
fn word(seed: u8, page: u64) -> u64 {
    (u64::from(seed) << 56 | page).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The memory of a seed.
struct Pages(u8);

impl SeedMemory for Pages {
    fn read(&self, page: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        for (n, bytes) in (0..u64::from(count)).zip(out.chunks_mut(PAGE)) {
            bytes.fill(self.0);
            bytes[..8].copy_from_slice(&word(self.0, page.0 + n).to_ne_bytes());
        }
        Ok(())
    }
    fn in_place(&self, _exclusive: bool) -> Vec<(u64, u64)> {
        Vec::new()
    }
    fn mapped(&self, _start: u64, _end: u64) -> Vec<(u64, u64)> {
        Vec::new()
    }
    fn calls_max(&self, _size: usize) -> usize {
        0
    }
    fn calls(&self, _calls: &Calls<'_>) -> Result<Vec<(i64, Vec<u8>)>, String> {
        Err("there is no shadow".into())
    }
}

/// The owner's node; the capability of a seed is its number.
struct Owner {
    exporter: Arc<Exporter>,
    revoked: Mutex<HashSet<u8>>,
}

impl Owner {
    fn has_revoked(&self, seed: u8) -> bool {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).contains(&seed)
    }

    /// As `seed rm`.
    fn revoke(&self, seed: u8) {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).insert(seed);
        self.exporter.end(SeedId([seed; 8]), "seed revoked");
    }
}

struct Node(Arc<Owner>);

impl SeedService for Node {
    fn fork(&self, _seed: SeedId, _secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        Err(Refused)
    }
    fn open(&self, seed: SeedId, secret: &Secret) -> Result<Arc<dyn OpenSeed>, Refused> {
        let number = seed.0[0];
        if secret.0 != [number; 32] {
            return Err(Refused);
        }
        Ok(Arc::new(Opened(Arc::clone(&self.0), number)))
    }
    fn rdma(&self, _peer: IpAddr) -> Result<String, String> {
        Ok(self.0.exporter.describe())
    }
}

struct Opened(Arc<Owner>, u8);

impl OpenSeed for Opened {
    fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        Pages(self.1).read(source, count, out)
    }
    fn rdma(&self) -> Result<Arc<Export>, String> {
        let (seed, memory) = (SeedId([self.1; 8]), Arc::new(Pages(self.1)));
        Ok(self.0.exporter.export(seed, &[(0, PAGES)], &[], memory))
    }
    fn state(&self) -> SeedState {
        if self.0.has_revoked(self.1) { SeedState::Revoked } else { SeedState::Alive }
    }
}

/// What has been seen at the reader's node.
#[derive(Default)]
struct Seen {
    reach: HashMap<u8, u64>,
    notes: Vec<(u8, String)>,
    failed: Vec<(u8, ReadError)>,
    /// Reads that are complete, pages that were wrong, and pages that came by RDMA.
    done: u64,
    wrong: u64,
    direct: u64,
}

struct Reader {
    source: Box<dyn PageSource>,
    /// Seed, first page and pages to come of each read in flight.
    flying: HashMap<u64, (u8, u64, u32)>,
    tag: u64,
    pinged: Instant,
    seen: Seen,
}

impl Reader {
    fn open(&mut self, seed: u8) -> Result<(), Fault> {
        self.source.open(Handle(seed.into()), SeedId([seed; 8]), &Secret([seed; 32]));
        self.source.ping();
        Ok(self.source.flush()?)
    }

    /// Asks for all pages of a seed, and looks at nothing that comes.
    fn ask(&mut self, seed: u8) -> Result<(), Fault> {
        self.ask_some(seed, READS)
    }

    /// The same with fewer reads.
    fn ask_some(&mut self, seed: u8, reads: u64) -> Result<(), Fault> {
        for first in (0..reads).map(|read| read * u64::from(READ)) {
            self.tag += 1;
            let (handle, source, count) = (Handle(seed.into()), Vpn(first), READ);
            self.source.submit(&[ReadRequest { tag: self.tag, handle, source, count }]);
            self.flying.insert(self.tag, (seed, first, READ));
        }
        Ok(self.source.flush()?)
    }

    fn step(&mut self) -> Result<(), Fault> {
        if self.pinged.elapsed() > Duration::from_millis(250) {
            self.source.ping();
            self.source.flush()?;
            self.pinged = Instant::now();
        }
        let (flying, seen) = (&mut self.flying, &mut self.seen);
        self.source.poll(1 << 20, &mut |event| match event {
            SourceEvent::Pages { tag, first, bytes } => {
                let Some((seed, from, left)) = flying.get_mut(&tag) else { return };
                for (n, page) in (0..).zip(bytes.chunks(PAGE)) {
                    let right = word(*seed, *from + u64::from(first) + n).to_ne_bytes();
                    seen.wrong += u64::from(page[..8] != right || page[8..] != [*seed; PAGE - 8]);
                    *left -= 1;
                }
                if *left == 0 {
                    flying.remove(&tag);
                    seen.done += 1;
                }
            }
            SourceEvent::Direct { pages, .. } => seen.direct += u64::from(pages),
            SourceEvent::Reach { handle, pages, .. } => {
                seen.reach.insert(handle.0 as u8, pages);
            }
            SourceEvent::Fell { handle, why } => seen.notes.push((handle.0 as u8, why)),
            SourceEvent::Failed { tag, error } => {
                if let Some((seed, ..)) = flying.remove(&tag) {
                    seen.failed.push((seed, error));
                }
            }
            _ => {}
        })?;
        std::thread::sleep(Duration::from_micros(200));
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Reader) -> bool) -> Result<(), Fault> {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() > LIMIT {
                let (notes, failed) = (&self.seen.notes, &self.seen.failed);
                return Err(format!("waited too long for {what}: {notes:?} {failed:?}").into());
            }
            self.step()?;
        }
        Ok(())
    }

    fn registered(&mut self, seed: u8) -> Result<(), Fault> {
        self.until("registered pages", |r| r.seen.reach.get(&seed) == Some(&PAGES))
    }

    /// All that was asked for has come or failed.
    fn landed(&mut self) -> Result<(), Fault> {
        self.until("pages", |r| r.flying.is_empty())
    }
}

fn check(good: bool, what: &str, seen: &Seen) -> Result<(), Fault> {
    let Seen { done, wrong, direct, .. } = *seen;
    println!("pairs: {what}: {done} reads, {direct} pages by RDMA, {wrong} wrong");
    println!("pairs: {what}: notes {:?}", seen.notes);
    if good && wrong == 0 { Ok(()) } else { Err(format!("{what}: {:?}", seen.failed).into()) }
}

fn run() -> Result<(), Fault> {
    let wanted = std::env::var("MITOSIS_RDMA_DEVICE").ok();
    let device = Device::open(wanted.as_deref())?;
    let exporter = Exporter::new(device, 1 << 30, Pinning::Copy, Networks::default());
    let owner = Arc::new(Owner { exporter: Arc::new(exporter), revoked: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (service, stop) = (Arc::new(Node(Arc::clone(&owner))), Arc::new(AtomicBool::new(false)));
    let ends = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        mitosis_transport::serve(listener, service, ServerConfig::default(), ends)
    });
    let source = connector(wanted)(address)?;
    let (flying, seen, pinged) = (HashMap::new(), Seen::default(), Instant::now());
    let mut reader = Reader { source, flying, tag: 0, pinged, seen };
    let done = scenes(&owner, &mut reader);
    drop(reader);
    stop.store(true, Ordering::Release);
    server.join().map_err(|_| "the server")??;
    done
}

fn scenes(owner: &Arc<Owner>, reader: &mut Reader) -> Result<(), Fault> {
    for seed in 1..=5 {
        reader.open(seed)?;
    }
    for seed in 1..=5 {
        reader.registered(seed)?;
        reader.ask(seed)?;
    }
    reader.landed()?;
    let seen = std::mem::take(&mut reader.seen);
    let all = seen.direct == 5 * PAGES && seen.done == 5 * READS && seen.notes.is_empty();
    check(all, "five seeds", &seen)?;

    // Told in time: an end is no error for anybody.
    reader.ask(2)?;
    reader.ask(1)?;
    reader.ask(2)?;
    let theirs = Arc::clone(owner);
    let end = std::thread::spawn(move || theirs.revoke(1));
    reader.landed()?;
    reader.until("word of the end", |r| !r.seen.notes.is_empty())?;
    end.join().map_err(|_| "the end")?;
    reader.ask(1)?;
    reader.ask(2)?;
    reader.landed()?;
    let seen = std::mem::take(&mut reader.seen);
    let of_it = seen.failed.iter().all(|(seed, e)| (*seed, e) == (1, &ReadError::Revoked));
    let told = seen.notes == [(1, "seed revoked".to_owned())];
    let good = told && of_it && seen.failed.len() as u64 >= READS && seen.direct >= 3 * PAGES;
    check(good, "a seed revoked while another is read", &seen)?;

    // The same while nothing is on its way.
    std::thread::sleep(Duration::from_millis(100));
    let theirs = Arc::clone(owner);
    let end = std::thread::spawn(move || theirs.revoke(5));
    reader.until("word of the end", |r| !r.seen.notes.is_empty())?;
    end.join().map_err(|_| "the end")?;
    reader.ask(2)?;
    reader.landed()?;
    let seen = std::mem::take(&mut reader.seen);
    let told = seen.notes == [(5, "seed revoked".to_owned())];
    check(told && seen.direct == PAGES, "a seed revoked while nothing is read", &seen)?;

    // Not heard: the READ of what has ended is an error, which the others survive.
    owner.revoke(3);
    // Together no more than what can be on its way: all of these are posted before anything is heard.
    for (seed, reads) in [(2, 6), (3, 2), (4, 6)] {
        reader.ask_some(seed, reads)?;
    }
    reader.ask(2)?;
    reader.ask(4)?;
    reader.landed()?;
    let seen = std::mem::take(&mut reader.seen);
    let of_it = seen.failed.iter().all(|(seed, e)| (*seed, e) == (3, &ReadError::Revoked));
    let error = |seed: u8| {
        seen.notes.iter().any(|(of, why)| *of == seed && why.contains("remote access error"))
    };
    let good = of_it && seen.failed.len() == 2 && seen.done == 2 * READS + 12;
    check(good && error(2) && error(3) && error(4), "a seed revoked unheard", &seen)?;

    // And the queue pair is made again.
    for seed in [2, 4] {
        reader.registered(seed)?;
        reader.ask(seed)?;
    }
    reader.landed()?;
    let seen = std::mem::take(&mut reader.seen);
    let good = seen.direct == 2 * PAGES && seen.done == 2 * READS && seen.failed.is_empty();
    check(good, "made again", &seen)
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => {
            println!("pairs: all as they must be");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            println!("pairs: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
