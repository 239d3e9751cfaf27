//! A parent in C of 1 MiB to 1 GiB (4 GiB if asked for), whose children touch 1 % to 100 % of it.

use super::REST;
use super::parent::{self, Touched, command};
use crate::chart::Chart;
use crate::core::Bed;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section};
use mitosis_proto::Net;
use std::time::{Duration, Instant};

const PORT: u16 = 7126;
const SIZES: [usize; 5] = [1, 16, 64, 256, 1024];
const SIZES_QUICK: [usize; 2] = [1, 16];
const LARGE: usize = 4096;
const RATIOS: [usize; 4] = [1, 10, 50, 100];
const RATIOS_QUICK: [usize; 2] = [1, 100];
const RUNS: usize = 3;

/// What the paper's artifact takes to prepare and to resume a child, by MiB, in ms.
const PAPER: [(usize, f64, f64); 2] = [(1, 0.65, 2.9), (1024, 42.0, 9.6)];
/// What it takes for each page that a child touches, averaged over those fetched ahead, in us.
const PAPER_FAULT_US: f64 = 4.5;

/// One child.
struct Child {
    start_us: f64,
    answer_ms: f64,
    touched: Touched,
}

/// The lines of one plot: fork, first, next.
type Lines = [Vec<(f64, f64)>; 3];

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let mut sizes = if bed.scale.quick { SIZES_QUICK.to_vec() } else { SIZES.to_vec() };
    sizes.extend(bed.scale.large.then_some(LARGE));
    sizes.retain(|mib| bed.scale.wants(&mib.to_string()));
    let mut starts = Lines::default();
    let mut costs = Vec::new();
    for (index, mib) in sizes.into_iter().enumerate() {
        if index > 0 && bed.scale.is_over(section, &format!("{mib} MiB")) {
            continue;
        }
        eprintln!("bench synthetic: {mib} MiB");
        size(bed, section, mib, &mut starts, &mut costs)?;
    }
    let names = ["plain fork()", "first child on a fresh node, start_us", "n-th child, start_us"];
    section.charts.push(Chart {
        file: "start",
        title: "start of a child by the size of its parent".to_owned(),
        axes: ["MiB of the parent", "us"],
        log: [true, true],
        lines: names.map(str::to_owned).into_iter().zip(starts).collect(),
    });
    section.charts.push(Chart {
        file: "touch",
        title: "cost of a touched page by the part of the memory that is touched".to_owned(),
        axes: ["percent of the pages", "us for each page"],
        log: [true, true],
        lines: costs,
    });
    Ok(())
}

fn size(
    bed: &mut Bed<'_>,
    section: &mut Section,
    mib: usize,
    starts: &mut Lines,
    costs: &mut Vec<(String, Vec<(f64, f64)>)>,
) -> Result<(), BenchError> {
    let parent = parent::start(bed, PORT, mib, &["small", "idle"])?;
    let (mut prepares, mut freezes, mut forks) = (vec![], vec![], vec![]);
    let (mut first_us, mut next_us) = (vec![], vec![]);
    let ratios = if bed.scale.quick { &RATIOS_QUICK[..] } else { &RATIOS[..] };
    let mut lines = Lines::default();
    let mut rows = Vec::new();
    for &percent in ratios {
        let (mut local, mut first, mut next) = (vec![], vec![], vec![]);
        let mut answers = [vec![], vec![]];
        for _ in 0..RUNS.min(bed.runs) {
            bed.host.renew()?;
            bed.quiet.wait(0);
            let forked = command(bed.owner.node, PORT, &format!("fork {percent}"))?;
            forks.push(forked.start_ns as f64 / 1000.0);
            local.push(forked.each_us());
            // A new seed: of the old one it is known what its children touch.
            let seed = bed.owner.prepare(parent.pid)?;
            prepares.push(seed.prepare_us as f64 / 1000.0);
            freezes.push(seed.freeze_us as f64);
            bed.quiet.wait(0);
            let child = touch(bed, &seed.reference, percent, REST)?;
            first_us.push(child.start_us);
            first.push(child.touched.each_us());
            answers[0].push(child.answer_ms);
            let child = touch(bed, &seed.reference, percent, Duration::ZERO)?;
            next_us.push(child.start_us);
            next.push(child.touched.each_us());
            answers[1].push(child.answer_ms);
            bed.owner.remove(&seed.seed)?;
        }
        rows.push((percent, local, first, next, answers));
    }
    let us = |values: &[f64]| Samples::new("us", values.to_vec());
    let paper = PAPER.iter().find(|row| row.0 == mib);
    let published = |figure: Figure, value: Option<f64>| match value {
        Some(value) => figure.in_paper(value),
        None => figure,
    };
    let figure = Figure::new(format!("{mib} MiB: prepare"), Samples::new("ms", prepares));
    section.add(published(figure, paper.map(|row| row.1)));
    section.add(Figure::new(format!("{mib} MiB: freeze_us"), us(&freezes)));
    let name = format!("{mib} MiB: plain fork(), to the child's first look at the clock");
    let peer = section.add(Figure::new(name, us(&forks)));
    let name = format!("{mib} MiB: start_us, first child on a fresh node");
    let figure = Figure::new(name, us(&first_us)).beside("plain fork()", peer);
    let first = section.add(published(figure, paper.map(|row| row.2 * 1000.0)));
    let name = format!("{mib} MiB: start_us, n-th child");
    let next = section.add(Figure::new(name, us(&next_us)).beside("plain fork()", peer));
    for (line, value) in starts.iter_mut().zip([peer, first, next]) {
        line.push((mib as f64, value));
    }
    for (percent, local, first, next, answers) in rows {
        let of = |what: &str| format!("{mib} MiB, {percent} %: {what}");
        let peer = section.add(Figure::new(of("a page, child of a plain fork()"), us(&local)));
        let figure = Figure::new(of("a page, first child, nothing learned"), us(&first));
        let fetched = section.add(figure.beside("plain fork()", peer).in_paper(PAPER_FAULT_US));
        let figure = Figure::new(of("a page, n-th child"), us(&next));
        let later = section.add(figure.beside("plain fork()", peer));
        for (line, value) in lines.iter_mut().zip([peer, fetched, later]) {
            line.push((percent as f64, value));
        }
        for (kind, values) in ["first child", "n-th child"].into_iter().zip(answers) {
            let name = of(&format!("request to answer, {kind}"));
            section.add(Figure::new(name, Samples::new("ms", values)));
        }
    }
    let names = ["plain fork()", "first child", "n-th child"];
    costs.extend(names.iter().zip(lines).map(|(name, line)| (format!("{mib} MiB, {name}"), line)));
    Ok(())
}

fn touch(
    bed: &Bed<'_>,
    reference: &str,
    percent: usize,
    rest: Duration,
) -> Result<Child, BenchError> {
    let start = Instant::now();
    let child = bed.host.fork(reference, Net::Node)?;
    let touched = command(bed.host.node, PORT, &format!("touch {percent}"))?;
    let answer_ms = start.elapsed().as_secs_f64() * 1000.0;
    std::thread::sleep(rest);
    bed.host.end(child.pid)?;
    Ok(Child { start_us: child.start_us as f64, answer_ms, touched })
}
