//! The synthetic parent: a small program in C, compiled when it is needed.

use crate::cluster::{Parent, ask_json, process};
use crate::compile::{self, compile};
use crate::core::Bed;
use crate::error::BenchError;
use mitosis_lab::Node;
use serde::Deserialize;
use std::process::{Command, Stdio};

/// What a touch of pages, or a fork, took.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Touched {
    /// From before `fork()` to the child's first look at the clock.
    pub start_ns: u64,
    /// What `fork()` took in the parent.
    pub gap_ns: u64,
    /// All touches together.
    pub ns: u64,
    /// How many.
    pub pages: u64,
    right: bool,
}

impl Touched {
    /// Microseconds of a touch.
    pub fn each_us(&self) -> f64 {
        self.ns as f64 / 1000.0 / self.pages.max(1) as f64
    }
}

/// Starts one with `mib` MiB on the owner's node. `how`: pages (`small`, `huge`), `spin` or `idle`,
/// and `brief` if its copies are to end at once.
pub fn start(bed: &Bed<'_>, port: u16, mib: usize, how: &[&str]) -> Result<Parent, BenchError> {
    compile(bed.owner.node, &compile::PARENT)?;
    compile(bed.host.node, &compile::PARENT)?;
    let mut command = Command::new(compile::PARENT.path);
    command.args([port.to_string(), mib.to_string()]).args(how);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process(bed.owner.node, command, port)
}

/// Has what listens at `port` of `node` do a command; wrong data is an error.
pub fn command(node: &Node, port: u16, line: &str) -> Result<Touched, BenchError> {
    let touched: Touched = ask_json(node, port, format!("{line}\n").as_bytes())?;
    if touched.right {
        return Ok(touched);
    }
    Err(BenchError::wrong("synthetic", format!("{line:?} read wrong data")))
}
