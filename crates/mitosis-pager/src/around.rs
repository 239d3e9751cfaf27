//! What lies around a touch comes with it, from a seed of which nobody has told anything yet.
//!
//! The first child of such a seed touches page after page, and each would be a round trip of its own. Most of
//! them lie near one another, as code and what belongs together in a heap do. So the block around a touched
//! page is asked for right behind it. Only the page itself is placed: the rest is kept in the node's cache,
//! where the next touch finds it, and is told of as any touch. So the next children are sent what this one
//! used, not what lay beside it.
//!
//! What is kept belongs to no address space: a block in flight is nothing that a process waits for, until
//! one touches a page of it.

use crate::child::Via;
use crate::map::{Run, Tag};
use crate::message::ChildId;
use crate::pager::{Pager, Purpose, ReadInFlight};
use crate::space::{PAGE, Role};
use std::ops::Range;
use std::time::Instant;

/// Pages of a block: larger ones bring more in vain.
const BLOCK: u64 = 4;
/// For so many touches a child is sent one such page though it uses none.
const TRIES: u64 = 8;
/// Pages that it is sent for each that it used.
const EARNED: u64 = 3;

impl Pager {
    /// Asks for the block around a page of `owner` that was touched and asked for by itself.
    pub(crate) fn fetch_around(&mut self, id: u64, owner: u16, page: u64) {
        let Some(space) = self.spaces.get(&id).filter(|space| space.role == Role::Main) else {
            return;
        };
        let Some(child) = self.children.get(&space.child) else { return };
        let Some(area) = space.areas.find(page) else { return };
        let used = child.counters.pages_cached + child.awaited;
        let room = child.counters.faults.div_ceil(TRIES) + EARNED * used;
        if child.counters.pages_around >= room {
            return;
        }
        let start = page - page % BLOCK;
        let block = start.max(area.start)..(start + BLOCK).min(area.end);
        let of_owner = |run: &Run| run.tag.is_none() && run.owner == owner;
        let runs: Vec<Run> = space.map.within(block.start, block.end).filter(of_owner).collect();
        for run in runs {
            for part in self.unkept(id, run) {
                self.read(id, part, None, Purpose::Around);
            }
        }
    }

    /// The parts of a run that are neither in the cache nor on their way there.
    fn unkept(&mut self, id: u64, run: Run) -> Vec<Run> {
        let child = self.spaces.get(&id).map(|space| space.child);
        let named = child.and_then(|child| self.remote(child, run.owner)).cloned();
        let mut parts: Vec<Range<u64>> = Vec::new();
        for page in run.start..run.end() {
            let source = run.source + (page - run.start);
            let kept = named.as_ref().is_some_and(|named| self.cache.has(named, source));
            if kept || self.around(id, run.owner, page, source).is_some() {
                continue;
            }
            match parts.last_mut().filter(|part| part.end == page) {
                Some(part) => part.end = page + 1,
                None => parts.push(page..page + 1),
            }
        }
        let cut = |part: Range<u64>| Run {
            start: part.start,
            count: part.end - part.start,
            source: run.source + (part.start - run.start),
            ..run
        };
        parts.into_iter().map(cut).collect()
    }

    /// The read that brings a page of an owner around another touch, if it has not come yet.
    fn around(&self, id: u64, owner: u16, page: u64, source: u64) -> Option<Tag> {
        let child = self.children.get(&self.spaces.get(&id)?.child)?;
        let brings = |read: &ReadInFlight| {
            let left = read.page + u64::from(read.next)..read.page + u64::from(read.count);
            // A page that was moved is not what lies there now.
            let same = read.source.wrapping_sub(read.page) == source.wrapping_sub(page);
            read.space == id && read.owner == owner && left.contains(&page) && same
        };
        let tag = child.around.iter().find(|tag| self.reads.get(tag).is_some_and(brings))?;
        Tag::new(*tag)
    }

    /// Those of `pages` that are on their way around a touch are to be placed when they come; how many.
    pub(crate) fn await_around(&mut self, id: u64, owner: u16, pages: Range<u64>) -> u64 {
        let Some(space) = self.spaces.get(&id) else { return 0 };
        let few = pages.start..pages.end.min(pages.start + BLOCK);
        let wanted: Vec<(u64, Tag)> = few
            .filter_map(|page| {
                let run = space.map.find(page);
                let run = run.filter(|run| run.tag.is_none() && run.owner == owner)?;
                Some((page, self.around(id, owner, page, run.source + (page - run.start))?))
            })
            .collect();
        let Some(space) = self.spaces.get_mut(&id) else { return 0 };
        for (page, tag) in &wanted {
            space.map_mut().mark(*page, page + 1, *tag);
            // Its time begins now.
            if let Some(read) = self.reads.get_mut(&tag.get()) {
                read.progress = Instant::now();
            }
        }
        wanted.len() as u64
    }

    /// Pages around a touch have come: for who waits by now, and for the cache.
    pub(crate) fn keep_around(
        &mut self,
        read: (u64, ChildId, u16),
        page: u64,
        source: u64,
        bytes: &[u8],
        tag: Tag,
    ) {
        let (space, child, owner) = read;
        let end = page + bytes.len() as u64 / PAGE;
        let waited: Vec<Run> = match self.spaces.get(&space) {
            Some(space) => space.map.within(page, end).filter(|run| run.tag == Some(tag)).collect(),
            None => Vec::new(),
        };
        for run in waited {
            for at in run.start..run.end() {
                let from = ((at - page) * PAGE) as usize;
                self.place(space, at, &bytes[from..from + PAGE as usize], tag, Some(at));
            }
        }
        self.keep(child, owner, source, None, bytes);
    }

    /// A read around a touch has failed, perhaps for another of its pages than one that is waited for.
    pub(crate) fn not_around(&mut self, read: &ReadInFlight, tag: Tag) {
        let Some(space) = self.spaces.get_mut(&read.space) else { return };
        for (lo, hi) in read.left() {
            space.not_coming(lo, hi, tag);
        }
    }

    /// Whether nobody has told anything of an owner's pages but this child. A local owner keeps no trail.
    pub(crate) fn untold(&self, id: ChildId, owner: u16) -> bool {
        let child = self.children.get(&id);
        match child.and_then(|child| child.sources.get(usize::from(owner))?.via) {
            Some(Via::Peer(peer, handle)) => {
                let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
                open.is_none_or(|open| !open.told || open.teller == Some(id))
            }
            _ => false,
        }
    }
}
