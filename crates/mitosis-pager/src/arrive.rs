//! What comes from the owners: pages, failures, signs of life.

use crate::child::Via;
use crate::faults::SINGLE_PAGES;
use crate::map::Tag;
use crate::message::ChildId;
use crate::pager::{Pager, Parked, Purpose, ReadInFlight, watch_peer};
use crate::peer::Ask;
use crate::space::{Outcome, PAGE};
use mitosis_transport::{Handle, PageSource, ReadError, SeedState, SourceError, SourceEvent};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Bytes of pages taken from one source before others get their turn.
const BUDGET: usize = 1 << 20;
/// Bytes taken from local files before the network and the children get their turn.
const BUDGET_LOCAL: usize = 256 << 10;
/// Most bytes kept while a process changes its mappings; beyond, pages are fetched again.
const PARKED_MAX: usize = 16 << 20;
/// How often a page is tried again at once.
const TRIES: u32 = 3;

/// Where an event comes from.
#[derive(Clone, Copy)]
enum From {
    Peer(u64),
    Local,
}

/// An event without its pages.
enum Note {
    State(Handle, SeedState),
    Refused(Handle),
    Failed(u64, ReadError),
    Trail(Handle, bool, Vec<u64>),
    Fell(Handle, String),
    Reach(Handle, u64, Duration),
}

impl Pager {
    /// Takes what a peer has sent.
    pub(crate) fn poll_peer(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(mut source) = peer.source.take() else { return };
        let (heard, result) = self.take(&mut *source, From::Peer(id), BUDGET);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // Only what follows the protocol is a sign of life: not a connection that closes again.
        if heard {
            peer.heard = Instant::now();
        }
        match result {
            Ok(_) => peer.source = Some(source),
            Err(error) => self.broken(id, &error),
        }
    }

    /// Takes what this node's own seeds have ready.
    pub(crate) fn poll_local(&mut self) {
        for handle in std::mem::take(&mut self.local_closes) {
            self.local.close(handle);
        }
        let reads = std::mem::take(&mut self.local_reads);
        self.local.submit(&reads);
        if reads.is_empty() && !self.local_waiting {
            return;
        }
        let mut source = std::mem::take(&mut self.local);
        let (_, more) = self.take(&mut source, From::Local, BUDGET_LOCAL);
        self.local = source;
        self.local_waiting = matches!(more, Ok(true)) || !self.local_reads.is_empty();
    }

    fn take(
        &mut self,
        source: &mut dyn PageSource,
        from: From,
        budget: usize,
    ) -> (bool, Result<bool, SourceError>) {
        let mut wrong = None;
        let mut notes = Vec::new();
        let mut heard = false;
        let mut more = source.poll(budget, &mut |event| {
            heard = true;
            match event {
                SourceEvent::Pages { tag, first, bytes } => {
                    if let Err(text) = self.pages(tag, first, bytes) {
                        wrong.get_or_insert(text);
                    }
                }
                SourceEvent::Failed { tag, error } => notes.push(Note::Failed(tag, error)),
                SourceEvent::Refused { handle } => notes.push(Note::Refused(handle)),
                SourceEvent::Trail { handle, told, pages } => {
                    notes.push(Note::Trail(handle, told, pages));
                }
                SourceEvent::Pong => {}
                SourceEvent::Direct { tag, pages } => self.direct(tag, pages),
                SourceEvent::Reach { handle, pages, linked } => {
                    notes.push(Note::Reach(handle, pages, linked));
                }
                SourceEvent::Fell { handle, why } => notes.push(Note::Fell(handle, why)),
                SourceEvent::State { handle, state } => notes.push(Note::State(handle, state)),
            }
        });
        for note in notes {
            self.note(from, note);
        }
        if let Some(text) = wrong {
            more = Err(SourceError::Protocol(text));
        }
        (heard, more)
    }

    fn note(&mut self, from: From, note: Note) {
        match note {
            Note::State(handle, state) => {
                if matches!(state, SeedState::Revoked | SeedState::Lost) {
                    self.drop_cached(from, handle);
                }
                let users = self.users(from, handle);
                self.seed_state(&users, state);
            }
            Note::Refused(handle) => {
                self.drop_cached(from, handle);
                for child in self.users(from, handle) {
                    let reason = "the page source refused the seed: unknown, ended or revoked";
                    self.kill(child, reason.to_owned());
                }
            }
            Note::Failed(tag, error) => self.failed(tag, &error),
            Note::Reach(handle, pages, linked) => {
                if let From::Peer(id) = from {
                    let open = self.peers.get_mut(&id).and_then(|p| p.handles.get_mut(&handle));
                    if let Some(open) = open {
                        (open.reach, open.linked) = (pages, linked);
                    }
                }
            }
            Note::Fell(handle, why) => {
                for child in self.users(from, handle) {
                    if let Some(child) = self.children.get_mut(&child) {
                        // What failed, and what came of trying again.
                        let before = child.rdma_note.take();
                        let last = before.as_deref().and_then(|b| b.rsplit("; then ").next());
                        child.rdma_note = match last.filter(|last| *last != why) {
                            Some(last) => Some(format!("{last}; then {why}")),
                            None => Some(why.clone()),
                        };
                    }
                }
            }
            Note::Trail(handle, told, pages) => {
                if let From::Peer(id) = from {
                    let room = self.trail_room();
                    let open = self.peers.get_mut(&id).and_then(|p| p.handles.get_mut(&handle));
                    if let Some(open) = open {
                        open.trail.extend(&pages, room);
                        open.told |= told;
                    }
                    self.trail_known(id, handle);
                }
            }
        }
    }

    /// A seed has ended: its pages are nobody's any more.
    fn drop_cached(&mut self, from: From, handle: Handle) {
        if let From::Peer(id) = from {
            let open = self.peers.get(&id).and_then(|peer| peer.handles.get(&handle));
            if let Some(seed) = open.map(|open| open.seed) {
                self.cache.forget(seed);
            }
        }
    }

    /// Pages of a read came without the owner's doing.
    fn direct(&mut self, tag: u64, pages: u32) {
        let child = self.reads.get(&tag).and_then(|read| self.children.get_mut(&read.child));
        if let Some(child) = child {
            child.counters.pages_rdma += u64::from(pages);
        }
    }

    /// Pages of a child's owners that can be read by RDMA now, and what making the queue pairs for that
    /// took, in microseconds.
    pub(crate) fn reach(&self, child: &crate::child::Child) -> (u64, u64) {
        let open = child.sources.iter().filter_map(|source| match source.via {
            Some(Via::Peer(id, handle)) => Some((id, self.peers.get(&id)?.handles.get(&handle)?)),
            _ => None,
        });
        let (mut pages, mut linked) = (0, HashMap::new());
        for (id, open) in open {
            pages += open.reach;
            // One for all seeds of a node.
            let known: &mut Duration = linked.entry(id).or_default();
            *known = open.linked.max(*known);
        }
        (pages, linked.values().map(|took| took.as_micros() as u64).sum())
    }

    fn users(&self, from: From, handle: Handle) -> BTreeSet<ChildId> {
        match from {
            From::Peer(id) => {
                let open = self.peers.get(&id).and_then(|peer| peer.handles.get(&handle));
                open.map(|open| open.users.clone()).unwrap_or_default()
            }
            From::Local => self.local_users.get(&handle).copied().into_iter().collect(),
        }
    }

    /// A seed's state as its node tells it, for the children that need the seed.
    pub(crate) fn seed_state(&mut self, users: &BTreeSet<ChildId>, state: SeedState) {
        for child in users {
            match state {
                SeedState::Alive => {}
                SeedState::Expiring => {
                    if let Some(child) = self.children.get_mut(child) {
                        child.fill = true;
                    }
                    self.review.insert(*child);
                }
                SeedState::Revoked => self.kill(*child, "seed revoked".to_owned()),
                SeedState::Lost => self.kill(*child, "seed lost: its memory is gone".to_owned()),
            }
        }
    }

    /// A read failed. It matters only if somebody still waits for its pages.
    fn failed(&mut self, tag: u64, error: &ReadError) {
        let waited = self.is_waited_for(tag);
        let Some(read) = self.reads.remove(&tag) else { return };
        self.gone(tag, &read);
        match Tag::new(tag).filter(|_| waited) {
            None => {}
            Some(tag) if read.purpose == Purpose::Around => self.not_around(&read, tag),
            Some(_) => self.kill(read.child, error.to_string()),
        }
    }

    /// Whether a page that a read has still to bring is marked as coming with it.
    pub(crate) fn is_waited_for(&self, tag: u64) -> bool {
        let Some(read) = self.reads.get(&tag) else { return false };
        let Some(space) = self.spaces.get(&read.space) else { return false };
        let tag = Tag::new(tag);
        read.left().any(|(lo, hi)| space.map.within(lo, hi).any(|run| run.tag == tag))
    }

    /// A read is not in flight any more.
    pub(crate) fn gone(&mut self, tag: u64, read: &ReadInFlight) {
        let Some(child) = self.children.get_mut(&read.child) else { return };
        match read.purpose {
            Purpose::Fill => child.filling -= u64::from(read.count - read.next),
            Purpose::Ahead => {
                child.ahead.retain(|other| *other != tag);
                let left = u64::from(read.count - read.next);
                child.ahead_pages = child.ahead_pages.saturating_sub(left);
                self.go_on(read.child, read.space);
                self.close_ahead(read.child);
            }
            Purpose::Around => child.around.retain(|other| *other != tag),
            Purpose::Touch => {}
        }
    }

    /// Pages of a read. An error means that the peer does not follow the protocol.
    fn pages(&mut self, tag: u64, first: u32, bytes: &[u8]) -> Result<(), String> {
        let count = (bytes.len() as u64 / PAGE) as u32;
        // A read given up: its process is gone.
        let Some(read) = self.reads.get_mut(&tag) else { return Ok(()) };
        if first != read.next || count > read.count - read.next {
            let (next, end) = (read.next, read.count);
            return Err(format!("pages {first}+{count} of a read that wants {next}..{end}"));
        }
        let list = read.list.clone();
        let page = read.page + u64::from(first);
        read.next += count;
        read.progress = Instant::now();
        let (space, child, demand, purpose) = (read.space, read.child, read.demand, read.purpose);
        let (owner, source, all) = (read.owner, read.source + u64::from(first), read.count);
        let done = if read.next == read.count { self.reads.remove(&tag) } else { None };
        if let Some(child) = self.children.get_mut(&child) {
            child.counters.bytes_fetched += bytes.len() as u64;
            match purpose {
                Purpose::Fill => {
                    child.filling -= u64::from(count);
                    self.review.insert(child.id);
                }
                Purpose::Ahead => {
                    child.ahead_pages = child.ahead_pages.saturating_sub(count.into());
                }
                Purpose::Around | Purpose::Touch => {}
            }
        }
        if let Some(read) = done {
            // The next ones are asked for before these are placed.
            self.gone(tag, &read);
        }
        let Some(tag) = Tag::new(tag) else { return Ok(()) };
        if purpose == Purpose::Around {
            self.keep_around((space, child, owner), page, source, bytes, tag);
            return Ok(());
        }
        match &list {
            None => self.place(space, page, bytes, tag, demand),
            Some(list) => {
                let (first, end) = (first as usize, (first + count) as usize);
                if purpose == Purpose::Ahead && list.len() == SINGLE_PAGES {
                    let place = (SINGLE_PAGES / 2).checked_sub(first);
                    let page = place.and_then(|at| list[first..end].get(at));
                    if let (Some(at), Some(page)) = (place, page) {
                        let bytes = &bytes[at * PAGE as usize..(at + 1) * PAGE as usize];
                        self.hold_back(space, *page, owner, bytes, tag);
                    }
                }
                self.place_single(space, &list[first..end], bytes, tag);
            }
        }
        // Nobody waits any more.
        if purpose != Purpose::Fill && self.shared(child, owner, purpose, all) {
            let pages = list.as_ref().map(|list| &list[first as usize..]);
            self.keep(child, owner, source, pages, bytes);
        }
        let begins = self.children.get_mut(&child).filter(|_| purpose == Purpose::Touch);
        if begins.is_some_and(|child| std::mem::take(&mut child.touched_first)) {
            if let Some(key) = self.main_space(child) {
                self.begin_early(child, key);
            }
        }
        Ok(())
    }

    /// Places pages; what cannot be placed now is kept for later.
    pub(crate) fn place(
        &mut self,
        id: u64,
        page: u64,
        bytes: &[u8],
        tag: Tag,
        demand: Option<u64>,
    ) {
        for _ in 0..TRIES {
            match self.try_place(id, page, bytes, tag, demand) {
                Outcome::Again => {
                    self.drain(id);
                    std::thread::yield_now();
                }
                other => {
                    self.outcome(id, other);
                    return;
                }
            }
        }
        let kept: usize = self.parked.iter().map(|parked| parked.bytes.len()).sum();
        if kept + bytes.len() <= PARKED_MAX {
            let (bytes, since) = (bytes.to_vec(), Instant::now());
            self.parked.push(Parked { space: id, page, tag, bytes, demand, since });
        } else if let Some(space) = self.spaces.get_mut(&id) {
            space.not_coming(page, page + bytes.len() as u64 / PAGE, tag);
        }
    }

    /// Places single pages, and wakes who waits for some of them when all are there: woken at each,
    /// whoever follows the trail would wait for the next, over and over.
    fn place_single(&mut self, id: u64, pages: &[u64], bytes: &[u8], tag: Tag) {
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let Some(child) = self.children.get_mut(&space.child).filter(|c| !c.dying) else { return };
        let (mut at, mut later) = (0, Vec::new());
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let part = &bytes[at * PAGE as usize..(at + run.len()) * PAGE as usize];
            at += run.len();
            let (placed, outcome) = space.place(run[0], part, tag, false);
            child.counters.pages_prefetched += placed;
            if outcome != Outcome::Done {
                later.push((run[0], part));
            }
        }
        for (page, part) in later {
            // As far as it has not been placed.
            self.place(id, page, part, tag, None);
        }
        let Some(space) = self.spaces.get_mut(&id) else { return };
        space.untidy = true;
        space.wake_waiting();
        if space.map.pages() == 0 {
            self.review.insert(space.child);
        }
    }

    fn try_place(
        &mut self,
        id: u64,
        page: u64,
        bytes: &[u8],
        tag: Tag,
        demand: Option<u64>,
    ) -> Outcome {
        let Some(space) = self.spaces.get_mut(&id) else { return Outcome::Done };
        let Some(child) = self.children.get_mut(&space.child) else { return Outcome::Done };
        if child.dying {
            return Outcome::Done;
        }
        let end = page + bytes.len() as u64 / PAGE;
        let demanded = demand.is_some_and(|d| {
            (page..end).contains(&d) && space.map.find(d).is_some_and(|run| run.tag == Some(tag))
        });
        let (placed, outcome) = space.place(page, bytes, tag, true);
        let demanded = demanded && demand.is_some_and(|d| space.map.find(d).is_none());
        let fetched = u64::from(demanded).min(placed);
        child.counters.pages_fetched += fetched;
        child.counters.pages_prefetched += placed - fetched;
        if outcome == Outcome::Done {
            // Later: handing an area back changes mappings, for which a busy child would wait.
            space.untidy = true;
            if space.map.pages() == 0 {
                self.review.insert(child.id);
            }
        }
        outcome
    }

    /// Tries again what met a changing mapping.
    pub(crate) fn retry_parked(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            let Parked { space, page, tag, ref bytes, demand, since } = parked;
            self.drain(space);
            match self.try_place(space, page, bytes, tag, demand) {
                Outcome::Again if since.elapsed() > self.config.page_timeout => {
                    let text = "the child's mappings would not settle for the page timeout";
                    self.outcome(space, Outcome::Kill(text.to_owned()));
                }
                Outcome::Again => self.parked.push(parked),
                other => self.outcome(space, other),
            }
        }
    }

    /// A connection is lost: what was in flight is asked for again over the next one.
    pub(crate) fn broken(&mut self, id: u64, error: &SourceError) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.broken(error, Instant::now());
        }
        self.next_tick = Instant::now();
        self.connect(id);
    }

    /// Connects a peer when it is time, and asks again for what is in flight.
    pub(crate) fn connect(&mut self, id: u64) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.wants_connection(now)) else {
            return;
        };
        let mut again = Vec::new();
        for (tag, read) in &mut self.reads {
            if matches!(read.via, Via::Peer(to, _) if to == id) {
                again.extend(read.again(*tag));
            }
        }
        again.sort_by_key(Ask::tag);
        let connect = if peer.rdma { &self.config.connect_rdma } else { &self.config.connect };
        peer.connect(connect, &again, now);
        self.watch(id);
    }

    /// Sends what is queued for the peers.
    pub(crate) fn flush(&mut self) {
        let dirty: Vec<u64> =
            self.peers.iter().filter(|(_, peer)| peer.dirty).map(|(id, _)| *id).collect();
        for id in dirty {
            self.connect(id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            match peer.flush() {
                Ok(()) => self.watch(id),
                Err(error) => self.broken(id, &error),
            }
        }
    }

    /// Sends the rest when a connection takes it.
    fn watch(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(source) = &peer.source else { return };
        let write = source.wants_write();
        // Stays on the list: the next round tries again when epoll says so.
        peer.dirty = write;
        let Some(fd) = source.ready_fd() else { return };
        let wanted = Some((fd.as_raw_fd(), write));
        if peer.watched != wanted {
            let known = peer.watched.is_some();
            if let Err(e) = watch_peer(&self.epoll, fd, id, write, known) {
                let error = SourceError::Io { what: "watch", cause: e.into() };
                peer.broken(&error, Instant::now());
                return;
            }
            peer.watched = wanted;
        }
    }
}
