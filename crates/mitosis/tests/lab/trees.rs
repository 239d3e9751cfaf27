//! Process trees: `prepare --tree` makes one seed of all processes, and a child is all of them.

use serde_json::{Value, json};
use std::process::Command;

use crate::support::*;

#[test]
fn a_tree_of_one_process_is_a_seed_like_any_other() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    assert_eq!(seed.said["processes"], 1);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

fn wrapper() -> Command {
    let mut wrapper = Command::new("sh");
    let line = format!("{} {PORT} dir={FILES} mb=8; true", c_parent().display());
    wrapper.args(["-c", &line]);
    wrapper
}

#[test]
fn a_shell_wrapper_and_what_it_waits_for() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let before = settled_pids(b.node());
    let parent = Parent::spawn(a.node(), wrapper());
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    assert_eq!(seed.said["processes"], 2);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    assert_eq!(row(&b, child.pid)["processes"], 2);
    assert_eq!(ps(&b).len(), 1, "a tree has one row");
    assert_eq!(a.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap().len(), 1);
    // The shell waits for its child, in the child as in the parent.
    let path = b.node().proc_dir(child.pid).join(format!("task/{}/children", child.pid));
    let server = std::fs::read_to_string(path).unwrap();
    b.node().sh(&format!("kill -9 {server}")).unwrap();
    let row = ended(&b, child.pid, SOON);
    assert_eq!(row["exit"], 0, "the shell went on with `true`: {row}");
    assert_eq!(settled_pids(b.node()).len(), before.len());
    assert_eq!(parent.ask("count"), "1");
}

fn tree<'lab>(lab: &'lab mitosis_lab::Lab) -> Parent<'lab> {
    let mut command = Command::new("/usr/bin/python3");
    let file = format!("{FILES}/file1");
    command.arg(fixture("tree.py")).args([PORT.to_string(), file]);
    Parent::spawn(lab.node(0), command)
}

fn said(node: &mitosis_lab::Node, line: &str) -> Value {
    serde_json::from_str(&ask(node, line)).unwrap()
}

/// What each process says of itself, with the pid of the root for whatever is the root's parent.
fn family(node: &mitosis_lab::Node) -> Vec<Value> {
    let mut all = vec![said(node, "about"), said(node, "worker about"), said(node, "peer about")];
    all.extend(said(node, "leader about").as_array().unwrap().iter().cloned());
    let root = all[0]["ppid"].clone();
    let (group, session) = (all[0]["group"].clone(), all[0]["session"].clone());
    let pid = all[0]["pid"].clone();
    for one in &mut all {
        let rename = |key: &str, from: &Value, one: &mut Value| {
            if one[key] == *from {
                one[key] = pid.clone();
            }
        };
        rename("ppid", &root, one);
        rename("group", &group, one);
        rename("session", &session, one);
    }
    all
}

#[test]
fn what_processes_have_in_common_children_have_in_common() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let before = settled_pids(b.node());
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    assert_eq!(seed.said["processes"], 5, "{}", seed.said);
    let families = family(a.node());
    for daemon in [&b, &c] {
        fork_one(daemon, &seed.reference, &[]);
        let node = daemon.node();
        assert_eq!(family(node), families, "who is who");
        // Memory: their own, and what they share; nobody else's changes.
        assert_eq!(said(node, "hash"), said(a.node(), "hash"));
        assert_eq!(said(node, "worker hash"), said(a.node(), "hash"));
        assert_eq!(said(node, "far"), "far away");
        assert_eq!(said(node, "worker bump"), 1001);
        assert_eq!(said(node, "peer bump"), 1002);
        assert_eq!(said(node, "leader bump"), json!([1003, 1004]));
        assert_eq!(said(node, "bump"), 1005);
        // One description has one offset.
        let lines: Vec<Value> =
            ["read", "worker read", "peer read"].iter().map(|who| said(node, who)).collect();
        let text: String = lines.iter().map(|line| line.as_str().unwrap()).collect();
        let file = std::fs::read_to_string(a.node().host_path(FILES).join("file1")).unwrap();
        assert_eq!(text, file[..30]);
        said(node, "worker note");
        said(node, "peer note");
        assert_eq!(said(node, "book"), "written before+child+child");
        // Those that have ended can be waited for, once.
        assert_eq!(said(node, "wait"), json!([7, -9, 9]));
        assert!(said(node, "wait").as_str().unwrap().contains("ChildProcessError"));
    }
    // The parent is as it was.
    assert_eq!(said(a.node(), "worker bump"), 1001);
    assert_eq!(said(a.node(), "book"), "written before");
    assert_eq!(said(a.node(), "wait"), json!([7, -9, 9]));
    end_children(&b);
    assert_eq!(settled_pids(b.node()).len(), before.len());
}

#[test]
fn a_child_of_a_tree_is_a_tree_again() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(said(b.node(), "worker bump"), 1001);
    let second = prepare(&b, child.pid, &["--tree"]);
    assert_eq!(second.said["processes"], 5);
    fork_one(&c, &second.reference, &[]);
    assert_eq!(said(c.node(), "peer bump"), 1002);
    assert_eq!(said(c.node(), "worker hash"), said(a.node(), "hash"), "from whoever owns it");
    assert_eq!(said(b.node(), "bump"), 1002);
    assert_eq!(said(c.node(), "wait"), json!([7, -9, 9]));
}

#[test]
fn a_tree_ends_as_a_whole() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let before = (settled_pids(a.node()), settled_pids(b.node()));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let child = fork_one(&b, &seed.reference, &[]);
    said(b.node(), "worker about");
    // A seed that is revoked takes all its processes along, and all that need them.
    assert!(a.mitosis(&["seed", "rm", &seed.reference]).unwrap().success().is_ok());
    let row = ended(&b, child.pid, SOON);
    assert!(row["reason"].as_str().unwrap().contains("revoked"), "{row}");
    assert_eq!(settled_pids(b.node()).len(), before.1.len());
    drop(parent);
    until("nothing is left of the parent's", SOON, || {
        (settled_pids(a.node()).len() == before.0.len()).then_some(())
    });
}

#[test]
fn what_a_tree_cannot_be_is_refused_by_name() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let refused = |args: &[&str], why: &str| {
        let all = [&["fork", &seed.reference, "--detach"], args].concat();
        let said = b.mitosis(&all).unwrap();
        assert!(said.code() != 0 && said.stderr.contains(why), "{args:?}: {said:?}");
    };
    refused(&["--new-pid"], "know each other by their pids");
    refused(&["--via", "template"], "made from nothing each time");
    assert!(ps(&b).is_empty());
    assert_eq!(said(a.node(), "worker bump"), 1001, "the parent runs on");
}

#[test]
fn a_tree_that_does_not_fit_the_disk_leaves_nothing() {
    let lab = lab(1);
    let node = lab.node(0);
    node.sh("mkdir /tmp/state && mount -t tmpfs -o size=24k full /tmp/state").unwrap();
    let a = node.start_daemon_with(&binary(), &["--state-dir", "/tmp/state"]).unwrap();
    let parent = tree(&lab);
    let before = settled_pids(node);
    let refused = a.mitosis(&["prepare", &parent.pid().to_string(), "--tree"]).unwrap();
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("No space left on device"), "{refused:?}");
    assert_eq!(settled_pids(node), before, "no shadow stays, of any process");
    assert_eq!(a.mitosis_json(&["seed", "ls"]).unwrap(), json!([]));
    assert_eq!(said(node, "worker bump"), 1001);
}
