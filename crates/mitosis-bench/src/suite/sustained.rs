//! Children per second over thousands of them, of CPython and of a program of 1 MiB, beside a loop of
//! fork and exit of the same process into the same namespaces, and beside what the kernel asks for them.

use super::parent;
use crate::chart::Chart;
use crate::cluster::Parent;
use crate::compile::{FLOORS, compile};
use crate::core::{Bed, FLOOR, brief, loops, sustained, warm_seed};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};

const PYTHON_PORT: u16 = 7122;
const C_PORT: u16 = 7123;

/// What the paper has: children per processor core and second.
const PAPER_PER_CORE: f64 = 97.0;

/// Points of the line over time.
const POINTS: usize = 60;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let mut lines = Vec::new();
    let parent = brief(bed, PYTHON_PORT)?;
    lines.extend(one(bed, section, &parent, "CPython")?);
    drop(parent);
    for program in &FLOORS {
        compile(bed.owner.node, program)?;
    }
    let parent = parent::start(bed, C_PORT, 1, &["small", "idle", "brief"])?;
    lines.extend(one(bed, section, &parent, "C, 1 MiB")?);
    section.charts.push(Chart {
        file: "rate",
        title: "children started per second, over time".to_owned(),
        axes: ["seconds", "children per second"],
        log: [false, false],
        lines,
    });
    Ok(())
}

type Line = (String, Vec<(f64, f64)>);

fn one(
    bed: &mut Bed<'_>,
    section: &mut Section,
    parent: &Parent,
    name: &str,
) -> Result<[Line; 2], BenchError> {
    let seed = warm_seed(bed, parent)?;
    let (mut plain, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        plain.push(loops(bed, parent.port, "loop 1\n")?);
        floor.push(loops(bed, parent.port, "floor 1\n")?);
    }
    parent.pause()?;
    bed.quiet.wait(0);
    let copies = sustained(bed, &seed, bed.runs * if bed.scale.quick { 100 } else { 500 })?;
    parent.resume()?;
    bed.owner.remove(&seed.seed)?;
    let per_second = |values| Samples::new("1/s", values);
    let title = format!("{name}: fork() and exit with the same namespaces, all processors");
    let peer = section.add(Figure::new(title, per_second(plain)));
    let floor = Figure::new(format!("{name}: {FLOOR}"), per_second(floor));
    let floor = section.add(floor.beside("fork() and exit", peer));
    let rate = vec![copies.rate];
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let made = copies.made;
    let title = format!("{name}: {made} children, started and ended");
    section.add(
        Figure::new(title, per_second(rate.clone()))
            .beside("fork() and exit", peer)
            .promised(Target::RatioLeast(0.8))
            .in_paper(PAPER_PER_CORE * cores),
    );
    let title = format!("{name}: {made} children (the same)");
    let same = Figure::new(title, per_second(rate.clone()));
    section.add(same.beside("the kernel's part", floor));
    let title = format!("{name}: {made} children (the same)");
    section.add(
        Figure::new(title, per_second(rate))
            .beside("the paper's 97 per core", PAPER_PER_CORE * cores)
            .promised(Target::RatioLeast(5.0)),
    );
    let over_time = over_time(&copies.marks, made);
    let title = format!("{name}: over time");
    let values = over_time.iter().map(|point| point.1).collect();
    section.add(Figure::new(title, per_second(values)));
    let end = copies.marks.last().copied().unwrap_or(0.0);
    let level = vec![(0.0, peer), (end, peer)];
    Ok([(name.to_owned(), over_time), (format!("{name}, fork() and exit"), level)])
}

/// When, and how many per second in the equally long time up to then.
fn over_time(marks: &[f64], made: usize) -> Vec<(f64, f64)> {
    let each = made as f64 / marks.len().max(1) as f64;
    let end = marks.last().copied().unwrap_or(0.0);
    let points = POINTS.min(marks.len() / 2).max(1);
    let step = end / points as f64;
    let point = |index: usize| {
        let (from, until) = (index as f64 * step, (index + 1) as f64 * step);
        let within = marks.iter().filter(|mark| **mark > from && **mark <= until).count();
        (until, within as f64 * each / step)
    };
    (0..points).map(point).collect()
}
