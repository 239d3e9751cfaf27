//! Each program through all that a process can go through.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use mitosis_lab::{Daemon, Lab, Node};

use crate::support::*;

/// Labs at work at the same time.
const LABS: usize = 2;

/// The programs of a directory, by name; only those of `MITOSIS_CONFORMANCE` where that is set.
pub fn programs(dir: &Path) -> Vec<String> {
    let wanted = std::env::var("MITOSIS_CONFORMANCE").ok();
    let wanted: Option<Vec<&str>> = wanted.as_deref().map(|names| names.split(',').collect());
    let mut names = names(dir);
    names.retain(|name| wanted.as_ref().is_none_or(|wanted| wanted.contains(&name.as_str())));
    names
}

/// All programs of a directory, by name.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let sources = paths.filter(|path| path.extension().is_some_and(|e| e == "c"));
    let mut names: Vec<String> =
        sources.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Where the programs are.
pub fn directory() -> PathBuf {
    root().join("tests/conformance")
}

/// Builds a program; the header is beside it or above it.
pub fn build(dir: &Path, name: &str) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("conform-{name}"));
    // Another course may be copying what it built: nobody sees a file that is half written.
    let mine = target.with_extension(format!("{:?}", std::thread::current().id()));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-pthread", "-rdynamic"]);
    gcc.arg("-I").arg(directory()).arg("-o").arg(&mine).arg(dir.join(format!("{name}.c")));
    let output = gcc.output().expect("gcc is needed: run scripts/setup.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(mine, &target).unwrap();
    target
}

/// A program on a node, in a directory of its own there.
pub fn command(node: &Node, name: &str, program: &Path, argument: &str) -> Command {
    let dir = format!("/tmp/conform/{name}");
    std::fs::create_dir_all(node.host_path(&dir)).unwrap();
    let inside = format!("{dir}/program");
    if !node.host_path(&inside).exists() {
        node.put(program, &inside).unwrap();
    }
    let mut command = Command::new("sh");
    command.args(["-c", "cd \"$1\" && exec ./program \"$2\"", "sh", &dir, argument]);
    command
}

/// Makes a program's files and starts it.
pub fn parent<'lab>(lab: &'lab Lab, name: &str, program: &Path) -> Parent<'lab> {
    for node in lab.nodes() {
        // A program just written may be open for writing in a process that another test forked at
        // that moment, which execs soon.
        until("the program can be run", SOON, || {
            let made = node.run(command(node, name, program, "files")).unwrap();
            let busy = made.stderr.contains("Text file busy");
            let said = format!("{}: {}{}", node.name(), made.stdout, made.stderr);
            assert!(busy || made.status.success(), "{said}");
            (!busy).then_some(())
        });
    }
    let node = lab.node(0);
    let log = node.host_path("/run/lab/parent.log");
    let parent = catch_unwind(|| Parent::spawn(node, command(node, name, program, "8000")));
    parent.unwrap_or_else(|_| panic!("no parent: {}", std::fs::read_to_string(log).unwrap()))
}

/// Asks a child over the loopback of its own network namespace.
fn ask_child(node: &Node, child: &Child, line: &str) -> String {
    let path = node.host_path(child.netns.as_deref().unwrap());
    let netns = File::open(&path).unwrap();
    let inside = || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), kind).unwrap();
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), SOON)
    };
    // A thread of its own, which ends there: this one stays where it is.
    let stream = std::thread::scope(|scope| scope.spawn(inside).join().unwrap()).unwrap();
    let mut peer = Peer::over(stream);
    peer.tell(line);
    let answer = peer.line().unwrap_or_else(|| {
        let stat = node.proc_dir(child.pid).join("status");
        let status = std::fs::read_to_string(stat).unwrap_or_else(|_| "it is gone".into());
        panic!("`{line}`: no answer from child {}: {status}", child.pid)
    });
    assert_eq!(peer.line(), None, "it closes the connection: an open one cannot be forked");
    answer
}

#[track_caller]
fn right(who: &str, line: &str, answer: &str) {
    assert_eq!(answer, "right", "{who}: {line}");
}

/// What `prepare` is to be told: a line `/* Prepared with FLAG ... */` of the program.
pub fn flags(dir: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(format!("{name}.c"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("/* Prepared with "));
    let words = line.and_then(|line| line.strip_suffix(" */")).unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

/// Whether its children cannot live beside it, as a line `/* Not beside its parent: WHY */` tells.
fn is_alone(name: &str) -> bool {
    let text = std::fs::read_to_string(directory().join(format!("{name}.c"))).unwrap();
    text.lines().any(|line| line.starts_with("/* Not beside its parent: "))
}

/// The ways to make a child.
const VIAS: [&str; 3] = ["direct", "template", "shadow"];

/// What every program goes through, on three nodes with daemons; by the shadow on its own.
fn course(lab: &Lab, daemons: &[Daemon<'_>], name: &str, program: &Path, via: &str) {
    let a = &daemons[0];
    let (b, c) = if via == "shadow" { (a, a) } else { (&daemons[1], &daemons[2]) };
    let parent = parent(lab, name, program);
    right("parent", "check", &parent.ask("check"));
    let flags = flags(&directory(), name);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let seed = prepare(a, parent.pid(), &flags);
    right("parent after prepare", "check", &parent.ask("check"));
    let own = ["--net", "own", "--via", via];
    let children =
        [&fork(b, &seed.reference, &own)[0], &fork(b, &seed.reference, &own)[0]].map(Child::clone);
    let child = |n: usize, line: &str| {
        let answer = ask_child(b.node(), &children[n - 1], line);
        right(&format!("child {n}"), line, &answer);
    };
    child(1, "check");
    child(2, "check");
    child(1, "change 1");
    child(2, "check");
    child(2, "change 2");
    child(1, "verify 1");
    child(2, "verify 2");
    right("parent while children live", "check", &parent.ask("check"));
    let second = prepare(b, children[0].pid, &flags);
    child(1, "verify 1");
    let grandchild = fork(c, &second.reference, &own)[0].clone();
    let answer = ask_child(c.node(), &grandchild, "verify 1");
    right("grandchild", "verify 1", &answer);
    child(1, "verify 1");
    child(2, "verify 2");
    right("parent at the end", "check", &parent.ask("check"));
}

/// The end of a daemon's log: how children have ended.
fn last_words(daemon: &Daemon<'_>) -> String {
    let log = daemon.log().unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n  ");
    format!("\n log of {}:\n  {last}", daemon.node().name())
}

/// Runs `course` for all programs and gives what went wrong.
fn work(queue: &Mutex<Vec<(String, &str)>>, failed: &Mutex<Vec<String>>) {
    let dir = directory();
    let lab = lab(3);
    let daemons: Vec<Daemon<'_>> = (0..3).map(|index| daemon(&lab, index)).collect();
    loop {
        let Some((name, via)) = queue.lock().unwrap().pop() else { return };
        let program = build(&dir, &name);
        let tried = || course(&lab, &daemons, &name, &program, via);
        let tried = catch_unwind(AssertUnwindSafe(tried));
        if let Err(panic) = tried {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.unwrap_or_else(|| "it panicked, see above".into());
            let ends: Vec<String> = daemons.iter().map(last_words).collect();
            failed.lock().unwrap().push(format!("{name} via {via}: {text}{}", ends.concat()));
        }
        for daemon in &daemons {
            end_children(daemon);
            for seed in daemon.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap() {
                daemon.mitosis(&["seed", "rm", seed["seed"].as_str().unwrap()]).unwrap();
            }
        }
    }
}

#[test]
fn every_kind_of_state_is_the_childs_and_the_childs_alone() {
    let mut names = programs(&directory());
    assert!(!names.is_empty(), "no program of that name");
    names.reverse();
    // One way after the other: no program is at work twice at a time.
    let ways = VIAS.iter().flat_map(|via| names.iter().map(|name| (name.clone(), *via)));
    let ways = ways.filter(|(name, via)| *via != "shadow" || !is_alone(name));
    // There are no templates of trees.
    let is_tree = |name: &str| flags(&directory(), name).iter().any(|flag| flag == "--tree");
    let ways = ways.filter(|(name, via)| *via == "direct" || !is_tree(name));
    let all: Vec<(String, &str)> = ways.collect();
    let (count, queue, failed) = (all.len(), Mutex::new(all), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..LABS.min(count) {
            scope.spawn(|| work(&queue, &failed));
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count} courses:\n{}", failed.len(), failed.join("\n"));
}
