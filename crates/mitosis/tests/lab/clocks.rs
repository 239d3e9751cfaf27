//! The clocks of children, where each node counts from another start.

use std::path::PathBuf;
use std::process::Command;

use mitosis_lab::{Lab, Node};

use crate::support::*;

/// A script that runs a program in a time namespace whose clocks are ahead by so many seconds.
fn ahead(node: &Node, name: &str, program: &std::path::Path, seconds: [u32; 2]) -> PathBuf {
    let [monotonic, boottime] = seconds;
    let path = format!("/tmp/ahead-{name}");
    let text = format!(
        "#!/bin/sh\nexec unshare --time --monotonic={monotonic} --boottime={boottime} --fork \
         --kill-child=KILL -- {} \"$@\"\n",
        program.display()
    );
    std::fs::write(node.host_path(&path), text).unwrap();
    node.sh(&format!("chmod +x {path}")).unwrap();
    path.into()
}

/// The conformance program for clocks, in the lab.
fn program(lab: &Lab) -> PathBuf {
    let source = root().join("tests/conformance/clocks.c");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clocks");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-D_GNU_SOURCE", "-pthread", "-o"]).arg(&target).arg(source);
    assert!(gcc.status().expect("gcc is needed: run scripts/setup.sh").success());
    for node in lab.nodes() {
        node.put(&target, "/tmp/clocks").unwrap();
    }
    "/tmp/clocks".into()
}

/// The one process of a node that is this program.
fn only(node: &Node, line: &str) -> u32 {
    let found = pids_with(node, line);
    let plain = |pid: &&u32| {
        let exe = std::fs::read_link(node.proc_dir(**pid).join("exe")).unwrap_or_default();
        !exe.ends_with("unshare")
    };
    let found: Vec<&u32> = found.iter().filter(plain).collect();
    assert_eq!(found.len(), 1, "{line}");
    *found[0]
}

/// Parent on a machine that has run for a day longer than the next, which has run for an hour less
/// than the third: children and children of children, there and back.
#[test]
fn clocks_of_children_go_on_where_those_of_their_parents_are() {
    let lab = lab(3);
    let clocks = program(&lab);
    let starts = [[100_000, 130_000], [0, 0], [3600, 7200]];
    let daemon = |index: usize| {
        let node = lab.node(index);
        let wrapper = ahead(node, "daemon", &binary(), starts[index]);
        node.start_daemon(&wrapper).unwrap()
    };
    let (a, b, c) = (daemon(0), daemon(1), daemon(2));
    let wrapper = ahead(a.node(), "parent", &clocks, starts[0]);
    let _parent = Parent::start(a.node(), &wrapper, &["8000"]);
    let pid = only(a.node(), "/tmp/clocks 8000");
    assert_eq!(ask(a.node(), "check"), "right");
    let seed = prepare(&a, pid, &[]);
    let first = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "check"), "right", "a child, back by a day");
    assert_eq!(ask(b.node(), "change 1"), "right");
    let second = prepare(&b, first.pid, &[]);
    let third = fork_one(&c, &second.reference, &[]);
    assert_eq!(ask(c.node(), "verify 1"), "right", "a grandchild: shifts add up");
    let namespace = |pid: u32| std::fs::read_link(c.node().proc_dir(pid).join("ns/time")).unwrap();
    assert_ne!(namespace(third.pid), namespace(1));
    // An answer that took long leaves the difference of the clocks vague: the next may be held against
    // a better one, and begin anew.
    let space = || namespace(fork_one(&c, &seed.reference, &["--net", "own"]).pid);
    until("one namespace for a pair of nodes", SOON, || (space() == space()).then_some(()));
    let fourth = prepare(&c, third.pid, &[]);
    // Back where the clocks come from.
    drop(_parent);
    until("the address is free", SOON, || a.node().sh("! ss -Hltn sport = :8000 | grep -q .").ok());
    fork(&a, &fourth.reference, &[]);
    assert_eq!(ask(a.node(), "verify 1"), "right", "back on the first node");
}

/// Where the clocks are the same no namespace is made.
#[test]
fn a_child_on_the_same_machine_stays_in_its_nodes_time() {
    let lab = lab(2);
    let clocks = program(&lab);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::start(a.node(), &clocks, &["8000"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "check"), "right");
    let namespace = |pid: u32| std::fs::read_link(b.node().proc_dir(pid).join("ns/time")).unwrap();
    assert_eq!(namespace(child.pid), namespace(1));
}
