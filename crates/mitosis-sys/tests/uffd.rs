//! userfaultfd as it is: what the pager builds on.
#![allow(clippy::unwrap_used)]

use mitosis_sys::uffd::testing::{Order, Puppet, hash_page};
use mitosis_sys::uffd::*;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(20);
const PAGE: u64 = 4096;

/// Puppets are forks of the test: one at a time.
static ONE: Mutex<()> = Mutex::new(());

fn puppet(pages: u64) -> (Puppet, Uffd, MutexGuard<'static, ()>) {
    let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (rx, tx) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    let puppet = Puppet::start(pages, &tx).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&rx, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let uffd = Uffd::from_fd(fds.pop().unwrap()).unwrap();
    (puppet, uffd, one)
}

fn next(uffd: &Uffd) -> Event {
    let start = Instant::now();
    let mut events = Vec::new();
    while events.is_empty() && start.elapsed() < WAIT {
        uffd.read_events(&mut events).unwrap();
    }
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Gives an order in the background, since somebody must serve its faults.
fn while_ordered<T: Send>(
    puppet: &Puppet,
    order: Order,
    args: [u64; 4],
    serve: impl FnOnce() -> T + Send,
) -> (u64, T) {
    std::thread::scope(|scope| {
        let ordered = scope.spawn(move || puppet.order(order, args, WAIT).unwrap().0);
        let served = serve();
        (ordered.join().unwrap(), served)
    })
}

const DONE: Placed = Placed { bytes: PAGE, stop: None };

fn stopped(stop: Stop) -> Placed {
    Placed { bytes: 0, stop: Some(stop) }
}

#[test]
fn a_touched_page_is_told_and_placed() {
    let (puppet, uffd, _one) = puppet(4);
    let page = vec![7u8; 4096];
    let (hash, ()) = while_ordered(&puppet, Order::Hash, [1, 1, 0, 0], || {
        let Event::Fault { addr, write: false, .. } = next(&uffd) else { panic!("no read") };
        assert_eq!(addr & !(PAGE - 1), puppet.base + PAGE);
        assert_eq!(uffd.copy(puppet.base + PAGE, &page, true), DONE);
    });
    assert_eq!(hash, hash_page(0, &page));
}

#[test]
fn ends_have_names() {
    let (puppet, uffd, _one) = puppet(4);
    let page = vec![7u8; 4096];
    assert_eq!(uffd.copy(puppet.base, &page, true), DONE);
    assert_eq!(uffd.copy(puppet.base, &page, true), stopped(Stop::Exists));
    assert_eq!(uffd.zeropage(puppet.base, PAGE), stopped(Stop::Exists));
    assert_eq!(uffd.copy(puppet.base + 4 * PAGE, &page, true), stopped(Stop::Unmapped));
    let two = [page.clone(), page.clone()].concat();
    assert_eq!(uffd.copy(puppet.base + 3 * PAGE, &two, true), stopped(Stop::Unmapped));
    // A part is a part: page 1 is free, page 2 is not.
    assert_eq!(uffd.zeropage(puppet.base + 2 * PAGE, PAGE), DONE);
    assert_eq!(uffd.copy(puppet.base + PAGE, &two, true), DONE);
    drop(puppet);
    assert_eq!(uffd.copy(1 << 30, &page, true), stopped(Stop::Gone));
    assert_eq!(uffd.registered(1 << 30, PAGE), Err(Stop::Gone));
}

#[test]
fn registration_can_be_asked_for_without_a_change() {
    let (puppet, uffd, _one) = puppet(4);
    let base = puppet.base;
    assert_eq!(uffd.registered(base, PAGE), Ok(true));
    assert_eq!(uffd.registered(base, 4 * PAGE), Ok(true));
    assert_eq!(uffd.registered(base, 5 * PAGE), Ok(false), "beyond the mapping");
    assert_eq!(uffd.registered(base + 4 * PAGE, PAGE), Ok(false));
    assert_eq!(uffd.registered(16 << 20, PAGE), Ok(false), "not mapped at all");
    uffd.unregister(base, 2 * PAGE).unwrap();
    assert_eq!(uffd.registered(base, PAGE), Ok(false));
    assert_eq!(uffd.registered(base + 2 * PAGE, 2 * PAGE), Ok(true));
    // Nothing was placed by asking.
    assert_eq!(uffd.zeropage(base + 2 * PAGE, PAGE), DONE);
    // What is unregistered is the kernel's.
    assert_eq!(puppet.order(Order::Peek, [0; 4], WAIT).unwrap().0, 0);
}

#[test]
fn drops_moves_and_unmaps_are_told() {
    let (puppet, uffd, _one) = puppet(8);
    let base = puppet.base;
    let page = |n: u64| base + n * PAGE;
    let (_, ()) = while_ordered(&puppet, Order::Drop, [1, 2, 0, 0], || {
        let event = next(&uffd);
        assert!(
            matches!(event, Event::Remove { start, end } if (start, end) == (page(1), page(3)))
        );
    });
    let (_, ()) = while_ordered(&puppet, Order::Unmap, [4, 1, 0, 0], || {
        let event = next(&uffd);
        assert!(matches!(event, Event::Unmap { start, end } if (start, end) == (page(4), page(5))));
    });
    let (failed, ()) = while_ordered(&puppet, Order::Move, [5, 3, 10, 3], || {
        let event = next(&uffd);
        let Event::Remap { from, to, len } = event else { panic!("{event:?}") };
        assert_eq!((from, to, len), (page(5), page(10), 3 * PAGE));
        let event = next(&uffd);
        assert!(matches!(event, Event::Unmap { start, end } if (start, end) == (page(5), page(8))));
    });
    assert_eq!(failed, 0);
    assert_eq!(uffd.registered(page(10), 3 * PAGE), Ok(true));
}

#[test]
fn a_pending_event_holds_everything_up() {
    let (puppet, uffd, _one) = puppet(4);
    let page = vec![7u8; 4096];
    let (_, ()) = while_ordered(&puppet, Order::Drop, [0, 1, 0, 0], || {
        let start = Instant::now();
        // Until the puppet is in its call; then until its event is read.
        while uffd.copy(puppet.base + PAGE, &page, true) != stopped(Stop::Again) {
            assert!(start.elapsed() < WAIT);
        }
        assert_eq!(uffd.zeropage(puppet.base + 2 * PAGE, PAGE), stopped(Stop::Again));
        assert_eq!(uffd.registered(puppet.base + 2 * PAGE, PAGE), Err(Stop::Again));
        assert!(matches!(next(&uffd), Event::Remove { .. }));
    });
}

#[test]
fn a_fork_brings_its_own_descriptor() {
    let (puppet, uffd, _one) = puppet(2);
    let page = vec![9u8; 4096];
    let (hash, forked) = while_ordered(&puppet, Order::ForkHash, [0, 1, 0, 0], || {
        let Event::Fork(forked) = next(&uffd) else { panic!("no fork") };
        let Event::Fault { .. } = next(&forked) else { panic!("no fault") };
        assert_eq!(forked.copy(puppet.base, &page, true), DONE);
        forked
    });
    assert_eq!(hash, hash_page(0, &page));
    // The parent's page is still missing; the child is gone.
    assert_eq!(uffd.copy(puppet.base, &page, true), DONE);
    let start = Instant::now();
    while forked.registered(16 << 20, PAGE) != Err(Stop::Gone) {
        assert!(start.elapsed() < WAIT);
    }
}
