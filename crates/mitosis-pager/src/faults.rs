//! What happens in the children: touches, forks, moves.

use crate::child::{Child, Via};
use crate::guard::ToGuard;
use crate::map::{Run, Tag};
use crate::pager::{Pager, Purpose, ReadInFlight, Token, watch};
use crate::peer::Peer;
use crate::space::{Outcome, Role};
use mitosis_descriptor::Vpn;
use mitosis_sys::uffd::{Event, Uffd};
use mitosis_transport::ReadRequest;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Instant;

/// Most pages of one read.
const READ_PAGES: u64 = 256;
/// Most pages one address space has in flight because of touches.
const PENDING_MAX: u64 = 4096;
/// Most pages the background fill of a child has in flight: few, so that touches pass quickly.
const FILL_PAGES: u64 = 384;
/// Most pages of one background read.
const FILL_READ: u64 = 128;
/// Pages fetched for a touch that continues nothing. The first child of a seed gets only the page:
/// what it tells then is what it needed, for each that follows.
const SCATTERED: u64 = crate::prefetch::RANDOM;
/// Most pages fetched for a touch of which the trail is told: more are fetched for a long sequential
/// run, whose next pages are known without a trail.
const TOLD_PAGES: u64 = 16;
/// Pages of a read ahead that come so soon that they are not asked for again.
const NEAR: u64 = 8;
/// Most touches of a child that are remembered until they are told.
const TOUCHED_MAX: usize = 1024;
/// Most batches of events taken from one address space before others get their turn.
const DRAIN_ROUNDS: usize = 16;

impl Pager {
    /// Reads all that an address space has to tell. Touches are queued, the rest is applied at
    /// once: what is known must never be older than what is done with it.
    pub(crate) fn drain(&mut self, id: u64) {
        for _ in 0..DRAIN_ROUNDS {
            let mut events = Vec::new();
            let Some(space) = self.spaces.get(&id) else { return };
            let child = space.child;
            let more = match space.uffd.read_events(&mut events) {
                Ok(more) => more,
                Err(e) => {
                    self.kill(child, format!("reading the child's page events: {e}"));
                    return;
                }
            };
            for event in events {
                self.happened(id, event);
            }
            if !more {
                return;
            }
        }
    }

    fn happened(&mut self, id: u64, event: Event) {
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let child = space.child;
        match event {
            Event::Fault { addr, .. } => {
                self.faults.push_back((id, Vpn::of(addr).0));
                return;
            }
            Event::Fork(uffd) => self.forked(id, uffd),
            Event::Remap { from, to, len } => {
                space.remapped(Vpn::of(from).0, Vpn::of(to).0, Vpn::of(len).0);
            }
            Event::Remove { start, end } => {
                let (start, end) = (Vpn::of(start).0, Vpn::of(end).0);
                space.removed(start, end);
                space.tidy(start, end);
            }
            Event::Unmap { start, end } => space.unmapped(Vpn::of(start).0, Vpn::of(end).0),
        }
        self.review.insert(child);
    }

    /// A process of the child forked. The guard gets a duplicate at once; until it has it, the
    /// holder keeps this process's own descriptor alive.
    fn forked(&mut self, parent: u64, uffd: Uffd) {
        let id = self.id();
        let Some(space) = self.spaces.get_mut(&parent) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        let slot = child.slot();
        let mut clone = space.fork(uffd, Role::Fork(slot.unwrap_or(u32::MAX)));
        if let (Some(slot), Ok(duplicate)) = (slot, clone.uffd.try_clone()) {
            child.tell_guard(ToGuard::Hold(slot, duplicate));
        }
        if space.role == Role::Main && std::mem::take(&mut child.shadow_follows) {
            child.shadow = Some(id);
        }
        child.spaces.insert(id);
        clone.untidy = true;
        if let Err(e) = watch(&self.epoll, clone.uffd.as_fd(), Token::Space(id)) {
            let child = clone.child;
            self.spaces.insert(id, clone);
            self.kill(child, format!("watching a forked process: {e}"));
            return;
        }
        self.spaces.insert(id, clone);
    }

    /// Answers the touches queued. A touch that must wait for events is queued again by the kernel.
    pub(crate) fn answer_faults(&mut self) {
        while let Some((id, page)) = self.faults.pop_front() {
            self.answer(id, page);
        }
    }

    fn answer(&mut self, id: u64, page: u64) {
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        if child.dying {
            return;
        }
        if let Role::Shadow(slot) = space.role {
            // A shadow never runs again: this is another process, to be served like any.
            space.role = Role::Fork(slot);
            self.review.insert(child.id);
        }
        child.counters.faults += 1;
        if space.areas.find(page).is_none() {
            let outcome = space.grow(page);
            if outcome != Outcome::Done || space.areas.find(page).is_none() {
                self.outcome(id, outcome);
                return;
            }
        }
        match space.map.find(page) {
            None => {
                let (zeros, outcome) = space.zero(page);
                child.counters.zero_pages += zeros;
                self.outcome(id, outcome);
            }
            Some(mut run) => {
                let mut target = space.streams.touch(page);
                if run.tag.is_some_and(|tag| late(&self.reads, tag, page)) {
                    // Whoever waits is not to wait behind what is fetched ahead.
                    run.tag.take().inspect(|tag| space.map_mut().unmark(page, page + 1, *tag));
                }
                let wanted = run.tag.is_none();
                let (owner, source) = (run.owner, run.source + (page - run.start));
                if target - page <= SCATTERED && !told(&self.peers, child, owner) {
                    target = page + 1;
                }
                let told = wanted && target - page <= TOLD_PAGES;
                let fetched = if told { run.end().min(target) - page } else { 0 };
                // Once what is waited for is here: on its way, it would wait for what is not.
                child.touched_first |= space.role == Role::Main;
                self.request(id, page, target, wanted);
                self.follow(id, owner, source, fetched);
            }
        }
    }

    /// Fetches what earlier children of the seed touched after page `source` of `owner`, and notes
    /// a touch that none of them made, which brought `fetched` pages.
    fn follow(&mut self, id: u64, owner: u16, source: u64, fetched: u64) {
        let Some(space) = self.spaces.get_mut(&id).filter(|s| s.role == Role::Main) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        let via = child.sources.get(usize::from(owner)).and_then(|source| source.via);
        let Some(via @ Via::Peer(peer, handle)) = via else { return };
        let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
        let Some(open) = open else { return };
        if !open.trail.has(source) {
            // With what was fetched beside it: whether that was touched too, nobody can tell.
            for page in source..source + fetched {
                if child.touched.len() < TOUCHED_MAX && !open.trail.has(page) {
                    child.touched.push((via, page));
                    child.touched_at = Some(Instant::now());
                }
            }
            return;
        }
        let mut runs: Vec<Run> = Vec::new();
        for &page in space.follower.touch(&open.trail, source) {
            // Where the owner had it: a mapping that was moved is not followed.
            let Some(run) = space.map.find(page) else { continue };
            if run.tag.is_some() || run.owner != owner || run.source + (page - run.start) != page {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end() == page => last.count += 1,
                _ => runs.push(Run { start: page, count: 1, source: page, ..run }),
            }
        }
        for run in runs {
            self.read(id, run, None, Purpose::Touch);
        }
    }

    /// Asks for the remote pages of `[page, target)`, within the area of `page`.
    fn request(&mut self, id: u64, page: u64, target: u64, demanded: bool) {
        let Some(space) = self.spaces.get(&id) else { return };
        let end = space.areas.find(page).map_or(page + 1, |area| area.end.min(target));
        let mut room = PENDING_MAX.saturating_sub(space.map.pending()).max(1);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = page;
        while let Some(run) = space.map.next(at).filter(|run| at < end && run.start < end) {
            let lo = run.start.max(at);
            if run.tag.is_some() {
                at = run.end();
                continue;
            }
            let hi = run.end().min(end).min(lo + READ_PAGES).min(lo + room);
            room -= hi - lo;
            let source = run.source + (lo - run.start);
            runs.push(Run { start: lo, count: hi - lo, source, ..run });
            at = hi;
            if room == 0 {
                break;
            }
        }
        for run in runs {
            let demand = (demanded && run.start == page).then_some(page);
            self.read(id, run, demand, Purpose::Touch);
        }
    }

    /// Starts a read.
    pub(crate) fn read(&mut self, id: u64, run: Run, demand: Option<u64>, purpose: Purpose) {
        let tag = self.id();
        let (Some(number), Some(space)) = (Tag::new(tag), self.spaces.get_mut(&id)) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        let source = child.sources.get(usize::from(run.owner));
        let via = source.and_then(|source| match purpose {
            Purpose::Ahead => source.ahead.or(source.via),
            Purpose::Touch | Purpose::Fill => source.via,
        });
        let Some(via) = via else {
            let child = child.id;
            self.kill(child, format!("a missing page of owner {}, which was let go", run.owner));
            return;
        };
        space.map_mut().mark(run.start, run.end(), number);
        match purpose {
            Purpose::Fill => child.filling += run.count,
            Purpose::Ahead => child.ahead += 1,
            Purpose::Touch => {}
        }
        let count = run.count as u32;
        let read = ReadInFlight {
            space: id,
            child: child.id,
            via,
            page: run.start,
            source: run.source,
            count,
            next: 0,
            demand,
            purpose,
            progress: Instant::now(),
        };
        let request = |handle| ReadRequest { tag, handle, source: Vpn(run.source), count };
        match via {
            Via::Local(handle) => {
                self.local_reads.push(request(handle));
                self.local_waiting = true;
            }
            Via::Peer(peer, handle) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.submit(request(handle));
                }
            }
        }
        self.reads.insert(tag, read);
    }

    /// Keeps the background fill of a child going.
    pub(crate) fn fill(&mut self, child: crate::ChildId) {
        let Some(found) = self.children.get(&child) else { return };
        if !found.fill || found.dying {
            return;
        }
        let spaces: Vec<u64> = found.spaces.iter().copied().collect();
        for id in spaces {
            loop {
                let filling = self.children.get(&child).map_or(u64::MAX, |child| child.filling);
                let room = FILL_PAGES.saturating_sub(filling);
                let Some(run) = self.next_fill(id, room.min(FILL_READ)) else { break };
                self.read(id, run, None, Purpose::Fill);
            }
        }
    }

    /// The next remote pages of an address space after its cursor, around the end if need be.
    fn next_fill(&mut self, id: u64, room: u64) -> Option<Run> {
        let space = self.spaces.get_mut(&id)?;
        if room < FILL_READ / 2 || matches!(space.role, Role::Shadow(_)) {
            return None;
        }
        let mut wrapped = false;
        loop {
            match space.map.next(space.cursor) {
                Some(run) if run.tag.is_none() => {
                    let lo = run.start.max(space.cursor);
                    let count = (run.end() - lo).min(room);
                    let source = run.source + (lo - run.start);
                    space.cursor = lo + count;
                    return Some(Run { start: lo, count, source, ..run });
                }
                Some(run) => space.cursor = run.end(),
                None if wrapped => return None,
                None => {
                    wrapped = true;
                    space.cursor = 0;
                }
            }
        }
    }

    /// Draws the conclusion from an operation on an address space.
    pub(crate) fn outcome(&mut self, id: u64, outcome: Outcome) {
        match outcome {
            Outcome::Done => {}
            Outcome::Again => self.drain(id),
            Outcome::Gone => self.forget_space(id),
            Outcome::Kill(reason) => {
                if let Some(space) = self.spaces.get(&id) {
                    let child = space.child;
                    self.kill(child, reason);
                }
            }
        }
    }
}

/// Whether a page of a read that was begun ahead is not among the next to come.
fn late(reads: &HashMap<u64, ReadInFlight>, tag: Tag, page: u64) -> bool {
    let read = reads.get(&tag.get()).filter(|read| read.purpose == Purpose::Ahead);
    read.is_some_and(|read| read.next == 0 || page >= read.page + u64::from(read.next) + NEAR)
}

/// Whether the owner's children have told anything. A local owner keeps no trail.
fn told(peers: &HashMap<u64, Peer>, child: &Child, owner: u16) -> bool {
    match child.sources.get(usize::from(owner)).and_then(|source| source.via) {
        Some(Via::Peer(peer, handle)) => {
            let open = peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
            open.is_some_and(|open| open.told)
        }
        _ => true,
    }
}
