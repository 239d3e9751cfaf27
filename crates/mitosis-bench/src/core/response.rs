//! Time to first response, beside `runc run` and a new `python3` of the same function.

use super::Bed;
use crate::cluster::python;
use crate::error::BenchError;
use crate::peers::{bare_server, first_pages};
use crate::report::{Figure, Samples, Section, Target};
use crate::response::{HELLO, answered, container, get, get_of_fork, local, python_anew, timed};
use mitosis_proto::{ChildRow, ChildState, Net};
use std::time::{Duration, Instant};

const PORT: u16 = 7103;
const COLD_PORT: u16 = 7104;

/// MiB of state: none, so that the function is as small as CPython allows.
const STATE_MIB: &str = "0";

/// How long the first child of a seed stays: after some rest its pager tells the owner what it
/// touched, and later children on any node profit from it.
const REST: Duration = Duration::from_millis(400);

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let _bare = bare_server(bed.owner.node)?;
    let parent = python(bed.owner.node, HELLO, PORT, &[STATE_MIB])?;
    get(local(bed.owner.node, PORT)?)?;
    let node = bed.host.node;
    let cold = container(node, "runc", COLD_PORT, STATE_MIB)?;
    let mut times: [Vec<f64>; 6] = Default::default();
    let mut faults: [Vec<f64>; 3] = Default::default();
    let mut parts: [Vec<f64>; 3] = Default::default();
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        times[0].push(python_anew(bed.host.node, COLD_PORT, STATE_MIB)?);
        times[1].push(cold.run(|| answered(node, COLD_PORT))?);
        let seed = bed.owner.prepare(parent.pid)?;
        bed.quiet.wait(0);
        let first = by_command(bed, &seed.reference, REST)?;
        times[2].push(first.ms);
        faults[0].push(first.faults);
        // A node that holds nothing, as another one would be that the seed has not been forked on.
        bed.host.renew()?;
        bed.quiet.wait(0);
        let fresh = by_command(bed, &seed.reference, Duration::ZERO)?;
        times[3].push(fresh.ms);
        faults[1].push(fresh.faults);
        let next = by_command(bed, &seed.reference, Duration::ZERO)?;
        times[4].push(next.ms);
        faults[2].push(next.faults);
        times[5].push(by_client(bed, &seed.reference)?);
        bed.owner.remove(&seed.seed)?;
        bed.quiet.wait(0);
        for (values, ms) in parts.iter_mut().zip(bare(bed, fresh.pages)?) {
            values.push(ms);
        }
    }
    let fresh = Samples::new("ms", times[3].clone());
    report(section, times.map(|values| Samples::new("ms", values)));
    let [command, forked, pages] = parts.map(|values| Samples::new("ms", values));
    let command = section.add(Figure::new("bare: the command line, started and ended", command));
    let forked =
        section.add(Figure::new("bare: the answer of a plain fork() of the function", forked));
    let name =
        "bare: as many pages as the child on a fresh node has got, received and placed one by one";
    let pages = section.add(Figure::new(name, pages));
    let name = "first response, first child on a fresh node (the same samples)";
    section.add(Figure::new(name, fresh).beside("all three", command + forked + pages));
    let kinds =
        ["first child of a new seed of a known program", "child on a fresh node", "next child"];
    for (kind, values) in kinds.into_iter().zip(faults) {
        let name = format!("remote faults until the first response, {kind}");
        section.add(Figure::new(name, Samples::new("", values)));
    }
    Ok(())
}

fn report(section: &mut Section, times: [Samples; 6]) {
    let [python, runc, first, fresh, next, api] = times;
    section.add(Figure::new("first response, python3 anew", python));
    let peer = section.add(Figure::new("first response, runc run", runc));
    let rows = [
        ("first response, first child of a new seed of a known program", first, true),
        ("first response, first child on a fresh node, seed forked once elsewhere", fresh, true),
        ("first response, next child on that node", next, false),
        ("first response, next child, by the control socket", api, false),
    ];
    for (name, samples, promised) in rows {
        let figure = Figure::new(name, samples).beside("runc run", peer);
        section.add(if promised { figure.promised(Target::RatioMost(0.1)) } else { figure });
    }
}

/// What cannot be had for less: that a command line starts and ends, that a child of a plain `fork()`
/// answers, and that so many pages come and are placed. Milliseconds of each.
fn bare(bed: &Bed<'_>, pages: usize) -> Result<[f64; 3], BenchError> {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1000.0;
    let start = Instant::now();
    let mut process = bed.host.node.spawn(bed.host.version_command())?;
    process.wait(crate::cluster::ANSWER_BOUND)?;
    let command = ms(start);
    let start = Instant::now();
    get_of_fork(local(bed.owner.node, PORT)?)?;
    let forked = ms(start);
    let placed = first_pages(bed.owner.node, bed.host.node, pages)?;
    Ok([command, forked, placed as f64 / 1e6])
}

/// One first response.
struct Response {
    ms: f64,
    /// Faults that the child had until then.
    faults: f64,
    /// Pages that it had been sent.
    pages: usize,
}

/// As a user does it: the command line is started too, as `runc` is.
fn by_command(bed: &Bed<'_>, reference: &str, rest_for: Duration) -> Result<Response, BenchError> {
    let command = bed.host.fork_command(reference, "node");
    let (ms, mut process) = timed(bed.host.node, command, PORT)?;
    process.wait(crate::cluster::ANSWER_BOUND)?;
    let running = |row: &&ChildRow| row.state == ChildState::Running;
    let children = bed.host.children()?;
    let sum = |of: fn(&ChildRow) -> u64| children.iter().filter(running).map(of).sum::<u64>();
    let faults = sum(|row| row.faults) as f64;
    let pages = sum(|row| row.pages_fetched + row.pages_prefetched) as usize;
    std::thread::sleep(rest_for);
    rest(bed)?;
    Ok(Response { ms, faults, pages })
}

/// As a runner does it: over a connection that it holds.
fn by_client(bed: &Bed<'_>, reference: &str) -> Result<f64, BenchError> {
    let start = Instant::now();
    bed.host.fork(reference, Net::Node)?;
    answered(bed.host.node, PORT)?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    rest(bed)?;
    Ok(ms)
}

/// Ends the child, and waits until its port is closed: the next one must not be asked through it.
fn rest(bed: &Bed<'_>) -> Result<(), BenchError> {
    bed.host.end_all()?;
    let end = Instant::now() + crate::cluster::ANSWER_BOUND;
    while local(bed.host.node, PORT).is_ok() {
        if Instant::now() > end {
            return Err(BenchError::wrong("response", "the port of an ended child stays open"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
