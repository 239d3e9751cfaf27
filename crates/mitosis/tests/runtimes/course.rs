//! What each server goes through: idle, then under load, with two children on two other nodes.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mitosis_lab::{Daemon, Lab, LabProcess, Node};
use serde_json::{Value, json};

use crate::client::{Answer, FN_SOCKET, Protocol, first, link_target};
use crate::rows::{CLUSTER, Row};
use crate::support::SOON;

/// Clients that ask without a pause while a server is forked under load.
const CLIENTS: u64 = 4;

/// Questions to the first child that the second must not have counted.
const MORE: u64 = 20;

const LOG: &str = "/tmp/runtimes/server.log";

/// Starts the server of a row on the first node.
fn start(lab: &Lab, row: &Row) -> Result<LabProcess, String> {
    for node in lab.nodes() {
        node.sh("rm -rf /tmp/runtimes && mkdir -p /tmp/runtimes/fn").map_err(|e| e.to_string())?;
    }
    let node = lab.node(0);
    let mut command = row.server(node);
    let log = std::fs::File::create(node.host_path(LOG)).map_err(|e| e.to_string())?;
    use std::os::unix::process::CommandExt;
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    node.spawn(command).map_err(|e| e.to_string())
}

/// A verb of the command line: what it printed, or the line in which it says why not.
fn verb(daemon: &Daemon<'_>, args: &[&str]) -> Result<Value, String> {
    let mut command = daemon.command(args);
    command.args(["-o", "json"]);
    let output = daemon.node().run(command).map_err(|e| e.to_string())?;
    if output.status.success() {
        return serde_json::from_str(&output.stdout).map_err(|e| e.to_string());
    }
    Err(output.stderr.trim().to_owned())
}

/// Runs all of it. What was seen while idle and under load; what was refused is an `Err` there.
pub fn run(
    lab: &Lab,
    daemons: &[Daemon<'_>],
    row: &Row,
) -> Result<[Result<Value, String>; 2], String> {
    let mut server = start(lab, row)?;
    let node = lab.node(0);
    let told = |error: String| {
        let log = std::fs::read_to_string(node.host_path(LOG)).unwrap_or_default();
        format!("{error}\n--- log of the server: {log}")
    };
    first(row.protocol, node).map_err(|e| told(format!("the server does not start: {e}")))?;
    if row.protocol == Protocol::Nginx {
        std::fs::remove_file(node.host_path("/tmp/runtimes/nginx.conf")).unwrap();
    }
    let pid = server.node_pid().map_err(|e| e.to_string())?;
    let mut seen = Vec::new();
    for load in [false, true] {
        seen.push(stage(lab, daemons, (row.protocol, row.tree), pid, load));
        crate::matrix::clean(daemons);
        // Whatever became of the fork, the parent goes on.
        row.protocol.ask(node).map_err(|e| told(format!("the parent was harmed: {e}")))?;
        if !server.is_running() {
            return Err(told("the parent has ended".into()));
        }
    }
    if row.tree {
        // Those below it would go on, and keep the port.
        node.sh(&format!("kill -9 -- -{pid}")).map_err(|e| e.to_string())?;
    }
    server.kill().map_err(|e| e.to_string())?;
    Ok([seen.remove(0), seen.remove(0)])
}

/// One fork into two children, idle or under load.
fn stage(
    lab: &Lab,
    daemons: &[Daemon<'_>],
    (protocol, tree): (Protocol, bool),
    pid: u32,
    load: bool,
) -> Result<Value, String> {
    let stop = AtomicBool::new(!load);
    let done = AtomicU64::new(0);
    let node = lab.node(0);
    let client = || -> Result<(), String> {
        while !stop.load(Ordering::Relaxed) {
            protocol.ask(node).map_err(|e| format!("a client of the parent: {e}"))?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..if load { CLIENTS } else { 0 }).map(|_| scope.spawn(client)).collect();
        let seen = answered(&done, load)
            .and_then(|()| fork(daemons, (protocol, tree), pid, || answered(&done, load)));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap()?;
        }
        let (said, before, after) = seen?;
        compare(lab, protocol, load, &before, &after).map(|()| said)
    })
}

/// Waits until the clients have had some more answers.
fn answered(done: &AtomicU64, load: bool) -> Result<(), String> {
    let (from, began) = (done.load(Ordering::Relaxed), std::time::Instant::now());
    while load && done.load(Ordering::Relaxed) < from + 5 * CLIENTS {
        if began.elapsed() > SOON {
            return Err("the clients of the parent wait for answers".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Forks, and gives what the verbs said and the parent's answers before and after.
fn fork(
    daemons: &[Daemon<'_>],
    (protocol, tree): (Protocol, bool),
    pid: u32,
    more: impl Fn() -> Result<(), String>,
) -> Result<(Value, Answer, Answer), String> {
    let node = daemons[0].node();
    let before = protocol.ask(node)?;
    let pid = pid.to_string();
    let verbs: &[&str] = if tree { &["prepare", &pid, "--tree"] } else { &["prepare", &pid] };
    let seed = verb(&daemons[0], verbs)?;
    let after = protocol.ask(node)?;
    more()?;
    let mut start_us = Vec::new();
    // One child is built from nothing, the other one is a copy of a template. Trees have none.
    let ways = if tree { ["direct", "auto"] } else { ["direct", "template"] };
    for (daemon, via) in daemons[1..].iter().zip(ways) {
        if let Some(target) = link_target(node) {
            let name = target.file_name().unwrap().to_str().unwrap().to_owned();
            let line = format!("ln -sf {name} {FN_SOCKET}");
            daemon.node().sh(&line).map_err(|e| e.to_string())?;
        }
        if protocol == Protocol::Postgres {
            copy_cluster(node, daemon.node())?;
        }
        let said =
            verb(daemon, &["fork", seed["ref"].as_str().unwrap(), "--detach", "--via", via])?;
        start_us.push(said["children"][0]["start_us"].clone());
    }
    more()?;
    let said = json!({
        "threads": seed["threads"], "pages": seed["pages_total"],
        "freeze_us": seed["freeze_us"], "prepare_us": seed["prepare_us"],
        "start_us": start_us,
    });
    Ok((said, before, after))
}

/// The files that the processes of PostgreSQL have open and map, on another node: its cluster. What is in
/// `/dev/shm` of it goes along.
fn copy_cluster(from: &Node, to: &Node) -> Result<(), String> {
    let (source, target) = (from.host_path(CLUSTER), to.host_path(CLUSTER));
    std::fs::create_dir_all(&target).map_err(|e| e.to_string())?;
    let mut copy = Command::new("cp");
    copy.arg("-aT").arg(source).arg(target);
    let output = copy.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(())
}

/// Both children and the parent against what must be: one secret, counts that part from one.
fn compare(
    lab: &Lab,
    protocol: Protocol,
    load: bool,
    before: &Answer,
    after: &Answer,
) -> Result<(), String> {
    let step = protocol.step();
    // Under load some questions are counted between the two answers, and some, under way when the
    // parent stood still, only in the child.
    let most = if load { after.count + (CLIENTS + 1) * step } else { before.count + step };
    let ask = |node: &Node| -> Result<u64, String> {
        let answer = protocol.ask(node)?;
        if answer.secret != before.secret {
            return Err(format!("{}: another secret: {answer:?} {before:?}", node.name()));
        }
        Ok(answer.count)
    };
    let right = |who: &str, count: u64, least: u64, most: u64| {
        let good = (least..=most).contains(&count);
        good.then_some(()).ok_or_else(|| format!("{who} counts {count}, not {least} to {most}"))
    };
    let (b, c) = (lab.node(1), lab.node(2));
    let first = ask(b)?;
    right("child 1", first, before.count + step, most)?;
    let mut last = first;
    for _ in 0..MORE {
        last = ask(b)?;
    }
    let slack = if load { CLIENTS * step } else { 0 };
    right("child 1", last, first + MORE * step, first + MORE * step + slack)?;
    right("child 2", ask(c)?, before.count + step, most)?;
    let again = ask(b)?;
    right("child 1", again, last + step, last + step + slack)?;
    let parent = ask(lab.node(0))?;
    right(
        "the parent",
        parent,
        after.count + step,
        if load { u64::MAX } else { after.count + step },
    )
}
