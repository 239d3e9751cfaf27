//! Process trees when something goes wrong, or ends: there is no half tree, and nothing is left.

use std::io::{BufRead, BufReader};
use std::process::Command;

use mitosis_lab::{Lab, Node};
use serde_json::Value;

use crate::support::*;

/// Processes of the fixture that live.
const PROCESSES: u64 = 5;

fn tree(lab: &Lab) -> Parent<'_> {
    let mut command = Command::new("/usr/bin/python3");
    let file = format!("{FILES}/file1");
    command.arg(fixture("tree.py")).args([PORT.to_string(), file]);
    Parent::spawn(lab.node(0), command)
}

fn said(node: &Node, line: &str) -> Value {
    serde_json::from_str(&ask(node, line)).unwrap()
}

#[test]
fn a_tree_outlives_the_daemon_that_made_it() {
    let lab = lab(2);
    let (mut a, mut b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let before = settled_pids(b.node());
    let child = fork_one(&b, &seed.reference, &[]);
    said(b.node(), "worker about");
    b.restart().unwrap();
    a.restart().unwrap();
    assert_eq!(said(b.node(), "peer hash"), said(a.node(), "hash"), "from an owner that restarted");
    let running: Vec<Value> = ps(&b).into_iter().filter(|row| row["state"] == "running").collect();
    assert_eq!(running.len(), 1, "a tree has one row: {running:?}");
    assert_eq!(running[0]["processes"], PROCESSES);
    b.mitosis(&["kill", &child.pid.to_string()]).unwrap().success().unwrap();
    ended(&b, child.pid, SOON);
    let now = settled_pids(b.node());
    assert_eq!(now.len(), before.len(), "{before:?} and {now:?}");
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(said(b.node(), "worker bump"), 1001, "the seed is whole after the restart");
}

#[test]
fn three_trees_on_one_node_are_each_others_strangers() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let flags = ["--count", "3", "--net", "own", "--hostname", "tree"];
    let children = fork(&b, &seed.reference, &flags);
    assert_eq!(children.len(), 3);
    let rows = ps(&b);
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|row| row["processes"] == PROCESSES), "{rows:?}");
    for child in &children {
        let of_all = format!("nsenter -t {} -p -u sh -c 'hostname; ls /proc/self/ns'", child.pid);
        let named = b.node().sh(&of_all).unwrap();
        assert!(named.stdout.starts_with("tree\n"), "{named:?}");
    }
    // One is ended: the others live.
    b.mitosis(&["kill", &children[0].pid.to_string()]).unwrap().success().unwrap();
    ended(&b, children[0].pid, SOON);
    for child in &children[1..] {
        assert_eq!(row(&b, child.pid)["state"], "running");
    }
    end_children(&b);
    // Guards that wait for the next ones stay.
    assert_eq!(pids_with(b.node(), "tree.py"), Vec::<u32>::new());
}

#[test]
fn an_independent_tree_needs_nobody() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let hash = said(a.node(), "hash");
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let child = fork_one(&b, &seed.reference, &["--independent"]);
    until("all processes have all pages", SOON, || {
        (row(&b, child.pid)["independent"] == true).then_some(())
    });
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    a.node().power_off().unwrap();
    assert_eq!(said(b.node(), "worker hash"), hash);
    assert_eq!(said(b.node(), "peer hash"), hash);
    assert_eq!(said(b.node(), "leader bump"), serde_json::json!([1001, 1002]));
    assert_eq!(row(&b, child.pid)["state"], "running");
}

#[test]
fn a_tree_whose_pages_are_gone_ends_as_a_whole() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let before = settled_pids(b.node());
    let child = fork_one(&b, &seed.reference, &[]);
    a.node().power_off().unwrap();
    // A member, and not the root, asks for what nobody has any more.
    let mut peer = Peer::to(b.node(), PORT);
    peer.tell("worker hash");
    let _ = peer.line();
    let row = ended(&b, child.pid, std::time::Duration::from_secs(30));
    assert!(!row["reason"].as_str().unwrap_or_default().is_empty(), "{row}");
    let now = settled_pids(b.node());
    assert_eq!(now.len(), before.len(), "{before:?} and {now:?}");
}

#[test]
fn a_seed_of_a_tree_expires_with_all_its_shadows() {
    let lab = lab(2);
    let a = daemon(&lab, 0);
    let parent = tree(&lab);
    let before = settled_pids(a.node());
    let seed = prepare(&a, parent.pid(), &["--tree", "--ttl", "2s"]);
    assert_eq!(seed.said["processes"], PROCESSES);
    until("the seed has expired", SOON, || seed_row(&a, &seed.id).is_none().then_some(()));
    same_pids(a.node(), &before);
    assert_eq!(said(a.node(), "worker bump"), 1001, "the parent runs on");
}

#[test]
fn a_member_alone_cannot_be_forked() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    let records = a.node().sh("cat /var/lib/mitosis/*/seeds/*.json").unwrap().stdout;
    let records = serde_json::Deserializer::from_str(&records).into_iter::<Value>();
    let all: Vec<String> =
        records.map(|one| one.unwrap()["reference"].as_str().unwrap().to_owned()).collect();
    let members: Vec<&String> = all.iter().filter(|one| **one != seed.reference).collect();
    assert_eq!(members.len() as u64, PROCESSES - 1, "{all:?}");
    for member in members {
        for daemon in [&a, &b] {
            let output = daemon.mitosis(&["fork", member, "--detach"]).unwrap();
            assert_eq!(output.code(), 1, "{output:?}");
            assert!(ps(daemon).is_empty());
        }
        let removed = a.mitosis(&["seed", "rm", member]).unwrap();
        assert_ne!(removed.code(), 0, "a process alone is not taken out of its tree: {removed:?}");
    }
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(said(b.node(), "worker bump"), 1001);
}

/// A root that takes orphans gets none of ours: not as a child that it could wait for.
#[test]
fn a_subreaper_never_hears_of_a_shadow() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let program = "import ctypes, os, socket, sys\n\
        ctypes.CDLL(None).prctl(36, 1)\n\
        down, up = os.pipe(), os.pipe()\n\
        pid = os.fork()\n\
        if pid == 0:\n    os.close(down[1])\n    os.read(down[0], 1)\n    os._exit(3)\n\
        os.close(down[0])\n\
        listener = socket.create_server(('0.0.0.0', int(sys.argv[1])))\n\
        print('ready', flush=True)\n\
        while True:\n    connection, _ = listener.accept()\n\
        \x20   line = connection.recv(100).decode().strip()\n\
        \x20   if line == 'end':\n        os.close(down[1])\n        os.waitpid(pid, 0)\n\
        \x20   try:\n        answer = os.waitpid(-1, os.WNOHANG)\n\
        \x20   except ChildProcessError:\n        answer = 'none'\n\
        \x20   connection.sendall(f'{answer}\\n'.encode())\n    connection.close()\n";
    let parent = Parent::python(a.node(), program, &[&PORT.to_string()]);
    let before = settled_pids(a.node());
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    assert_eq!(seed.said["processes"], 2);
    let again = prepare(&a, parent.pid(), &["--tree"]);
    assert_eq!(again.said["processes"], 2, "a shadow is no member");
    fork_one(&b, &again.reference, &[]);
    assert_eq!(ask(b.node(), "end"), "none");
    for seed in [&seed, &again] {
        a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    }
    same_pids(a.node(), &before);
    assert_eq!(parent.ask("look"), "(0, 0)");
    assert_eq!(parent.ask("end"), "none", "it has the children that it has made");
}

/// Kills the first process that appears below one that is made by a guard of the node: a member of a
/// tree that is being built. Says which.
const KILLER: &str = "import os, sys, time\n\
    before = set(sys.argv[1].split(','))\n\
    def parent(pid):\n\
    \x20   try:\n        return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1]\n\
    \x20   except OSError:\n        return '0'\n\
    end = time.monotonic() + 5\n\
    print('looks', flush=True)\n\
    while time.monotonic() < end:\n\
    \x20   for pid in os.listdir('/proc'):\n\
    \x20       if not pid.isdigit() or pid in before:\n            continue\n\
    \x20       above = parent(pid)\n\
    \x20       if above != '0' and above not in before and parent(above) in before - {'1'}:\n\
    \x20           time.sleep(float(sys.argv[2]))\n\
    \x20           try:\n                os.kill(int(pid), 9)\n\
    \x20           except OSError:\n                pass\n\
    \x20           print(pid)\n            sys.exit(0)\n";

#[test]
fn a_member_killed_while_its_tree_is_made_takes_all_of_it_along() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = tree(&lab);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    // So that all that comes with the first child is there.
    fork_one(&b, &seed.reference, &[]);
    end_children(&b);
    let mut failed = 0;
    // At once, and later and later: while its kin are made, while it becomes the member, when it is.
    for round in 0..12 {
        let before = settled_pids(b.node());
        let known = before.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut killer = Command::new("/usr/bin/python3");
        let delay = format!("{}", f64::from(round) * 0.004);
        killer.args(["-c", KILLER, &known, &delay]).stdout(std::process::Stdio::piped());
        let mut killer = b.node().spawn(killer).unwrap();
        let mut looks = BufReader::new(killer.take_stdout().unwrap());
        looks.read_line(&mut String::new()).unwrap();
        let output = b.mitosis(&["fork", &seed.reference, "--detach"]).unwrap();
        killer.wait(SOON).unwrap();
        let rows = ps(&b);
        let running = rows.iter().filter(|row| row["state"] == "running").count();
        match output.code() {
            0 => assert_eq!(running, 1, "{rows:?}"),
            1 => {
                assert!(!output.stderr.trim().is_empty() && running == 0, "{output:?} {rows:?}");
                failed += 1;
            }
            code => panic!("exit {code}: {output:?}"),
        }
        end_children(&b);
        let now = settled_pids(b.node());
        assert_eq!(now.len(), before.len(), "round {round}: {before:?} and {now:?}");
    }
    assert!(failed > 0, "each fork was done before its member was killed");
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(said(b.node(), "peer bump"), 1001, "the seed is whole");
}

#[test]
fn a_member_of_the_parent_killed_in_the_midst_of_prepare_harms_no_other_one() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let mut whole = 0;
    for round in 0..10 {
        let mut parent = tree(&lab);
        let victim = said(a.node(), "peer about")["pid"].to_string();
        let before = settled_pids(a.node());
        let kill = format!("sleep {}; kill -9 {victim}", f64::from(round) * 0.005);
        let (prepared, _) = std::thread::scope(|scope| {
            let killed = scope.spawn(|| a.node().sh(&kill).unwrap());
            let pid = parent.pid().to_string();
            (a.mitosis(&["prepare", &pid, "--tree", "-o", "json"]).unwrap(), killed.join().unwrap())
        });
        let seed: Option<Value> = serde_json::from_str(&prepared.stdout).ok();
        match (prepared.code(), &seed) {
            (0, Some(seed)) => {
                // Of one moment: the member lives in the child, or has ended there.
                let child = fork_one(&b, seed["ref"].as_str().unwrap(), &[]);
                let lived = seed["processes"] == PROCESSES;
                assert!(lived || seed["processes"] == PROCESSES - 1, "{seed}");
                let state = format!(
                    "nsenter -t {} -p -m cat /proc/{victim}/stat | cut -d ' ' -f 3",
                    child.pid
                );
                let state = b.node().sh(&state).unwrap().stdout;
                assert_eq!(state.trim() != "Z", lived, "{state}");
                if lived {
                    assert_eq!(said(b.node(), "peer about")["pid"].to_string(), victim);
                }
                assert_eq!(said(b.node(), "worker bump"), 1001);
                end_children(&b);
                a.mitosis(&["seed", "rm", seed["seed"].as_str().unwrap()]).unwrap();
                whole += 1;
            }
            (1, _) => assert!(!prepared.stderr.trim().is_empty(), "{prepared:?}"),
            _ => panic!("{prepared:?}"),
        }
        // What is left is a zombie, which the root has not waited for.
        same_pids(a.node(), &before);
        assert_eq!(said(a.node(), "worker bump"), 1001);
        assert_eq!(said(a.node(), "leader bump"), serde_json::json!([1002, 1003]));
        assert!(a.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap().is_empty());
        parent.process.kill().unwrap();
    }
    assert!(whole > 0, "no seed was made");
}
