//! How long the parent does not run: the longest gap that its spinning thread sees.

use super::Bed;
use crate::cluster::{ask_json, monotonic_ns, python};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use mitosis_lab::Node;
use std::time::Duration;

/// The parent that looks at the clock.
pub const SPINNER: &str = include_str!("../python/spinner.py");

/// Pairs of CLOCK_MONOTONIC nanoseconds: last look before, first look after.
pub type Gaps = Vec<(u64, u64)>;

const PORT: u16 = 7101;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let node = bed.owner.node;
    let parent = python(node, SPINNER, PORT, &[])?;
    let (mut plain, mut frozen, mut said) = (Vec::new(), Vec::new(), Vec::new());
    let mut quiet = Vec::new();
    for _ in 0..bed.runs {
        bed.quiet.wait(1);
        let around: Gaps = ask_json(node, PORT, b"fork\n")?;
        plain.extend(longest(&around));
        let (seed, gap, took) = watched(node, PORT, || bed.owner.prepare(parent.pid))?;
        frozen.extend(gap);
        said.push(seed.freeze_us as f64);
        bed.owner.remove(&seed.seed)?;
        let rest = || {
            std::thread::sleep(took);
            Ok(())
        };
        let ((), gap, _) = watched(node, PORT, rest)?;
        quiet.extend(gap);
    }
    let name = "longest gap around a plain fork()";
    let peer = section.add(Figure::new(name, Samples::from_ns(&plain)));
    section.add(
        Figure::new("longest gap around prepare", Samples::from_ns(&frozen))
            .beside("plain fork()", peer)
            .promised(Target::RatioMost(1.5)),
    );
    let name = "longest gap in as much time, nothing done";
    section.add(Figure::new(name, Samples::from_ns(&quiet)).beside("plain fork()", peer));
    section.add(Figure::new("freeze_us, as prepare reports it", Samples::new("us", said)));
    Ok(())
}

/// Does `work`; the longest gap that the spinner at `port` of `node` saw meanwhile, and how long it took.
pub fn watched<T>(
    node: &Node,
    port: u16,
    work: impl FnOnce() -> Result<T, BenchError>,
) -> Result<(T, Option<u64>, Duration), BenchError> {
    let _: Gaps = ask_json(node, port, b"gaps\n")?;
    let from = monotonic_ns();
    let done = work()?;
    let until = monotonic_ns();
    let gaps: Gaps = ask_json(node, port, b"gaps\n")?;
    let during = gaps.iter().filter(|gap| gap.1 >= from && gap.0 <= until);
    Ok((done, longest(during), Duration::from_nanos(until - from)))
}

/// The longest gap, if there was any.
pub fn longest<'a>(gaps: impl IntoIterator<Item = &'a (u64, u64)>) -> Option<u64> {
    gaps.into_iter().map(|(before, after)| after.saturating_sub(*before)).max()
}
