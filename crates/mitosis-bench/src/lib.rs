//! Measurements and the demonstration: the product's promises held against their peers.
//!
//! A number alone says little on a noisy machine, so every figure here is taken side by side with
//! its peer (a plain fork, a bare fault, a cold start) in one run, and reported as a ratio with
//! the raw samples beside it. The product is used as a user would: its daemon in lab nodes, its
//! command line, its control socket.

#![forbid(unsafe_code)]

mod chart;
mod cluster;
mod compile;
mod container;
mod core;
mod demo;
mod error;
mod helper;
mod machine;
mod mechanisms;
mod peers;
mod plot;
mod quiet;
mod report;
mod response;
mod scale;
mod shadow;
mod suite;

pub use error::BenchError;
pub use machine::Machine;

use report::{Report, Section};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Samples of each figure: enough to quote, and enough to see that it works.
const RUNS: usize = 20;
const RUNS_QUICK: usize = 3;

/// How long the quick set begins anything new, all its parts together. What has begun then is finished.
const QUICK: Duration = Duration::from_secs(150);

/// The name that stands for [`SUITE`].
const ALL: &str = "all";

/// Everything, each once.
const SUITE: [&str; 11] = [
    "floors",
    "mechanisms",
    "shadow",
    "core",
    "copies",
    "sustained",
    "workloads",
    "synthetic",
    "large",
    "learned",
    "fdk",
];

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    /// Samples of each figure.
    pub runs: usize,
    /// Smaller parents and fewer of them.
    pub quick: bool,
    /// Parents of 4 GiB too.
    pub large: bool,
    /// Workloads by name, sizes in MiB: no others; all if empty.
    pub only: Vec<String>,
    /// When a part of the quick set begins with no further subject.
    pub until: Option<Instant>,
}

impl Scale {
    /// Whether the time of this part is over; if so, `left` is noted as not measured.
    pub fn is_over(&self, section: &mut Section, left: &str) -> bool {
        let over = self.until.is_some_and(|until| Instant::now() >= until);
        if over {
            section.notes.push(format!("{left}: not measured, the time of the quick set is over"));
        }
        over
    }

    /// Whether a workload or a size is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// What `mitosis demo` was asked to do.
#[derive(Clone, Debug)]
pub struct DemoArgs {
    /// Nodes in the lab: one owns the parent, the others hold the children (at least 2).
    pub nodes: usize,
    /// Children in all, spread evenly over the other nodes (at least 1).
    pub children: usize,
    /// JSON on stdout instead of the table.
    pub json: bool,
}

/// What `mitosis bench` was asked to do.
#[derive(Clone, Debug)]
pub struct BenchArgs {
    /// Benchmarks by name: those of BENCHMARKS.md, a part of `core`, or `all`.
    pub names: Vec<String>,
    /// Fewer runs: enough to see that it works, not enough to quote.
    pub quick: bool,
    /// Parents of 4 GiB too, which need as much memory and more.
    pub large: bool,
    /// Of `workloads` those of these names, of `synthetic` those of so many MiB; all if empty.
    pub only: Vec<String>,
    /// JSON with all raw samples on stdout instead of tables.
    pub json: bool,
    /// Directory for SVG plots, one for each benchmark; made if it is not there.
    pub plot: Option<PathBuf>,
}

/// Runs the demonstration; returns the exit status (0 done, 1 failed, 2 wrong usage).
pub fn demo(args: DemoArgs) -> i32 {
    status("demo", demo::run(&args))
}

/// Runs benchmarks; returns the exit status (0 done, 1 failed, 2 wrong usage).
pub fn bench(args: BenchArgs) -> i32 {
    if let Some(helped) = helper::run(&args.names) {
        return status("bench", helped);
    }
    status("bench", run(&args))
}

/// The exit status, with one clear line for an error.
fn status(verb: &str, result: Result<(), BenchError>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("mitosis {verb}: {error}");
            if matches!(error, BenchError::Usage(_)) { 2 } else { 1 }
        }
    }
}

fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let known: Vec<&str> = [ALL, "core", "floors", "mechanisms", "scale", "shadow"]
        .into_iter()
        .chain(core::parts())
        .collect();
    if let Some(name) = args.names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        return Err(BenchError::Usage(format!("no benchmark {name:?}; there are {known}")));
    }
    let names: Vec<&str> = args
        .names
        .iter()
        .flat_map(|name| if name == ALL { SUITE.to_vec() } else { vec![name.as_str()] })
        .collect();
    let runs = if args.quick { RUNS_QUICK } else { RUNS };
    let (quick, large, only) = (args.quick, args.large, args.only.clone());
    let mut scale = Scale { runs, quick, large, only, until: None };
    let mut report =
        Report { machine: machine::Machine::this(), quick: args.quick, sections: Vec::new() };
    let mut failures = Vec::new();
    let begun = Instant::now();
    for (index, name) in names.iter().enumerate() {
        let (of, seconds) = (names.len(), begun.elapsed().as_secs());
        eprintln!("bench {name}: {} of {of}, after {seconds} s", index + 1);
        let share = QUICK * (index + 1) as u32 / of as u32;
        scale.until = quick.then(|| begun + share);
        let mut none = Section::new(name);
        if index > 0 && begun.elapsed() > QUICK && scale.is_over(&mut none, name) {
            report.sections.push(none);
            continue;
        }
        report.sections.push(match *name {
            "floors" => peers::run(runs)?,
            "mechanisms" => mechanisms::run(runs)?,
            "scale" => scale::run(args.quick, &mut failures)?,
            "shadow" => shadow::run(runs)?,
            part => core::run(part, &scale, &mut failures)?,
        });
    }
    if args.json {
        let text = report.json();
        println!("{}", text.map_err(|error| BenchError::wrong("print", error))?);
    } else {
        print!("{}", report.table());
    }
    if let Some(dir) = &args.plot {
        plots(dir, &report)?;
    }
    // Everything measured has been printed; now the first failure decides the exit status.
    failures.into_iter().next().map_or(Ok(()), Err)
}

fn plots(dir: &Path, report: &Report) -> Result<(), BenchError> {
    std::fs::create_dir_all(dir).map_err(BenchError::io("plot", dir.display()))?;
    for section in &report.sections {
        let path = dir.join(format!("{}.svg", section.name));
        let failed = BenchError::io("plot", path.display());
        std::fs::write(&path, plot::svg(section)).map_err(failed)?;
        for chart in &section.charts {
            let path = dir.join(format!("{}-{}.svg", section.name, chart.file));
            let failed = BenchError::io("plot", path.display());
            std::fs::write(&path, chart.svg()).map_err(failed)?;
        }
    }
    Ok(())
}
