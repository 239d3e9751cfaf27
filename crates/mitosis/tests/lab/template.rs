//! Children that are copies of a template.

use std::path::Path;
use std::time::Duration;

use mitosis_lab::Daemon;

use crate::support::*;

/// The template processes of a node.
fn templates(daemon: &Daemon<'_>) -> Vec<u32> {
    let node = daemon.node();
    let name = |pid: &u32| std::fs::read_to_string(node.proc_dir(*pid).join("comm"));
    let mut pids = node.pids().unwrap();
    pids.retain(|pid| name(pid).is_ok_and(|name| name == "mitosis-templat\n"));
    pids
}

/// A child that was made from a template.
#[track_caller]
fn by_template(daemon: &Daemon<'_>, seed: &Seed, args: &[&str]) -> Child {
    let args = [&["--via", "template"], args].concat();
    let child = fork_one(daemon, &seed.reference, &args);
    assert_eq!(row(daemon, child.pid)["via"], "template");
    child
}

#[test]
fn copies_of_a_template_have_the_parents_memory_and_pid_and_their_guard_as_parent() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    for _ in 0..3 {
        let child = by_template(&b, &seed, &[]);
        assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
        assert_eq!(ask(b.node(), "pid"), parent.pid().to_string());
        let stat = std::fs::read_to_string(b.node().proc_dir(child.pid).join("stat")).unwrap();
        let above: u32 =
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(pids_with(b.node(), "mitosis-guard").contains(&above), "{stat}");
        end_children(&b);
    }
    assert_eq!(templates(&b).len(), 1);
}

#[test]
fn the_second_child_on_a_node_comes_from_a_template_by_itself_and_fetches_little() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let first = fork_one(&b, &seed.reference, &[]);
    assert_eq!(row(&b, first.pid)["via"], "direct");
    assert_eq!(ask(b.node(), "touch random 3").split(' ').nth(1), Some("wrong=0"));
    end_children(&b);
    until("a template holds what the first child touched", SOON, || {
        let child = fork_one(&b, &seed.reference, &[]);
        assert_eq!(ask(b.node(), "touch random 3").split(' ').nth(1), Some("wrong=0"));
        let row = row(&b, child.pid);
        end_children(&b);
        let little = row["faults"].as_u64().unwrap() < DATA_PAGES / 300;
        (row["via"] == "template" && little).then_some(())
    });
    assert_eq!(ask_new(&b, &seed, "hash"), parent.ask("hash"));
}

/// What a new child says.
fn ask_new(daemon: &Daemon<'_>, seed: &Seed, line: &str) -> String {
    by_template(daemon, seed, &[]);
    ask(daemon.node(), line)
}

#[test]
fn a_template_lets_nobody_fork_and_none_is_made_once_a_seed_is_revoked() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    by_template(&b, &seed, &[]);
    end_children(&b);
    let mut wrong = seed.reference.clone();
    let last = wrong.pop().unwrap();
    wrong.push(if last == '0' { '1' } else { '0' });
    for via in ["auto", "template"] {
        let refused = b.mitosis(&["fork", &wrong, "--detach", "--via", via]).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    }
    by_template(&b, &seed, &[]);
    end_children(&b);
    // Not a moment later: when the seed is gone, there is no lease any more.
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    for via in ["auto", "template"] {
        let revoked = b.mitosis(&["fork", &seed.reference, "--detach", "--via", via]).unwrap();
        assert_eq!(revoked.status.code(), Some(1), "{revoked:?}");
    }
    until("the template is gone", SOON, || templates(&b).is_empty().then_some(()));
}

#[test]
fn a_template_learns_from_children_that_come_seldom() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    // Each finds that its lease is over.
    until("a template holds what children touched", SOON, || {
        let child = by_template(&b, &seed, &[]);
        assert_eq!(ask(b.node(), "touch random 3").split(' ').nth(1), Some("wrong=0"));
        std::thread::sleep(Duration::from_millis(700));
        let fetched = row(&b, child.pid)["pages_fetched"].as_u64().unwrap();
        end_children(&b);
        (fetched < 32).then_some(())
    });
}

#[test]
fn a_template_that_is_killed_is_replaced_and_its_children_live() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    by_template(&b, &seed, &["--net", "own"]);
    let killed = templates(&b);
    b.node().sh(&format!("kill -9 {}", killed[0])).unwrap();
    by_template(&b, &seed, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    assert!(!templates(&b).contains(&killed[0]));
    assert!(ps(&b).iter().all(|row| row["state"] == "running"), "{:?}", ps(&b));
}

#[test]
fn what_fork_is_told_holds_for_copies_too() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = by_template(&b, &seed, &["--new-pid", "--hostname", "elsewhere"]);
    assert_ne!(ask(b.node(), "pid"), parent.pid().to_string());
    // Of one that has ended, the kernel may give the number to the next: this is the node's, which stays.
    let uts =
        |pid: u32| std::fs::read_link(b.node().proc_dir(pid).join(Path::new("ns/uts"))).unwrap();
    let nodes = uts(1);
    assert_ne!(uts(child.pid), nodes);
    end_children(&b);
    let other = by_template(&b, &seed, &["--independent"]);
    assert_ne!(uts(other.pid), nodes);
    until("it is independent", SOON, || (row(&b, other.pid)["independent"] == true).then_some(()));
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

#[test]
fn many_children_of_one_request_come_from_one_template_and_a_copy_can_be_a_seed() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let children = fork(&b, &seed.reference, &["--count", "20"]);
    assert_eq!(children.len(), 20);
    assert!(ps(&b).iter().all(|row| row["via"] == "template"), "{:?}", ps(&b));
    // While it is renewed there are two for a moment.
    until("there is one template", SOON, || (templates(&b).len() == 1).then_some(()));
    let again = prepare(&b, children[7].pid, &[]);
    by_template(&c, &again, &[]);
    assert_eq!(ask(c.node(), "hash"), parent.ask("hash"));
    // On the seed's own node, too.
    let own = fork(&b, &again.reference, &["--via", "template", "--net", "own"]);
    // What only this node has may be in the template already.
    assert!(["mixed", "tcp"].contains(&own[0].transport.as_str()), "{own:?}");
    assert_eq!(row(&b, own[0].pid)["via"], "template");
}

/// A child that is a copy of the shadow; it listens in a network of its own.
#[track_caller]
fn by_shadow(daemon: &Daemon<'_>, seed: &Seed, args: &[&str]) -> Child {
    let args = [&["--via", "shadow", "--net", "own"], args].concat();
    let child = fork(daemon, &seed.reference, &args)[0].clone();
    let row = row(daemon, child.pid);
    assert_eq!((&row["via"], &row["transport"]), (&"shadow".into(), &"local".into()), "{row}");
    child
}

#[test]
fn copies_of_the_shadow_have_all_of_its_memory_and_fetch_nothing() {
    let lab = lab(2);
    let (mut a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let mut parent = Parent::c(a.node(), &[&format!("map={FILES}/mapped")]);
    let hash = parent.ask("hash");
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(parent.ask("count"), "1");
    let pid = parent.pid().to_string();
    parent.process.kill().unwrap();
    for round in 0..3 {
        let child = fork(&a, &seed.reference, &["--via", "shadow"])[0].clone();
        assert_eq!(ask(a.node(), "hash"), hash);
        assert_eq!((ask(a.node(), "count"), ask(a.node(), "pid")), ("1".into(), pid.clone()));
        assert_eq!(ask(a.node(), "touch scatter 3").split(' ').nth(1), Some("wrong=0"));
        let row = row(&a, child.pid);
        assert_eq!(
            (&row["via"], &row["faults"], &row["pages_fetched"]),
            (&"shadow".into(), &0.into(), &0.into()),
            "{row}"
        );
        // It needs nobody any more, and is a parent like any other.
        assert_eq!(row["independent"], true, "{row}");
        let again = prepare(&a, child.pid, &[]);
        end_children(&a);
        fork_one(&b, &again.reference, &[]);
        assert_eq!((ask(b.node(), "hash"), ask(b.node(), "count")), (hash.clone(), "2".into()));
        end_children(&b);
        a.mitosis(&["seed", "rm", &again.id]).unwrap().success().unwrap();
        // The shadow serves others as before, and outlives the daemon that gives it orders.
        fork_one(&b, &seed.reference, &[]);
        assert_eq!(ask(b.node(), "hash"), hash);
        end_children(&b);
        if round == 1 {
            a.restart().unwrap();
        }
    }
    let child = by_shadow(&a, &seed, &[]);
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    assert_eq!(row(&a, child.pid)["state"], "running", "it needs no page of the seed");
    let refused = a.mitosis(&["fork", &seed.reference, "--via", "shadow", "--detach"]).unwrap();
    assert_eq!(refused.code(), 1, "{refused:?}");
}

/// Small ones are without being told, and those that cannot be read it.
#[test]
fn children_of_a_small_seed_on_its_own_node_are_copies_of_the_shadow_if_they_can_be() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let why = |via: &str, seed: &Seed| {
        let args = ["fork", &seed.reference, "--detach", "--net", "own", "--via", via];
        let said = a.mitosis_json(&args).unwrap();
        let child = &said["children"][0];
        (child["via"].as_str().unwrap().to_owned(), child["transport_why"].to_string())
    };
    let script = fixture("web.py").display().to_string();
    let python = Path::new("/usr/bin/python3");
    let small = Parent::start(a.node(), python, &[&script, &PORT.to_string()]);
    let seed = prepare(&a, small.pid(), &[]);
    assert_eq!(why("auto", &seed).0, "shadow", "{}", seed.said);
    assert_eq!(why("direct", &seed).0, "direct");
    drop(small);
    let filtered = Parent::c(a.node(), &["mb=8", "mode=seccomp"]);
    let seed = prepare(&a, filtered.pid(), &[]);
    assert_eq!(why("auto", &seed).0, "direct");
    let (via, why_not) = why("shadow", &seed);
    assert!(via == "shadow" && why_not.contains("seccomp"), "{via}: {why_not}");
    drop(filtered);
    let large = Parent::c(a.node(), &[]);
    let seed = prepare(&a, large.pid(), &[]);
    assert_eq!(why("auto", &seed).0, "direct");
}

/// A server that ends as soon as it finds itself somewhere else.
const BRIEF: &str = "import os, socket, time\n\
    home = os.getppid()\n\
    listener = socket.create_server(('0.0.0.0', 8000))\n\
    print('ready', flush=True)\n\
    while os.getppid() == home: time.sleep(0.001)";

#[test]
fn children_that_end_at_once_leave_neither_their_port_taken_nor_their_end_untold() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::python(a.node(), BRIEF, &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    for _ in 0..10 {
        assert_eq!(fork(&b, &seed.reference, &["--count", "12"]).len(), 12);
    }
    until("all have ended", SOON, || {
        ps(&b).iter().all(|row| row["state"] == "ended").then_some(())
    });
}

/// A process in whose namespace an orphan ends while it still runs.
const ORPHAN: &str = "import os, time\n\
    home = os.getppid()\n\
    print('ready', flush=True)\n\
    while os.getppid() == home: time.sleep(0.001)\n\
    if os.fork() == 0:\n    \x20if os.fork() == 0: os._exit(3)\n    \x20os._exit(0)\n\
    os.wait()\n\
    time.sleep(0.3)\n\
    os._exit(7)";

/// A guard hears of its child from that itself, with its memory or, if it has all of that, without.
#[test]
fn a_guard_takes_no_orphan_for_its_child() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::python(a.node(), ORPHAN, &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    for (node, via) in [(&b, "template"), (&a, "shadow")] {
        let child = fork(node, &seed.reference, &["--via", via])[0].pid;
        let ended = ended(node, child, SOON);
        assert_eq!((&ended["via"], &ended["exit"]), (&via.into(), &7.into()), "{ended}");
    }
}

/// Stops the process of its node whose pid follows, for a moment, again and again.
const STOPS: &str = "echo ready\n\
    for turn in $(seq 200); do kill -STOP $1; kill -CONT $1; sleep 0.002; done\n\
    sleep 60";

/// The kernel takes no wait with a time limit up again after a stop: such a wait is for a guard.
#[test]
fn a_daemon_that_is_stopped_now_and_then_makes_its_guards() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=1"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let mut stops = std::process::Command::new("/bin/sh");
    stops.args(["-c", STOPS, "stops", &b.pid().unwrap().to_string()]);
    let _stops = Parent::spawn(b.node(), stops);
    for _ in 0..4 {
        assert_eq!(fork(&b, &seed.reference, &["--count", "40"]).len(), 40);
        end_children(&b);
    }
}
