//! The same function carried by CRIU, where one is on PATH: restored from images in memory on the node
//! itself, and its lazy way to another node, in which the images come first and the pages when they are
//! touched (criu(8), `--lazy-pages`).

use crate::cluster::{ANSWER_BOUND, Parent, python};
use crate::core::Bed;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use crate::response::{HELLO, answered, get, local};
use mitosis_lab::{LabProcess, Node};
use mitosis_proto::Net;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 7103;
const CRIU_PORT: u16 = 7106;
const PAGES_PORT: u16 = 7107;
const STATE_MIB: &str = "0";
/// Where images are, in memory.
const DIR: &str = "/run/lab/criu";
const VERB_BOUND: Duration = Duration::from_secs(30);
/// A process that is to have its pid on another node gets one that nobody there has.
const HIGH_PID: u32 = 30_000;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let (owner, host) = (bed.owner.node, bed.host.node);
    section.notes.push(format!("criu {}", version(host)?));
    let mut images = Images::dump(host)?;
    let parent = python(owner, HELLO, PORT, &[STATE_MIB])?;
    get(local(owner, PORT)?)?;
    let seed = bed.owner.prepare(parent.pid)?;
    let (mut restored, mut lazy) = (Vec::new(), Vec::new());
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for _ in 0..bed.runs.div_ceil(2) {
        bed.quiet.wait(0);
        restored.push(images.restore(host)?);
        lazy.push(lazily(owner, host)?);
        bed.host.renew()?;
        bed.quiet.wait(0);
        first.push(child(bed, &seed.reference)?);
        // The template is made behind the first.
        std::thread::sleep(super::REST);
        for _ in 0..3 {
            next.push(child(bed, &seed.reference)?);
        }
    }
    bed.owner.remove(&seed.seed)?;
    let ms = |values| Samples::new("ms", values);
    section.add(Figure::new("criu dump", ms(vec![images.dump_ms])));
    let restore = section.add(Figure::new("first response, criu restore", ms(restored)));
    let name = "first response, criu to another node with lazy pages, from the dump on";
    let remote = section.add(Figure::new(name, ms(lazy)));
    let name = "first response, first child on a fresh node";
    section.add(Figure::new(name, ms(first)).beside("criu, lazy", remote));
    let promised = Target::RatioMost(1.0 / 8.0);
    let (name, next) = ("first response, n-th child", ms(next));
    section.add(Figure::new(name, next.clone()).beside("criu restore", restore).promised(promised));
    let promised = Target::RatioMost(1.0 / 20.0);
    section.add(Figure::new(name, next).beside("criu, lazy", remote).promised(promised));
    Ok(())
}

fn child(bed: &Bed<'_>, reference: &str) -> Result<f64, BenchError> {
    let start = Instant::now();
    let child = bed.host.fork(reference, Net::Node)?;
    answered(bed.host.node, PORT)?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    bed.host.end(child.pid)?;
    closed(bed.host.node, PORT)?;
    Ok(ms)
}

/// Waits until nobody listens there: the next one must not be asked through it.
fn closed(node: &Node, port: u16) -> Result<(), BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    while local(node, port).is_ok() {
        if Instant::now() > end {
            return Err(BenchError::wrong("criu", "the port of an ended process stays open"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn version(node: &Node) -> Result<String, BenchError> {
    let mut command = Command::new("criu");
    command.arg("--version");
    let none = "no criu on PATH to compare with; docs/limits.md says how to get one";
    let said = node.run(command).map_err(|_| BenchError::wrong("criu", none))?;
    let line = said.stdout.lines().find_map(|line| line.strip_prefix("Version: "));
    line.map(str::to_owned).ok_or_else(|| BenchError::wrong("criu", none))
}

/// A verb of criu on the images in `dir`.
fn criu(verb: &str, dir: &str, args: &[&str]) -> Command {
    let mut command = Command::new("criu");
    let log = format!("{verb}.log");
    command.args([verb, "-D", dir, "-o", &log, "-v1", "--shell-job", "--manage-cgroups=ignore"]);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run_verb(node: &Node, dir: &str, verb: &str, args: &[&str]) -> Result<(), BenchError> {
    let done = node.run_within(criu(verb, dir, args), VERB_BOUND)?;
    done.success().map(drop).map_err(|_| said(node, dir, verb))
}

/// What a verb left in its log.
fn said(node: &Node, dir: &str, verb: &str) -> BenchError {
    let log = node.host_path(dir).join(format!("{verb}.log"));
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
    BenchError::wrong("criu", format!("{verb}: {}", last.join("; ")))
}

fn empty(node: &Node, dir: &str) -> Result<(), BenchError> {
    let path = node.host_path(dir);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).map_err(BenchError::io("criu", path.display()))
}

/// The function on a node, with a pid that is free on others.
fn function(node: &Node) -> Result<Parent, BenchError> {
    node.sh(&format!("echo {HIGH_PID} >/proc/sys/kernel/ns_last_pid"))?.success()?;
    let parent = python(node, HELLO, CRIU_PORT, &[STATE_MIB])?;
    answered(node, CRIU_PORT)?;
    Ok(parent)
}

/// Ends what was restored.
fn end(node: &Node, pid: u32) -> Result<(), BenchError> {
    node.sh(&format!("kill -9 {pid}"))?.success()?;
    closed(node, CRIU_PORT)
}

/// The function, dumped on the node on which it is restored.
struct Images {
    pid: u32,
    dump_ms: f64,
}

impl Images {
    fn dump(node: &Node) -> Result<Images, BenchError> {
        empty(node, DIR)?;
        let parent = function(node)?;
        let start = Instant::now();
        run_verb(node, DIR, "dump", &["-t", &parent.pid.to_string()])?;
        let dump_ms = start.elapsed().as_secs_f64() * 1000.0;
        Ok(Images { pid: parent.pid, dump_ms })
    }

    /// Milliseconds from the start of `criu restore` to the first answer.
    fn restore(&mut self, node: &Node) -> Result<f64, BenchError> {
        let start = Instant::now();
        run_verb(node, DIR, "restore", &["--restore-detached"])?;
        answered(node, CRIU_PORT)?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        end(node, self.pid)?;
        Ok(ms)
    }
}

/// Starts a verb that says when it is ready, and waits for that.
fn ready(node: &Node, dir: &str, verb: &str, args: &[&str]) -> Result<LabProcess, BenchError> {
    let mut command = criu(verb, dir, &[args, &["--status-fd", "1"]].concat());
    command.stdout(Stdio::piped());
    let mut process = node.spawn(command)?;
    let told = process.take_stdout().map(|mut stdout| stdout.read_exact(&mut [0]));
    match told {
        Some(Ok(())) => Ok(process),
        _ => Err(said(node, dir, verb)),
    }
}

/// Milliseconds from the dump of the function on `owner` to its first answer on `host`. Its images get
/// there by a copy in memory, which no network is faster than.
fn lazily(owner: &Node, host: &Node) -> Result<f64, BenchError> {
    let dir = format!("{DIR}-lazy");
    empty(owner, &dir)?;
    empty(host, &dir)?;
    let parent = function(owner)?;
    let (address, port) = (owner.ip().to_string(), PAGES_PORT.to_string());
    let place = ["--address", &address, "--port", &port];
    let start = Instant::now();
    let pid = parent.pid.to_string();
    let dump = [&["-t", &pid, "--lazy-pages"], &place[..]].concat();
    let mut source = ready(owner, &dir, "dump", &dump)?;
    copy(owner, host, &dir)?;
    let mut pages = ready(host, &dir, "lazy-pages", &[&["--page-server"], &place[..]].concat())?;
    run_verb(host, &dir, "restore", &["--restore-detached", "--lazy-pages"])?;
    answered(host, CRIU_PORT)?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    end(host, parent.pid)?;
    // Both end by themselves when the pages are over, or do so now.
    for process in [&mut pages, &mut source] {
        let _ = process.kill();
    }
    Ok(ms)
}

fn copy(owner: &Node, host: &Node, dir: &str) -> Result<(), BenchError> {
    let (from, to) = (owner.host_path(dir), host.host_path(dir));
    let failed = |error| BenchError::io("criu", from.display())(error);
    for entry in std::fs::read_dir(&from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        std::fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed)?;
    }
    Ok(())
}
