//! Children of one seed do not share what they believe to be random.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use mitosis_lab::{Daemon, Node};
use serde_json::Value;

use crate::support::*;

fn gcc(name: &str, source: &str, args: &[&str]) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-o"]).arg(&target).arg(fixture(source)).args(args);
    let output = gcc.output().expect("gcc is needed: run scripts/setup.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target
}

/// The parent that draws from OpenSSL.
fn c_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| gcc("unique", "unique.c", &["-pthread", "-rdynamic", "-lcrypto"]))
}

/// Debian's Python, which knows nothing of us; with the helper of the source tree if wanted.
fn python(helper: bool, args: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(fixture("unique.py")).arg(PORT.to_string()).args(args);
    if helper {
        command.env("PYTHONPATH", root().join("helpers/python"));
    }
    command
}

fn node_js() -> Command {
    let mut command = Command::new("node");
    command.arg(fixture("unique.js")).arg(PORT.to_string());
    command
}

/// What children draw first, one after another: each listens in a network of its own.
fn drawn(daemon: &Daemon<'_>, reference: &str, children: usize) -> Vec<Value> {
    let draw = |_| {
        let child = fork(daemon, reference, &[])[0].clone();
        let text = ask(daemon.node(), "draw");
        end_children(daemon);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("child {}: {e}: {text}", child.pid))
    };
    (0..children).map(draw).collect()
}

/// Each value differs from that of every other.
#[track_caller]
fn differ(who: &[Value], but: &[&str]) {
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (n, values) in who.iter().enumerate() {
        for (kind, value) in values.as_object().unwrap() {
            if but.contains(&kind.as_str()) {
                continue;
            }
            if let Some(first) = seen.insert((kind.clone(), value.to_string()), n) {
                panic!("{first} and {n} have drawn the same {kind}: {value}");
            }
        }
    }
}

/// The parent, two children, a child of a child: all draw differently.
fn family_differs(command: Command, but: &[&str]) {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::spawn(a.node(), command);
    let seed = prepare(&a, parent.pid(), &[]);
    let mut all = drawn(&b, &seed.reference, 2);
    let child = fork(&b, &seed.reference, &[])[0].clone();
    let second = prepare(&b, child.pid, &[]);
    all.extend(drawn(&c, &second.reference, 2));
    all.push(serde_json::from_str(&parent.ask("draw")).unwrap());
    differ(&all, but);
    assert_eq!(all.len(), 5);
}

#[test]
fn children_of_cpython_draw_different_values() {
    // 14 bits: two of five are the same at times.
    family_differs(python(false, &[]), &["clock_seq"]);
}

/// Threads that wait hold no lock of the interpreter. With numpy, which has threads of its own.
#[test]
fn children_of_a_cpython_with_threads_and_numpy_draw_different_values() {
    let mut command = Command::new(crate::inputs::venv("python"));
    command.arg(fixture("unique.py")).args([&PORT.to_string(), "threads", "numpy"]);
    family_differs(command, &["clock_seq"]);
}

#[test]
fn children_of_node_draw_different_values() {
    family_differs(node_js(), &[]);
}

#[test]
fn children_of_a_busy_cpython_reseed_as_soon_as_it_can() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::spawn(a.node(), python(true, &["busy"]));
    let seed = prepare(&a, parent.pid(), &[]);
    let mut all = Vec::new();
    for _ in 0..2 {
        fork(&b, &seed.reference, &[]);
        // Its main thread runs the recipe between two instructions of what it is busy with.
        until("it has reseeded", SOON, || (ask(b.node(), "registered") != "[]").then_some(()));
        all.push(serde_json::from_str(&ask(b.node(), "draw")).unwrap());
        end_children(&b);
    }
    all.push(serde_json::from_str(&parent.ask("draw")).unwrap());
    differ(&all, &["clock_seq"]);
}

/// A main thread that waits for ever comes between no two instructions any more.
#[test]
fn children_of_a_busy_cpython_whose_main_thread_only_waits_reseed_at_once() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::spawn(a.node(), python(true, &["joins"]));
    let seed = prepare(&a, parent.pid(), &[]);
    let mut all: Vec<Value> = Vec::new();
    let mut draws = |daemon: &Daemon<'_>, reference: &str, times: usize| {
        let child = fork(daemon, reference, &[])[0].clone();
        let node = daemon.node();
        let reseeded = || {
            let generations: Vec<u64> = serde_json::from_str(&ask(node, "registered")).unwrap();
            (generations.len() == times).then_some(())
        };
        until("it has reseeded", SOON, reseeded);
        all.push(serde_json::from_str(&ask(node, "draw")).unwrap());
        child
    };
    draws(&b, &seed.reference, 1);
    end_children(&b);
    let child = draws(&b, &seed.reference, 1);
    let second = prepare(&b, child.pid, &[]);
    draws(&c, &second.reference, 2);
    all.push(serde_json::from_str(&parent.ask("draw")).unwrap());
    differ(&all, &["clock_seq"]);
}

/// A main thread that holds numpy's lock does not wait for itself: what needs the lock is done once it
/// is free, in children and children of children.
fn reseeds_once_numpy_is_free(how: &[&str]) {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let mut command = Command::new(crate::inputs::venv("python"));
    command.arg(fixture("unique.py")).args([&PORT.to_string(), "locked", "numpy"]).args(how);
    command.env("PYTHONPATH", root().join("helpers/python"));
    let parent = Parent::spawn(a.node(), command);
    until("it holds the lock", SOON, || (parent.ask("locked") == "True").then_some(()));
    let seed = prepare(&a, parent.pid(), &[]);
    let mut all: Vec<Value> = Vec::new();
    let mut draws = |daemon: &Daemon<'_>| {
        let node = daemon.node();
        assert_eq!((ask(node, "locked"), ask(node, "registered")), ("True".into(), "[]".into()));
        assert_eq!(ask(node, "free"), "right");
        until("it has reseeded", SOON, || (ask(node, "registered") != "[]").then_some(()));
        all.push(serde_json::from_str(&ask(node, "draw")).unwrap());
        end_children(daemon);
    };
    fork(&b, &seed.reference, &[]);
    draws(&b);
    let child = fork(&b, &seed.reference, &[])[0].clone();
    // Its recipe is a pending call that adds itself again each time. Stopped in the midst of that it holds the lock
    // of their queue, and its children are ended: it is prepared again then (docs/uniqueness.md).
    let forks = (0..8).any(|_| {
        let again = prepare(&b, child.pid, &[]);
        let said = c.mitosis(&["fork", &again.reference, "--detach"]).unwrap();
        assert!(said.code() == 0 || said.stderr.contains("its hooks did not return"), "{said:?}");
        said.code() == 0
    });
    assert!(forks);
    draws(&b);
    draws(&c);
    assert_eq!(parent.ask("free"), "right");
    all.push(serde_json::from_str(&parent.ask("draw")).unwrap());
    differ(&all, &["clock_seq"]);
    assert_eq!(parent.ask("registered"), "[]");
}

#[test]
fn children_of_a_cpython_that_computes_in_numpy_reseed_once_its_lock_is_free() {
    reseeds_once_numpy_is_free(&[]);
}

#[test]
fn children_of_a_cpython_that_waits_in_numpy_reseed_once_its_lock_is_free() {
    reseeds_once_numpy_is_free(&["waits"]);
}

/// Parent, children, and children of a child that are told nothing any more.
fn openssl_differs(threads: &[&str]) {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let port = PORT.to_string();
    let args = [&[port.as_str()], threads].concat();
    let parent = Parent::start(a.node(), c_program(), &args);
    let seed = prepare(&a, parent.pid(), &[]);
    let draw = |daemon: &Daemon<'_>, reference: &str, args: &[&str]| {
        fork(daemon, reference, args);
        let drawn = ask(daemon.node(), "draw");
        end_children(daemon);
        drawn
    };
    let none = ["--hooks", "none"];
    // Without hooks they are the same: the test would notice if there was nothing to do.
    assert_eq!(draw(&b, &seed.reference, &none), draw(&b, &seed.reference, &none));
    let mut all = vec![parent.ask("draw")];
    all.extend((0..2).map(|_| draw(&b, &seed.reference, &[])));
    // A changed pid is what OpenSSL itself looks at.
    let new_pid = ["--hooks", "none", "--new-pid"];
    all.extend((0..2).map(|_| draw(&b, &seed.reference, &new_pid)));
    let child = fork(&b, &seed.reference, &[])[0].clone();
    let second = prepare(&b, child.pid, &[]);
    all.extend((0..2).map(|_| draw(&c, &second.reference, &[])));
    all.extend((0..2).map(|_| draw(&c, &second.reference, &none)));
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
}

#[test]
fn children_that_use_openssl_draw_different_bytes() {
    openssl_differs(&["idle", "idle"]);
}

#[test]
fn children_of_a_busy_program_that_uses_openssl_do_too() {
    openssl_differs(&["busy"]);
}

/// Who is there calls them, on a stack and with the thread-local data of a thread that lives.
#[test]
fn children_of_a_process_whose_main_thread_has_ended_are_reseeded_too() {
    openssl_differs(&["idle", "ended"]);
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let port = PORT.to_string();
    let parent = Parent::start(a.node(), c_program(), &[&port, "busy", "ended"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let said = b.mitosis_json(&["fork", &seed.reference, "--detach"]).unwrap();
    let number = said["children"][0]["generation"].as_str().unwrap().to_owned();
    assert_eq!(ask(b.node(), "told"), number);
    assert_eq!(parent.ask("told"), "0".repeat(16));
}

/// What a child reads, what its hook is told and what `fork` says is one number; in a process that
/// was not forked it is zero.
#[test]
fn each_child_has_a_generation_number_of_its_own() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let read =
        |node: &Node| node.sh("cat /run/mitosis/generation").unwrap().stdout.trim().to_owned();
    assert_eq!((read(a.node()), read(b.node())), ("0".repeat(16), "0".repeat(16)));
    let parent = Parent::start(a.node(), c_program(), &[&PORT.to_string()]);
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!((parent.ask("open"), parent.ask("told")), ("0".repeat(16), "0".repeat(16)));
    let child = |b: &Daemon<'_>, reference: &str| {
        let said = b.mitosis_json(&["fork", reference, "--detach"]).unwrap();
        let child = said["children"][0].clone();
        let number = child["generation"].as_str().unwrap().to_owned();
        assert_eq!(ask(b.node(), "told"), number);
        assert_eq!(ask(b.node(), "open"), number, "a file that stayed open");
        let pid = u32::try_from(child["pid"].as_u64().unwrap()).unwrap();
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--target={pid}")).args(["--mount", "--setuid=65534", "--"]);
        inside.args(["cat", "/run/mitosis/generation"]);
        let read = b.node().run(inside).unwrap().success().unwrap().stdout;
        assert_eq!(read.trim(), number, "by anybody");
        assert_eq!(row(b, pid)["generation"].as_str(), Some(number.as_str()));
        (pid, number)
    };
    let (_, first) = child(&b, &seed.reference);
    end_children(&b);
    let (pid, second) = child(&b, &seed.reference);
    let seed = prepare(&b, pid, &[]);
    let (_, third) = child(&c, &seed.reference);
    assert!(first != second && second != third && first != third);
    assert_eq!(read(b.node()), "0".repeat(16), "the node itself");
}

#[test]
fn memory_that_forks_are_not_to_see_is_empty_in_children() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::start(a.node(), c_program(), &[&PORT.to_string()]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "wiped"), "0");
    let second = prepare(&b, child.pid, &[]);
    fork(&c, &second.reference, &[]);
    assert_eq!(ask(c.node(), "wiped"), "0");
    assert_eq!(parent.ask("wiped"), "77");
}

/// A child whose hook fails is ended, not run; the error says what failed. Nothing of it stays.
fn a_failing_hook(command: Command, word: &str) {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::spawn(a.node(), command);
    assert_eq!(parent.ask("break"), "right");
    // Until it waits again.
    std::thread::sleep(Duration::from_millis(300));
    let seed = prepare(&a, parent.pid(), &[]);
    let before = settled_pids(b.node());
    let output = b.mitosis(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("hook") && output.stderr.contains(word), "{}", output.stderr);
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    let row = until("the child is gone", SOON, || {
        let rows = ps(&b);
        rows.into_iter().find(|row| row["state"] == "ended" && row["reason"].is_string())
    });
    assert!(row["reason"].as_str().unwrap().contains(word), "{row}");
    until("its guard, too", SOON, || {
        (b.node().pids().unwrap().len() <= before.len()).then_some(())
    });
    // It can be forked without.
    fork(&b, &seed.reference, &["--hooks", "none"]);
    assert_ne!(ask(b.node(), "draw"), "");
    assert_ne!(parent.ask("draw"), "");
}

#[test]
fn a_child_whose_own_hook_fails_is_ended() {
    let mut command = Command::new(c_program());
    command.arg(PORT.to_string());
    a_failing_hook(command, "mitosis_after_fork");
}

#[test]
fn a_child_whose_python_cannot_reseed_is_ended() {
    a_failing_hook(python(false, &[]), "random.seed()");
}

#[test]
fn a_child_whose_javascript_hook_throws_is_ended() {
    a_failing_hook(node_js(), "v8::Script::Run");
}

/// A main thread that is on a small stack of its own keeps what lies below it.
#[test]
fn hooks_have_room_where_the_main_thread_has_little() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::start(a.node(), c_program(), &[&PORT.to_string(), "small"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let said = b.mitosis_json(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(ask(b.node(), "told"), said["children"][0]["generation"].as_str().unwrap());
    assert_eq!(ask(b.node(), "below"), "0");
}

/// Under a filter that forbids nearly all, hooks do what the program may do.
#[test]
fn hooks_of_a_filtered_program_run_under_its_filter() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::start(a.node(), c_program(), &[&PORT.to_string(), "idle", "filter"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let said = b.mitosis_json(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(ask(b.node(), "told"), said["children"][0]["generation"].as_str().unwrap());
    let first = ask(b.node(), "draw");
    end_children(&b);
    let all = fork(&b, &seed.reference, &["--count", "5"]);
    assert_eq!(all.len(), 5, "the hooks of five are awaited together");
    assert_ne!(ask(b.node(), "draw"), first);
}

/// Functions that the program has registered are called with the number.
#[test]
fn hooks_that_a_program_registers_are_told_the_number() {
    for (command, form) in [(python(true, &[]), true), (node_js(), false)] {
        let lab = lab(2);
        let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
        let parent = Parent::spawn(a.node(), command);
        let seed = prepare(&a, parent.pid(), &[]);
        let said = b.mitosis_json(&["fork", &seed.reference, "--detach"]).unwrap();
        let number = said["children"][0]["generation"].as_str().unwrap().to_owned();
        let told = ask(b.node(), "registered");
        let wanted = match form {
            true => format!("[{}]", u64::from_str_radix(&number, 16).unwrap()),
            false => number.clone(),
        };
        assert_eq!(told, wanted);
        assert_eq!(ask(b.node(), "generation"), number);
    }
}

/// As any process at its end: the library is taken down, and what is left of it has no locks any more.
const CLEANED: &str = "import ctypes, os, time\n\
    crypto = ctypes.CDLL('libcrypto.so.3')\n\
    crypto.RAND_status()\n\
    crypto.OPENSSL_cleanup()\n\
    home = os.getppid()\n\
    print('ready', flush=True)\n\
    while os.getppid() == home: time.sleep(0.001)\n\
    os._exit(7)";

#[test]
fn a_child_of_a_process_that_has_taken_openssl_down_goes_on() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::python(a.node(), CLEANED, &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    let ended = ended(&b, child.pid, SOON);
    assert_eq!(ended["exit"], 7, "{ended}");
}
