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
