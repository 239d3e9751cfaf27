//! A process that holds much state goes on right on other nodes, and so does its parent.

use std::net::SocketAddr;

use crate::support::*;

#[test]
fn a_c_process_goes_on_right_on_two_other_nodes() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &[&format!("map={FILES}/mapped")]);
    let hash = parent.ask("hash");
    for expected in 1..=5 {
        assert_eq!(parent.ask("count"), expected.to_string());
    }
    let seed = prepare(&a, parent.pid(), &[]);
    assert!(seed.said["pages_total"].as_u64().unwrap() > DATA_PAGES, "{}", seed.said);
    assert_eq!(parent.ask("count"), "6");
    for daemon in [&b, &c] {
        let node = daemon.node();
        let before = node.link_bytes().unwrap();
        let child = fork_one(daemon, &seed.reference, &[]);
        assert_eq!(ask(node, "count"), "6", "the child goes on from the seed, not the parent");
        assert_eq!(ask(node, "pid"), parent.pid().to_string(), "it keeps its parent's pid");
        assert_eq!(ask(node, "hash"), hash);
        check_state(&ask(node, "status"));
        assert_eq!(ask(node, "files"), parent.ask("files"));
        assert!(ask(node, "fds").starts_with("right"));
        // In this order: pages may still be coming.
        let row = row(daemon, child.pid);
        let moved = node.link_bytes().unwrap().rx - before.rx;
        assert!(moved >= 64 << 20, "64 MiB cannot have come in {moved} bytes");
        let number = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("bytes_fetched") >= 64 << 20 && number("bytes_fetched") <= moved, "{row}");
        assert!(number("pages_fetched") + number("pages_prefetched") <= number("pages_total"));
        assert!(number("faults") > 0, "{row}");
        assert_eq!(row["transport"], "tcp");
    }
    assert_eq!(parent.ask("hash"), hash);
    assert_eq!(parent.ask("count"), "7");
    check_state(&parent.ask("status"));
}

fn check_state(status: &str) {
    assert_eq!(field(status, "registers"), 0, "AVX registers changed: {status}");
    assert!(field(status, "checks") > 0, "{status}");
    assert_eq!(field(status, "polls"), 0, "the wait was interrupted: {status}");
    assert_eq!(field(status, "stack"), 320, "the stack is wrong: {status}");
}

#[test]
fn a_python_process_goes_on_right_on_two_other_nodes() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let script = fixture("state.py").display().to_string();
    let python = std::path::Path::new("/usr/bin/python3");
    let parent = Parent::start(a.node(), python, &[&script, &PORT.to_string(), FILES]);
    let hash = parent.ask("hash");
    assert_eq!(parent.ask("count"), "1");
    let seed = prepare(&a, parent.pid(), &[]);
    for daemon in [&b, &c] {
        fork_one(daemon, &seed.reference, &[]);
        let node = daemon.node();
        assert_eq!(ask(node, "count"), "2");
        assert_eq!(ask(node, "hash"), hash);
        assert_eq!(ask(node, "deep"), "right");
        assert_eq!(ask(node, "files"), parent.ask("files"));
        assert!(ask(node, "touch 5").ends_with("wrong=0"));
    }
    assert_eq!(parent.ask("hash"), hash);
    assert_eq!(parent.ask("count"), "2");
}

#[test]
fn one_descriptor_is_small_and_can_be_read() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let script = fixture("web.py").display().to_string();
    let python = std::path::Path::new("/usr/bin/python3");
    let parent = Parent::start(a.node(), python, &[&script, &PORT.to_string()]);
    let seed = prepare(&a, parent.pid(), &[]);
    let bytes = seed.said["descriptor_bytes"].as_u64().unwrap();
    assert!(bytes <= 24 << 10, "{bytes} bytes");
    let shown = b.mitosis(&["inspect", &seed.reference]).unwrap().success().unwrap().stdout;
    assert!(shown.contains("python3"), "{shown}");
    let plan = b.mitosis(&["inspect", &seed.reference, "--plan"]).unwrap().success().unwrap();
    assert!(plan.stdout.lines().count() > 20, "{}", plan.stdout);
    let secret = seed.reference.split('#').nth(1).unwrap();
    assert!(secret.len() >= 22, "at least 128 bits in {secret}");
    let seeds = a.mitosis(&["seed", "ls", "-o", "json"]).unwrap().stdout;
    assert!(seeds.contains(&seed.id) && !seeds.contains(secret), "{seeds}");
}

#[test]
fn on_the_own_node_pages_are_local_and_a_held_port_is_never_taken() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let refused = a.mitosis(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("fd "), "names the fd: {}", refused.stderr);
    assert_eq!(parent.ask("count"), "1", "the parent keeps its port");
    let children = fork(&a, &seed.reference, &["--net", "own", "--count", "2"]);
    assert!(children.iter().all(|child| child.transport == "local"), "{children:?}");
    assert!(children.iter().all(|child| child.netns.is_some()), "{children:?}");
    for child in &children {
        assert_eq!(ask_inside(a.node(), child, "count"), "1");
        assert_eq!(ask_inside(a.node(), child, "touch seq 100"), "right=2048 wrong=0 zero=0");
    }
}

#[test]
fn an_attached_child_passes_its_output_and_status_through() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let port = SocketAddr::new(b.node().ip(), PORT);
    for (end, code) in [("exit 7", 7), ("exit 0", 0)] {
        // Else the connection may meet the listening socket that the last child has just left.
        until("nobody listens", SOON, || b.node().connect(port, SOON).err());
        let mut command = b.command(&["fork", &seed.reference]);
        let out = std::fs::File::create(b.node().host_path("/tmp/out")).unwrap();
        command.stdin(std::process::Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let mut attached = b.node().spawn(command).unwrap();
        let mut peer = Peer::to(b.node(), PORT);
        assert_eq!(peer.ask("say hello"), "5");
        peer.tell(end);
        assert_eq!(attached.wait(SOON).unwrap().code(), Some(code));
        let said = std::fs::read_to_string(b.node().host_path("/tmp/out")).unwrap();
        assert!(said.contains("hello"), "{said}");
    }
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "say later"), "5");
    let pid = child.pid.to_string();
    assert_eq!(b.mitosis(&["logs", &pid]).unwrap().success().unwrap().stdout, "later");
    b.mitosis(&["kill", &pid]).unwrap().success().unwrap();
    let row = ended(&b, child.pid, SOON);
    assert!(row["exit"].as_u64() == Some(137) || row["exit"].as_u64() == Some(143), "{row}");
}
