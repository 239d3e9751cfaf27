//! `bench mechanisms`: the two ways to fill a child's memory, against each other.

use crate::chart::Chart;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section};
use mitosis_sys::floors::{
    Backing, Pages, bulk_place, dropped_page, fault_latency, fork_cost, plain_fault_latency,
};
use std::io;

const WINDOWS: [usize; 4] = [1, 16, 64, 256];
const MIB_PAGES: usize = 256;

const BACKINGS: [(Backing, &str); 3] = [
    (Backing::Anonymous, "anonymous, COPY"),
    (Backing::FreshMemfd, "fresh memfd, write + CONTINUE"),
    (Backing::CachedMemfd, "cached memfd, CONTINUE"),
];

/// Measures with `runs` samples each.
pub fn run(runs: usize) -> Result<Section, BenchError> {
    let mut section = Section::new("mechanisms");
    let failed = |error| BenchError::io("mechanisms", "userfaultfd")(error);
    section.add(Figure::new(
        "one fault, plain anonymous memory",
        Samples::from_ns(&plain_fault_latency(runs * 8).map_err(failed)?),
    ));
    faults(&mut section, runs).map_err(failed)?;
    bulk(&mut section, runs).map_err(failed)?;
    forks(&mut section, runs).map_err(failed)?;
    dropped(&mut section).map_err(failed)?;
    Ok(section)
}

/// One fault answered by another process, placed by the scheduler and on one processor.
fn faults(section: &mut Section, runs: usize) -> io::Result<()> {
    let mut lines = BACKINGS.map(|(_, name)| (name.to_owned(), Vec::new()));
    for window in WINDOWS {
        let mut peer = f64::NAN;
        for ((backing, name), line) in BACKINGS.into_iter().zip(&mut lines) {
            let ns = fault_latency(backing, runs * 8, window, Some((0, 0)))?;
            let name = format!("one fault, {name}, window {window}, same cpu");
            let figure = Figure::new(name, Samples::from_ns(&ns));
            line.1.push((window as f64, figure.median / window as f64));
            if backing == Backing::Anonymous {
                peer = section.add(figure);
            } else {
                section.add(figure.beside("COPY", peer));
            }
        }
    }
    section.charts.push(Chart {
        file: "windows",
        title: "cost of a fault for each page of its window, one processor".to_owned(),
        axes: ["pages of the window", "us for each page"],
        log: [true, true],
        lines: lines.into(),
    });
    for (backing, name) in BACKINGS {
        let ns = fault_latency(backing, runs * 8, 1, None)?;
        let name = format!("one fault, {name}, window 1, any cpu");
        section.add(Figure::new(name, Samples::from_ns(&ns)));
    }
    Ok(())
}

/// Placing without faults or wake-ups: what a prefetched page costs.
fn bulk(section: &mut Section, runs: usize) -> io::Result<()> {
    for window in WINDOWS {
        let mut peer = f64::NAN;
        for (backing, name) in BACKINGS {
            let mut values = Vec::with_capacity(runs);
            for _ in 0..runs {
                let bulk = bulk_place(backing, 16 * MIB_PAGES, window)?;
                values.push((bulk.place_ns + bulk.touch_ns) / 1000.0);
            }
            let name = format!("page in bulk, {name}, window {window}");
            let figure = Figure::new(name, Samples::new("us", values));
            if backing == Backing::Anonymous {
                peer = section.add(figure);
            } else {
                section.add(figure.beside("COPY", peer));
            }
        }
    }
    Ok(())
}

/// A fork of a process with so much memory mapped and present.
fn forks(section: &mut Section, runs: usize) -> io::Result<()> {
    for mib in [64, 256] {
        let mut anonymous = Pages::anonymous(mib * MIB_PAGES)?;
        anonymous.populate();
        let ns = fork_cost(&anonymous, runs, true)?;
        drop(anonymous);
        let name = format!("fork to first instruction, {mib} MiB anonymous");
        let peer = section.add(Figure::new(name, Samples::from_ns(&ns)));
        let shared = mitosis_sys::floors::cached_private(mib * MIB_PAGES)?;
        let ns = fork_cost(&shared, runs, true)?;
        let name = format!("fork to first instruction, {mib} MiB of a memfd, private");
        section.add(Figure::new(name, Samples::from_ns(&ns)).beside("anonymous", peer));
    }
    Ok(())
}

/// What a dropped page shows when it is read again.
fn dropped(section: &mut Section) -> io::Result<()> {
    let cases = [
        (Backing::Anonymous, false, "anonymous, MISSING"),
        (Backing::CachedMemfd, true, "private memfd, MISSING | MINOR"),
        (Backing::CachedMemfd, false, "private memfd, MISSING alone"),
    ];
    for (backing, minor, name) in cases {
        let (outcome, ns) = dropped_page(backing, minor)?;
        let us = ns as f64 / 1000.0;
        section.notes.push(format!("DONTNEED, then a read: {name}: {outcome:?} ({us:.1} us)"));
    }
    Ok(())
}
