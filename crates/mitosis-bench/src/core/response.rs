//! Time to first response, beside `runc run` and a new `python3` of the same function.

use super::Bed;
use crate::cluster::python;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use crate::response::{HELLO, answered, container, get, local, python_anew, timed};
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
    let parent = python(bed.owner.node, HELLO, PORT, &[STATE_MIB])?;
    get(local(bed.owner.node, PORT)?)?;
    let node = bed.host.node;
    let cold = container(node, "runc", COLD_PORT, STATE_MIB)?;
    let mut times: [Vec<f64>; 6] = Default::default();
    let mut faults: [Vec<f64>; 3] = Default::default();
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        times[0].push(python_anew(bed.host.node, COLD_PORT, STATE_MIB)?);
        times[1].push(cold.run(|| answered(node, COLD_PORT))?);
        let seed = bed.owner.prepare(parent.pid)?;
        bed.quiet.wait(0);
        let (ms, touches) = by_command(bed, &seed.reference, REST)?;
        times[2].push(ms);
        faults[0].push(touches);
        // A node that holds nothing, as another one would be that the seed has not been forked on.
        bed.host.renew()?;
        bed.quiet.wait(0);
        let (ms, touches) = by_command(bed, &seed.reference, Duration::ZERO)?;
        times[3].push(ms);
        faults[1].push(touches);
        let (ms, touches) = by_command(bed, &seed.reference, Duration::ZERO)?;
        times[4].push(ms);
        faults[2].push(touches);
        times[5].push(by_client(bed, &seed.reference)?);
        bed.owner.remove(&seed.seed)?;
    }
    report(section, times.map(|values| Samples::new("ms", values)));
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

/// As a user does it: the command line is started too, as `runc` is. Milliseconds, and the faults
/// that the child had until then.
fn by_command(
    bed: &Bed<'_>,
    reference: &str,
    rest_for: Duration,
) -> Result<(f64, f64), BenchError> {
    let command = bed.host.fork_command(reference, "node");
    let (ms, mut process) = timed(bed.host.node, command, PORT)?;
    process.wait(crate::cluster::ANSWER_BOUND)?;
    let running = |row: &&ChildRow| row.state == ChildState::Running;
    let faults = bed.host.children()?.iter().filter(running).map(|row| row.faults).sum::<u64>();
    std::thread::sleep(rest_for);
    rest(bed)?;
    Ok((ms, faults as f64))
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
