//! Working sets of seeds: what their children begin with, kept on the node that starts them.
//!
//! The seed's node knows which pages the parent and earlier children have touched. It sends them
//! right behind the descriptor, and they are received while the child is being built, and put in
//! place before its first instruction. They stay here: for the next child of the seed on this
//! node nobody is asked but for the right to be.

use crate::error::NodeError;
use crate::seed::Seed;
use mitosis_descriptor::{PAGE_SIZE, Phase, SeedId, Vpn};
use mitosis_transport::wire::{WORKING_SET_FIRST, WORKING_SET_MAX};
use mitosis_transport::{ControlClient, Incoming, Want};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most parts of one working set: it grows with what children tell.
const PARTS_MAX: usize = 8;
/// Most pages kept for all seeds together: 256 MiB.
const PAGES_MAX: usize = 64 << 10;
/// Most pages that a child of a seed of this very node waits for.
const LOCAL: usize = 1024;
/// How long a working set is kept that no fork asks for.
const KEPT: Duration = Duration::from_secs(20);
/// Pages read at a time from a seed of this node.
const CHUNK_PAGES: usize = 32;

/// Some pages of a seed.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which, ascending.
    pub pages: Arc<[u64]>,
    /// What is in them, one after the other.
    pub content: Content,
}

/// Where pages are.
#[derive(Debug)]
pub(crate) enum Content {
    /// Here.
    Memory(Vec<u8>),
    /// In a file in memory, of which others send.
    File(Arc<File>),
}

/// A seed, by its node and its id.
type Key = (String, SeedId);

#[derive(Debug)]
struct Kept {
    parts: Vec<Arc<Part>>,
    used: Instant,
}

impl Kept {
    fn pages(&self) -> usize {
        self.parts.iter().map(|part| part.pages.len()).sum()
    }
}

/// The working sets on this node. Only what a seed's node has just let this one fork is used.
#[derive(Debug, Default)]
pub(crate) struct WorkingSets {
    kept: Mutex<HashMap<Key, Kept>>,
    /// Memory that has been written to: getting it costs more than filling it.
    spare: Mutex<Option<Vec<u8>>>,
}

impl WorkingSets {
    /// The parts of a seed's working set that are here.
    pub fn parts(&self, key: &Key) -> Vec<Arc<Part>> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = all.get_mut(key) else { return Vec::new() };
        kept.used = Instant::now();
        kept.parts.clone()
    }

    /// Keeps a part that comes after `before` others; not if somebody was faster. What was not used
    /// for longest goes when there is too much.
    fn keep(&self, key: &Key, before: usize, part: &Arc<Part>) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Kept { parts: Vec::new(), used: Instant::now() };
        let kept = all.entry(key.clone()).or_insert_with(fresh);
        if kept.parts.len() == before {
            kept.parts.push(Arc::clone(part));
        }
        while all.values().map(Kept::pages).sum::<usize>() > PAGES_MAX {
            let oldest = all.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            all.remove(&oldest);
        }
    }

    /// Forgets what has not been used for long, and makes the next spare.
    pub fn sweep(&self) {
        {
            let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, kept| kept.used.elapsed() < KEPT);
        }
        if self.spare.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return;
        }
        // Not zero: zeros would come as they are touched.
        let spare = vec![1; WORKING_SET_FIRST * PAGE_SIZE as usize];
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare);
    }

    /// Memory for so many pages, whatever is in it.
    fn room(&self, pages: usize) -> Vec<u8> {
        let bytes = pages * PAGE_SIZE as usize;
        let fits = |spare: &mut Vec<u8>| spare.len() >= bytes;
        let spare = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.take_if(fits)
        };
        let mut room = spare.unwrap_or_default();
        room.resize(bytes, 0);
        room
    }
}

/// Where the rest comes from.
pub(crate) enum Rest {
    /// Another node.
    Remote(Box<Incoming>),
    /// A seed of this one, of which that is wanted.
    Local(Arc<Seed>, Want),
}

/// The working set of one fork: what is here, and what is on its way.
pub(crate) struct WorkingSet<'a> {
    nodes: &'a ControlClient,
    sets: &'a WorkingSets,
    key: Key,
    parts: RefCell<Vec<Arc<Part>>>,
    /// What is on its way behind them.
    rest: RefCell<Option<Rest>>,
}

impl<'a> WorkingSet<'a> {
    /// Of the seed `key`, with what is kept of it.
    pub fn kept(nodes: &'a ControlClient, sets: &'a WorkingSets, key: Key) -> WorkingSet<'a> {
        let parts = sets.parts(&key);
        WorkingSet { parts: RefCell::new(parts), ..WorkingSet::none(nodes, sets, key) }
    }

    /// None, and none to come.
    pub fn none(nodes: &'a ControlClient, sets: &'a WorkingSets, key: Key) -> WorkingSet<'a> {
        let (parts, rest) = Default::default();
        WorkingSet { nodes, sets, key, parts, rest }
    }

    /// What to ask of the seed's node for a template: all.
    pub fn want(&self) -> Want {
        self.want_up_to(WORKING_SET_MAX)
    }

    /// The same for a child that waits for it: what comes later is fetched while it runs. Not if the
    /// seed is `here`, for then nobody knows what would be fetched.
    pub fn want_first(&self, here: bool) -> Want {
        self.want_up_to(if here { LOCAL } else { WORKING_SET_FIRST })
    }

    fn want_up_to(&self, most: usize) -> Want {
        let have = self.pages();
        let more = self.parts.borrow().len() < PARTS_MAX && have < most;
        Want { have: have as u32, want: if more { most as u32 } else { 0 } }
    }

    /// The rest is on its way.
    pub fn follows(&self, rest: Rest) {
        if let Rest::Local(seed, want) = &rest
            && let Some(image) = seed.image(want.want as usize).filter(|_| want.have == 0)
        {
            let (pages, content) = (image.pages.clone(), Content::File(image.file.clone()));
            self.parts.borrow_mut().push(Arc::new(Part { pages, content }));
            return;
        }
        *self.rest.borrow_mut() = Some(rest);
    }

    /// Whether there is anything for a child to wait for.
    pub fn is_expected(&self) -> bool {
        !self.parts.borrow().is_empty() || self.rest.borrow().is_some()
    }

    /// Number of pages that are here.
    pub fn pages(&self) -> usize {
        self.parts.borrow().iter().map(|part| part.pages.len()).sum()
    }

    /// Takes what is here and, for the first child of a fork, what is on its way: it waits until the
    /// seed's node has said which pages are.
    ///
    /// # Errors
    /// [`NodeError`] if it does not say.
    pub fn take(&'a self) -> Result<(Vec<Arc<Part>>, Option<Coming<'a>>), NodeError> {
        let here = self.parts.borrow().clone();
        let coming = match self.rest.borrow_mut().take() {
            None => None,
            Some(rest) => {
                let pages = match &rest {
                    Rest::Remote(incoming) => self.nodes.list(incoming)?,
                    Rest::Local(seed, want) => seed.working_set(*want),
                };
                Some(Coming { set: self, rest, pages: Arc::from(pages) })
            }
        };
        Ok((here, coming))
    }
}

/// A part of which the list is known.
pub(crate) struct Coming<'a> {
    set: &'a WorkingSet<'a>,
    rest: Rest,
    /// Which pages.
    pub pages: Arc<[u64]>,
}

impl<'a> Coming<'a> {
    /// Receives it. `progress` sees what has come so far, each time some has.
    ///
    /// # Errors
    /// Whatever the cause: then the child that waits must be ended.
    pub fn receive(self, mut progress: impl FnMut(&[u8])) -> Result<Come<'a>, NodeError> {
        let Coming { set, rest, pages } = self;
        let mut room = set.sets.room(pages.len());
        match rest {
            Rest::Remote(incoming) => set.nodes.receive(*incoming, &mut room, progress)?,
            Rest::Local(seed, _) => read(&seed, &pages, |at, bytes| {
                let at = at * PAGE_SIZE as usize;
                room[at..at + bytes.len()].copy_from_slice(bytes);
                progress(&room[..at + bytes.len()]);
                Ok(())
            })?,
        }
        Ok(Come { set, pages, room })
    }
}

/// A part that is here.
pub(crate) struct Come<'a> {
    set: &'a WorkingSet<'a>,
    pages: Arc<[u64]>,
    room: Vec<u8>,
}

impl Come<'_> {
    /// Keeps it for the other children of this fork and for the next fork, with no more memory than it
    /// needs. Nobody waits for this.
    pub fn keep(mut self) {
        self.room.shrink_to_fit();
        if self.pages.is_empty() {
            return;
        }
        let part = Arc::new(Part { pages: self.pages, content: Content::Memory(self.room) });
        let mut parts = self.set.parts.borrow_mut();
        self.set.sets.keep(&self.set.key, parts.len(), &part);
        parts.push(part);
    }
}

/// Reads pages of a seed of this node.
pub(crate) fn read(
    seed: &Seed,
    pages: &[u64],
    mut write: impl FnMut(usize, &[u8]) -> std::io::Result<()>,
) -> Result<(), NodeError> {
    let failed = |e: String| NodeError::step(Phase::Fetch, format!("seed {}", seed.id), e);
    let mut buffer = vec![0; CHUNK_PAGES * PAGE_SIZE as usize];
    let mut at = 0;
    for run in pages.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(CHUNK_PAGES)) {
        let bytes = &mut buffer[..run.len() * PAGE_SIZE as usize];
        seed.memory
            .read(Vpn(run[0]), run.len() as u32, bytes)
            .map_err(|e| failed(e.to_string()))?;
        write(at, bytes).map_err(|e| failed(e.to_string()))?;
        at += run.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pages: std::ops::Range<u64>) -> Arc<Part> {
        Arc::new(Part { pages: pages.collect(), content: Content::Memory(Vec::new()) })
    }

    #[test]
    fn a_part_follows_those_that_it_was_asked_to_follow() {
        let (sets, key) = (WorkingSets::default(), ("node".to_owned(), SeedId([1; 8])));
        let nodes = ControlClient::new();
        let want = || WorkingSet::kept(&nodes, &sets, key.clone()).want();
        let most = WORKING_SET_MAX as u32;
        assert_eq!(want(), Want { have: 0, want: most });
        sets.keep(&key, 0, &part(0..10));
        sets.keep(&key, 0, &part(0..10));
        sets.keep(&key, 1, &part(20..24));
        assert_eq!(want(), Want { have: 14, want: most });
        sets.keep(&key, 2, &part(100..40_000));
        assert_eq!(want().want, 0);
    }

    #[test]
    fn the_spare_is_used_where_it_suffices_and_is_made_anew() {
        let sets = WorkingSets::default();
        sets.sweep();
        assert_eq!(sets.room(WORKING_SET_FIRST + 1).len(), (WORKING_SET_FIRST + 1) << 12);
        assert!(sets.spare.lock().unwrap().is_some());
        assert_eq!(sets.room(3).len(), 3 << 12);
        assert!(sets.spare.lock().unwrap().is_none());
        sets.sweep();
        assert!(sets.spare.lock().unwrap().is_some());
    }

    #[test]
    fn the_memory_kept_is_bounded_and_the_oldest_goes_first() {
        let sets = WorkingSets::default();
        let key = |n: u8| ("node".to_owned(), SeedId([n; 8]));
        for n in 0..70 {
            sets.keep(&key(n), 0, &part(0..1000));
        }
        assert!(sets.parts(&key(0)).is_empty());
        assert_eq!(sets.parts(&key(69)).len(), 1);
    }
}
