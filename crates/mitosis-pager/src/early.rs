//! What earlier children needed is on its way before the child asks for it.
//!
//! A child that begins touches what its siblings touched when they began. The trail names these
//! pages, and they are fetched in its order from when the child's first touch is answered. Not before: while
//! it is being built its own system calls come first, and then the page that it waits for. The first
//! [`EARLY_PAGES`] come whatever the child does; further on it must be seen to follow, and is never more
//! ahead than that or than it has followed.

use crate::child::Via;
use crate::faults::{PENDING_MAX, SINGLE_PAGES};
use crate::map::PageMap;
use crate::message::ChildId;
use crate::pager::{Pager, Purpose};
use crate::trail::{PAGES_ALL, PAGES_SURE};
use mitosis_transport::Handle;

/// Most pages fetched for a child before it touches anything: what a mistaken trail may cost.
pub(crate) const EARLY_PAGES: usize = 1024;
/// Pages of the trail asked for at a time, in ascending order: together they make longer runs, apart
/// they come in the order of need.
const BATCH: usize = SINGLE_PAGES;
/// Most pages on their way ahead of a child: enough to keep the connection and both nodes busy, though
/// either may not get a processor for some milliseconds.
const FLIGHT: u64 = 8 * BATCH as u64;

/// How far a trail has been fetched ahead of a child's touches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// The next place of the trail to fetch.
    at: usize,
    /// Where it must be seen to follow first.
    limit: usize,
}

impl Course {
    /// A touch of the page at a place of the trail; whether the course leads there by itself.
    pub fn touched(&mut self, place: usize) -> bool {
        if place >= self.at + EARLY_PAGES {
            return false;
        }
        self.limit = self.limit.max(place + EARLY_PAGES.max(place));
        true
    }
}

impl Pager {
    /// How many pages one more trail may have.
    pub(crate) fn trail_room(&self) -> usize {
        let open = self.peers.values().flat_map(|peer| peer.handles.values());
        let long = open.map(|open| open.trail.len()).filter(|pages| *pages > PAGES_SURE);
        PAGES_ALL.saturating_sub(long.sum())
    }

    /// A trail has come: begins the early reads of the children that wait for it already.
    pub(crate) fn trail_known(&mut self, peer: u64, handle: Handle) {
        let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
        let users: Vec<ChildId> = open.iter().flat_map(|open| open.users.iter().copied()).collect();
        let touched = |id: &ChildId| self.children.get(id).is_some_and(|c| c.counters.faults > 0);
        for child in users.into_iter().filter(touched).collect::<Vec<ChildId>>() {
            if let Some(key) = self.main_space(child) {
                self.begin_early(child, key);
            }
        }
    }

    /// Begins the early reads for a child's main address space, `key`, from each owner whose trail
    /// is known.
    pub(crate) fn begin_early(&mut self, id: ChildId, key: u64) {
        let owners = self.children.get(&id).map_or(0, |child| child.sources.len());
        for number in 0..owners {
            let open = self.trail_of(id, number).is_some_and(|trail| !trail.is_empty());
            if let Some(child) = self.children.get_mut(&id).filter(|_| open) {
                let fresh = Course { at: 0, limit: EARLY_PAGES };
                child.sources[number].course.get_or_insert(fresh);
            }
        }
        self.go_on(id, key);
    }

    fn trail_of(&self, id: ChildId, number: usize) -> Option<&crate::trail::Trail> {
        let source = self.children.get(&id)?.sources.get(number)?;
        let Some(Via::Peer(peer, handle)) = source.via else { return None };
        Some(&self.peers.get(&peer)?.handles.get(&handle)?.trail)
    }

    /// Asks for the next pages of the trails that a child follows, while few are on their way.
    pub(crate) fn go_on(&mut self, id: ChildId, key: u64) {
        let owners = self.children.get(&id).map_or(0, |child| child.sources.len());
        for number in 0..owners {
            while let Some(pages) = self.next_batch(id, key, number) {
                self.open_ahead(id, number);
                self.read_pages(key, number as u16, &pages, Purpose::Ahead);
            }
        }
        // If there was nothing to ask for.
        self.close_ahead(id);
    }

    /// The next part of a trail, ascending; `None` if it is not its time.
    fn next_batch(&mut self, id: ChildId, key: u64, number: usize) -> Option<Vec<u64>> {
        let child = self.children.get(&id).filter(|child| child.ahead_pages < FLIGHT)?;
        let Course { at, limit } = child.sources[number].course?;
        // What would be asked for now must not be refused.
        self.spaces.get(&key).filter(|space| space.map.pending() < PENDING_MAX)?;
        let part = self.trail_of(id, number)?.part(at, BATCH.min(limit.saturating_sub(at)));
        if part.is_empty() {
            return None;
        }
        let mut pages = part.to_vec();
        pages.sort_unstable();
        let at = at + part.len();
        self.children.get_mut(&id)?.sources[number].course = Some(Course { at, limit });
        Some(pages)
    }
}

/// Those of `pages` that are missing and unasked for, where their owner had them.
pub(crate) fn missing(map: &PageMap, owner: u16, pages: &[u64]) -> Vec<u64> {
    let wanted = |page: &&u64| {
        map.find(**page).is_some_and(|run| {
            run.tag.is_none() && run.owner == owner && run.source + (**page - run.start) == **page
        })
    };
    pages.iter().filter(wanted).copied().collect()
}
