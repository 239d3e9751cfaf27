//! A node that is full says so, before the kernel has to choose whom to end.

use mitosis_lab::Daemon;

use crate::support::*;

/// What a fork that must fail with exit status 1 wrote.
#[track_caller]
fn refused(daemon: &Daemon<'_>, seed: &Seed, args: &[&str]) -> String {
    let args = [&["fork", &seed.reference, "--detach"], args].concat();
    let output = daemon.mitosis(&args).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    output.stderr
}

fn running(daemon: &Daemon<'_>) -> usize {
    ps(daemon).iter().filter(|row| row["state"] == "running").count()
}

/// MiB that are available on this machine.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn above_the_most_children_forks_are_refused_as_a_whole_and_ended_ones_make_room() {
    let lab = lab(2);
    let a = daemon(&lab, 0);
    let b = lab.node(1).start_daemon_with(&binary(), &["--children-max", "3"]).unwrap();
    let parent = Parent::c(a.node(), &["mb=1"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let said = refused(&b, &seed, &["--count", "4"]);
    assert!(said.contains("admission") && said.contains("--children-max is 3"), "{said}");
    assert_eq!(running(&b), 0);
    fork(&b, &seed.reference, &["--count", "2"]);
    let said = refused(&b, &seed, &["--count", "2"]);
    assert!(said.contains("2 children live here"), "{said}");
    fork_one(&b, &seed.reference, &[]);
    refused(&b, &seed, &[]);
    assert_eq!(running(&b), 3);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    end_children(&b);
    fork(&b, &seed.reference, &["--count", "3"]);
}

#[test]
fn with_little_memory_templates_go_first_and_then_forks_are_refused() {
    let lab = lab(2);
    let a = daemon(&lab, 0);
    // Others use this machine, too: the bounds are far from what they may take meanwhile.
    let most = (available() * 3 / 4).to_string();
    let mut b = lab.node(1).start_daemon_with(&binary(), &["--memory-min-mib", &most]).unwrap();
    let parent = Parent::c(a.node(), &["mb=1"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let children = fork(&b, &seed.reference, &["--count", "4"]);
    assert!(ps(&b).iter().all(|row| row["via"] == "direct"), "{:?}", ps(&b));
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    let said = refused(&b, &seed, &["--via", "template"]);
    assert!(said.contains("memory is short"), "{said}");
    assert_eq!(running(&b), children.len());
    b.mitosis(&["node", "stop"]).unwrap().success().unwrap();
    b.process().wait(SOON).unwrap();
    let most = (available() * 8).to_string();
    let b = lab.node(1).start_daemon_with(&binary(), &["--memory-min-mib", &most]).unwrap();
    for args in [&[][..], &["--via", "direct"], &["--via", "template"], &["--count", "8"]] {
        let said = refused(&b, &seed, args);
        assert!(said.contains("MiB of memory available, --memory-min-mib is"), "{said}");
    }
    assert_eq!(ps(&b).len(), 0);
}

/// A program that makes as many processes as it is asked for, or as it may.
pub const BREEDER: &str = "import os, socket\n\
    listener = socket.create_server(('0.0.0.0', 8000))\n\
    print('ready', flush=True)\n\
    while True:\n\
    \x20 c, _ = listener.accept()\n\
    \x20 n, born = int(c.recv(100)), []\n\
    \x20 for _ in range(n):\n\
    \x20   try: pid = os.fork()\n\
    \x20   except BlockingIOError: break\n\
    \x20   if pid == 0:\n\
    \x20     while True: __import__('time').sleep(100)\n\
    \x20   born.append(pid)\n\
    \x20 for pid in born: os.kill(pid, 9); os.waitpid(pid, 0)\n\
    \x20 c.sendall(f'{len(born)}\\n'.encode()); c.shutdown(1); c.recv(1); c.close()";

/// The control groups of the children of a node.
fn groups(node: &mitosis_lab::Node) -> Vec<String> {
    let daemon = node.name();
    let line = format!(
        "find /sys/fs/cgroup -maxdepth 8 -path '*/mitosis-{daemon}.*/*' -type d 2>/dev/null; true"
    );
    node.sh(&line).unwrap().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn each_child_is_held_to_limits_of_its_own_however_it_was_made() {
    let lab = lab(2);
    let a = daemon(&lab, 0);
    let limits = ["--child-pids", "9", "--child-memory-mib", "256"];
    let mut b = lab.node(1).start_daemon_with(&binary(), &limits).unwrap();
    let parent = Parent::python(a.node(), BREEDER, &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(ask(a.node(), "20"), "20", "the parent is not held");
    for via in ["direct", "template"] {
        let child = fork_one(&b, &seed.reference, &["--via", via]);
        // Its guard and itself count.
        assert_eq!(ask(b.node(), "20"), "7", "{via}");
        assert!(row(&b, child.pid)["state"] == "running");
        end_children(&b);
    }
    until("only the groups of guards that wait are left", SOON, || {
        let left = groups(b.node());
        (left.len() <= 2 * 4).then_some(())
    });
    b.terminate(SOON).unwrap();
    until("no group is left", SOON, || groups(lab.node(1)).is_empty().then_some(()));
}
