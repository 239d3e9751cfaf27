//! The same function carried by CRIU, where one is on PATH: restored from images in memory on the node
//! itself, and its lazy way to another node, in which the images come first and the pages when they are
//! touched (criu(8), `--lazy-pages`).

use crate::cluster::{ANSWER_BOUND, PYTHON, python};
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
/// It may have no file of mounts that are not its node's.
const OWN_FILES: &str = "import os\nos.closerange(3, 1000)\nnull = os.open('/dev/null', os.O_RDWR)\n\
    [os.dup2(null, n) for n in range(3)]\nos.close(null)\n";
/// A process that is to have its pid on another node, or again, gets one after this: nobody has those.
const HIGH_PID: u32 = 30_000;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let (owner, host) = (bed.owner.node, bed.host.node);
    section.notes.push(format!("criu {}", version(host)?));
    let mut images = Images::dump(host)?;
    let parent = python(owner, HELLO, PORT, &[STATE_MIB])?;
    get(local(owner, PORT)?)?;
    let seed = bed.owner.prepare(parent.pid)?;
    let (mut restored, mut lazy) = (Vec::new(), Some(Vec::new()));
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for _ in 0..bed.runs.div_ceil(2) {
        bed.quiet.wait(0);
        restored.push(images.restore(host)?);
        // Not everywhere it may: its pipes are larger than one without CAP_SYS_RESOURCE can have.
        if let Some(times) = &mut lazy {
            match lazily(owner, host) {
                Ok(ms) => times.push(ms),
                Err(error) => {
                    section.notes.push(format!("lazy pages could not be measured: {error}"));
                    lazy = None;
                }
            }
        }
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
    let (first, next) = (ms(first), ms(next));
    section.add(Figure::new("first response, first child on a fresh node", first.clone()));
    let eighth = Target::RatioMost(1.0 / 8.0);
    let figure = Figure::new("first response, n-th child", next.clone());
    section.add(figure.beside("criu restore", restore).promised(eighth));
    if let Some(lazy) = lazy {
        let name = "first response, criu to another node with lazy pages, from the dump on";
        let remote = section.add(Figure::new(name, ms(lazy)));
        let twentieth = Target::RatioMost(1.0 / 20.0);
        let figure = Figure::new("first response, n-th child", next);
        section.add(figure.beside("criu, lazy", remote).promised(twentieth));
        let figure = Figure::new("first response, first child on a fresh node", first);
        section.add(figure.beside("criu, lazy", remote));
    }
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

/// The program, by the caller's PATH: nodes have one of their own.
fn program() -> Command {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&dirs).map(|dir| dir.join("criu")).find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| "criu".into()))
}

fn version(node: &Node) -> Result<String, BenchError> {
    let mut command = program();
    command.arg("--version");
    let none = "no criu on PATH to compare with; docs/limits.md says how to get one";
    let said = node.run(command).map_err(|_| BenchError::wrong("criu", none))?;
    let line = said.stdout.lines().find_map(|line| line.strip_prefix("Version: "));
    line.map(str::to_owned).ok_or_else(|| BenchError::wrong("criu", none))
}

/// A verb of criu on the images in `dir`.
fn criu(verb: &str, dir: &str, args: &[&str]) -> Command {
    let mut command = program();
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

/// The function on a node, with a pid after this one, and that.
fn function(node: &Node, after: u32) -> Result<(u32, LabProcess), BenchError> {
    node.sh(&format!("echo {after} >/proc/sys/kernel/ns_last_pid"))?.success()?;
    // What is dumped has to lead its session.
    let mut command = Command::new("setsid");
    let code = format!("{OWN_FILES}{HELLO}");
    command.args([PYTHON, "-c", &code, &CRIU_PORT.to_string(), STATE_MIB]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = node.spawn(command)?;
    answered(node, CRIU_PORT)?;
    Ok((process.node_pid()?, process))
}

/// Ends what was restored, and waits until its pid is free.
fn end(node: &Node, pid: u32) -> Result<(), BenchError> {
    node.sh(&format!("kill -9 {pid}"))?.success()?;
    gone(node, pid)?;
    closed(node, CRIU_PORT)
}

fn gone(node: &Node, pid: u32) -> Result<(), BenchError> {
    let wait =
        format!("for n in $(seq 1000); do [ -e /proc/{pid} ] || exit 0; sleep 0.01; done; exit 1");
    node.sh(&wait)?
        .success()
        .map(drop)
        .map_err(|_| BenchError::wrong("criu", format!("pid {pid} is not free")))
}

/// The function, dumped on the node on which it is restored.
struct Images {
    pid: u32,
    dump_ms: f64,
}

impl Images {
    fn dump(node: &Node) -> Result<Images, BenchError> {
        empty(node, DIR)?;
        let (pid, process) = function(node, HIGH_PID)?;
        let start = Instant::now();
        run_verb(node, DIR, "dump", &["-t", &pid.to_string()])?;
        let dump_ms = start.elapsed().as_secs_f64() * 1000.0;
        drop(process);
        gone(node, pid)?;
        Ok(Images { pid, dump_ms })
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
    let (parent, _process) = function(owner, HIGH_PID + 1000)?;
    let (address, port) = (owner.ip().to_string(), PAGES_PORT.to_string());
    let place = ["--address", &address, "--port", &port];
    let start = Instant::now();
    let pid = parent.to_string();
    let dump = [&["-t", &pid, "--lazy-pages"], &place[..]].concat();
    let mut source = ready(owner, &dir, "dump", &dump)?;
    copy(owner, host, &dir)?;
    let mut pages = ready(host, &dir, "lazy-pages", &[&["--page-server"], &place[..]].concat())?;
    let restored = run_verb(host, &dir, "restore", &["--restore-detached", "--lazy-pages"]);
    restored.map_err(|error| {
        let why = [said(host, &dir, "lazy-pages"), said(owner, &dir, "dump")];
        BenchError::wrong("criu", format!("{error}; {}; {}", why[0], why[1]))
    })?;
    answered(host, CRIU_PORT)?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    end(host, parent)?;
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
