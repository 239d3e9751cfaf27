//! Whatever is killed or cut: the child is ended with a reason, and never reads a wrong page.

use std::time::Duration;

use mitosis_lab::{Daemon, Lab};

use crate::support::*;

/// Within what a child whose pages are gone must have ended; the default page timeout is 5 s.
const BOUND: Duration = Duration::from_secs(30);

/// Parent on node 0, one touching child on node 1.
struct Pair<'lab> {
    a: Daemon<'lab>,
    b: Daemon<'lab>,
    parent: Parent<'lab>,
    seed: Seed,
    child: Child,
    peer: Peer,
}

impl<'lab> Pair<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let (a, b) = (daemon(lab, 0), daemon(lab, 1));
        let parent = Parent::c(a.node(), &[]);
        let seed = prepare(&a, parent.pid(), &[]);
        let child = fork_one(&b, &seed.reference, &[]);
        let mut peer = Peer::to(b.node(), PORT);
        peer.tell("loop 500");
        assert_eq!(peer.line().as_deref(), Some("."));
        Self { a, b, parent, seed, child, peer }
    }

    /// The child ends, has read nothing wrong, and `ps` and `logs` say why.
    #[track_caller]
    fn child_ends_with_reason(&mut self) -> String {
        while let Some(line) = self.peer.line() {
            assert_eq!(line, ".", "a wrong page");
        }
        let row = ended(&self.b, self.child.pid, BOUND);
        let reason = row["reason"].as_str().unwrap_or_default().to_owned();
        println!("reason: {reason}");
        assert!(!reason.is_empty(), "{row}");
        let log = self.b.mitosis(&["logs", &self.child.pid.to_string()]).unwrap();
        assert!(log.stdout.contains(&reason) || log.stderr.contains(&reason), "{log:?}");
        let number = |key: &str| row[key].as_u64().unwrap();
        let here = number("pages_fetched") + number("pages_prefetched");
        // What a killed pager had counted is lost with it.
        assert!(
            reason.contains("pager") || here < number("pages_total"),
            "it did need further pages: {row}"
        );
        reason
    }

    /// The nodes still work: a new child is right.
    #[track_caller]
    fn a_new_child_is_right(&self) {
        fork_one(&self.b, &self.seed.reference, &[]);
        assert_eq!(ask(self.b.node(), "hash"), self.parent.ask("hash"));
    }
}

fn kill(node: &mitosis_lab::Node, pid: u32) {
    node.sh(&format!("kill -KILL {pid}")).unwrap();
}

#[test]
fn the_pager_is_killed() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    kill(pair.b.node(), pager(&pair.b));
    let reason = pair.child_ends_with_reason();
    assert!(reason.contains("pager"), "{reason}");
    pair.a_new_child_is_right();
}

#[test]
fn the_guard_is_killed() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    kill(pair.b.node(), parent(pair.b.node(), pair.child.pid).unwrap());
    let reason = pair.child_ends_with_reason();
    assert!(reason.contains("guard"), "{reason}");
    pair.a_new_child_is_right();
}

#[test]
fn the_shadow_is_killed() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    let shadow = seed_row(&pair.a, &pair.seed.id).unwrap()["shadow_pid"].as_u64().unwrap();
    kill(pair.a.node(), u32::try_from(shadow).unwrap());
    pair.child_ends_with_reason();
    // A lease that the other node has by now is good for half a second.
    until("there are no more children", SOON, || {
        let refused = pair.b.mitosis(&["fork", &pair.seed.reference, "--detach"]).unwrap();
        (refused.code() == 1).then_some(())
    });
    assert_eq!(pair.parent.ask("count"), "1");
}

#[test]
fn the_owners_daemon_is_killed() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    pair.a.kill().unwrap();
    pair.child_ends_with_reason();
    assert_eq!(pair.parent.ask("count"), "1");
    pair.a.restart().unwrap();
    assert_eq!(pair.parent.ask("count"), "2");
}

#[test]
fn the_owners_node_loses_power() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    pair.a.node().cut_link().unwrap();
    pair.a.node().power_off().unwrap();
    pair.child_ends_with_reason();
}

#[test]
fn the_link_is_cut() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    pair.b.node().cut_link().unwrap();
    // The answers of the child come over the node's own loopback, not over the cut link.
    pair.child_ends_with_reason();
    pair.b.node().restore_link().unwrap();
    pair.a_new_child_is_right();
}

#[test]
fn restarting_the_childs_daemon_kills_no_child() {
    let lab = lab(2);
    let mut pair = Pair::start(&lab);
    pair.b.kill().unwrap();
    for _ in 0..20 {
        assert_eq!(pair.peer.line().as_deref(), Some("."));
    }
    pair.b.restart().unwrap();
    for _ in 0..20 {
        assert_eq!(pair.peer.line().as_deref(), Some("."));
    }
    let row = row(&pair.b, pair.child.pid);
    assert_eq!(row["state"], "running", "{row}");
    let Pair { a: _a, b, parent, child, peer, .. } = pair;
    drop(peer);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    let pid = child.pid.to_string();
    b.mitosis(&["kill", &pid]).unwrap().success().unwrap();
    ended(&b, child.pid, SOON);
}

#[test]
fn restarting_the_owners_daemon_keeps_its_seeds() {
    let lab = lab(2);
    let (mut a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    a.restart().unwrap();
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

#[test]
fn a_record_that_cannot_be_read_is_named_and_costs_no_other_seed() {
    let lab = lab(2);
    let (mut a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let (lost, kept) = (prepare(&a, parent.pid(), &[]), prepare(&a, parent.pid(), &[]));
    a.kill().unwrap();
    let record = format!("/var/lib/mitosis/{}/seeds/{}.json", a.node().name(), lost.id);
    a.node().sh(&format!("test -s {record} && printf '{{' >{record}")).unwrap();
    a.restart().unwrap();
    // It answers once it has read all records.
    assert!(seed_row(&a, &lost.id).is_none() && seed_row(&a, &kept.id).is_some());
    let log = a.log().unwrap();
    assert!(log.lines().any(|line| line.contains("error") && line.contains(&record)), "{log}");
    assert!(a.node().host_path(&record).exists(), "whoever wants to know can look");
    fork_one(&b, &kept.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    let refused = b.mitosis(&["fork", &lost.reference, "--detach"]).unwrap();
    assert_eq!(refused.code(), 1, "{refused:?}");
}

#[test]
fn the_seed_outlives_its_parent() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let mut parent = Parent::c(a.node(), &[]);
    let hash = parent.ask("hash");
    let seed = prepare(&a, parent.pid(), &[]);
    parent.process.kill().unwrap();
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), hash);
}

#[test]
fn the_daemons_log_says_how_each_child_ended() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = || fork_one(&b, &seed.reference, &[]).pid;
    let said = |pid: u32, what: &str| {
        let line = format!("child {pid}: {what}");
        until(&format!("the log says `{line}`"), SOON, || {
            b.log().unwrap().lines().any(|said| said.ends_with(&line)).then_some(())
        });
        // It ends once, whatever becomes of its namespace.
        let of_it = format!("child {pid}: ");
        // That its memory went before it was known to have ended is no end.
        let end = |line: &&str| line.contains(&of_it) && !line.ends_with("independent");
        let told = b.log().unwrap().lines().filter(end).count();
        assert_eq!(told, 1, "{}", b.log().unwrap());
    };
    let killed = child();
    b.mitosis(&["kill", &killed.to_string()]).unwrap().success().unwrap();
    assert_eq!(ended(&b, killed, SOON)["exit"], 137);
    said(killed, "ended by signal 9");
    let left = child();
    Peer::to(b.node(), PORT).tell("exit 7");
    assert_eq!(ended(&b, left, SOON)["exit"], 7);
    said(left, "exited with status 7");
    let prepared = child();
    let again = prepare(&b, prepared, &[]);
    b.mitosis(&["kill", &prepared.to_string(), "--signal", "TERM"]).unwrap().success().unwrap();
    assert_eq!(ended(&b, prepared, SOON)["exit"], 143);
    said(prepared, "ended by signal 15");
    b.mitosis(&["seed", "rm", &again.id]).unwrap().success().unwrap();
    let revoked = child();
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    let reason = ended(&b, revoked, SOON)["reason"].as_str().unwrap().to_owned();
    said(revoked, &reason);
    said(prepared, "ended by signal 15");
}
