//! The next children of a seed on a node, which are copies of a template: how soon, how many, and how
//! much memory, beside fork(2) into the same namespaces of the same process.

use super::Bed;
use super::freeze::{Gaps, SPINNER};
use super::start::{Start, one};
use crate::chart::Chart;
use crate::cluster::{ANSWER_BOUND, Parent, ask, ask_json, python};
use crate::compile::{FLOORS, compile};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use crate::scale::{IDLE, SETTLE};
use mitosis_proto::{ForkRequest, Prepared, Via};
use std::time::{Duration, Instant};

const SPINNER_PORT: u16 = 7106;
const BRIEF_PORT: u16 = 7107;
const IDLE_PORT: u16 = 7108;
/// A parent whose children end at once.
const BRIEF: &str = include_str!("../python/brief.py");
/// Children of one request, and requests at a time, while they are counted.
const BATCH: u32 = 16;
const CLIENTS: usize = 2;
/// Most children that have not ended yet, while they are counted.
const ALIVE_MAX: usize = 256;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    latency(bed, section)?;
    rate(bed, section)?;
    memory(bed, section)
}

/// A seed, and a template of it on the other node that knows what children touch.
pub fn seed(bed: &Bed<'_>, parent: &Parent) -> Result<Prepared, BenchError> {
    let seed = bed.owner.prepare(parent.pid)?;
    for _ in 0..2 {
        let request = ForkRequest { via: Via::Template, ..ForkRequest::new(&seed.reference) };
        let mut forked = bed.host.client()?.fork(request).map_err(BenchError::node("fork"))?;
        std::thread::sleep(Duration::from_millis(500));
        // One whose code ends it may be gone.
        let _ = forked.children.pop().map(|child| bed.host.end(child.pid));
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(seed)
}

fn latency(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let parent = python(bed.owner.node, SPINNER, SPINNER_PORT, &[])?;
    let mut forks = Vec::new();
    for _ in 0..bed.runs {
        bed.quiet.wait(1);
        let gaps: Gaps = ask_json(bed.owner.node, SPINNER_PORT, b"clone\n")?;
        forks.extend(gaps.iter().map(|gap| gap.1 - gap.0));
    }
    let seed = seed(bed, &parent)?;
    parent.pause()?;
    let mut starts = Vec::new();
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        starts.push(one(&bed.host, &seed, SPINNER_PORT, Via::Template)?);
    }
    parent.resume()?;
    bed.owner.remove(&seed.seed)?;
    let name = "fork() into the same namespaces: to the child's first look at the clock";
    let peer = section.add(Figure::new(name, Samples::from_ns(&forks)));
    let samples = |of: fn(&Start) -> f64| Samples::new("us", starts.iter().map(of).collect());
    let mut chart = Chart::cdf("start", "start of a child, CPython", "us");
    chart.distribution("fork() into the namespaces", &Samples::from_ns(&forks));
    chart.distribution("copy of a template, start_us", &samples(|start| start.said_us));
    chart.distribution("copy, from outside", &samples(|start| start.seen_us));
    section.charts.push(chart);
    let said = "copy of a template: request to first instruction, start_us";
    section.add(
        Figure::new(said, samples(|start| start.said_us))
            .beside("fork()", peer)
            .promised(Target::RatioMost(1.3)),
    );
    let seen = "copy of a template: request to first look at the clock, from outside";
    section.add(Figure::new(seen, samples(|start| start.seen_us)).beside("fork()", peer));
    Ok(())
}

fn rate(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let parent = brief(bed, BRIEF_PORT)?;
    let count = bed.runs * 100;
    let (mut plain, mut floor, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    let seed = seed(bed, &parent)?;
    for _ in 0..3 {
        plain.push(loops(bed, BRIEF_PORT, "loop 1\n")?);
        floor.push(loops(bed, BRIEF_PORT, "floor 1\n")?);
        parent.pause()?;
        bed.quiet.wait(0);
        copies.push(sustained(bed, &seed, count)?.rate);
        parent.resume()?;
    }
    bed.owner.remove(&seed.seed)?;
    let name = "fork() and exit with the same namespaces, all processors";
    let peer = section.add(Figure::new(name, Samples::new("1/s", plain)));
    let floor = Figure::new(FLOOR, Samples::new("1/s", floor));
    let floor = section.add(floor.beside("fork() and exit", peer));
    let name = "children of a template, started and ended";
    section.add(
        Figure::new(name, Samples::new("1/s", copies.clone()))
            .beside("fork() and exit", peer)
            .promised(Target::RatioLeast(0.8)),
    );
    let name = "children of a template (the same)";
    section.add(Figure::new(name, Samples::new("1/s", copies)).beside("the kernel's part", floor));
    Ok(())
}

/// What the figure of `floor` says that it is.
pub const FLOOR: &str =
    "the kernel's part: guard with /proc, child with its userfaultfd, and their end";

/// A CPython parent whose children end at once, on a node that has what its floor needs.
pub fn brief(bed: &Bed<'_>, port: u16) -> Result<Parent, BenchError> {
    for program in &FLOORS {
        compile(bed.owner.node, program)?;
    }
    python(bed.owner.node, BRIEF, port, &["0"])
}

/// Has a parent do `line`, a loop of forks; says how many in a second.
pub fn loops(bed: &mut Bed<'_>, port: u16, line: &str) -> Result<f64, BenchError> {
    bed.quiet.wait(0);
    let (made, ns): (u64, u64) = ask_json(bed.owner.node, port, line.as_bytes())?;
    if made == 0 {
        return Err(BenchError::wrong("rate", format!("{:?} made none", line.trim_end())));
    }
    Ok(made as f64 * 1e9 / ns as f64)
}

/// Children that were started one behind the other, all of which have ended.
pub struct Sustained {
    /// Per second, until the last has ended.
    pub rate: f64,
    /// When the starts of each request were done, in seconds, in order; all requests are alike.
    pub marks: Vec<f64>,
    /// How many in all.
    pub made: usize,
}

/// Starts at least `count` children, which end by themselves.
pub fn sustained(bed: &Bed<'_>, seed: &Prepared, count: usize) -> Result<Sustained, BenchError> {
    let share = count.div_ceil(CLIENTS * BATCH as usize);
    let begun = Instant::now();
    let mut marks = std::thread::scope(|scope| {
        let client = || {
            let mut client = bed.host.client()?;
            let mut marks = Vec::with_capacity(share);
            for turn in 0..share {
                let request = ForkRequest {
                    count: BATCH,
                    via: Via::Template,
                    ..ForkRequest::new(&seed.reference)
                };
                client.fork(request).map_err(BenchError::node("fork"))?;
                marks.push(begun.elapsed().as_secs_f64());
                if turn % 4 == 3 {
                    settle(bed, ALIVE_MAX)?;
                }
            }
            Ok::<_, BenchError>(marks)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let failed = |_| BenchError::wrong("rate", "a client panicked");
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(failed)??);
        }
        Ok::<_, BenchError>(all)
    })?;
    settle(bed, 0)?;
    let made = marks.len() * BATCH as usize;
    marks.sort_by(f64::total_cmp);
    Ok(Sustained { rate: made as f64 / begun.elapsed().as_secs_f64(), marks, made })
}

/// Waits until at most so many children run.
fn settle(bed: &Bed<'_>, most: usize) -> Result<(), BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    let mut client = bed.host.client()?;
    loop {
        let alive = client.node().map_err(BenchError::node("node"))?.children;
        if alive <= most {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(BenchError::wrong("rate", format!("{alive} children do not end")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What one more idle child costs, guard and share of the pager included: what the machine has less.
fn memory(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let parent = python(bed.owner.node, IDLE, IDLE_PORT, &["0"])?;
    let count = bed.runs.max(10) * 10;
    let made = count.div_ceil(BATCH as usize) * BATCH as usize;
    let seed = seed(bed, &parent)?;
    // Guards that were made ahead for those before are gone.
    std::thread::sleep(SETTLE);
    bed.quiet.wait(0);
    let before = available_kib()?;
    let mut growth = Vec::new();
    for turn in 1..=count.div_ceil(BATCH as usize) {
        let request =
            ForkRequest { count: BATCH, via: Via::Template, ..ForkRequest::new(&seed.reference) };
        bed.host.client()?.fork(request).map_err(BenchError::node("fork"))?;
        let alive = (turn * BATCH as usize) as f64;
        growth.push((alive, before.saturating_sub(available_kib()?) as f64 / alive));
    }
    section.charts.push(Chart {
        file: "memory",
        title: "memory of each idle child, everything included".to_owned(),
        axes: ["children alive", "KiB"],
        log: [false, false],
        lines: vec![("MemAvailable that is less, for each".to_owned(), growth)],
    });
    std::thread::sleep(SETTLE);
    let each = before.saturating_sub(available_kib()?) as f64 / made as f64;
    bed.host.end_all()?;
    bed.owner.remove(&seed.seed)?;
    // Last: what its processes had comes back late, and would make ours look smaller.
    std::thread::sleep(SETTLE);
    bed.quiet.wait(0);
    let forked = forked(bed, made)?;
    let name = format!("fork() into the same namespaces: memory of each of {made} idle children");
    section.add(Figure::new(name, Samples::new("KiB", vec![forked])));
    let name = format!("memory of each of {made} idle children, everything included");
    let figure = Figure::new(name, Samples::new("KiB", vec![each]));
    section.add(figure.beside("fork()", forked).promised(Target::Most(350.0)));
    Ok(())
}

/// The same of children of fork(2), which have no guard.
fn forked(bed: &Bed<'_>, count: usize) -> Result<f64, BenchError> {
    let node = bed.owner.node;
    let before = available_kib()?;
    ask(node, IDLE_PORT, format!("GET /fork/{count} HTTP/1.0\r\n\r\n").as_bytes())?;
    std::thread::sleep(SETTLE);
    let each = before.saturating_sub(available_kib()?) as f64 / count as f64;
    // Whoever is asked passes it on, by turn, until the parent has it.
    for _ in 0..=count {
        ask(node, IDLE_PORT, b"GET /end HTTP/1.0\r\n\r\n")?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(each)
}

/// `MemAvailable` of proc_meminfo(5).
fn available_kib() -> Result<u64, BenchError> {
    let text = std::fs::read_to_string("/proc/meminfo");
    let text = text.map_err(BenchError::io("memory", "/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| BenchError::wrong("memory", "no MemAvailable"))
}
