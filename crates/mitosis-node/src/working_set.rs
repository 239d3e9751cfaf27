//! Working sets of seeds: what their children begin with, kept on the node that starts them.
//!
//! The seed's node knows which pages the parent and earlier children have touched. It sends them
//! right behind the descriptor, and they are received while the child is being built, which puts
//! them in place before its first instruction. They stay here: the next child of the seed on this
//! node finds them without asking anybody but for the right to be.

use crate::error::NodeError;
use crate::registry::Seed;
use mitosis_descriptor::{PAGE_SIZE, Phase, SeedId, Vpn};
use mitosis_transport::wire::WORKING_SET_MAX;
use mitosis_transport::{ControlClient, Incoming, Want};
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most parts of one working set: it grows with what children tell.
const PARTS_MAX: usize = 8;
/// Most pages kept for all seeds together: 256 MiB.
const PAGES_MAX: usize = 64 << 10;
/// How long a working set is kept that no fork asks for.
const KEPT: Duration = Duration::from_secs(60);
/// Pages read at a time from a seed of this node.
const CHUNK_PAGES: usize = 32;

/// Some pages of a seed.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which, ascending.
    pub pages: Arc<[u64]>,
    /// A file in memory: the `n`-th page at offset `n * 4096`.
    pub file: File,
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
pub(crate) struct WorkingSets(Mutex<HashMap<Key, Kept>>);

impl WorkingSets {
    /// The parts of a seed's working set that are here.
    pub fn parts(&self, key: &Key) -> Vec<Arc<Part>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = all.get_mut(key) else { return Vec::new() };
        kept.used = Instant::now();
        kept.parts.clone()
    }

    /// Keeps a part that comes after `before` others; not if somebody was faster. What was not used
    /// for longest goes when there is too much.
    fn keep(&self, key: &Key, before: usize, part: &Arc<Part>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Forgets what has not been used for long.
    pub fn sweep(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.used.elapsed() < KEPT);
    }
}

/// What to ask of a seed's node that has `parts` already.
pub(crate) fn want(parts: &[Arc<Part>]) -> Want {
    let have: usize = parts.iter().map(|part| part.pages.len()).sum();
    let more = parts.len() < PARTS_MAX && have < WORKING_SET_MAX;
    Want { have: have as u32, want: if more { WORKING_SET_MAX as u32 } else { 0 } }
}

/// Where the rest comes from.
pub(crate) enum Rest {
    /// Another node.
    Remote(Incoming),
    /// A seed of this one, and which pages.
    Local(Arc<Seed>, Vec<u64>),
}

/// A part that is on its way.
pub(crate) struct Coming {
    rest: Rest,
    part: Arc<Part>,
    complete: Arc<OwnedFd>,
    key: Key,
    before: usize,
}

impl Coming {
    /// Prepares to receive `rest`, which follows `before` parts.
    ///
    /// # Errors
    /// No memory or no descriptor.
    pub fn new(key: Key, before: usize, rest: Rest) -> Result<Coming, NodeError> {
        let failed = |what: &'static str| {
            move |e: rustix::io::Errno| NodeError::step(Phase::Fetch, what, e)
        };
        let file = rustix::fs::memfd_create("mitosis-working-set", MemfdFlags::CLOEXEC);
        let file = file.map_err(failed("memfd_create"))?.into();
        let complete = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(failed("eventfd"))?;
        let pages: Arc<[u64]> = match &rest {
            Rest::Remote(incoming) => Arc::from(incoming.pages()),
            Rest::Local(_, pages) => Arc::from(pages.as_slice()),
        };
        let part = Arc::new(Part { pages, file });
        Ok(Coming { rest, part, complete: Arc::new(complete), key, before })
    }

    /// What it will be.
    pub fn part(&self) -> Arc<Part> {
        Arc::clone(&self.part)
    }

    /// Readable when it is.
    pub fn complete(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.complete)
    }

    /// Receives it, keeps it, and lets the children go on that wait for it.
    ///
    /// # Errors
    /// Whatever the cause: then the children that wait must be ended.
    pub fn receive(self, nodes: &ControlClient, sets: &WorkingSets) -> Result<(), NodeError> {
        let Coming { rest, part, complete, key, before } = self;
        let write = |first: usize, bytes: &[u8]| {
            part.file.write_all_at(bytes, first as u64 * PAGE_SIZE)
        };
        match rest {
            Rest::Remote(incoming) => nodes.receive(incoming, write)?,
            Rest::Local(seed, pages) => read(&seed, &pages, write)?,
        }
        sets.keep(&key, before, &part);
        let failed = |e| NodeError::step(Phase::Fetch, "the working set", e);
        rustix::io::write(&*complete, &1u64.to_ne_bytes()).map_err(failed)?;
        Ok(())
    }
}

/// Reads pages of a seed of this node.
fn read(
    seed: &Seed,
    pages: &[u64],
    mut write: impl FnMut(usize, &[u8]) -> std::io::Result<()>,
) -> Result<(), NodeError> {
    let failed = |e: String| NodeError::step(Phase::Fetch, format!("seed {}", seed.id), e);
    let mut buffer = vec![0; CHUNK_PAGES * PAGE_SIZE as usize];
    let mut at = 0;
    for run in pages.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(CHUNK_PAGES)) {
        let bytes = &mut buffer[..run.len() * PAGE_SIZE as usize];
        seed.memory.read(Vpn(run[0]), run.len() as u32, bytes).map_err(|e| failed(e.to_string()))?;
        write(at, bytes).map_err(|e| failed(e.to_string()))?;
        at += run.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pages: std::ops::Range<u64>) -> Arc<Part> {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap().into();
        Arc::new(Part { pages: pages.collect(), file })
    }

    #[test]
    fn a_part_follows_those_that_it_was_asked_to_follow() {
        let (sets, key) = (WorkingSets::default(), ("node".to_owned(), SeedId([1; 8])));
        assert_eq!(want(&sets.parts(&key)), Want { have: 0, want: 1024 });
        sets.keep(&key, 0, &part(0..10));
        sets.keep(&key, 0, &part(0..10));
        sets.keep(&key, 1, &part(20..24));
        assert_eq!(want(&sets.parts(&key)), Want { have: 14, want: 1024 });
        sets.keep(&key, 2, &part(100..1200));
        assert_eq!(want(&sets.parts(&key)).want, 0);
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
