//! What earlier children needed is on its way before the child asks for it.
//!
//! A child that begins touches what its siblings touched when they began. The trail names these
//! pages, so the first of them are asked for when the child's first touch is answered. Not before: while
//! it is being built its own system calls come first, and then the page that it waits for.

use crate::child::Via;
use crate::map::{PageMap, Run};
use crate::message::ChildId;
use crate::pager::{Pager, Purpose};
use mitosis_transport::Handle;

/// Most pages fetched for a child before it touches anything: what a mistaken trail may cost.
pub(crate) const EARLY_PAGES: usize = 1024;
/// Pages of the trail put into ascending order at a time: together they make longer runs, apart
/// they come in the order of need.
const ORDERED: usize = 256;
/// Most pages between two of the trail that are fetched along with them.
const GAP_PAGES: u64 = 2;
/// Most pages of one read, so that the first are placed while the last are still read.
const READ_PAGES: u64 = 64;

impl Pager {
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
    /// is known; once from each.
    pub(crate) fn begin_early(&mut self, id: ChildId, key: u64) {
        let owners = self.children.get(&id).map_or(0, |child| child.sources.len());
        for number in 0..owners {
            let runs = self.early_runs(id, key, number);
            if runs.is_empty() {
                continue;
            }
            self.open_ahead(id, number);
            for run in runs {
                self.read(key, run, None, Purpose::Ahead);
            }
        }
    }

    /// The first pages of an owner's trail, as far as the child misses them.
    fn early_runs(&mut self, id: ChildId, key: u64, number: usize) -> Vec<Run> {
        let (Some(child), Some(space)) = (self.children.get_mut(&id), self.spaces.get(&key)) else {
            return Vec::new();
        };
        let source = &mut child.sources[number];
        let Some(Via::Peer(peer, handle)) = source.via.filter(|_| !source.begun) else {
            return Vec::new();
        };
        let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
        let Some(open) = open.filter(|open| !open.trail.is_empty()) else { return Vec::new() };
        source.begun = true;
        let first = open.trail.first(child.early_left);
        child.early_left -= first.len();
        first.chunks(ORDERED).flat_map(|part| runs(&space.map, number as u16, part)).collect()
    }
}

/// The missing pages among `pages`, as runs in ascending order. What was moved since the owner had
/// it is left alone.
fn runs(map: &PageMap, owner: u16, pages: &[u64]) -> Vec<Run> {
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    for page in sorted {
        let Some(run) = map.find(page) else { continue };
        if run.tag.is_some() || run.owner != owner || run.source + (page - run.start) != page {
            continue;
        }
        match runs.last_mut() {
            Some(last) if joins(last, &run, page) => last.count = page + 1 - last.start,
            _ => runs.push(Run { start: page, count: 1, source: page, ..run }),
        }
    }
    runs
}

/// Whether a run may reach as far as `page` of the missing run `all`: over a page or two that nobody
/// named, for a page costs less than a read, if they too are missing and unasked for.
fn joins(run: &Run, all: &Run, page: u64) -> bool {
    all.start <= run.start && page - run.start < READ_PAGES && page - run.end() <= GAP_PAGES
}
