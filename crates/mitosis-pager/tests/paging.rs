//! Pages arrive, all of them and only those, whatever the child does with its memory.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mitosis_pager::ChildStats;
use mitosis_sys::uffd::testing::Order;
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn touched_pages_come_from_the_owner() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted { pages: 96, remote: 64, ..Wanted::default() });
    child.check(0, 64);
    child.check_zero(64, 32);
    let stats = rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(stats.pages_total, 64);
    assert_eq!(stats.pages_fetched + stats.pages_prefetched, 64);
    assert_eq!(stats.bytes_fetched, 64 * 4096);
    assert_eq!(stats.transport, "tcp");
    assert!(stats.owners.is_empty(), "{stats:?}");
}

#[test]
fn local_pages_come_from_a_file() {
    let (server, rig) = (Server::start(), Rig::start());
    let memory = rustix::fs::memfd_create("spool", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    // Offsets are addresses of the seed, which the puppet does not know before it lives: so the
    // file has the same page everywhere near. 47 bits of offset are fine in a memfd.
    let file = File::from(memory);
    let copy = file.try_clone().unwrap();
    let child = child(
        &rig,
        server.owner(),
        Wanted { local: Some(copy.into()), pages: 256, remote: 256, ..Wanted::default() },
    );
    let mut page = vec![0; 4096];
    for vpn in child.base()..child.base() + 256 {
        fill_page(vpn, &mut page);
        file.write_all_at(&page, vpn << 12).unwrap();
    }
    child.check(0, 256);
    let stats = rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(stats.transport, "local");
    assert_eq!(server.seed.pages.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn scattered_touches_move_at_most_three_pages_each() {
    let (server, rig) = (Server::start(), Rig::start());
    let pages = 8192;
    let wanted = Wanted { pages, remote: pages, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    let touched = child.order(Order::Touch, [0, pages, 20, 0]);
    let stats = rig.stats(child.id);
    assert!(stats.bytes_fetched <= 3 * 4096 * touched, "{stats:?}");
    assert!(!stats.independent);
}

#[test]
fn a_sequential_run_overshoots_little_and_faults_rarely() {
    let (server, rig) = (Server::start(), Rig::start());
    let pages = 16384;
    let wanted = Wanted { pages, remote: pages, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    child.check(0, 819);
    let stats = rig.stats(child.id);
    assert!(stats.bytes_fetched <= 4096 * 1147, "{stats:?}");
    child.check(819, pages - 819);
    let stats = rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(stats.bytes_fetched, 4096 * pages);
    assert!(stats.faults < pages / 8, "{stats:?}");
}

#[test]
fn every_fourth_page_is_seen_and_what_lies_between_is_not_fetched() {
    let (server, rig) = (Server::start(), Rig::start());
    let pages = 16384;
    let wanted = Wanted { pages, remote: pages, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    let touched = child.order(Order::Touch, [0, pages, 4, 0]);
    assert_eq!(touched, 4096);
    let stats = rig.stats(child.id);
    assert!(stats.faults <= 200, "{stats:?}");
    assert!(stats.pages_fetched + stats.pages_prefetched <= touched + 300, "{stats:?}");
    child.check(0, pages);
}

#[test]
fn dropped_pages_are_zero() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 128, remote: 128, ..Wanted::default() });
    child.check(0, 20);
    assert_eq!(child.order(Order::Drop, [10, 50, 0, 0]), 0);
    child.check_zero(10, 50);
    child.check(0, 10);
    child.check(60, 68);
    assert_eq!(child.order(Order::Drop, [0, 128, 0, 0]), 0);
    child.check_zero(0, 128);
    rig.until(child.id, "independent", |s| s.independent);
}

#[test]
fn a_written_page_stays_written() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted::default());
    child.order(Order::Write, [5, 42, 0, 0]);
    rig.client.make_independent(child.id).unwrap();
    rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(child.order(Order::Peek, [5, 0, 0, 0]), 42);
    child.check(0, 5);
    child.check(6, 58);
}

#[test]
fn unmapped_pages_are_not_waited_for() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 300, remote: 300, ..Wanted::default() });
    assert_eq!(child.order(Order::Unmap, [100, 100, 0, 0]), 0);
    child.check(0, 100);
    child.check(200, 100);
    let stats = rig.until(child.id, "independent", |s| s.independent);
    assert_eq!(stats.pages_fetched + stats.pages_prefetched, 200);
}

#[test]
fn moved_pages_keep_their_source() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 100, remote: 100, ..Wanted::default() });
    child.check(0, 3);
    // Pages 20..60 go to the spare region, at page 130, and grow by 10.
    assert_eq!(child.order(Order::Move, [20, 40, 130, 50]), 0);
    let base = child.base();
    let want = expected((20..60).map(|p| Some(base + p)).chain((0..10).map(|_| None)));
    assert_eq!(child.order(Order::Hash, [130, 50, 0, 0]), want);
    // And once more, after which everything is there.
    assert_eq!(child.order(Order::Move, [60, 40, 140, 40]), 0);
    child.check(0, 20);
    let want = expected((60..100).map(|p| Some(base + p)));
    assert_eq!(child.order(Order::Hash, [140, 40, 0, 0]), want);
    rig.until(child.id, "independent", |s| s.independent);
}

#[test]
fn a_snapshot_names_what_is_missing() {
    let (server, rig) = (Server::start(), Rig::start());
    let child =
        child(&rig, server.owner(), Wanted { pages: 200, remote: 200, ..Wanted::default() });
    child.order(Order::Touch, [0, 1, 1, 0]);
    assert_eq!(child.order(Order::Move, [100, 50, 300, 50]), 0);
    rig.until(child.id, "quiet", |s| s.pages_fetched == 1);
    let snapshot = rig.client.snapshot(child.id, false).unwrap();
    assert_eq!(snapshot.index.pages(), 199);
    assert_eq!(snapshot.owners, [server.owner()]);
    let moved = snapshot.index.runs().iter().find(|r| r.start.0 == child.base() + 300).unwrap();
    assert_eq!((moved.count, moved.source.0), (50, child.base() + 100));
}

#[test]
fn a_child_without_missing_pages_is_independent_at_once() {
    let (server, rig) = (Server::start(), Rig::start());
    let child = child(&rig, server.owner(), Wanted { pages: 64, remote: 0, ..Wanted::default() });
    child.check_zero(0, 64);
    rig.until(child.id, "independent", |s| s.independent && s.bytes_fetched == 0);
}

#[test]
fn pages_arrive_while_mappings_change_all_the_time() {
    let (server, rig) = (Server::start(), Rig::start());
    for eager in [false, true] {
        let wanted = Wanted { pages: 3000, remote: 2900, eager, ..Wanted::default() };
        let child = child(&rig, server.owner(), wanted);
        let base = child.base();
        let want = expected((20..2900).map(|p| Some(base + p)));
        assert_eq!(child.order(Order::HashInStorm, [0, 20, 20, 2880]), want);
        let stats = rig.stats(child.id);
        assert_eq!(stats.reason, None);
    }
}

#[test]
fn what_siblings_touched_comes_with_the_first_touch() {
    let (server, rig) = (Server::start(), Rig::start());
    // In the order of touches; pages that the seed does not own are no harm.
    let pages: Vec<u64> = (40..60).rev().chain([5, 7, 6]).chain(1000..1100).collect();
    let trail = Some((server.seed.clone(), pages));
    let wanted = Wanted { pages: 300, remote: 300, trail, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    child.check(200, 1);
    rig.until(child.id, "given the trail", |s| s.pages_prefetched >= 23);
    for (first, count) in [(40, 20), (5, 3)] {
        child.check(first, count);
    }
    let stats = rig.stats(child.id);
    assert_eq!(stats.faults, 1, "{stats:?}");
    // The page touched, its neighbour if the trail was here by then, and the trail.
    let pages = stats.pages_fetched + stats.pages_prefetched;
    assert!((24..=25).contains(&pages), "{stats:?}");
}

#[test]
fn what_the_first_child_tells_is_what_it_touched() {
    let (server, rig) = (Server::start(), Rig::start());
    let first =
        child(&rig, server.owner(), Wanted { pages: 300, remote: 300, ..Wanted::default() });
    for page in [200, 40, 120] {
        first.check(page, 1);
    }
    // A short run: what is fetched ahead of it is told too.
    first.check(10, 5);
    let stats = rig.stats(first.id);
    let learned = || server.seed.learned.lock().unwrap().len() as u64;
    rig.until(first.id, "told", |_| learned() > 0);
    let fetched = stats.pages_fetched + stats.pages_prefetched;
    assert!((8..=20).contains(&fetched), "{stats:?}");
    assert_eq!(learned(), fetched, "{stats:?}");
}

#[test]
fn what_a_child_puts_in_place_itself_is_not_fetched_and_is_counted() {
    let (server, rig) = (Server::start(), Rig::start());
    let placed = vec![3, 4, 5, 100];
    let wanted = Wanted { pages: 200, remote: 200, placed, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    let stats = rig.stats(child.id);
    assert_eq!((stats.pages_total, stats.pages_prefetched), (200, 4), "{stats:?}");
    assert_eq!((stats.pages_left, stats.bytes_fetched), (196, 4 * 4096), "{stats:?}");
    child.check(6, 1);
    child.check(101, 99);
    assert_eq!(rig.stats(child.id).pages_left, 96);
}

#[test]
fn a_mistaken_trail_costs_a_bounded_number_of_pages() {
    let (server, rig) = (Server::start(), Rig::start());
    let trail = Some((server.seed.clone(), (2000..4000).collect()));
    let wanted = Wanted { pages: 4000, remote: 4000, trail, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    child.check(0, 1);
    rig.until(child.id, "given the beginning of the trail", |s| s.pages_prefetched > 1000);
    child.check(0, 1);
    let stats = rig.stats(child.id);
    assert!(stats.pages_fetched + stats.pages_prefetched <= 1024 + 2, "{stats:?}");
}

/// `count` pages below `of`, in no order that anybody could guess.
fn scattered(count: u64, of: u64) -> Vec<u64> {
    let mut left: Vec<u64> = (0..of).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |left: &mut Vec<u64>| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        left.swap_remove((state >> 33) as usize % left.len())
    };
    (0..count).map(|_| next(&mut left)).collect()
}

#[test]
fn a_child_that_follows_a_long_trail_faults_rarely_and_is_sent_nothing_else() {
    let (server, rig) = (Server::start(), Rig::start());
    let (pages, touched) = (12_000, 6000);
    let order = scattered(touched, pages);
    let trail = Some((server.seed.clone(), order.clone()));
    let wanted = Wanted { pages, remote: pages, trail, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    for page in &order {
        child.order(Order::Touch, [*page, 1, 1, 0]);
    }
    let stats = rig.stats(child.id);
    assert!(stats.faults <= touched / 10, "{stats:?}");
    let fetched = stats.pages_fetched + stats.pages_prefetched;
    assert!(fetched <= touched + touched / 20, "{stats:?}");
    assert!(stats.bytes_fetched <= 4096 * (touched + touched / 10), "{stats:?}");
    // One of 128 is held back, and tells that what was fetched was needed.
    assert!(stats.pages_held >= 5, "{stats:?}");
    assert!(stats.pages_held_touched >= stats.pages_held - 2, "{stats:?}");
    child.check(0, pages);
}

#[test]
fn a_child_that_leaves_a_long_trail_was_sent_no_more_than_it_followed() {
    let (server, rig) = (Server::start(), Rig::start());
    let (pages, followed) = (20_000, 3000);
    let order = scattered(10_000, pages);
    let trail = Some((server.seed.clone(), order.clone()));
    let wanted = Wanted { pages, remote: pages, trail, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    for page in &order[..followed] {
        child.order(Order::Touch, [*page, 1, 1, 0]);
    }
    // What is on its way comes.
    let fetched = |stats: &ChildStats| stats.pages_fetched + stats.pages_prefetched;
    let mut before = rig.stats(child.id);
    let stats = loop {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = rig.stats(child.id);
        if fetched(&now) == fetched(&before) {
            break now;
        }
        before = now;
    };
    assert!(fetched(&stats) <= 2 * followed as u64 + 1024, "{stats:?}");
    // What was held back tells it, as far as one in 128 can; fewer where somebody waited.
    let unused = fetched(&stats) - followed as u64;
    let told = (stats.pages_held - stats.pages_held_touched) * 128;
    assert!(told <= unused + 512, "{unused} unused: {stats:?}");
    assert!(unused < 1024 || told > 0, "{unused} unused: {stats:?}");
    child.check(0, pages);
}

#[test]
fn what_lies_around_the_first_childs_touches_is_here_but_not_told() {
    let (server, rig) = (Server::start(), Rig::start());
    let pages = 20_000;
    let wanted = Wanted { pages, remote: pages, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    // The first and the third of blocks of four.
    let order: Vec<u64> = scattered(250, 5000).iter().map(|n| n * 4).collect();
    for first in order.iter().chain(&order.iter().map(|n| n + 2).collect::<Vec<u64>>()) {
        child.check(*first, 1);
    }
    let stats = rig.stats(child.id);
    assert!(stats.pages_around >= 30 && stats.pages_cached >= 10, "{stats:?}");
    assert!(stats.pages_around <= stats.faults / 8 + 4 + 3 * stats.pages_cached, "{stats:?}");
    // What lies around is not in the child, and nobody is told of it.
    let has = pages - stats.pages_left;
    assert!((500..=600).contains(&has), "{stats:?}");
    let learned = || server.seed.learned.lock().unwrap().len() as u64;
    rig.until(child.id, "told", |_| learned() >= 500);
    assert!(learned() <= has + 16, "{} learned: {stats:?}", learned());
    child.check(0, pages);
}

#[test]
fn who_uses_nothing_around_its_touches_is_not_sent_it() {
    let (server, rig) = (Server::start(), Rig::start());
    let wanted = Wanted { pages: 20_000, remote: 20_000, ..Wanted::default() };
    let child = child(&rig, server.owner(), wanted);
    for n in scattered(500, 2500) {
        child.check(n * 8, 1);
    }
    let stats = rig.stats(child.id);
    assert!(stats.pages_around <= stats.faults / 8 + 4, "{stats:?}");
    assert_eq!(stats.pages_cached, 0, "{stats:?}");
}

#[test]
fn what_one_child_was_sent_its_running_sibling_finds_here() {
    let (server, rig) = (Server::start(), Rig::start());
    let wanted = |source| Wanted { pages: 4000, remote: 4000, source, ..Wanted::default() };
    let first = child(&rig, server.owner(), wanted(None));
    // Puppets have other addresses, but the same pages of the seed.
    let base = first.base();
    let second = child(&rig, server.owner(), wanted(Some(base)));
    let check = |child: &TestChild, first: u64, count: u64| {
        let want = expected((first..first + count).map(|page| Some(base + page)));
        assert_eq!(child.order(Order::Hash, [first, count, 0, 0]), want, "pages {first}+{count}");
    };
    let order = scattered(500, 4000);
    let touch = |child: &TestChild| {
        for page in &order {
            check(child, *page, 1);
        }
    };
    touch(&first);
    let sent = || server.seed.pages.load(std::sync::atomic::Ordering::SeqCst);
    let before = sent();
    touch(&second);
    let stats = rig.stats(second.id);
    assert!(stats.pages_cached >= 490, "{stats:?}");
    assert!(sent() - before <= 20, "{} pages were sent again", sent() - before);
    // Memory is short: nothing is kept, and nothing is wrong.
    rig.client.drop_cache().unwrap();
    let third = child(&rig, server.owner(), wanted(Some(base)));
    touch(&third);
    for child in [&third, &second] {
        check(child, 0, 4000);
    }
    // A seed that is revoked has no pages, here either.
    server.seed.set(mitosis_transport::SeedState::Revoked);
    let ended = rig.until_ended(first.id);
    assert_eq!(ended.reason.as_deref(), Some("seed revoked"));
}
