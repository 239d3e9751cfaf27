//! Whatever happens to the owner or the way to it: right pages, or an end with a reason.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mitosis_descriptor::{Owner, Secret};
use mitosis_pager::*;
use mitosis_sys::uffd::testing::Order;
use mitosis_transport::{Fault, FaultySource, ReadError, SeedState, TcpSource};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Touches pages that cannot come; the child must end, with this in its reason.
fn touch_and_end(rig: &Rig, child: &TestChild, reason: &str) {
    let touched = child.puppet.order(Order::Touch, [0, 60, 7, 0], WAIT);
    assert!(touched.is_err(), "a touch was answered");
    let stats = rig.until_ended(child.id);
    let told = stats.reason.unwrap_or_default();
    assert!(told.contains(reason), "{told}");
}

#[test]
fn a_node_that_vanishes_ends_its_children() {
    let (mut server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    child.check(0, 3);
    server.stop();
    touch_and_end(&rig, &child, "lost");
}

#[test]
fn an_idle_child_of_a_vanished_node_ends_too() {
    let (mut server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    child.check(0, 3);
    server.stop();
    let reason = rig.until_ended(child.id).reason.unwrap();
    assert!(reason.contains("not back within 1500 ms"), "{reason}");
}

#[test]
fn an_independent_child_needs_nobody() {
    let (mut server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted { eager: true, ..Wanted::default() });
    rig.until(child.id, "independent", |s| s.independent);
    server.stop();
    std::thread::sleep(Duration::from_millis(1800));
    child.check(0, 64);
}

#[test]
fn a_node_that_comes_back_in_time_costs_nothing() {
    let (mut server, rig) = (Server::start(), Rig::with(|c| c.page_timeout = WAIT));
    let wanted = Wanted { pages: 2000, remote: 2000, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    child.check(0, 3);
    server.stop();
    let address = server.address;
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        Server::start_at(address)
    });
    child.check(3, 1997);
    drop(back.join().unwrap());
}

#[test]
fn a_slow_node_is_waited_for() {
    let (server, rig) = (Server::start(), Rig::start());
    server.seed.delay_ms.store(100, Ordering::SeqCst);
    let child = child(&rig, server.owner(), Wanted { pages: 30, remote: 30, ..Wanted::default() });
    child.check(0, 30);
}

#[test]
fn a_connection_that_is_cut_again_and_again_delivers() {
    let server = Server::start();
    let rig = Rig::with(|config| {
        config.page_timeout = WAIT;
        config.connect = Arc::new(|address| {
            let source = TcpSource::connect(address)?;
            Ok(Box::new(FaultySource::new(source, Fault::CutAfter(5))))
        });
    });
    let wanted = Wanted { pages: 3000, remote: 3000, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    child.check(0, 3000);
}

fn faulty(fault: Fault) -> Rig {
    Rig::with(|config| {
        config.connect = Arc::new(move |address| {
            let source = TcpSource::connect(address)?;
            Ok(Box::new(FaultySource::new(source, fault.clone())))
        });
    })
}

#[test]
fn swallowed_reads_end_the_child() {
    let server = Server::start();
    let rig = faulty(Fault::Drop { every: 1 });
    let child = child(&rig, server.owner(), Wanted::default());
    touch_and_end(&rig, &child, "no page within 1500 ms");
}

#[test]
fn shortened_reads_end_the_child() {
    let server = Server::start();
    let rig = faulty(Fault::Truncate);
    let child = child(&rig, server.owner(), Wanted::default());
    assert!(child.puppet.order(Order::Hash, [0, 64, 0, 0], WAIT).is_err());
    let reason = rig.until_ended(child.id).reason.unwrap();
    assert!(reason.contains("no page within"), "{reason}");
}

#[test]
fn failed_reads_end_the_child() {
    let server = Server::start();
    let rig = faulty(Fault::Error { every: 1, error: ReadError::Failed("made up".into()) });
    let child = child(&rig, server.owner(), Wanted::default());
    touch_and_end(&rig, &child, "made up");
}

#[test]
fn unanswered_pings_end_the_child() {
    let server = Server::start();
    let rig = faulty(Fault::Mute);
    let child = child(&rig, server.owner(), Wanted::default());
    let reason = rig.until_ended(child.id).reason.unwrap();
    assert!(reason.contains("lost"), "{reason}");
}

/// A node that answers anything with `answer`, on every connection.
fn odd_node(answer: Vec<u8>) -> Owner {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16]);
            let _ = stream.write_all(&answer);
            open.push(stream);
        }
    });
    Owner { address, seed: SEED, secret: SECRET }
}

#[test]
fn garbage_ends_the_child() {
    let rig = Rig::start();
    let garbage: Vec<u8> = (0..10_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let child = child(&rig, odd_node(garbage), Wanted::default());
    touch_and_end(&rig, &child, "protocol error");
}

#[test]
fn silence_ends_the_child() {
    let rig = Rig::start();
    let child = child(&rig, odd_node(Vec::new()), Wanted::default());
    touch_and_end(&rig, &child, "lost");
}

#[test]
fn nobody_there_ends_the_child() {
    let rig = Rig::start();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let owner = Owner { address: unused.to_string(), seed: SEED, secret: SECRET };
    let child = child(&rig, owner, Wanted::default());
    touch_and_end(&rig, &child, "refused");
}

#[test]
fn a_wrong_capability_ends_the_child() {
    let (server, rig) = (Server::start(), Rig::start());
    let owner = Owner { secret: Secret([8; 32]), ..server.owner() };
    let child = child(&rig, owner, Wanted::default());
    touch_and_end(&rig, &child, "refused");
}

#[test]
fn revocation_ends_dependent_children_and_no_others() {
    let (server, rig) = (Server::start(), Rig::start());
    let dependent = child(&rig, server.owner(), Wanted::default());
    let free = child(&rig, server.owner(), Wanted { eager: true, ..Wanted::default() });
    dependent.check(0, 3);
    rig.until(free.id, "independent", |s| s.independent);
    server.seed.set(SeedState::Revoked);
    assert_eq!(rig.until_ended(dependent.id).reason.as_deref(), Some("seed revoked"));
    free.check(0, 64);
    assert_eq!(rig.stats(free.id).state, ChildState::Running);
}

#[test]
fn a_lost_seed_ends_its_children() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    server.seed.set(SeedState::Lost);
    let reason = rig.until_ended(child.id).reason.unwrap();
    assert!(reason.starts_with("seed lost"), "{reason}");
}

#[test]
fn children_of_an_expiring_seed_become_independent() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    child.check(0, 3);
    server.seed.set(SeedState::Expiring);
    rig.until(child.id, "independent", |s| s.independent);
    // Nobody holds the seed open any more: the node may let it go.
    let start = std::time::Instant::now();
    while Arc::strong_count(&server.seed) > 2 {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(5));
    }
    child.check(0, 64);
}

#[test]
fn a_failure_midway_ends_the_child() {
    let (server, rig) = (Server::start(), Rig::start());
    server.seed.fail_from.store(40, Ordering::SeqCst);
    let child = child(&rig, server.owner(), Wanted::default());
    assert!(child.puppet.order(Order::Hash, [0, 64, 0, 0], WAIT).is_err());
    let reason = rig.until_ended(child.id).reason.unwrap();
    assert!(reason.contains("made to fail"), "{reason}");
}
