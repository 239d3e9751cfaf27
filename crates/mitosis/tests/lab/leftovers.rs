//! Nothing is left: processes, zombies, descriptors, control groups, mounts, namespaces, files.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use mitosis_lab::{Census, Daemon, Node};

use crate::support::*;

/// Waits until a node holds what it held before, logs of ended children apart.
#[track_caller]
fn same_as(node: &Node, before: &Census) {
    let began = std::time::Instant::now();
    loop {
        let mut differences = before.differences(&node.census().unwrap());
        // The records of ended children are kept for a bounded time, and so are their logs.
        differences.retain(|line| !line.starts_with("files:") && left(line));
        if differences.is_empty() {
            return;
        }
        assert!(began.elapsed() < SOON, "{} has left: {differences:#?}", node.name());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a difference means that something was left: there is more of it than before. Connections
/// between daemon, pager and nodes are pooled: at most four idle ones each are kept.
fn left(line: &str) -> bool {
    let (_, counts) = line.rsplit_once(": ").unwrap();
    let counts: Vec<i64> = counts.split(" -> ").map(|count| count.parse().unwrap()).collect();
    let pooled = if line.contains(": socket: ") { 4 } else { 0 };
    counts[1] > counts[0] + pooled
}

/// A count of a node at rest: taken when two in a row are equal, pools being filled.
#[track_caller]
fn settled(node: &Node) -> Census {
    let mut last = node.census().unwrap();
    until("the node is at rest", SOON, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = node.census().unwrap();
        let same = now == last;
        last = now.clone();
        same.then_some(now)
    })
}

/// Makes one child and ends it, so that what a node makes once is there before it is counted.
fn warm(daemon: &Daemon<'_>, seed: &Seed) {
    fork_one(daemon, &seed.reference, &[]);
    assert_eq!(ask(daemon.node(), "count"), "1");
    end_children(daemon);
}

#[test]
fn a_hundred_children_on_two_nodes_leave_nothing() {
    let _turn = turn();
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &[]);
    let first = prepare(&a, parent.pid(), &[]);
    warm(&b, &first);
    warm(&c, &first);
    a.mitosis(&["seed", "rm", &first.id]).unwrap().success().unwrap();
    let before: Vec<Census> = lab.nodes().iter().map(settled).collect();

    let seed = prepare(&a, parent.pid(), &[]);
    for daemon in [&b, &c] {
        let children = fork(daemon, &seed.reference, &["--count", "50"]);
        assert_eq!(children.len(), 50);
        assert!(children.iter().all(|child| child.transport == "tcp"));
        let mut peers: Vec<Peer> = (0..50).map(|_| Peer::to(daemon.node(), PORT)).collect();
        for peer in &mut peers {
            peer.tell("touch scatter 5");
        }
        for peer in &mut peers {
            assert_eq!(peer.line().as_deref(), Some("right=819 wrong=0 zero=0"));
            assert_eq!(peer.ask("count"), "1", "each child has a counter of its own");
        }
        for peer in &mut peers {
            peer.tell("exit 7");
        }
        let rows = until("all children have ended", SOON, || {
            let rows = ps(daemon);
            rows.iter().all(|row| row["state"] == "ended").then_some(rows)
        });
        let sevens = rows.iter().filter(|row| row["exit"].as_u64() == Some(7)).count();
        assert_eq!(sevens, 50, "{rows:?}");
    }
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    for (node, before) in lab.nodes().iter().zip(&before) {
        same_as(node, before);
    }
    assert_eq!(parent.ask("count"), "1");
    assert_eq!(field(&parent.ask("status"), "sigchld"), 0);
}

#[test]
fn a_parent_killed_in_the_middle_of_prepare_leaves_nothing() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let before = settled(a.node());
    let mut made = 0;
    for round in 0..30_u64 {
        let mut parent = Parent::c(a.node(), &["mb=32"]);
        let pid = parent.pid().to_string();
        let command = a.command(&["prepare", &pid, "-o", "json"]);
        let output = std::thread::scope(|scope| {
            let prepare = scope.spawn(|| a.node().run(command).unwrap());
            std::thread::sleep(Duration::from_micros(round * 300));
            parent.process.kill().unwrap();
            prepare.join().unwrap()
        });
        if output.code() == 0 {
            made += 1;
            let seed = output.json().unwrap()["seed"].as_str().unwrap().to_owned();
            a.mitosis(&["seed", "rm", &seed]).unwrap().success().unwrap();
        } else {
            assert_eq!(output.code(), 1, "{output:?}");
            assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
        }
        // Whoever was still in the parent's place when it died goes soon, with its descriptors.
        let port = SocketAddr::new(a.node().ip(), PORT);
        until("nobody holds the parent's port", SOON, || a.node().connect(port, SOON).err());
    }
    println!("30 parents killed during prepare, {made} of them too late");
    same_as(a.node(), &before);
}

#[test]
fn nothing_of_ours_is_left_in_a_parent() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8"]);
    // Its first answer says that it has its full depth of stack.
    assert_eq!(parent.ask("count"), "1");
    let look = || -> Vec<String> {
        let dir = a.node().proc_dir(parent.pid());
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let kept = ["SigP", "SigB", "SigI", "SigC", "Shd", "Cap", "Tracer", "Seccomp", "NoNew"];
        let mut lines: Vec<String> = read("status")
            .lines()
            .filter(|line| kept.iter().any(|start| line.starts_with(start)))
            .map(str::to_owned)
            .collect();
        for file in ["maps", "cgroup", "limits"] {
            lines.extend(read(file).lines().map(str::to_owned));
        }
        let fds = std::fs::read_dir(dir.join("fd")).unwrap().map(|fd| fd.unwrap().path());
        let mut fds: Vec<_> = fds.map(|fd| format!("{fd:?} {:?}", fd.read_link())).collect();
        fds.sort();
        lines.extend(fds);
        lines
    };
    let before = look();
    let changed = || -> Vec<String> {
        let after = look();
        let lost = before.iter().filter(|line| !after.contains(line)).map(|l| format!("- {l}"));
        let new = after.iter().filter(|line| !before.contains(line)).map(|l| format!("+ {l}"));
        lost.chain(new).collect()
    };
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(changed(), Vec::<String>::new());
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    assert_eq!(changed(), Vec::<String>::new());
    assert_eq!(parent.ask("count"), "2");
}

#[test]
fn stopping_a_node_ends_everything_on_it() {
    let lab = lab(2);
    let before = settled(lab.node(1));
    let (a, mut b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork(&b, &seed.reference, &["--count", "3"]);
    b.mitosis(&["node", "stop"]).unwrap().success().unwrap();
    b.process().wait(SOON).unwrap();
    same_as(b.node(), &before);
    let control = b.node().host_path(b.socket());
    assert!(!control.exists(), "its socket is gone");
    drop(a);
}

/// The namespace of a child that was prepared is kept for the seed, but nothing that the child held.
#[test]
fn the_port_of_a_child_that_was_prepared_is_free_once_it_has_ended() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    for via in ["direct", "template"] {
        let child = fork_one(&b, &seed.reference, &["--via", via]);
        assert_eq!(ask(b.node(), "count"), "1");
        let again = prepare(&b, child.pid, &[]);
        b.mitosis(&["kill", &child.pid.to_string()]).unwrap().success().unwrap();
        ended(&b, child.pid, SOON);
        fork(&b, &again.reference, &["--via", via]);
        assert_eq!(ask(b.node(), "count"), "2");
        end_children(&b);
        // Nor are the seeds in the way of each other.
        fork_one(&b, &seed.reference, &["--via", via]);
        assert_eq!(ask(b.node(), "count"), "1");
        end_children(&b);
    }
}

/// Sends a line of the control protocol, and is gone.
fn ask_and_leave(daemon: &Daemon<'_>, line: &str) {
    let socket = format!("/run/mitosis/{}.sock", daemon.node().name());
    let path = daemon.node().host_path(socket);
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    std::io::Write::write_all(&mut stream, format!("{line}\n").as_bytes()).unwrap();
}

/// A command that is killed in the midst leaves neither a seed nor a child that nobody knows of.
#[test]
fn what_was_made_for_a_caller_that_has_gone_is_unmade() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    warm(&b, &seed);
    let at_a = settled_pids(a.node());
    ask_and_leave(&a, &format!("{{\"prepare\":{{\"pid\":{}}}}}", parent.pid()));
    until("the seed of nobody has gone", SOON, || {
        a.log().unwrap().matches(": seed revoked").count().eq(&1).then_some(())
    });
    same_pids(a.node(), &at_a);
    assert_eq!(a.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap().len(), 1);
    assert_eq!(parent.ask("count"), "1");
    let line = |more: &str| {
        format!("{{\"fork\":{{\"reference\":\"{}\",\"net\":\"own\"{more}}}}}", seed.reference)
    };
    for (more, count) in [("", 1), (",\"count\":8", 8)] {
        let before = ps(&b).len();
        ask_and_leave(&b, &line(more));
        until("they have come and gone", SOON, || {
            let rows = ps(&b);
            let ended = rows.iter().all(|row| row["state"] == "ended");
            (ended && rows.len() == before + count).then_some(())
        });
        let reason = ps(&b).pop().unwrap()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("caller went away"), "{reason}");
    }
    // The command itself, at some moments of its life.
    for ms in [1, 4, 8] {
        let reference = &seed.reference;
        let line = format!(
            "for verb in 'prepare {pid}' 'fork {reference} --detach --net own'; do \
             MITOSIS_SOCKET=/run/mitosis/{a}.sock {mitosis} $verb >/dev/null 2>&1 & \
             sleep 0.00{ms}; kill -9 $!; wait $! 2>/dev/null; done; true",
            pid = parent.pid(),
            a = a.node().name(),
            mitosis = binary().display(),
        );
        a.node().sh(&line).unwrap();
    }
    end_children(&a);
    assert_eq!(parent.ask("count"), "2");
    assert_eq!(field(&parent.ask("status"), "sigchld"), 0);
}

/// When `seed rm` has returned, no node starts a child; what was being started ends, or never was.
#[test]
fn forks_in_the_midst_of_seed_rm_fail_or_end() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    for via in ["direct", "template"] {
        let seed = prepare(&a, parent.pid(), &[]);
        let args = ["fork", &seed.reference, "--detach", "--net", "own", "--via", via];
        let fork = || b.mitosis(&args).unwrap();
        fork().success().unwrap();
        let codes = std::thread::scope(|scope| {
            let forks: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut codes = vec![fork().code()];
                        // A lease lasts half a second, and a test is not to fill the machine.
                        while codes.last() == Some(&0) && codes.len() < 60 {
                            std::thread::sleep(Duration::from_millis(20));
                            codes.push(fork().code());
                        }
                        codes
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(30));
            a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
            let after = fork();
            assert_eq!(after.code(), 1, "{after:?}");
            forks.into_iter().flat_map(|fork| fork.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(codes.iter().all(|code| [0, 1].contains(code)), "{codes:?}");
        assert!(codes.contains(&1), "the last begin after the end: {codes:?}");
        end_children(&b);
        let wanted = |row: &serde_json::Value| row["exit"] == 137;
        assert!(ps(&b).iter().all(wanted), "{:?}", ps(&b));
    }
    assert_eq!(parent.ask("count"), "1");
}

/// The init of a pid namespace, as in a container, has its shadow as a child that it never waits for.
#[test]
fn an_init_keeps_no_zombie_of_a_shadow() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "/usr/bin/python3", "-c"]);
    command.arg("import time; print('ready', flush=True); time.sleep(1000)");
    let outer = ready(a.node(), command);
    let children =
        |pid: u32| a.node().sh(&format!("cat /proc/{pid}/task/{pid}/children")).unwrap().stdout;
    let init: u32 = children(outer.node_pid().unwrap()).trim().parse().unwrap();
    for _ in 0..2 {
        let seed = prepare(&a, init, &[]);
        until("the seed depends on the namespace no longer", SOON, || {
            let seeds = a.mitosis_json(&["seed", "ls"]).unwrap();
            (seeds[0]["bound"] == "free").then_some(())
        });
        until("its shadow is gone", SOON, || children(init).trim().is_empty().then_some(()));
        a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    }
}
