//! What the flags of `fork` promise, and the verbs beside it.

use std::process::Command;

use mitosis_lab::Node;

use crate::support::*;

/// Runs a line inside namespaces of a node's process.
#[track_caller]
fn inside(node: &Node, pid: u32, namespaces: &[&str], line: &str) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={pid}")).args(namespaces).args(["bash", "-c", line]);
    node.run(command).unwrap().success().unwrap().stdout.trim().to_owned()
}

#[test]
fn a_child_has_a_pid_namespace_and_a_proc_of_its_own() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &["--hostname", "elsewhere"]);
    assert_eq!(ask(b.node(), "pid"), parent.pid().to_string());
    assert_eq!(inside(b.node(), child.pid, &["--uts"], "hostname"), "elsewhere");
    let both = ["--mount", "--pid"];
    let name = format!("tr '\\0' ' ' </proc/1/cmdline; cat /proc/{}/comm", parent.pid());
    assert_eq!(inside(b.node(), child.pid, &both, &name), "mitosis-guard parent");
    // Pid 1 is its guard; the only others are the child and what looks at it here.
    let pids = inside(b.node(), child.pid, &both, "echo /proc/[0-9]*");
    assert_eq!(pids.split(' ').count(), 3, "{pids}");
}

#[test]
fn a_new_pid_and_all_pages_at_once_if_wanted() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &["--new-pid", "--paging", "eager"]);
    until("all pages have come", SOON, || {
        let row = row(&b, child.pid);
        let number = |key: &str| row[key].as_u64().unwrap();
        let come = number("pages_fetched") + number("pages_prefetched");
        (number("pages_total") > 2048 && come == number("pages_total")).then_some(())
    });
    assert_ne!(ask(b.node(), "pid"), parent.pid().to_string());
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

#[test]
fn references_come_from_a_file_or_standard_input_too() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    std::fs::write(b.node().host_path("/tmp/ref"), format!("{}\n", seed.reference)).unwrap();
    fork_one(&b, "@/tmp/ref", &[]);
    assert_eq!(ask(b.node(), "count"), "1");
    end_children(&b);
    let mitosis = binary().display().to_string();
    let line = format!("{mitosis} fork - --detach --socket {} </tmp/ref", b.socket());
    b.node().sh(&line).unwrap();
    assert_eq!(ask(b.node(), "count"), "1");
}

#[test]
fn waiting_tells_the_exit_status() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    let pid = child.pid.to_string();
    let waited = std::thread::scope(|scope| {
        let wait = scope.spawn(|| b.mitosis(&["wait", &pid]).unwrap());
        Peer::to(b.node(), PORT).tell("exit 7");
        wait.join().unwrap()
    });
    assert!(waited.stdout.contains('7') || waited.code() == 7, "{waited:?}");
    assert_eq!(row(&b, child.pid)["exit"].as_u64(), Some(7));
}

#[test]
fn the_phases_fit_the_time_that_it_took() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let sum = |phases: &serde_json::Value| -> u64 {
        let phases = phases.as_array().unwrap();
        assert!(phases.len() >= 3, "{phases:?}");
        phases.iter().map(|phase| phase["us"].as_u64().unwrap()).sum()
    };
    let pid = parent.pid().to_string();
    let output = a.mitosis(&["prepare", &pid, "-o", "json"]).unwrap();
    let wall = u64::try_from(output.wall.as_micros()).unwrap();
    let said = output.json().unwrap();
    let took = said["prepare_us"].as_u64().unwrap();
    assert!(sum(&said["phases"]) <= took && took <= wall, "{wall} us: {said}");
    assert!(said["freeze_us"].as_u64().unwrap() <= took, "{said}");

    let reference = said["ref"].as_str().unwrap();
    let output = b.mitosis(&["fork", reference, "--detach", "-o", "json"]).unwrap();
    let wall = u64::try_from(output.wall.as_micros()).unwrap();
    let said = output.json().unwrap();
    let child = &said["children"][0];
    let took = child["start_us"].as_u64().unwrap();
    assert!(sum(&child["phases"]) <= took && took <= wall, "{wall} us: {said}");
}
