//! Measurements and the demonstration: the product's promises held against their peers.
//!
//! A number alone says little on a noisy machine, so every figure here is taken side by side with
//! its peer (a plain fork, a bare fault, a cold start) in one run, and reported as a ratio with
//! the raw samples beside it. The product is used through its command line, as a user would.

#![forbid(unsafe_code)]

use std::path::PathBuf;

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
    /// Benchmarks by name; `core`, `mechanisms` and `shadow` exist.
    pub names: Vec<String>,
    /// Fewer runs: enough to see that it works, not enough to quote.
    pub quick: bool,
    /// JSON with all raw samples on stdout instead of tables.
    pub json: bool,
    /// Directory for SVG plots.
    pub plot: Option<PathBuf>,
}

/// Runs the demonstration; returns the exit status (0 done, 1 failed, 2 wrong usage).
pub fn demo(args: DemoArgs) -> i32 {
    let _ = args;
    eprintln!("mitosis demo: not built yet");
    1
}

/// Runs benchmarks; returns the exit status (0 done, 1 failed, 2 wrong usage).
pub fn bench(args: BenchArgs) -> i32 {
    let _ = args;
    eprintln!("mitosis bench: not built yet");
    1
}
