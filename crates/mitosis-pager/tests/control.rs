//! The control socket: books, events, ends.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mitosis_descriptor::{PageIndex, PageRun, Vpn};
use mitosis_pager::*;
use mitosis_sys::uffd::testing::Order;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, socket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn next(events: &PagerEvents) -> Event {
    events.next(WAIT).unwrap().expect("an event")
}

/// The end of a child, as the next event tells it: status, and reason.
fn end(events: &PagerEvents, child: ChildId) -> (Option<i32>, Option<String>) {
    match next(events) {
        Event::Ended { stats } if stats.child == child => (stats.exit, stats.reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ends_are_told_with_status_or_reason() {
    let (server, rig) = (Server::start(), Rig::start());
    let events = rig.client.subscribe().unwrap();
    let first = child(&rig, server.owner(), Wanted { eager: true, ..Wanted::default() });
    assert_eq!(next(&events), Event::Independent { child: first.id });
    // What a guard says when the main process exits, and then exits itself.
    let mut message = [0u8; 16];
    message[..8].copy_from_slice(&[1, 0, 0, 0, 0, 3, 0, 0]);
    rustix::net::send(&first.guard, &message, SendFlags::empty()).unwrap();
    assert_eq!(next(&events), Event::Exited { child: first.id, status: 0x300 });
    let _ = first.puppet.order(Order::Exit, [0; 4], WAIT);
    assert_eq!(end(&events, first.id), (Some(0x300), None));

    let second = child(&rig, server.owner(), Wanted::default());
    rig.client.end(second.id, "asked to").unwrap();
    let reason = Some("asked to".to_owned());
    assert_eq!(end(&events, second.id), (None, reason));
    assert!(rig.client.snapshot(second.id, false).is_err());

    let third = child(&rig, server.owner(), Wanted::default());
    let _ = third.puppet.order(Order::Exit, [9, 0, 0, 0], WAIT);
    let reason = Some("guard died".to_owned());
    assert_eq!(end(&events, third.id), (None, reason));

    rig.client.forget(vec![second.id]).unwrap();
    rig.client.forget(vec![second.id]).unwrap();
    assert_eq!(rig.client.stats().unwrap().len(), 2);
    assert_eq!(events.next(Duration::from_millis(20)).unwrap(), None);
}

#[test]
fn contradictions_are_refused() {
    let (server, rig) = (Server::start(), Rig::start());
    let (a, b) = pair();
    let fds =
        ChildFds { uffd_rx: a.as_fd(), guard: b.as_fd(), guard_pidfd: a.as_fd(), local: vec![] };
    let area = Area { start: Vpn(100), count: 10, grows_down: false, wipe_on_fork: false };
    let run = |start, owner| {
        let run = PageRun { start: Vpn(start), count: 5, owner, source: Vpn(start) };
        PageIndex::from_sorted([run]).unwrap()
    };
    let good = AddChild {
        child: ChildId(1 << 40),
        seed: String::new(),
        areas: vec![area],
        index: run(105, 0),
        owners: vec![OwnerSource::remote(server.owner()).unwrap()],
        placed: Vec::new(),
        placed_bytes: 0,
        held: 0,
        main: None,
        member: (0, 1),
        shape: None,
        eager: false,
        independent: false,
    };
    let bad = [
        AddChild { index: run(106, 0), ..good.clone() },
        AddChild { index: run(105, 1), ..good.clone() },
        AddChild { areas: vec![area, area], ..good.clone() },
        AddChild { owners: vec![OwnerSource::local(server.owner(), 0)], ..good.clone() },
        AddChild { shape: Some(7), ..good.clone() },
    ];
    for add in bad {
        let refused = rig.client.add_child(add, &fds).and_then(Asked::done);
        assert!(matches!(refused, Err(PagerError::Failed(_))), "{refused:?}");
    }
    let shape = |pages| {
        let owner = OwnerSource::remote(server.owner()).unwrap();
        rig.client.add_shape(7, vec![area], run(pages, 0), vec![owner])
    };
    assert!(matches!(shape(106), Err(PagerError::Failed(_))), "a page outside of all areas");
    assert!(rig.client.make_independent(good.child).is_err());
    assert_eq!(rig.client.stats().unwrap(), []);
}

#[test]
fn a_large_index_passes() {
    let (server, rig) = (Server::start(), Rig::start());
    let other = child(&rig, server.owner(), Wanted::default());
    let (a, b) = pair();
    let (uffd_rx, guard, guard_pidfd) = (a.as_fd(), b.as_fd(), other.puppet.pidfd.as_fd());
    let fds = ChildFds { uffd_rx, guard, guard_pidfd, local: vec![] };
    let run = |i: u64| PageRun { start: Vpn(2 * i), count: 1, owner: 0, source: Vpn(2 * i) };
    let runs = (0..50_000).map(run);
    let add = AddChild {
        child: ChildId(1 << 41),
        seed: String::new(),
        areas: vec![Area { start: Vpn(0), count: 100_000, grows_down: false, wipe_on_fork: false }],
        index: PageIndex::from_sorted(runs).unwrap(),
        owners: vec![OwnerSource::remote(server.owner()).unwrap()],
        placed: Vec::new(),
        placed_bytes: 0,
        held: 0,
        main: None,
        member: (0, 1),
        shape: None,
        eager: false,
        independent: false,
    };
    let id = add.child;
    rig.client.add_child(add, &fds).unwrap().done().unwrap();
    assert_eq!(rig.stats(id).pages_total, 50_000);
}

#[test]
fn malformed_requests_end_their_connection_only() {
    let rig = Rig::start();
    let address = SocketAddrUnix::new(&rig.socket).unwrap();
    for bytes in [&[0u8, 255, 255, 255, 255, 255, 255][..], &[1], &[9, 9], &[0; 30_000]] {
        let raw = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&raw, &address).unwrap();
        rustix::net::send(&raw, bytes, SendFlags::NOSIGNAL).unwrap();
        let (got, _) =
            rustix::net::recv(&raw, &mut [0u8; 64][..], rustix::net::RecvFlags::empty()).unwrap();
        assert_eq!(got, 0, "{bytes:?}");
    }
    assert_eq!(rig.client.stats().unwrap(), []);
}

#[test]
fn without_a_daemon_children_end_after_the_linger() {
    let server = Server::start();
    let rig = Rig::with(|config| config.linger = Duration::from_millis(300));
    let child = child(&rig, server.owner(), Wanted::default());
    let socket = rig.socket.clone();
    let first = PagerClient::connect(&socket, WAIT).unwrap();
    // A daemon that comes back in time keeps everything.
    drop(first);
    std::thread::sleep(Duration::from_millis(100));
    child.check(0, 3);
    let start = Instant::now();
    rig.abandon().unwrap();
    let ended = child.puppet.order(Order::Touch, [10, 1, 1, 0], WAIT);
    let mut gone = ended.is_err();
    while !gone && start.elapsed() < WAIT {
        std::thread::sleep(Duration::from_millis(20));
        gone = child.puppet.order(Order::Touch, [10, 1, 1, 0], WAIT).is_err();
    }
    assert!(gone);
    assert!(PagerClient::connect(&socket, WAIT).is_err() || !socket.exists());
}

#[test]
fn a_second_pager_at_the_same_socket_is_refused() {
    let rig = Rig::start();
    let config = PagerConfig { holder: false, ..PagerConfig::new(&rig.socket) };
    assert!(run(config).is_err());
    assert_eq!(rig.client.stats().unwrap(), []);
}
