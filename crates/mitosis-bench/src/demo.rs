//! `mitosis demo`: one parent, children on other nodes, cold starts beside them.

mod progress;
mod table;

use crate::cluster::{ANSWER_BOUND, Member, Parent, python};
use crate::error::BenchError;
use crate::report::Samples;
use crate::response::{HELLO, answered, container, first, get, local, python_anew};
use crate::{DemoArgs, cluster};
use mitosis_lab::{Lab, Memory};
use mitosis_proto::Prepared;
use progress::Progress;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;
use table::Findings;

const PORT: u16 = 8080;
const COLD_PORT: u16 = 8081;

/// MiB of state that the function builds when it starts: what a model or a table would be.
const STATE_MIB: &str = "16";

/// Cold starts of each kind.
const COLD_STARTS: usize = 5;

/// A child that answers, and where.
struct Child {
    /// Index of its node.
    node: usize,
    /// Its pid there.
    pid: u32,
    /// Milliseconds from the call of `mitosis fork` to its answer.
    response_ms: f64,
}

/// Runs it and prints what was found.
pub fn run(args: &DemoArgs) -> Result<(), BenchError> {
    if args.nodes < 2 || args.children < 1 {
        return Err(BenchError::Usage("a demo needs 2 nodes and 1 child at least".into()));
    }
    let began = Instant::now();
    let mut progress = Progress::new(args.children + 2 * COLD_STARTS);
    progress.say(&format!("{} nodes, each with its own network, processes and files", args.nodes));
    let lab = Lab::new("demo", args.nodes)?;
    let indices = 0..args.nodes;
    let mut members: Vec<Member<'_>> =
        indices.map(|index| Member::start(&lab, index)).collect::<Result<_, _>>()?;
    let outcome = show(args, &members, &mut progress);
    progress.end();
    // Also after a failure: the lab's end would take everything, but less gently.
    let stopped = members.iter_mut().map(Member::stop).collect::<Result<Vec<()>, _>>();
    let mut findings = outcome?;
    stopped?;
    drop(members);
    drop(lab);
    findings.wall_s = began.elapsed().as_secs_f64();
    findings.print(args.json)
}

fn show(
    args: &DemoArgs,
    members: &[Member<'_>],
    progress: &mut Progress,
) -> Result<Findings, BenchError> {
    progress.say("cold starts, for comparison: python3 anew and runc run");
    let (python_ms, runc_ms) = cold(&members[1], progress)?;
    let parent = python(members[0].node, HELLO, PORT, &[STATE_MIB])?;
    get(local(members[0].node, PORT)?)?;
    progress.say("mitosis prepare: the parent runs on, its frozen copy is the seed");
    let seed = members[0].prepare(parent.pid)?;
    progress.say(&format!("mitosis fork: {} children on the other nodes", args.children));
    let links = link_bytes(members)?;
    let children = children(args, members, &seed, progress)?;
    let link_bytes = link_bytes_since(members, &links)?;
    let memory = children
        .iter()
        .map(|child| Ok(members[child.node].node.memory(child.pid)?))
        .collect::<Result<Vec<Memory>, BenchError>>()?;
    let fresh = fresh_memory(&members[1])?;
    still_answers(members, &parent)?;
    let (mut moved, mut owned) = (0, 0);
    for member in &members[1..] {
        for row in member.children()? {
            moved += row.pages_fetched + row.pages_prefetched;
            owned += row.pages_total;
        }
    }
    let per_node: Vec<usize> = (1..members.len())
        .map(|node| children.iter().filter(|child| child.node == node).count())
        .collect();
    let (firsts, next) = split(&children);
    Ok(Findings {
        per_node,
        prepare_us: seed.prepare_us,
        freeze_us: seed.freeze_us,
        descriptor_bytes: seed.descriptor_bytes,
        first_ms: Samples::new("ms", firsts),
        next_ms: Samples::new("ms", next),
        python_ms,
        runc_ms,
        child_memory: mean(&memory),
        fresh_memory: fresh,
        pages_moved: moved,
        pages_owned: owned,
        link_bytes,
        wall_s: 0.0,
    })
}

/// Milliseconds of the first child of each node, and of all others.
fn split(children: &[Child]) -> (Vec<f64>, Vec<f64>) {
    let mut seen = Vec::new();
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for child in children {
        if seen.contains(&child.node) {
            next.push(child.response_ms);
        } else {
            seen.push(child.node);
            first.push(child.response_ms);
        }
    }
    (first, next)
}

fn cold(member: &Member<'_>, progress: &mut Progress) -> Result<(Samples, Samples), BenchError> {
    let cold = container(member.node, "runc", COLD_PORT, STATE_MIB)?;
    let (mut python_ms, mut runc_ms) = (Vec::new(), Vec::new());
    for _ in 0..COLD_STARTS {
        python_ms.push(python_anew(member.node, COLD_PORT, STATE_MIB)?);
        progress.step();
        runc_ms.push(cold.run(|| answered(member.node, COLD_PORT))?);
        progress.step();
    }
    Ok((Samples::new("ms", python_ms), Samples::new("ms", runc_ms)))
}

/// Starts all children, node by node in turn, each in a network namespace of its own, and asks
/// each as soon as it is there.
fn children(
    args: &DemoArgs,
    members: &[Member<'_>],
    seed: &Prepared,
    progress: &mut Progress,
) -> Result<Vec<Child>, BenchError> {
    let mut children = Vec::with_capacity(args.children);
    for number in 0..args.children {
        let node = 1 + number % (members.len() - 1);
        children.push(child(node, &members[node], seed)?);
        progress.step();
    }
    Ok(children)
}

fn child(index: usize, member: &Member<'_>, seed: &Prepared) -> Result<Child, BenchError> {
    let start = Instant::now();
    let arguments = ["fork", &seed.reference, "--detach", "--net", "own"];
    let forked = member.daemon.mitosis_json(&arguments)?;
    let child = &forked["children"][0];
    let wrong = || BenchError::wrong("fork", format!("unexpected answer {forked}"));
    let pid = child["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or_else(wrong)?;
    let netns = child["netns"].as_str().ok_or_else(wrong)?;
    let netns = member.node.host_path(netns);
    let netns = File::open(&netns).map_err(BenchError::io("netns", netns.display()))?;
    first(|| connect_inside(&netns))?;
    Ok(Child { node: index, pid, response_ms: start.elapsed().as_secs_f64() * 1000.0 })
}

/// Connects to the function over the loopback of the child's own network namespace.
fn connect_inside(netns: &File) -> Result<TcpStream, BenchError> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    // A thread of its own, which ends there: this one stays where it is.
    let inside = || {
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(netns),
            Some(LinkNameSpaceType::Network),
        )?;
        TcpStream::connect_timeout(&to, ANSWER_BOUND)
    };
    let joined = std::thread::scope(|scope| scope.spawn(inside).join());
    joined
        .map_err(|_| BenchError::wrong("connect", "the connecting thread panicked"))?
        .map_err(BenchError::io("connect", to))
}

/// Memory of the function in a new process, after one answer.
fn fresh_memory(member: &Member<'_>) -> Result<Memory, BenchError> {
    let fresh = python(member.node, HELLO, COLD_PORT, &[STATE_MIB])?;
    get(local(member.node, COLD_PORT)?)?;
    Ok(member.node.memory(fresh.pid)?)
}

fn still_answers(members: &[Member<'_>], parent: &Parent) -> Result<(), BenchError> {
    let answer = cluster::ask(members[0].node, parent.port, b"GET /first HTTP/1.0\r\n\r\n")?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(BenchError::wrong("parent", "it does not answer any more"))
}

fn mean(memory: &[Memory]) -> Memory {
    let count = memory.len().max(1) as u64;
    let of = |field: fn(&Memory) -> u64| memory.iter().map(field).sum::<u64>() / count;
    Memory { rss: of(|m| m.rss), pss: of(|m| m.pss), private: of(|m| m.private) }
}

fn link_bytes(members: &[Member<'_>]) -> Result<Vec<u64>, BenchError> {
    members[1..].iter().map(|member| Ok(member.node.link_bytes()?.rx)).collect()
}

fn link_bytes_since(members: &[Member<'_>], before: &[u64]) -> Result<u64, BenchError> {
    let after = link_bytes(members)?;
    Ok(after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).sum())
}
