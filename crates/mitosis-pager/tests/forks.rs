//! Processes that a child forks are served like the child itself, and leave nothing behind.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mitosis_sys::uffd::testing::Order;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// What the pager told a child's guard: kind, slot, and whether a descriptor came along.
fn guard_messages(guard: &OwnedFd) -> Vec<(u32, u32, bool)> {
    use rustix::net::{RecvAncillaryBuffer, RecvFlags};
    let mut all = Vec::new();
    loop {
        let mut bytes = [0u8; 16];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(guard, &mut parts, &mut control, RecvFlags::DONTWAIT) {
            Ok(got) if got.bytes == 16 => {}
            _ => return all,
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        all.push((word(0), word(4), control.drain().count() > 0));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_forked_process_has_its_parents_pages() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 200, remote: 150, ..Wanted::default() });
    child.check(0, 5);
    let base = child.base();
    let want = expected((0..150).map(|p| Some(base + p)).chain((0..50).map(|_| None)));
    assert_eq!(child.order(Order::ForkHash, [0, 200, 0, 0]), want);
    child.check(0, 150);
    rig.until(child.id, "independent", |s| s.independent);
    let mut told = Vec::new();
    wait_for("the guard drops its duplicate", || {
        told.extend(guard_messages(&child.guard));
        told.contains(&(3, 0, false))
    });
    assert_eq!(told, [(2, 0, true), (3, 0, false)]);
}

#[test]
fn executed_programs_leave_no_descriptor() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    for _ in 0..20 {
        assert_eq!(child.order(Order::ForkExec, [0; 4]), 0);
    }
    let mut told = Vec::new();
    wait_for("the guard drops all duplicates", || {
        told.extend(guard_messages(&child.guard));
        told.iter().filter(|t| t.0 == 3).count() == 20
    });
    assert_eq!(told.iter().filter(|t| t.0 == 2 && t.2).count(), 20);
    child.check(0, 64);
}

#[test]
fn a_fork_of_a_changed_child_sees_the_changes() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 200, remote: 200, ..Wanted::default() });
    child.order(Order::Drop, [10, 20, 0, 0]);
    child.order(Order::Write, [100, 9, 0, 0]);
    child.order(Order::ForkStay, [0; 4]);
    // Afterwards each goes its own way.
    child.order(Order::Drop, [50, 20, 0, 0]);
    let fork = |order, args| child.puppet.order_fork(order, args, WAIT).unwrap().0;
    assert_eq!(fork(Order::Peek, [100, 0, 0, 0]), 9);
    let base = child.base();
    let zeros = expected((0..20).map(|_| None));
    assert_eq!(fork(Order::Hash, [10, 20, 0, 0]), zeros);
    assert_eq!(fork(Order::Hash, [50, 20, 0, 0]), expected((50..70).map(|p| Some(base + p))));
    assert_eq!(fork(Order::Move, [120, 50, 220, 50]), 0);
    assert_eq!(fork(Order::Hash, [220, 50, 0, 0]), expected((120..170).map(|p| Some(base + p))));
    child.check_zero(50, 20);
    child.check(120, 80);
    rig.client.make_independent(child.id).unwrap();
    rig.until(child.id, "independent", |s| s.independent && s.pages_left == 0);
    assert_eq!(fork(Order::Hash, [0, 10, 0, 0]), expected((0..10).map(|p| Some(base + p))));
}

#[test]
fn a_shadow_is_not_filled_and_its_missing_pages_are_errors() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 100, remote: 100, ..Wanted::default() });
    child.check(0, 4);
    let snapshot = rig.client.snapshot(child.id, true).unwrap();
    let missing = snapshot.index.pages();
    let shadow = child.order(Order::ForkStay, [0; 4]);
    rig.client.shadow_taken(child.id).unwrap();
    assert_eq!(rig.stats(child.id).pages_left, missing);
    rig.client.make_independent(child.id).unwrap();
    let stats = rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(stats.bytes_fetched, 100 * 4096);
    let memory = std::fs::File::open(format!("/proc/{shadow}/mem")).unwrap();
    let mut page = vec![0; 4096];
    memory.read_exact_at(&mut page, child.puppet.base).unwrap();
    let mut want = vec![0; 4096];
    fill_page(child.base(), &mut want);
    assert_eq!(page, want);
    assert!(memory.read_exact_at(&mut page, child.puppet.base + 99 * 4096).is_err());
}
