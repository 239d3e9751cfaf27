//! Working sets of seeds: what their children begin with, kept on the node that starts them.
//!
//! The seed's node knows which pages the parent and earlier children have touched. It sends them
//! right behind the descriptor, and they are received while the child is being built, which puts
//! them in place before its first instruction. They stay here: the next child of the seed on this
//! node finds them without asking anybody but for the right to be.

use crate::error::NodeError;
use crate::seed::Seed;
use mitosis_descriptor::{PAGE_SIZE, Phase, SeedId, Vpn};
use mitosis_transport::wire::{WORKING_SET_FIRST, WORKING_SET_MAX};
use mitosis_transport::{ControlClient, Incoming, Want};
use rustix::fs::MemfdFlags;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most parts of one working set: it grows with what children tell.
const PARTS_MAX: usize = 8;
const _: () = assert!(PARTS_MAX < mitosis_restore::WORKING_SET_PARTS);
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
    /// A file in memory: the `n`-th page at offset `n * 4096`.
    pub file: Arc<File>,
}

impl Part {
    /// Some pages of a seed of this node, ascending.
    ///
    /// # Errors
    /// No memory, or the seed has ended.
    pub fn read(seed: &Seed, pages: Vec<u64>) -> Result<Part, NodeError> {
        let file = memory_file()?;
        read(seed, &pages, |at, bytes| file.write_all_at(bytes, at as u64 * PAGE_SIZE))?;
        Ok(Part { pages: Arc::from(pages), file: Arc::new(file) })
    }
}

fn memory_file() -> Result<File, NodeError> {
    let failed = |e| NodeError::step(Phase::Fetch, "memfd_create", e);
    let file = rustix::fs::memfd_create("mitosis-working-set", MemfdFlags::CLOEXEC);
    Ok(file.map_err(failed)?.into())
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
    /// A file that has its memory already: getting it costs more than filling it.
    spare: Mutex<Option<File>>,
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

    /// Forgets what has not been used for long, and makes the next spare file.
    ///
    /// # Errors
    /// There is no memory for it: the next working set gets its own as it comes.
    pub fn sweep(&self) -> Result<(), NodeError> {
        {
            let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, kept| kept.used.elapsed() < KEPT);
        }
        if self.spare.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let file = memory_file()?;
        let failed = |e| NodeError::step(Phase::Fetch, "a spare working set", e);
        let zeros = [0; CHUNK_PAGES * PAGE_SIZE as usize];
        for at in (0..WORKING_SET_FIRST as u64).step_by(CHUNK_PAGES) {
            file.write_all_at(&zeros, at * PAGE_SIZE).map_err(failed)?;
        }
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// A file for what a first child waits for; it grows if more comes.
    fn file(&self) -> Result<File, NodeError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(memory_file, Ok)
    }
}

/// Where the rest comes from.
pub(crate) enum Rest {
    /// Another node.
    Remote(Incoming),
    /// A seed of this one, of which that is wanted.
    Local(Arc<Seed>, Want),
}

/// The working set of one fork: what is here, and what is on its way.
pub(crate) struct WorkingSet<'a> {
    nodes: &'a ControlClient,
    sets: &'a WorkingSets,
    key: Key,
    parts: RefCell<Vec<Arc<Part>>>,
    /// What was asked for last.
    asked: Cell<Want>,
    /// What is on its way, in the last part.
    rest: RefCell<Option<Rest>>,
    /// It is known which pages these are.
    listed: Cell<bool>,
}

impl<'a> WorkingSet<'a> {
    /// Of the seed `key`, with what is kept of it.
    pub fn kept(nodes: &'a ControlClient, sets: &'a WorkingSets, key: Key) -> WorkingSet<'a> {
        let parts = sets.parts(&key);
        WorkingSet { parts: RefCell::new(parts), ..WorkingSet::none(nodes, sets, key) }
    }

    /// None, and none to come.
    pub fn none(nodes: &'a ControlClient, sets: &'a WorkingSets, key: Key) -> WorkingSet<'a> {
        let (asked, listed) = (Cell::default(), Cell::new(false));
        let (parts, rest) = (RefCell::default(), RefCell::default());
        WorkingSet { nodes, sets, key, parts, asked, rest, listed }
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
        let more = self.len() < PARTS_MAX && have < most;
        let want = Want { have: have as u32, want: if more { most as u32 } else { 0 } };
        self.asked.set(want);
        want
    }

    /// The rest is on its way. Its part is a file at once, whatever will come.
    ///
    /// # Errors
    /// No memory or no descriptor.
    pub fn follows(&self, rest: Rest) -> Result<(), NodeError> {
        let mut parts = self.parts.borrow_mut();
        if let Rest::Local(seed, want) = &rest
            && let Some(image) = seed.image(want.want as usize).filter(|_| want.have == 0)
        {
            parts.push(image);
            return Ok(());
        }
        let file = if parts.is_empty() { self.sets.file()? } else { memory_file()? };
        parts.push(Arc::new(Part { pages: Arc::from([]), file: Arc::new(file) }));
        *self.rest.borrow_mut() = Some(rest);
        Ok(())
    }

    /// Number of parts, the one that is coming included.
    fn len(&self) -> usize {
        self.parts.borrow().len()
    }

    /// How many pages each part may have.
    pub fn sizes(&self) -> Vec<usize> {
        let parts = self.parts.borrow();
        let mut sizes: Vec<usize> = parts.iter().map(|part| part.pages.len()).collect();
        let coming = self.rest.borrow().is_some() && !self.listed.get();
        if let Some(last) = sizes.last_mut().filter(|_| coming) {
            let Want { have, want } = self.asked.get();
            *last = want.saturating_sub(have) as usize;
        }
        sizes
    }

    /// Number of pages, as far as their list is known.
    pub fn pages(&self) -> usize {
        self.parts.borrow().iter().map(|part| part.pages.len()).sum()
    }

    /// The file of a part.
    ///
    /// # Errors
    /// There is no such part, or no descriptor.
    pub fn file(&self, number: usize) -> std::io::Result<OwnedFd> {
        let parts = self.parts.borrow();
        let part = parts.get(number).ok_or(std::io::ErrorKind::NotFound)?;
        Ok(part.file.try_clone()?.into())
    }

    /// Waits until the seed's node has said which pages are coming.
    ///
    /// # Errors
    /// [`NodeError`] if it does not say.
    pub fn know(&self) -> Result<(), NodeError> {
        if self.listed.get() {
            return Ok(());
        }
        let pages = match &*self.rest.borrow() {
            Some(Rest::Remote(incoming)) => self.nodes.list(incoming)?,
            Some(Rest::Local(seed, want)) => seed.working_set(*want),
            None => return Ok(()),
        };
        let mut parts = self.parts.borrow_mut();
        if let Some(empty) = parts.pop() {
            let file = Arc::clone(&empty.file);
            parts.push(Arc::new(Part { pages: Arc::from(pages), file }));
        }
        self.listed.set(true);
        Ok(())
    }

    /// The pages of all parts. For the first child of a fork this waits until the seed's node has
    /// said which are coming; what it returns besides is to be received.
    ///
    /// # Errors
    /// [`NodeError`] if it does not say.
    pub fn list(&'a self) -> Result<Listed<'a>, NodeError> {
        self.know()?;
        let rest = self.rest.borrow_mut().take();
        let last = self.parts.borrow().last().cloned();
        let coming = rest.zip(last).map(|(rest, part)| {
            let before = self.len() - 1;
            Coming { set: self, rest, part, before }
        });
        let pages = self.parts.borrow().iter().map(|part| Arc::clone(&part.pages)).collect();
        Ok((pages, coming))
    }
}

/// The pages of all parts, and the part that is still to be received.
type Listed<'a> = (Vec<Arc<[u64]>>, Option<Coming<'a>>);

/// A part of which the list is known.
pub(crate) struct Coming<'a> {
    set: &'a WorkingSet<'a>,
    rest: Rest,
    part: Arc<Part>,
    before: usize,
}

impl<'a> Coming<'a> {
    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.part.pages.len()
    }

    /// Receives it.
    ///
    /// # Errors
    /// Whatever the cause: then the child that waits must be ended.
    pub fn receive(self) -> Result<Come<'a>, NodeError> {
        let Coming { set, rest, part, before } = self;
        let write =
            |first: usize, bytes: &[u8]| part.file.write_all_at(bytes, first as u64 * PAGE_SIZE);
        match rest {
            Rest::Remote(incoming) => set.nodes.receive(incoming, part.pages.len(), write)?,
            Rest::Local(seed, _) => read(&seed, &part.pages, write)?,
        }
        Ok(Come { set, part, before })
    }
}

/// A part that is here.
pub(crate) struct Come<'a> {
    set: &'a WorkingSet<'a>,
    part: Arc<Part>,
    before: usize,
}

impl Come<'_> {
    /// Keeps it for the next fork, with no more memory than it needs. Nobody waits for this.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn keep(self) -> Result<(), NodeError> {
        let Come { set, part, before } = self;
        let failed = |e| NodeError::step(Phase::Fetch, "the working set", e);
        part.file.set_len(part.pages.len() as u64 * PAGE_SIZE).map_err(failed)?;
        if !part.pages.is_empty() {
            set.sets.keep(&set.key, before, &part);
        }
        Ok(())
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
        Arc::new(Part { pages: pages.collect(), file: Arc::new(memory_file().unwrap()) })
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
