//! What happens in the children: touches, forks, moves.

use crate::child::Via;
use crate::early::missing;
use crate::guard::ToGuard;
use crate::map::{Run, Tag};
use crate::pager::{Pager, Purpose, ReadInFlight, Token, watch};
use crate::peer::{Ask, Peer};
use crate::prefetch::{Passed, RANDOM, Window};
use crate::space::{Outcome, Role};
use mitosis_descriptor::Vpn;
use mitosis_sys::uffd::{Event, Uffd};
use mitosis_transport::ReadRequest;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// Most pages of one read.
const READ_PAGES: u64 = 256;
/// Most pages one address space has in flight because of touches.
pub(crate) const PENDING_MAX: u64 = 4096;
/// Most pages the background fill of a child has in flight: few, so that touches pass quickly.
const FILL_PAGES: u64 = 384;
/// Most pages of one background read.
const FILL_READ: u64 = 128;
/// Touched pages in flight that are remembered before it is looked which of them have come.
const WAITING_MAX: usize = 64;
/// Most pages fetched for a touch of which all are told as touched: of more, most are fetched for a
/// sequential run, whose next touch will tell.
const TOLD_PAGES: u64 = 16;
/// Most single pages of one read.
pub(crate) const SINGLE_PAGES: usize = mitosis_transport::wire::GATHERED;
/// Pages of reads ahead that come so soon that they are not asked for again.
const NEAR: u64 = 32;
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
            Some(run) => self.answer_remote(id, page, run),
        }
    }

    /// Answers a touch of a page that is an owner's: `run` has it.
    fn answer_remote(&mut self, id: u64, page: u64, mut run: Run) {
        let (owner, source) = (run.owner, run.source + (page - run.start));
        let child = self.spaces.get(&id).map(|space| space.child);
        // The first child of a seed gets only the page: what it tells then is what it needed, for each that
        // follows.
        let untold = child.is_some_and(|child| self.untold(child, owner));
        let awaited = if untold { self.await_around(id, owner, page..page + 1) } else { 0 };
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        child.awaited += awaited;
        let (window, passed) = space.streams.touch(page, if untold { 1 } else { RANDOM });
        // Whether the few pages that come beside it will be touched too, nobody can tell.
        let beside = match window {
            Window::To(end) if end - page <= TOLD_PAGES => space.lacks(page + 1..end, owner),
            _ => Vec::new(),
        };
        if run.tag.is_some_and(|tag| late(&self.reads, &child.ahead, tag, page)) {
            // Whoever waits is not to wait behind what is fetched ahead.
            run.tag.take().inspect(|tag| space.map_mut().unmark(page, page + 1, *tag));
        }
        let wanted = run.tag.is_none() && awaited == 0;
        if !wanted {
            if space.waiting.len() >= WAITING_MAX {
                // Most of these have come by another way than as single pages.
                space.wake_waiting();
            }
            space.waiting.push(page);
        }
        if space.role == Role::Main && child.held.remove(&page) {
            child.counters.pages_held_touched += 1;
        }
        // What a sibling was sent is here at once.
        let cached = wanted && self.answer_cached(id, owner, page, &window);
        let wanted = wanted && !cached;
        // Once what is waited for is here: on its way, it would wait for what is not.
        if let Some(space) = self.spaces.get(&id).filter(|s| s.role == Role::Main)
            && let Some(child) = self.children.get_mut(&space.child)
        {
            child.touched_first = true;
            if cached {
                let child = child.id;
                self.begin_early(child, id);
            }
        }
        match window {
            Window::To(end) => {
                if untold {
                    self.await_around(id, owner, page + 1..end);
                }
                self.request(id, page, end, wanted);
                if untold && wanted && end == page + 1 {
                    self.fetch_around(id, owner, page);
                }
            }
            Window::Every { first, step, count } => {
                self.request(id, page, page + 1, wanted);
                let at = |n: u64| first.checked_add_signed(n as i64 * step);
                let pages: Vec<u64> = (0..count).filter_map(at).collect();
                self.read_pages(id, owner, &pages, Purpose::Touch);
            }
        }
        self.noted(id, owner, source, passed, &beside);
        self.follow(id, owner, source);
    }

    /// Notes touches, up to that of page `source` of `owner`, that none of the earlier children of the
    /// seed made; with the pages of it that come `beside` it.
    fn noted(&mut self, id: u64, owner: u16, source: u64, passed: Passed, beside: &[u64]) {
        let Some(space) = self.spaces.get_mut(&id).filter(|s| s.role == Role::Main) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        let via = child.sources.get(usize::from(owner)).and_then(|source| source.via);
        let Some(via @ Via::Peer(peer, handle)) = via else { return };
        let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
        let Some(open) = open.filter(|open| !open.trail.is_full()) else { return };
        let pages = passed.pages(source).chain(beside.iter().copied());
        let before = child.touched.len();
        child.touched.extend(pages.filter(|page| !open.trail.has(*page)).map(|page| (via, page)));
        if child.touched.len() > before {
            child.touched_at = Some(Instant::now());
        }
        if child.touched.len() >= TOUCHED_MAX {
            let child = child.id;
            self.tell_learned(child);
        }
    }

    /// Fetches what earlier children of the seed touched after page `source` of `owner`.
    fn follow(&mut self, id: u64, owner: u16, source: u64) {
        let Some(space) = self.spaces.get_mut(&id).filter(|s| s.role == Role::Main) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        let Some(from) = child.sources.get_mut(usize::from(owner)) else { return };
        let Some(Via::Peer(peer, handle)) = from.via else { return };
        let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
        let Some((open, place)) = open.and_then(|open| Some((open, open.trail.place(source)?)))
        else {
            return;
        };
        if from.course.as_mut().is_some_and(|course| course.touched(place)) {
            let child = child.id;
            self.go_on(child, id);
            return;
        }
        let pages = space.follower.touch(&open.trail, source).to_vec();
        self.read_pages(id, owner, &pages, Purpose::Touch);
    }

    /// Asks for single pages of an owner that are missing where it had them.
    pub(crate) fn read_pages(&mut self, id: u64, owner: u16, pages: &[u64], purpose: Purpose) {
        let Some(space) = self.spaces.get(&id).filter(|s| s.map.pending() < PENDING_MAX) else {
            return;
        };
        let child = space.child;
        let pages = self.not_cached(id, owner, pages);
        if self.gathers(child, owner) {
            for part in pages.chunks(SINGLE_PAGES) {
                let (start, count) = (part[0], part.len() as u64);
                let run = Run { start, count, owner, source: start, tag: None };
                self.ask(id, run, Some(part), None, purpose);
            }
            return;
        }
        let Some(space) = self.spaces.get(&id) else { return };
        let pages = missing(&space.map, owner, &pages);
        for part in pages.chunk_by(|a, b| a + 1 == *b) {
            let run =
                Run { start: part[0], count: part.len() as u64, owner, source: part[0], tag: None };
            self.ask(id, run, None, None, purpose);
        }
    }

    /// Whether single pages of an owner can be asked for.
    fn gathers(&self, child: crate::ChildId, owner: u16) -> bool {
        let source = self.children.get(&child).and_then(|c| c.sources.get(usize::from(owner)));
        match source.and_then(|source| source.via) {
            Some(Via::Peer(peer, _)) => self.peers.get(&peer).is_some_and(Peer::gathers),
            _ => false,
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
        self.ask(id, run, None, demand, purpose);
    }

    /// The same of those of the pages `single` that are missing, if that is not `None`: `run` says whose.
    fn ask(
        &mut self,
        id: u64,
        run: Run,
        single: Option<&[u64]>,
        demand: Option<u64>,
        purpose: Purpose,
    ) {
        let tag = self.id();
        let (Some(number), Some(space)) = (Tag::new(tag), self.spaces.get_mut(&id)) else { return };
        let Some(child) = self.children.get_mut(&space.child) else { return };
        // The map may be shared with siblings as long as nothing changes.
        if single.is_some_and(|pages| !pages.iter().any(|page| space.map.find(*page).is_some())) {
            return;
        }
        let source = child.sources.get(usize::from(run.owner));
        let via = source.and_then(|source| match purpose {
            Purpose::Ahead => source.ahead.or(source.via),
            Purpose::Touch | Purpose::Around | Purpose::Fill => source.via,
        });
        let Some(via) = via else {
            let child = child.id;
            self.kill(child, format!("a missing page of owner {}, which was let go", run.owner));
            return;
        };
        let list: Option<Arc<[u64]>> = match single {
            // Nobody waits for these.
            None if purpose == Purpose::Around => None,
            None => {
                space.map_mut().mark(run.start, run.end(), number);
                None
            }
            Some(pages) => {
                let map = space.map_mut();
                let claimed = pages.iter().filter(|page| map.claim(**page, run.owner, number));
                Some(claimed.copied().collect())
            }
        };
        let run = Run { count: list.as_ref().map_or(run.count, |list| list.len() as u64), ..run };
        if run.count == 0 {
            return;
        }
        match purpose {
            Purpose::Fill => child.filling += run.count,
            Purpose::Ahead => {
                child.ahead.push_back(tag);
                child.ahead_pages += run.count;
            }
            Purpose::Around => {
                child.around.push(tag);
                child.counters.pages_around += run.count;
            }
            Purpose::Touch => {}
        }
        let count = run.count as u32;
        let read = ReadInFlight {
            space: id,
            child: child.id,
            owner: run.owner,
            via,
            page: run.start,
            source: run.source,
            list,
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
                    peer.submit(match &read.list {
                        None => Ask::Run(request(handle)),
                        Some(list) => Ask::Pages { tag, handle, pages: Arc::clone(list) },
                    });
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

/// Whether a page of a read that was begun ahead, of those in `ahead`, is not among the next to come.
fn late(reads: &HashMap<u64, ReadInFlight>, ahead: &VecDeque<u64>, tag: Tag, page: u64) -> bool {
    let before = ahead.iter().take_while(|other| **other != tag.get());
    let before =
        before.filter_map(|tag| reads.get(tag)).map(|read| u64::from(read.count - read.next));
    let read = reads.get(&tag.get()).filter(|read| read.purpose == Purpose::Ahead);
    read.is_some_and(|read| {
        let place = match &read.list {
            Some(list) => list.partition_point(|other| *other < page) as u64,
            None => page.saturating_sub(read.page),
        };
        before.sum::<u64>() + place >= u64::from(read.next) + NEAR
    })
}
