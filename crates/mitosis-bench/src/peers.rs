//! What the machine does without the product: the peers of `bench core`, and `bench floors`, which
//! measures them alone.

use crate::cluster::{ANSWER_BOUND, Parent, ask_json, cpu_ns, helper, python};
use crate::core::{Gaps, SPINNER, longest};
use crate::error::BenchError;
use crate::helper::{PAGE_BYTES, SERVE, elapsed_ns};
use crate::report::{Figure, Samples, Section};
use crate::response::{answered, container, python_anew};
use mitosis_lab::{Lab, Node};
use mitosis_sys::floors::{Backing, fault_latency, receive_and_place, remote_fault_latency};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

/// MiB of a stream.
pub const STREAM_MIB: usize = 64;

const STREAM_BYTES: usize = STREAM_MIB << 20;
const BARE_PORT: u16 = 7105;
const SPINNER_PORT: u16 = 7101;
const COLD_PORT: u16 = 7104;

/// The bare server on `node`.
pub fn bare_server(node: &Node) -> Result<Parent, BenchError> {
    helper(node, SERVE, BARE_PORT, &[])
}

/// Nanoseconds of each of `count` round trips of an 8-byte request and a page.
pub fn round_trips(owner: &Node, host: &Node, count: usize) -> Result<Vec<u64>, BenchError> {
    let to = SocketAddr::new(owner.ip(), BARE_PORT);
    let mut stream = host.connect(to, ANSWER_BOUND)?;
    let failed = |error| BenchError::io("round trip", to)(error);
    stream.set_nodelay(true).map_err(failed)?;
    let request = (PAGE_BYTES as u64).to_le_bytes();
    let mut page = [0_u8; PAGE_BYTES];
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&request).map_err(failed)?;
        stream.read_exact(&mut page).map_err(failed)?;
        samples.push(elapsed_ns(start));
    }
    Ok(samples)
}

/// Nanoseconds of each of `count` faults here that a process answers after such a round trip.
pub fn bare_remote_faults(owner: &Node, host: &Node, count: usize) -> Result<Vec<u64>, BenchError> {
    let to = SocketAddr::new(owner.ip(), BARE_PORT);
    let stream = host.connect(to, ANSWER_BOUND)?;
    let failed = |error| BenchError::io("bare remote fault", to)(error);
    stream.set_nodelay(true).map_err(failed)?;
    remote_fault_latency(stream.as_fd(), count).map_err(failed)
}

/// One pass over 64 MiB.
pub struct Pass {
    /// MiB/s.
    pub rate: f64,
    /// Microseconds of processor time per page on the sending side.
    pub sender_us: f64,
    /// The same on the receiving side.
    pub receiver_us: f64,
}

/// Streams 64 MiB from the bare server on `owner` into one hot buffer here.
pub fn plain_stream(host: &Node, owner: &Node, bare: &Parent) -> Result<Pass, BenchError> {
    stream(host, owner, bare, |stream| {
        let mut buffer = vec![1_u8; 1 << 20];
        let start = Instant::now();
        let mut left = STREAM_BYTES;
        while left > 0 {
            let count = left.min(buffer.len());
            left -= match stream.read(&mut buffer[..count])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => read,
            };
        }
        Ok(elapsed_ns(start))
    })
}

/// The same, and each page is placed by `UFFDIO_COPY`: 64 at a time, or each alone, `step` pages apart.
pub fn placed_stream(
    host: &Node,
    owner: &Node,
    bare: &Parent,
    step: usize,
) -> Result<Pass, BenchError> {
    stream(host, owner, bare, |stream| {
        let pages = STREAM_BYTES / PAGE_BYTES;
        let each_ns = receive_and_place(stream.as_fd(), pages, 64, step)?;
        Ok((each_ns * pages as f64) as u64)
    })
}

/// Nanoseconds from the request for `count` pages until they have come and each has been placed alone: what
/// a first child waits for.
pub fn first_pages(owner: &Node, host: &Node, count: usize) -> Result<u64, BenchError> {
    let to = SocketAddr::new(owner.ip(), BARE_PORT);
    let mut stream = host.connect(to, ANSWER_BOUND)?;
    let failed = |error| BenchError::io("first pages", to)(error);
    let begun = Instant::now();
    stream.write_all(&((count * PAGE_BYTES) as u64).to_le_bytes()).map_err(failed)?;
    receive_and_place(stream.as_fd(), count, 32, 2).map_err(failed)?;
    Ok(elapsed_ns(begun))
}

/// One pass, of which `take` takes the bytes and says how many nanoseconds that took.
fn stream(
    host: &Node,
    owner: &Node,
    bare: &Parent,
    take: impl FnOnce(&mut TcpStream) -> io::Result<u64>,
) -> Result<Pass, BenchError> {
    let to = SocketAddr::new(owner.ip(), BARE_PORT);
    let mut stream = host.connect(to, ANSWER_BOUND)?;
    let failed = |error| BenchError::io("stream", to)(error);
    let (sender, own) = (owner.proc_dir(bare.pid), Path::new("/proc/self"));
    let (sent, received) = (cpu_ns(&sender)?, cpu_ns(own)?);
    stream.write_all(&(STREAM_BYTES as u64).to_le_bytes()).map_err(failed)?;
    let spent_ns = take(&mut stream).map_err(failed)?;
    Ok(Pass {
        rate: rate(spent_ns),
        sender_us: per_page_us(cpu_ns(&sender)?.saturating_sub(sent)),
        receiver_us: per_page_us(cpu_ns(own)?.saturating_sub(received)),
    })
}

/// Microseconds per page of nanoseconds for all 64 MiB.
pub fn per_page_us(ns: u64) -> f64 {
    ns as f64 / 1000.0 / (STREAM_BYTES / PAGE_BYTES) as f64
}

/// MiB/s of 64 MiB in so many nanoseconds.
pub fn rate(ns: u64) -> f64 {
    STREAM_MIB as f64 / (ns as f64 / 1e9)
}

/// `bench floors`: all peers, with `runs` samples each; no daemon runs.
pub fn run(runs: usize) -> Result<Section, BenchError> {
    let mut section = Section::new("floors");
    let lab = Lab::new("floors", 2)?;
    let (owner, host) = (lab.node(0), lab.node(1));
    let bare = bare_server(owner)?;
    let spinner = python(owner, SPINNER, SPINNER_PORT, &[])?;
    let mut forks = Vec::new();
    for _ in 0..runs {
        let around: Gaps = ask_json(owner, SPINNER_PORT, b"fork\n")?;
        forks.extend(longest(&around));
    }
    drop(spinner);
    let cold = container(host, "runc", COLD_PORT, "0")?;
    let (mut faults, mut trips, mut chains) = (Vec::new(), Vec::new(), Vec::new());
    let (mut passes, mut python_ms, mut runc_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let fault = fault_latency(Backing::Anonymous, 50, 1, None);
        faults.extend(fault.map_err(BenchError::io("bare fault", "userfaultfd"))?);
        trips.extend(round_trips(owner, host, 50)?);
        chains.extend(bare_remote_faults(owner, host, 50)?);
        passes.push(plain_stream(host, owner, &bare)?);
        python_ms.push(python_anew(host, COLD_PORT, "0")?);
        runc_ms.push(cold.run(|| answered(host, COLD_PORT))?);
    }
    let of = |unit, field: fn(&Pass) -> f64| Samples::new(unit, passes.iter().map(field).collect());
    let figures = [
        ("longest gap around a plain fork(), CPython", Samples::from_ns(&forks)),
        ("bare uffd fault", Samples::from_ns(&faults)),
        ("bare 4 KiB round trip", Samples::from_ns(&trips)),
        ("bare fault answered after a bare round trip", Samples::from_ns(&chains)),
        ("plain TCP stream of 64 MiB", of("MiB/s", |pass| pass.rate)),
        ("plain stream, processor per page, sender", of("us", |pass| pass.sender_us)),
        ("plain stream, processor per page, receiver", of("us", |pass| pass.receiver_us)),
        ("first response, python3 anew", Samples::new("ms", python_ms)),
        ("first response, runc run", Samples::new("ms", runc_ms)),
    ];
    for (name, samples) in figures {
        section.add(Figure::new(name, samples));
    }
    Ok(section)
}
