//! What a parent could notice of `prepare`, and does not.

use crate::support::*;

#[test]
fn waitpid_sees_no_child() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8", "mode=watch"]);
    for _ in 0..20 {
        let seed = prepare(&a, parent.pid(), &[]);
        a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    }
    let status = parent.ask("status");
    assert!(field(&status, "waits") > 0, "{status}");
    for name in ["waits_bad", "sigchld", "polls", "registers"] {
        assert_eq!(field(&status, name), 0, "{name}: {status}");
    }
}

#[test]
fn signals_to_its_group_reach_it_once_and_the_seed_not_at_all() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let mut parent = Parent::c(a.node(), &["mb=8"]);
    let hash = parent.ask("hash");
    let seed = prepare(&a, parent.pid(), &[]);
    let group = parent.pid();
    a.node().sh(&format!("kill -USR1 -- -{group}")).unwrap();
    until("the signal has come", SOON, || {
        (field(&parent.ask("status"), "usr1") == 1).then_some(())
    });
    a.node().sh(&format!("kill -KILL -- -{group}")).unwrap();
    parent.process.wait(SOON).unwrap();
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), hash);
    assert_eq!(field(&ask(b.node(), "status"), "usr1"), 0);
}

#[test]
fn a_port_that_it_closes_is_free() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8", "rebind=8001"]);
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(parent.ask("rebind"), "0");
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    assert_eq!(parent.ask("rebind"), "0");
}

#[test]
fn a_filter_that_kills_does_not_kill_it() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8", "mode=seccomp"]);
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(parent.ask("count"), "1");
    assert_eq!(field(&parent.ask("status"), "registers"), 0);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "count"), "1");
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    // The filter came along: `fds` needs a call that it does not allow.
    let mut peer = Peer::to(b.node(), PORT);
    peer.tell("fds");
    assert_eq!(peer.line(), None);
    let row = ended(&b, child.pid, SOON);
    assert_eq!(row["exit"].as_u64(), Some(128 + 31), "SIGSYS: {row}");
}

#[test]
fn at_its_memory_and_pids_limit_it_goes_on() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=32"]);
    let limit = format!(
        "set -e; pid={}; name={}-limits; v1=/sys/fs/cgroup/memory
         if [ -d $v1 ]; then
             mkdir $v1/$name /sys/fs/cgroup/pids/$name
             echo $pid >/sys/fs/cgroup/pids/$name/cgroup.procs
             echo 1 >/sys/fs/cgroup/pids/$name/pids.max
             echo $pid >$v1/$name/cgroup.procs
             echo $(($(cat $v1/$name/memory.usage_in_bytes) + 131072)) >$v1/$name/memory.limit_in_bytes
         else
             group=/sys/fs/cgroup/$name; echo '+memory +pids' >/sys/fs/cgroup/cgroup.subtree_control
             mkdir $group; echo $pid >$group/cgroup.procs; echo 1 >$group/pids.max
             echo $(($(cat $group/memory.current) + 131072)) >$group/memory.max
         fi",
        parent.pid(),
        lab.name()
    );
    a.node().sh(&limit).unwrap();
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(parent.ask("count"), "1");
    assert_eq!(parent.ask("touch seq 100"), "right=8192 wrong=0 zero=0");
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

#[test]
fn a_spinning_parent_goes_on_spinning() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8", "mode=spin"]);
    let seed = prepare(&a, parent.pid(), &[]);
    assert_eq!(parent.ask("count"), "1");
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "count"), "1");
    assert_eq!(field(&ask(b.node(), "status"), "registers"), 0);
    end_children(&b);
}

#[test]
fn several_prepare_it_at_once() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8"]);
    let pid = parent.pid().to_string();
    let seeds: Vec<String> = std::thread::scope(|scope| {
        let one = || a.mitosis(&["prepare", &pid]).unwrap();
        let all: Vec<_> = (0..6).map(|_| scope.spawn(one)).collect();
        let done = all.into_iter().map(|one| one.join().unwrap());
        done.map(|output| {
            assert_eq!(output.code(), 0, "{output:?}");
            output.stdout
        })
        .collect()
    });
    let different: std::collections::HashSet<&String> = seeds.iter().collect();
    assert_eq!(different.len(), 6, "{seeds:?}");
    assert_eq!(parent.ask("count"), "1");
}
