//! What a remote fault and a sequential run cost, beside the bare things they are made of. Server,
//! pager and child are processes of their own, as on a node.
//!
//! `cargo run --release -p mitosis-pager --example measure`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use mitosis_descriptor::Owner;
use mitosis_pager::*;
use mitosis_sys::uffd::testing::{Order, Puppet};
use mitosis_sys::uffd::{Event, Uffd};
use mitosis_transport::{OpenSeed, ReadError, Refused, SeedService, SeedState, ServerConfig};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: u64 = 16384;
const ROUNDS: usize = 15;

struct Part(Child, String);

impl Part {
    fn start(args: &[&str]) -> Part {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Part(child, line.trim().to_owned())
    }

    /// How often its threads have waited so far.
    fn waits(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let count = |task: std::io::Result<std::fs::DirEntry>| -> u64 {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse().unwrap()
        };
        tasks.map(count).sum()
    }

    /// CPU time so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory of this very process, read as a shadow's is.
struct Memory(std::fs::File, u64);

impl OpenSeed for Memory {
    fn read(
        &self,
        source: mitosis_descriptor::Vpn,
        _: u32,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        use std::os::unix::fs::FileExt;
        let offset = self.1 + (source.0 % PAGES) * 4096;
        self.0.read_exact_at(out, offset).map_err(|e| ReadError::Failed(e.to_string()))
    }
    fn state(&self) -> SeedState {
        SeedState::Alive
    }
}

struct Memories(Arc<Memory>);

impl SeedService for Memories {
    fn fork(
        &self,
        _: mitosis_descriptor::SeedId,
        _: &mitosis_descriptor::Secret,
    ) -> Result<Arc<[u8]>, Refused> {
        Err(Refused)
    }
    fn open(
        &self,
        _: mitosis_descriptor::SeedId,
        _: &mitosis_descriptor::Secret,
    ) -> Result<Arc<dyn OpenSeed>, Refused> {
        Ok(self.0.clone())
    }
}

fn server() {
    let memory = vec![1u8; (PAGES as usize + 600) * 4096];
    let file = std::fs::File::open("/proc/self/mem").unwrap();
    let service = Arc::new(Memories(Arc::new(Memory(file, memory.as_ptr() as u64))));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    mitosis_transport::serve(listener, service, ServerConfig::default(), Arc::default()).unwrap();
    drop(memory);
}

/// Answers each `n` (u32, little endian) with so many bytes.
fn bare_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let bytes = vec![1u8; 128 << 10];
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wanted = [0; 4];
        while stream.read_exact(&mut wanted).is_ok() {
            let mut left = u32::from_le_bytes(wanted) as usize;
            while left > 0 {
                let part = left.min(bytes.len());
                stream.write_all(&bytes[..part]).unwrap();
                left -= part;
            }
        }
    }
}

fn pager(socket: &str) {
    println!("ready");
    run(PagerConfig::new(socket)).unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bare_round_trip() -> (f64, f64) {
    let part = Part::start(&["bare-server"]);
    let mut stream = TcpStream::connect(&part.1).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut page = vec![0; 4096];
    let trips = (0..2000).map(|_| {
        let start = Instant::now();
        stream.write_all(&4096u32.to_le_bytes()).unwrap();
        stream.read_exact(&mut page).unwrap();
        start.elapsed().as_secs_f64() * 1e6
    });
    let trip = median(trips.collect());
    let mut buffer = vec![0; 512 << 10];
    let streams = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        stream.write_all(&(PAGES as u32 * 4096).to_le_bytes()).unwrap();
        let mut left = PAGES as usize * 4096;
        while left > 0 {
            left -= stream.read(&mut buffer).unwrap();
        }
        PAGES as f64 * 4096.0 / start.elapsed().as_secs_f64() / 1e6
    });
    (trip, median(streams.collect()))
}

/// A fault answered at once by another process, which blocks on the userfaultfd.
fn bare_fault() -> f64 {
    let (rx, tx) = pair();
    let puppet = Puppet::start(2000, &tx).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&rx, &mut parts, &mut control, flags).unwrap();
    let mut fds = control.drain().filter_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let uffd = Uffd::from_fd(fds.next().unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let page = vec![1u8; 4096];
        let mut left = 1000;
        while left > 0 {
            let mut fds = [rustix::event::PollFd::new(&uffd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let mut events = Vec::new();
            uffd.read_events(&mut events).unwrap();
            for event in events {
                if let Event::Fault { addr, .. } = event {
                    uffd.copy(addr & !4095, &page, true);
                    left -= 1;
                }
            }
        }
    });
    let (_, ns) = puppet.order(Order::Touch, [0, 2000, 2, 0], WAIT).unwrap();
    server.join().unwrap();
    ns as f64 / 1000.0 / 1000.0
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("server") => return server(),
        Some("bare-server") => return bare_server(),
        Some("pager") => return pager(&args[1]),
        _ => {}
    }
    let (trip, stream) = bare_round_trip();
    let fault = median((0..5).map(|_| bare_fault()).collect());
    println!(
        "bare 4 KiB round trip {trip:.1} us, bare fault {fault:.1} us, stream {stream:.0} MB/s"
    );

    let source = Part::start(&["server"]);
    let owner = Owner { address: source.1.clone(), seed: SEED, secret: SECRET };
    let socket = format!("/tmp/mitosis-measure-{}.sock", std::process::id());
    let pager = Part::start(&["pager", &socket]);
    let rig = Rig::attach(&socket);
    let whole = || Wanted { pages: PAGES, remote: PAGES, ..Wanted::default() };
    let waits = (source.waits(), pager.waits());
    let remote = (0..5).map(|_| {
        let child = child(&rig, owner.clone(), whole());
        let (touched, ns) = child.puppet.order(Order::Touch, [0, PAGES, 16, 0], WAIT).unwrap();
        ns as f64 / 1000.0 / touched as f64
    });
    let remote = median(remote.collect());
    let touches = 5.0 * (PAGES / 16) as f64;
    println!(
        "remote fault {remote:.1} us, {:.2} of the bare sum; \
         waits per fault: owner {:.2}, pager {:.2}",
        remote / (trip + fault),
        (source.waits() - waits.0) as f64 / touches,
        (pager.waits() - waits.1) as f64 / touches,
    );

    let before = (source.cpu(), pager.cpu());
    let runs = (0..ROUNDS).map(|_| {
        let child = child(&rig, owner.clone(), whole());
        let (_, ns) = child.puppet.order(Order::Touch, [0, PAGES, 1, 0], WAIT).unwrap();
        let stats = rig.stats(child.id);
        (PAGES as f64 * 4096.0 / ns as f64 * 1e3, stats.faults)
    });
    let runs: Vec<(f64, u64)> = runs.collect();
    let speed = median(runs.iter().map(|run| run.0).collect());
    let per_page = |now: Duration, then: Duration| {
        (now - then).as_secs_f64() * 1e6 / (PAGES as f64 * ROUNDS as f64)
    };
    println!(
        "sequential {speed:.0} MB/s, {:.2} of the stream; {} faults; \
         CPU per page: owner {:.2} us, pager {:.2} us",
        speed / stream,
        runs[0].1,
        per_page(source.cpu(), before.0),
        per_page(pager.cpu(), before.1),
    );
    drop(rig);
}
