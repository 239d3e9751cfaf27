//! Functions of many kinds: how soon one answers and how long its call takes, in a process anew, in a
//! container anew and in one that was paused, in a child of a plain `fork()`, and in children here.

use super::{REST, python_spec};
use crate::chart::Chart;
use crate::cluster::{ANSWER_BOUND, exchange, process};
use crate::container::{Container, Spec, retry};
use crate::core::Bed;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use mitosis_lab::Node;
use mitosis_proto::Net;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("../python/function.py");
const PORT: u16 = 7124;
const COLD_PORT: u16 = 7125;

const NAMES: [&str; 8] =
    ["hello", "json", "pyaes", "templating", "image", "compression", "pagerank", "linalg"];

/// Next children after each first one.
const NEXT: usize = 3;

/// What one call says.
#[derive(Debug, Deserialize)]
struct Call {
    ns: u64,
    cpu_ns: u64,
    faults: u64,
    value: String,
    pid: u32,
}

/// Samples by kind of process; in the order of [`KINDS`].
#[derive(Default)]
struct Taken {
    answer_ms: BTreeMap<&'static str, Vec<f64>>,
    call_ms: BTreeMap<&'static str, Vec<f64>>,
    cpu_ms: BTreeMap<&'static str, Vec<f64>>,
    faults: BTreeMap<&'static str, Vec<f64>>,
    memory_kib: BTreeMap<&'static str, Vec<f64>>,
    start_us: BTreeMap<&'static str, Vec<f64>>,
    /// Seconds of forking, answering and ending, one child behind the other.
    cycles: BTreeMap<&'static str, Vec<f64>>,
}

const ANEW: &str = "python3 anew";
const RUNC: &str = "runc run";
const CRUN: &str = "crun run";
const CACHED: &str = "paused container of runc";
const PARENT: &str = "parent";
const LOCAL: &str = "child of a plain fork()";
const FIRST: &str = "first child on a fresh node";
const NTH: &str = "n-th child";
const KINDS: [&str; 8] = [ANEW, RUNC, CRUN, CACHED, PARENT, LOCAL, FIRST, NTH];

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let mut chart = Chart::cdf("answer", "time to first response, all workloads", "ms");
    let mut all: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let names: Vec<&str> = NAMES.into_iter().filter(|name| bed.scale.wants(name)).collect();
    for (index, name) in names.iter().enumerate() {
        if index > 0 && bed.scale.is_over(section, name) {
            continue;
        }
        eprintln!("bench workloads: {name}, {} of {}", index + 1, names.len());
        let taken = one(bed, name)?;
        for (kind, values) in &taken.answer_ms {
            all.entry(kind).or_default().extend(values);
        }
        figures(section, name, taken);
    }
    for kind in KINDS {
        if let Some(values) = all.remove(kind) {
            chart.distribution(kind, &Samples::new("ms", values));
        }
    }
    section.charts.push(chart);
    Ok(())
}

fn one(bed: &mut Bed<'_>, name: &str) -> Result<Taken, BenchError> {
    let spec = |port: u16| {
        python_spec(["-c", SOURCE, &port.to_string(), name].map(str::to_owned).to_vec())
    };
    let parent = process(bed.owner.node, spec(PORT)?.command(), PORT)?;
    let (owner, host) = (bed.owner.node, bed.host.node);
    let expected = call(owner, PORT)?.value;
    let check = |call: Call| {
        if call.value == expected {
            return Ok(call);
        }
        Err(BenchError::wrong("workloads", format!("{name}: {} is not {expected}", call.value)))
    };
    let runc = Container::new(host, "runc", "cold", &spec(COLD_PORT)?)?;
    let crun = Container::new(host, "crun", "cold", &spec(COLD_PORT)?)?;
    let cached = Container::new(host, "runc", "cached", &spec(COLD_PORT + 1)?)?;
    let cached = cached.start(|| call(host, COLD_PORT + 1).map(drop))?;
    let seed = bed.owner.prepare(parent.pid)?;
    let mut taken = Taken::default();
    // What children touch is learned elsewhere: another node has forked this seed before.
    child(bed, &seed.reference, REST)?;
    for _ in 0..bed.runs.div_ceil(2) {
        bed.quiet.wait(0);
        push(&mut taken.answer_ms, ANEW, anew(host, &spec(COLD_PORT)?)?);
        let ask = || call(host, COLD_PORT).map(drop);
        push(&mut taken.answer_ms, RUNC, runc.run(ask)?);
        push(&mut taken.answer_ms, CRUN, crun.run(ask)?);
        cached.pause()?;
        let ms = cached.resume(|| call(host, COLD_PORT + 1).map(drop))?;
        push(&mut taken.answer_ms, CACHED, ms);
        bed.host.renew()?;
        bed.quiet.wait(0);
        taken.called(PARENT, &check(call(owner, PORT)?)?);
        taken.add(LOCAL, local(owner, &check)?);
        taken.add(FIRST, child(bed, &seed.reference, REST)?.checked(&check)?);
        for _ in 0..NEXT {
            taken.add(LOCAL, local(owner, &check)?);
            taken.add(NTH, child(bed, &seed.reference, Duration::ZERO)?.checked(&check)?);
        }
    }
    cached.end()?;
    bed.owner.remove(&seed.seed)?;
    Ok(taken)
}

fn push(to: &mut BTreeMap<&'static str, Vec<f64>>, kind: &'static str, value: f64) {
    to.entry(kind).or_default().push(value);
}

/// One child that answered once.
struct Answered {
    ms: f64,
    call: Call,
    private_kib: f64,
    start_us: Option<f64>,
    cycle: f64,
}

impl Answered {
    fn checked(
        self,
        check: &impl Fn(Call) -> Result<Call, BenchError>,
    ) -> Result<Self, BenchError> {
        Ok(Answered { call: check(self.call)?, ..self })
    }
}

impl Taken {
    fn called(&mut self, kind: &'static str, call: &Call) {
        push(&mut self.call_ms, kind, call.ns as f64 / 1e6);
        push(&mut self.cpu_ms, kind, call.cpu_ns as f64 / 1e6);
        push(&mut self.faults, kind, call.faults as f64);
    }

    fn add(&mut self, kind: &'static str, child: Answered) {
        push(&mut self.answer_ms, kind, child.ms);
        self.called(kind, &child.call);
        push(&mut self.memory_kib, kind, child.private_kib);
        push(&mut self.cycles, kind, child.cycle);
        if let Some(us) = child.start_us {
            push(&mut self.start_us, kind, us);
        }
    }
}

/// Milliseconds from the start of a process to the answer.
fn anew(node: &Node, spec: &Spec) -> Result<f64, BenchError> {
    let start = Instant::now();
    let mut process = node.spawn(spec.command())?;
    retry(|| call(node, COLD_PORT))?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    process.kill()?;
    Ok(ms)
}

/// A child here, of `reference`, that stays for `rest` after its answer.
fn child(bed: &Bed<'_>, reference: &str, rest: Duration) -> Result<Answered, BenchError> {
    let node = bed.host.node;
    let start = Instant::now();
    let child = bed.host.fork(reference, Net::Node)?;
    let call = retry(|| call(node, PORT))?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let pid = u32::try_from(child.pid).map_err(|error| BenchError::wrong("workloads", error))?;
    let private_kib = node.memory(pid)?.private as f64 / 1024.0;
    std::thread::sleep(rest);
    let ending = Instant::now();
    bed.host.end(child.pid)?;
    let cycle = ms / 1000.0 + ending.elapsed().as_secs_f64();
    let end = Instant::now() + ANSWER_BOUND;
    // The next one must not be asked through the port of an ended child.
    while node.connect(SocketAddr::new(node.ip(), PORT), ANSWER_BOUND).is_ok() {
        if Instant::now() > end {
            return Err(BenchError::wrong("workloads", "the port of an ended child stays open"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Answered { ms, call, private_kib, start_us: Some(child.start_us as f64), cycle })
}

/// A child of a plain `fork()` of the parent, which waits for connections where the others do.
fn local(
    node: &Node,
    check: &impl Fn(Call) -> Result<Call, BenchError>,
) -> Result<Answered, BenchError> {
    let failed = |error| BenchError::io("fork", PORT)(error);
    let start = Instant::now();
    let mut stream = connect(node, PORT)?;
    stream.write_all(b"fork\n").map_err(failed)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(failed)?;
    if line != "forked\n" {
        return Err(BenchError::wrong("fork", line));
    }
    let call = check(call(node, PORT)?)?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let private_kib = node.memory(call.pid)?.private as f64 / 1024.0;
    let ending = Instant::now();
    connect(node, PORT)?.write_all(b"end\n").map_err(failed)?;
    let gone = node.proc_dir(call.pid);
    while gone.exists() && ending.elapsed() < ANSWER_BOUND {
        std::thread::sleep(Duration::from_micros(100));
    }
    let cycle = ms / 1000.0 + ending.elapsed().as_secs_f64();
    // Its parent waits for this.
    drop(stream);
    Ok(Answered { ms, call, private_kib, start_us: None, cycle })
}

fn connect(node: &Node, port: u16) -> Result<TcpStream, BenchError> {
    let stream = node.connect(SocketAddr::new(node.ip(), port), ANSWER_BOUND)?;
    let set = stream.set_read_timeout(Some(ANSWER_BOUND)).and(stream.set_nodelay(true));
    set.map_err(BenchError::io("ask", port))?;
    Ok(stream)
}

fn call(node: &Node, port: u16) -> Result<Call, BenchError> {
    let stream = connect(node, port)?;
    parse(&exchange(stream, b"call\n").map_err(BenchError::io("call", port))?)
}

fn parse(answer: &[u8]) -> Result<Call, BenchError> {
    serde_json::from_slice(answer).map_err(|error| {
        BenchError::wrong("call", format!("{error}: {}", String::from_utf8_lossy(answer)))
    })
}

fn figures(section: &mut Section, name: &str, mut taken: Taken) {
    for kind in [FIRST, NTH] {
        let values = taken.start_us.remove(kind).unwrap_or_default();
        let title = format!("{name}: start_us, {kind}");
        section.add(Figure::new(title, Samples::new("us", values)));
    }
    let median = |of: &BTreeMap<&'static str, Vec<f64>>, kind| match of.get(kind) {
        Some(values) => Samples::new("", values.clone()).median(),
        None => f64::NAN,
    };
    let cold = median(&taken.answer_ms, RUNC);
    for kind in KINDS {
        if let Some(values) = taken.answer_ms.remove(kind) {
            let title = format!("{name}: first response, {kind}");
            section.add(Figure::new(title, Samples::new("ms", values)).beside(RUNC, cold));
        }
    }
    let (forked, used) = (median(&taken.call_ms, LOCAL), median(&taken.memory_kib, LOCAL));
    for kind in [PARENT, LOCAL, FIRST, NTH] {
        let values = taken.call_ms.remove(kind).unwrap_or_default();
        let figure = Figure::new(format!("{name}: the call, {kind}"), Samples::new("ms", values));
        let figure = figure.beside(LOCAL, forked);
        section.add(match kind {
            FIRST => figure.promised(Target::RatioMost(1.3)),
            NTH => figure.promised(Target::RatioMost(1.05)),
            _ => figure,
        });
    }
    let cpu = median(&taken.cpu_ms, LOCAL);
    for kind in [PARENT, LOCAL, FIRST, NTH] {
        let values = taken.cpu_ms.remove(kind).unwrap_or_default();
        let title = format!("{name}: processor time of the call, {kind}");
        section.add(Figure::new(title, Samples::new("ms", values)).beside(LOCAL, cpu));
    }
    for kind in [LOCAL, FIRST, NTH] {
        let values = taken.faults.remove(kind).unwrap_or_default();
        let title = format!("{name}: page faults of the call, {kind}");
        section.add(Figure::new(title, Samples::new("", values)));
    }
    for kind in [LOCAL, FIRST, NTH] {
        let values = taken.memory_kib.remove(kind).unwrap_or_default();
        let title = format!("{name}: memory of its own after one answer, {kind}");
        let figure = Figure::new(title, Samples::new("KiB", values)).beside(LOCAL, used);
        section.add(if kind == NTH { figure.promised(Target::RatioMost(1.1)) } else { figure });
    }
    for kind in [LOCAL, NTH] {
        let cycles = taken.cycles.remove(kind).unwrap_or_default();
        let rate = cycles.len() as f64 / cycles.iter().sum::<f64>();
        let title = format!("{name}: started, answered and ended, one by one, {kind}");
        section.add(Figure::new(title, Samples::new("1/s", vec![rate])));
    }
}
