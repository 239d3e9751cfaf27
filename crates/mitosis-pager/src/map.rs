//! Which pages of one address space are still elsewhere.
//!
//! Only missing pages are kept: a page of an area that is in no run is either in the child already
//! or zero, and for both a fault is answered with a zero page, which never replaces one that is
//! there.

use mitosis_descriptor::{PageIndex, PageRun, Vpn};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Bound::{Excluded, Unbounded};

/// Names a read in flight.
pub type Tag = NonZeroU64;

/// Consecutive pages of one owner in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First page in the child.
    pub start: u64,
    /// Number of pages.
    pub count: u64,
    /// Index of the owner.
    pub owner: u16,
    /// First page at the owner.
    pub source: u64,
    /// The read that will bring them, or `None`: remote.
    pub tag: Option<Tag>,
}

impl Run {
    /// One past the last page.
    pub fn end(&self) -> u64 {
        self.start + self.count
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    count: u64,
    owner: u16,
    source: u64,
    tag: Option<Tag>,
}

impl Entry {
    fn at(self, start: u64) -> Run {
        let Entry { count, owner, source, tag } = self;
        Run { start, count, owner, source, tag }
    }
}

/// The missing pages of one address space.
#[derive(Clone, Debug, Default)]
pub struct PageMap {
    runs: BTreeMap<u64, Entry>,
    left: Vec<u64>,
    pending: u64,
}

impl PageMap {
    /// A map in which all pages of an index are remote. Owner numbers are below `owners`.
    pub fn new(index: &PageIndex, owners: usize) -> PageMap {
        let mut map = PageMap { left: vec![0; owners], ..PageMap::default() };
        for run in index.runs() {
            let (count, owner) = (u64::from(run.count), run.owner);
            map.insert(Run { start: run.start.0, count, owner, source: run.source.0, tag: None });
        }
        map
    }

    /// Pages missing, those in flight included.
    pub fn pages(&self) -> u64 {
        self.left.iter().sum()
    }

    /// Pages in flight.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Pages missing of each owner.
    pub fn left(&self) -> &[u64] {
        &self.left
    }

    fn insert(&mut self, run: Run) {
        let Run { start, count, owner, source, tag } = run;
        self.left[usize::from(owner)] += count;
        if tag.is_some() {
            self.pending += count;
        }
        self.runs.insert(start, Entry { count, owner, source, tag });
    }

    fn take(&mut self, start: u64) -> Option<Run> {
        let run = self.runs.remove(&start)?.at(start);
        self.left[usize::from(run.owner)] -= run.count;
        if run.tag.is_some() {
            self.pending -= run.count;
        }
        Some(run)
    }

    /// The run that holds a page.
    pub fn find(&self, page: u64) -> Option<Run> {
        let (start, entry) = self.runs.range(..=page).next_back()?;
        (page < start + entry.count).then(|| entry.at(*start))
    }

    /// The first run that ends after `page`.
    pub fn next(&self, page: u64) -> Option<Run> {
        self.find(page).or_else(|| {
            let (start, entry) = self.runs.range((Excluded(page), Unbounded)).next()?;
            Some(entry.at(*start))
        })
    }

    /// Runs that overlap `[start, end)`, cut to it.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        let first = self.find(start).map_or(start, |run| run.start);
        self.runs.range(first..end.max(first)).map(move |(at, entry)| {
            let run = entry.at(*at);
            let (lo, hi) = (run.start.max(start), run.end().min(end));
            Run { start: lo, count: hi - lo, source: run.source + (lo - run.start), ..run }
        })
    }

    /// Whether any page of `[start, end)` is missing.
    pub fn any(&self, start: u64, end: u64) -> bool {
        start < end && self.next(start).is_some_and(|run| run.start < end)
    }

    /// The largest range around `page`, within `[lo, hi)`, in which no page is missing. The page
    /// itself is in no run.
    pub fn hole(&self, page: u64, lo: u64, hi: u64) -> (u64, u64) {
        let before = self.runs.range(..page).next_back().map(|(start, e)| start + e.count);
        let after = self.runs.range(page..).next().map(|(start, _)| *start);
        (before.map_or(lo, |end| end.max(lo)), after.map_or(hi, |start| start.min(hi)))
    }

    fn split(&mut self, page: u64) {
        let Some(run) = self.find(page).filter(|run| run.start < page) else { return };
        self.take(run.start);
        let head = page - run.start;
        self.insert(Run { count: head, ..run });
        let (count, source) = (run.count - head, run.source + head);
        self.insert(Run { start: page, count, source, ..run });
    }

    fn extract(&mut self, start: u64, end: u64) -> Vec<Run> {
        if start >= end {
            return Vec::new();
        }
        self.split(start);
        self.split(end);
        let starts: Vec<u64> = self.runs.range(start..end).map(|(start, _)| *start).collect();
        starts.into_iter().filter_map(|start| self.take(start)).collect()
    }

    /// Forgets the pages of `[start, end)`; whether some were in flight.
    pub fn remove(&mut self, start: u64, end: u64) -> bool {
        // What was marked alone goes alone.
        if start < end && self.runs.get(&start).is_some_and(|entry| entry.count == end - start) {
            return self.take(start).is_some_and(|run| run.tag.is_some());
        }
        self.extract(start, end).iter().any(|run| run.tag.is_some())
    }

    /// The remote pages of `[start, end)` are brought by a read from now on.
    pub fn mark(&mut self, start: u64, end: u64, tag: Tag) {
        for run in self.extract(start, end) {
            self.insert(Run { tag: run.tag.or(Some(tag)), ..run });
        }
    }

    /// A page is brought by a read from now on, if it is missing, unasked for, and where its owner had
    /// it; whether it is.
    pub fn claim(&mut self, page: u64, owner: u16, tag: Tag) -> bool {
        let Some(run) = self.find(page) else { return false };
        if run.tag.is_some() || run.owner != owner || run.source + (page - run.start) != page {
            return false;
        }
        // Mostly a page amid others: what is before it stays where it is.
        let claimed = Entry { count: 1, owner, source: page, tag: Some(tag) };
        if let Some(before) = self.runs.get_mut(&run.start).filter(|_| run.start < page) {
            before.count = page - run.start;
        }
        self.runs.insert(page, claimed);
        if page + 1 < run.end() {
            let rest = Entry { count: run.end() - page - 1, owner, source: page + 1, tag: None };
            self.runs.insert(page + 1, rest);
        }
        self.pending += 1;
        true
    }

    /// Whether a read is to bring just this page.
    pub fn is_claimed(&self, page: u64, tag: Tag) -> bool {
        self.runs.get(&page).is_some_and(|entry| entry.count == 1 && entry.tag == Some(tag))
    }

    /// The pages of `[start, end)` that a read was to bring are remote again.
    pub fn unmark(&mut self, start: u64, end: u64, tag: Tag) {
        for run in self.extract(start, end) {
            self.insert(Run { tag: run.tag.filter(|t| *t != tag), ..run });
        }
    }

    /// Everything in flight is remote again: reads belong to another map.
    pub fn unmark_all(&mut self) {
        if self.pending == 0 {
            return;
        }
        for entry in self.runs.values_mut() {
            entry.tag = None;
        }
        self.pending = 0;
    }

    /// Moves `count` pages from `from` to `to`, as `mremap(2)` does: what was at `to` is gone,
    /// what was in flight is remote again. Whether something was in flight.
    pub fn relocate(&mut self, from: u64, to: u64, count: u64) -> bool {
        let moved = self.extract(from, from + count);
        self.remove(to, to + count);
        let pending = moved.iter().any(|run| run.tag.is_some());
        for run in moved {
            self.insert(Run { start: run.start - from + to, tag: None, ..run });
        }
        pending
    }

    /// The missing pages as an index; joins what was split.
    pub fn index(&self) -> PageIndex {
        let runs = self.runs.iter().flat_map(|(start, entry)| {
            let run = entry.at(*start);
            let step = u64::from(u32::MAX);
            (0..run.count.div_ceil(step)).map(move |i| PageRun {
                start: Vpn(run.start + i * step),
                count: (run.count - i * step).min(step) as u32,
                owner: run.owner,
                source: Vpn(run.source + i * step),
            })
        });
        // The map holds non-empty runs in ascending order, so no run is refused.
        PageIndex::from_sorted(runs).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
