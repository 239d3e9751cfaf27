//! One child: its sources, its guard, its books.

use crate::areas::Areas;
use crate::early::Course;
use crate::guard::{self, ToGuard};
use crate::map::PageMap;
use crate::message::{AddChild, ChildId, ChildState, ChildStats, OwnerSource};
use mitosis_transport::Handle;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Most messages that wait for a guard; one that takes none is dead.
const QUEUE_MAX: usize = 4096;

/// The way to the pages of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Over the network, from a peer.
    Peer(u64, Handle),
    /// From a file of this node.
    Local(Handle),
}

/// An owner as a child needs it.
#[derive(Debug)]
pub struct Source {
    /// As the daemon named it.
    pub owner: OwnerSource,
    /// The way; `None` when no page of it is missing any more.
    pub via: Option<Via>,
    /// The way for what is fetched ahead, while something is.
    pub ahead: Option<Via>,
    /// How far its trail was fetched ahead, once that has begun.
    pub course: Option<Course>,
}

/// What children lack at the beginning.
#[derive(Debug)]
pub struct Shape {
    /// Where pages are missing.
    pub areas: Areas,
    /// Which, and whose they are.
    pub map: Arc<PageMap>,
    /// The owners, by number.
    pub owners: Vec<OwnerSource>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// See [`ChildStats`].
    pub pages_total: u64,
    /// See [`ChildStats`].
    pub pages_fetched: u64,
    /// See [`ChildStats`].
    pub pages_prefetched: u64,
    /// See [`ChildStats`].
    pub faults: u64,
    /// See [`ChildStats`].
    pub bytes_fetched: u64,
    /// See [`ChildStats`].
    pub zero_pages: u64,
    /// See [`ChildStats`].
    pub pages_rdma: u64,
    /// See [`ChildStats`].
    pub pages_cached: u64,
    /// See [`ChildStats`].
    pub pages_held: u64,
    /// See [`ChildStats`].
    pub pages_held_touched: u64,
    /// See [`ChildStats`].
    pub pages_around: u64,
}

/// A child and everything in its namespace.
pub struct Child {
    /// Its id.
    pub id: ChildId,
    /// Its seed, for people.
    pub seed: String,
    /// Owners, by number.
    pub sources: Vec<Source>,
    /// Address spaces, the main one first while it exists.
    pub spaces: BTreeSet<u64>,
    /// What the first address space will be, until its userfaultfd arrives.
    pub waiting: Option<(Areas, Arc<PageMap>)>,
    /// Reads ahead of its touches in flight, in the order in which they were asked for.
    pub ahead: VecDeque<u64>,
    /// Pages that they have still to bring.
    pub ahead_pages: u64,
    /// Reads of what lies around its touches in flight.
    pub around: Vec<u64>,
    /// Touches of what they were bringing.
    pub awaited: u64,
    /// Pages fetched ahead and not placed, to see whether they will be touched.
    pub held: HashSet<u64>,
    /// It has touched a page of another; the early reads begin when that has come.
    pub touched_first: bool,
    /// Where it arrives.
    pub uffd_rx: Option<OwnedFd>,
    /// The guard's control socket.
    pub guard: Option<OwnedFd>,
    /// The guard, until it has ended.
    pub guard_pidfd: Option<OwnedFd>,
    to_guard: VecDeque<ToGuard>,
    slots_free: Vec<u32>,
    /// Slots of the guard that are its own and were not used yet.
    slots: std::ops::Range<u32>,
    /// What its guard says is about this one, if not about itself.
    pub main: Option<ChildId>,
    /// Fill in the background.
    pub fill: bool,
    /// Pages the background fill has in flight.
    pub filling: u64,
    /// The next fork of the main process may be a shadow.
    pub shadow_follows: bool,
    /// The address space that may be a shadow's.
    pub shadow: Option<u64>,
    /// Pages touched that were in no trail, with their owners' ways, not yet told to anybody.
    pub touched: Vec<(Via, u64)>,
    /// When the last of them was touched.
    pub touched_at: Option<Instant>,
    /// Counters.
    pub counters: Counters,
    /// Wait status of the main process.
    pub exit: Option<i32>,
    /// Why it was killed.
    pub reason: Option<String>,
    /// No page is missing.
    pub independent: bool,
    /// It was told to die; nothing is served any more.
    pub dying: bool,
    /// It ended, and when.
    pub ended: Option<Instant>,
    added: Instant,
    uffd_us: Option<u64>,
    independent_us: Option<u64>,
    transport: &'static str,
    /// See [`ChildStats`].
    pub rdma_note: Option<String>,
}

fn transport(owners: &[OwnerSource]) -> &'static str {
    let local = owners.iter().filter(|owner| owner.local.is_some()).count();
    let rdma = owners.iter().filter(|owner| owner.rdma).count();
    match local {
        0 if rdma > 0 && rdma == owners.len() => "rdma",
        0 if rdma == 0 => "tcp",
        n if n == owners.len() => "local",
        _ => "mixed",
    }
}

impl Child {
    /// A child that was just announced, which lacks that.
    pub fn new(add: AddChild, shape: &Shape, fds: [OwnedFd; 3], now: Instant) -> Child {
        let [uffd_rx, guard, guard_pidfd] = fds;
        let mut map = Arc::clone(&shape.map);
        let pages_total = map.pages() + add.held;
        for run in add.placed.chunk_by(|a, b| a + 1 == *b) {
            Arc::make_mut(&mut map).remove(run[0], run[0] + run.len() as u64);
        }
        let transport = transport(&shape.owners);
        // Guards know slots only by their numbers.
        let (number, count) = add.member;
        let each = guard::SLOTS / count.max(1);
        let first = each * number.min(count.saturating_sub(1));
        let slots = first..first + each;
        let source = |owner| Source { owner, via: None, ahead: None, course: None };
        let sources = shape.owners.iter().cloned().map(source).collect();
        Child {
            id: add.child,
            seed: add.seed,
            sources,
            spaces: BTreeSet::new(),
            counters: Counters {
                pages_total,
                pages_prefetched: pages_total - map.pages(),
                bytes_fetched: add.placed_bytes,
                ..Counters::default()
            },
            waiting: Some((shape.areas.clone(), map)),
            ahead: VecDeque::new(),
            ahead_pages: 0,
            around: Vec::new(),
            awaited: 0,
            held: HashSet::new(),
            touched_first: false,
            uffd_rx: Some(uffd_rx),
            guard: Some(guard),
            guard_pidfd: Some(guard_pidfd),
            to_guard: VecDeque::new(),
            slots_free: Vec::new(),
            slots,
            main: add.main,
            fill: add.eager || add.independent,
            filling: 0,
            shadow_follows: false,
            shadow: None,
            touched: Vec::new(),
            touched_at: None,
            exit: None,
            reason: None,
            independent: false,
            dying: false,
            ended: None,
            added: now,
            uffd_us: None,
            independent_us: None,
            transport,
            rdma_note: None,
        }
    }

    /// The userfaultfd has arrived.
    pub fn arrived(&mut self, now: Instant) {
        self.uffd_us = Some(now.duration_since(self.added).as_micros() as u64);
    }

    /// No page is missing any more.
    pub fn set_independent(&mut self, now: Instant) {
        self.independent = true;
        self.independent_us = Some(now.duration_since(self.added).as_micros() as u64);
    }

    /// A slot of the guard, if one is free.
    pub fn slot(&mut self) -> Option<u32> {
        self.slots_free.pop().or_else(|| self.slots.next())
    }

    /// Gives a slot back and tells the guard.
    pub fn release_slot(&mut self, slot: u32) {
        self.tell_guard(ToGuard::Drop(slot));
        self.slots_free.push(slot);
    }

    /// Queues a message to the guard and sends what it takes.
    pub fn tell_guard(&mut self, message: ToGuard) {
        self.to_guard.push_back(message);
        self.flush_guard();
    }

    /// Sends what the guard takes. A guard that takes nothing for long, or is dead, is noticed
    /// through its pidfd; here its messages are merely given up.
    pub fn flush_guard(&mut self) {
        let Some(socket) = &self.guard else {
            self.to_guard.clear();
            return;
        };
        while let Some(message) = self.to_guard.front() {
            match guard::send(socket.as_fd(), message) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::INTR) if self.to_guard.len() < QUEUE_MAX => return,
                Err(_) => {}
            }
            self.to_guard.pop_front();
        }
    }

    /// Owners of which pages are missing, for people.
    fn owners_needed(&self) -> Vec<String> {
        let needed = self.sources.iter().filter(|source| source.via.is_some());
        needed.map(|s| format!("{}/{}", s.owner.owner.address, s.owner.owner.seed)).collect()
    }

    /// The books; `left` is the number of pages missing.
    pub fn stats(&self, left: u64) -> ChildStats {
        let Counters {
            pages_total,
            pages_fetched,
            pages_prefetched,
            faults,
            bytes_fetched,
            zero_pages,
            pages_rdma,
            pages_cached,
            pages_held,
            pages_held_touched,
            pages_around,
        } = self.counters;
        let ended = self.ended.is_some();
        ChildStats {
            child: self.id,
            seed: self.seed.clone(),
            state: if ended { ChildState::Ended } else { ChildState::Running },
            exit: self.exit,
            reason: self.reason.clone(),
            pages_total,
            pages_fetched,
            pages_prefetched,
            faults,
            bytes_fetched,
            zero_pages,
            pages_left: left,
            independent: self.independent,
            transport: self.transport.to_owned(),
            pages_rdma,
            pages_cached,
            pages_held,
            pages_held_touched,
            pages_around,
            rdma_reach: 0,
            rdma_link_us: 0,
            rdma_note: self.rdma_note.clone(),
            owners: self.owners_needed(),
            uffd_us: self.uffd_us,
            independent_us: self.independent_us,
        }
    }
}
