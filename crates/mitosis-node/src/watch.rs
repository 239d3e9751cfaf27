//! The threads that watch: the pager's events, time, shadows.

use crate::children::End;
use crate::memory::Place;
use crate::node::Node;
use crate::pager::{Pager, events};
use crate::seed::{Seed, Step};
use mitosis_pager::{ChildId, ChildState, Event, PagerEvents};
use mitosis_transport::SeedState;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How often the stop flag is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long after it was made it is first looked what children of a seed will need.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// Follows the pager until the daemon ends; replaces one that died.
pub(crate) fn pager(node: &Node) {
    while !node.stopping() {
        let Ok(pager) = node.pager.get() else { continue };
        if let Some(events) = events(&pager, node.log) {
            catch_up(node, &pager);
            follow(node, &events);
            if node.stopping() {
                return;
            }
            // Only this subscription may have ended: it fell behind.
            if pager.client.stats().is_ok() {
                continue;
            }
        }
        drop(pager);
        replace(node);
    }
}

fn follow(node: &Node, events: &PagerEvents) {
    while !node.stopping() {
        match events.next(TICK) {
            Ok(None) => {}
            Ok(Some(Event::Exited { child: ChildId(id), status })) => {
                node.child_exited(id, status);
            }
            Ok(Some(Event::Ended { stats })) => {
                let (ChildId(id), status, reason) = (stats.child, stats.exit, stats.reason.clone());
                node.children.update(vec![*stats]);
                node.child_ended(id, End { status, reason });
            }
            Ok(Some(Event::Independent { child: ChildId(id) })) => {
                if let Some(start) = node.children.start_of(id) {
                    node.log.info(format_args!("child {}: independent", start.pid));
                }
            }
            Err(_) => return,
        }
    }
}

/// What happened while nobody listened.
fn catch_up(node: &Node, pager: &Pager) {
    let Ok(stats) = pager.client.stats() else { return };
    for one in &stats {
        let ChildId(id) = one.child;
        match (one.state, one.exit) {
            (ChildState::Ended, status) => {
                node.child_ended(id, End { status, reason: one.reason.clone() });
            }
            (ChildState::Running, Some(status)) => node.child_exited(id, status),
            (ChildState::Running, None) => {}
        }
    }
    node.children.update(stats);
}

fn replace(node: &Node) {
    let Some(dead) = node.pager.set(None) else { return };
    if node.stopping() {
        return;
    }
    node.log.error("the pager died: its children are ended");
    node.templates.clear();
    dead.kill();
    for id in node.children.live() {
        let end = End { status: None, reason: Some("pager died".into()) };
        node.child_ended(id, end);
    }
    // Ends the guards that watched it, and were waiting for children.
    drop(dead);
    while !node.stopping() {
        match Pager::start(&node.config) {
            Ok(pager) => {
                let pager = Arc::new(pager);
                for seed in node.seeds.all() {
                    if let Place::Shadow(shadow) = seed.memory.place() {
                        use std::os::fd::AsFd;
                        let pid = shadow.pid.unsigned_abs();
                        let told = pager.client.track_shadow(pid, shadow.pidfd.as_fd());
                        node.note("tell the pager of a shadow", told);
                    }
                }
                node.pager.set(Some(pager));
                return;
            }
            Err(error) => {
                node.log.error(format_args!("{error}"));
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Ends seeds in time, notices dead shadows, forgets old children, until the daemon ends.
pub(crate) fn time(node: &Node) {
    while !node.stopping() {
        node.working_sets.sweep();
        node.nodes.tidy();
        node.templates.sweep(&node.admission);
        if node.admission.is_short()
            && let Some(pager) = node.pager.now()
        {
            node.note("drop what the pager keeps for siblings", pager.client.drop_cache());
        }
        let tick = Instant::now() + TICK;
        while Instant::now() < tick {
            let new = node.seeds.await_new(tick);
            if new.is_empty() {
                break;
            }
            // What their parents write first is known by then.
            std::thread::sleep(FIRST_LOOK);
            make_images(node, &new);
        }
        shadows(node);
        make_images(node, &node.seeds.all());
        expiry(node);
        node.children.late(Instant::now());
        crate::logs::trim(node);
        let forgotten = node.children.prune(Instant::now());
        if let Some(pager) = node.pager.now().filter(|_| !forgotten.is_empty()) {
            // The pager forgets by itself in time; this is only earlier.
            let ids = forgotten.iter().map(|start| ChildId(start.id)).collect();
            let _ = pager.client.forget(ids);
        }
        forgotten.iter().for_each(|start| node.store.drop_child(start));
    }
}

fn make_images(node: &Node, seeds: &[Arc<Seed>]) {
    let made = node.seeds.make_images(seeds, node.admission.is_short());
    node.note("keep a working set", made);
}

fn shadows(node: &Node) {
    for seed in node.seeds.all() {
        if let Place::Shadow(shadow) = seed.memory.place()
            && !shadow.alive()
        {
            let reason = match seed.bound() {
                mitosis_proto::Bound::Free => "its shadow died",
                _ => "its shadow died with the pid namespace of its parent",
            };
            node.end_seed(&seed, SeedState::Lost, reason);
        }
    }
}

fn expiry(node: &Node) {
    let now = SystemTime::now();
    let all = node.seeds.all();
    if !all.iter().any(|seed| seed.expires.is_some_and(|end| end <= now)) {
        return;
    }
    // Children of this very node read pages directly: the pager says what they still need.
    let stats =
        node.pager.now().and_then(|pager| pager.client.stats_of_running().ok()).unwrap_or_default();
    let running = stats.iter().filter(|one| one.state == ChildState::Running);
    let owners: Vec<&String> = running.flat_map(|one| &one.owners).collect();
    let needed = |seed: &crate::seed::Seed| {
        let id = seed.id.to_string();
        owners.iter().any(|owner| owner.ends_with(&id))
    };
    for (seed, step) in node.seeds.advance(now, needed) {
        match step {
            Step::Nothing => {}
            Step::Announce => {
                node.log.info(format_args!("seed {}: its time is over", seed.id));
                if let Some(pager) = node.pager.now() {
                    let told = pager.client.seed_state(seed.id, SeedState::Expiring);
                    node.note("tell the pager of a seed's end", told);
                }
            }
            Step::End => {
                node.seeds.remove(seed.id);
                node.end_seed(&seed, SeedState::Revoked, "seed expired");
            }
        }
    }
}
