//! The owner's side: which pages of which seeds are registered.
//!
//! Pages are copied out of the shadow, in the background, into memory of the daemon that is
//! registered for remote reads: so registering does not end the shadow's sharing with the parent,
//! takes few registrations however scattered the pages are, and needs nothing of the shadow.

use crate::ReadError;
use crate::wire::{PAGE, RdmaRegion};
use mitosis_descriptor::{SeedId, Vpn};
use mitosis_rdma_sys::{Completions, Device, Exported, Pd, RdmaError};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages registered together: 16 MiB, so that the first are usable soon.
const CHUNK: u64 = 4096;
/// Pages copied at a time.
const STEP: u64 = 256;
/// Learned pages are registered with those around them, in blocks of 64 KiB: a window that is read
/// around a fault is then not cut into single pages.
const BLOCK: u64 = 16;
/// A seed that was unpinned for others is not pinned again before this has passed, so that seeds for
/// which there is no room together do not take turns.
const REST: Duration = Duration::from_secs(10);

/// Reads pages of a seed, as [`crate::OpenSeed::read`] does.
pub type Fill = Box<dyn Fn(Vpn, u32, &mut [u8]) -> Result<(), ReadError> + Send>;

/// What of a seed is registered.
enum Life {
    /// Being registered, or all that will be is.
    Live { complete: bool },
    /// Nothing, because of this. For good.
    Over(String),
    /// Nothing since then: others needed the room.
    Unpinned(Instant),
}

impl Life {
    /// Why nothing is registered, if so.
    fn ended(&self) -> Option<String> {
        match self {
            Life::Live { .. } => None,
            Life::Over(why) => Some(why.clone()),
            Life::Unpinned(_) => Some("unpinned: others needed the room".into()),
        }
    }
}

struct State {
    life: Life,
    memory: Vec<Exported>,
    regions: Vec<RdmaRegion>,
    pages: u64,
}

/// A seed's registered memory.
pub struct Export {
    pub(crate) pd: Pd,
    pub(crate) completions: Completions,
    state: Mutex<State>,
    used: AtomicU64,
}

impl Export {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deregisters everything: from now on every READ of it fails. The first reason stands.
    fn end(&self, life: Life) {
        let mut state = self.state();
        if state.life.ended().is_some() {
            return;
        }
        state.life = life;
        state.memory.clear();
        state.regions.clear();
        state.pages = 0;
    }

    /// Regions from the `from`-th on, at most `most`, and whether these are the last.
    ///
    /// # Errors
    /// Why there are none any more.
    pub(crate) fn regions(
        &self,
        from: usize,
        most: usize,
    ) -> Result<(Vec<RdmaRegion>, bool), String> {
        let state = self.state();
        match &state.life {
            ended @ (Life::Over(_) | Life::Unpinned(_)) => Err(ended.ended().unwrap_or_default()),
            Life::Live { complete } => {
                let regions: Vec<_> = state.regions.iter().skip(from).take(most).copied().collect();
                let last = from + regions.len() >= state.regions.len();
                Ok((regions, *complete && last))
            }
        }
    }

    /// Pages registered now.
    pub fn pages(&self) -> u64 {
        self.state().pages
    }

    /// Unpinned so long ago that it may be pinned again.
    fn rested(&self) -> bool {
        matches!(self.state().life, Life::Unpinned(since) if since.elapsed() >= REST)
    }
}

/// Registers seeds of a node, within a bound on pinned memory.
pub struct Exporter {
    device: Device,
    completions: Completions,
    pages_max: u64,
    clock: AtomicU64,
    seeds: Mutex<HashMap<SeedId, Arc<Export>>>,
}

impl Exporter {
    /// An exporter on a device that pins at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`RdmaError`] when the device refuses.
    pub fn new(device: Device, bytes_max: u64) -> Result<Exporter, RdmaError> {
        let completions = Completions::new(&device)?;
        let (clock, seeds) = (AtomicU64::new(0), Mutex::default());
        Ok(Exporter { device, completions, pages_max: bytes_max / PAGE as u64, clock, seeds })
    }

    /// The device, for people.
    pub fn describe(&self) -> String {
        self.device.describe()
    }

    fn seeds(&self) -> MutexGuard<'_, HashMap<SeedId, Arc<Export>>> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registered memory of a seed. The first time, and again when it is asked for some time
    /// after it was unpinned, a thread begins to register the pages `owned` (ranges `[start, end)`):
    /// those of `learned`, which children are known to touch, before the others.
    ///
    /// # Errors
    /// [`RdmaError`] when no protection domain can be had.
    pub fn export(
        self: &Arc<Exporter>,
        seed: SeedId,
        owned: &[(u64, u64)],
        learned: &[u64],
        fill: Fill,
    ) -> Result<Arc<Export>, RdmaError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut seeds = self.seeds();
        if let Some(export) = seeds.get(&seed).filter(|export| !export.rested()) {
            export.used.store(now, Ordering::Relaxed);
            return Ok(Arc::clone(export));
        }
        let life = Life::Live { complete: false };
        let state = State { life, memory: Vec::new(), regions: Vec::new(), pages: 0 };
        let export = Arc::new(Export {
            pd: self.device.pd()?,
            completions: self.completions.clone(),
            state: Mutex::new(state),
            used: AtomicU64::new(now),
        });
        seeds.insert(seed, Arc::clone(&export));
        drop(seeds);
        let (exporter, mine, owned) =
            (Arc::clone(self), Arc::clone(&export), order(owned, learned));
        let work = move || {
            if let Err(why) = exporter.register(&mine, &owned, &fill) {
                mine.end(Life::Over(why));
            }
        };
        if let Err(e) = std::thread::Builder::new().name("rdma-pin".into()).spawn(work) {
            export.end(Life::Over(e.to_string()));
        }
        Ok(export)
    }

    /// A seed has ended: peers' reads of it fail when this returns.
    pub fn end(&self, seed: SeedId, why: &str) {
        let export = self.seeds().remove(&seed);
        if let Some(export) = export {
            export.end(Life::Over(why.to_owned()));
        }
    }

    /// Pages registered of a seed.
    pub fn pages(&self, seed: SeedId) -> u64 {
        let export = self.seeds().get(&seed).cloned();
        export.map_or(0, |export| export.pages())
    }

    fn register(&self, export: &Export, owned: &[(u64, u64)], fill: &Fill) -> Result<(), String> {
        for chunk in chunks(owned) {
            let pages: u64 = chunk.iter().map(|(start, end)| end - start).sum();
            if !self.room(export, pages) {
                // What there is no room for stays with TCP.
                break;
            }
            let memory = Exported::new(&export.pd, pages as usize * PAGE, |out| {
                copy(&chunk, fill, out).map_err(|e| Stop(e.to_string()))
            });
            let memory = memory.map_err(|Stop(why)| why)?;
            let mut state = export.state();
            if let Some(why) = state.life.ended() {
                return Err(why);
            }
            let (mut address, rkey) = (memory.address(), memory.rkey());
            for (start, end) in chunk {
                let pages = (end - start) as u32;
                state.regions.push(RdmaRegion { page: start, pages, address, rkey });
                address += u64::from(pages) * PAGE as u64;
            }
            state.memory.push(memory);
            state.pages += pages;
        }
        let mut state = export.state();
        if let Life::Live { complete } = &mut state.life {
            *complete = true;
        }
        Ok(())
    }

    /// Makes room for `pages`, at the cost of seeds used longer ago than `export`.
    fn room(&self, export: &Export, pages: u64) -> bool {
        loop {
            let all: Vec<Arc<Export>> = self.seeds().values().cloned().collect();
            let pinned: u64 = all.iter().map(|one| one.pages()).sum();
            if pinned + pages <= self.pages_max {
                return true;
            }
            let mine = export.used.load(Ordering::Relaxed);
            let older = all.iter().filter(|one| one.pages() > 0);
            let older = older.map(|one| (one.used.load(Ordering::Relaxed), one));
            match older.filter(|(used, _)| *used < mine).min_by_key(|(used, _)| *used) {
                Some((_, oldest)) => oldest.end(Life::Unpinned(Instant::now())),
                None => return false,
            }
        }
    }
}

/// Why a copy was given up.
struct Stop(String);

impl From<RdmaError> for Stop {
    fn from(error: RdmaError) -> Stop {
        Stop(error.to_string())
    }
}

fn copy(chunk: &[(u64, u64)], fill: &Fill, out: &mut [u8]) -> Result<(), ReadError> {
    let mut rest = out;
    for &(start, end) in chunk {
        let mut at = start;
        while at < end {
            let count = STEP.min(end - at);
            let (part, tail) = rest.split_at_mut(count as usize * PAGE);
            fill(Vpn(at), count as u32, part)?;
            (at, rest) = (at + count, tail);
        }
    }
    Ok(())
}

/// Page ranges with the blocks of `learned` pages before all others: the first of them, as many as
/// are registered together.
fn order(owned: &[(u64, u64)], learned: &[u64]) -> Vec<(u64, u64)> {
    let mut blocks = HashSet::new();
    for page in learned {
        if blocks.len() as u64 == CHUNK / BLOCK {
            break;
        }
        blocks.insert(page / BLOCK);
    }
    let mut early: Vec<(u64, u64)> = Vec::new();
    let mut late: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in owned {
        let mut at = start;
        while at < end {
            let stop = ((at / BLOCK + 1) * BLOCK).min(end);
            let part = if blocks.contains(&(at / BLOCK)) { &mut early } else { &mut late };
            match part.last_mut() {
                Some((_, last)) if *last == at => *last = stop,
                _ => part.push((at, stop)),
            }
            at = stop;
        }
    }
    early.append(&mut late);
    early
}

/// Cuts page ranges into groups of at most [`CHUNK`] pages.
fn chunks(owned: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
    let (mut all, mut now, mut room) = (Vec::new(), Vec::new(), CHUNK);
    for &(start, end) in owned {
        let mut at = start;
        while at < end {
            let count = room.min(end - at);
            now.push((at, at + count));
            (at, room) = (at + count, room - count);
            if room == 0 {
                all.push(std::mem::take(&mut now));
                room = CHUNK;
            }
        }
    }
    if !now.is_empty() {
        all.push(now);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_every_page_once_and_no_more_than_they_may() {
        let owned = [(3, 5), (100, 100 + 2 * CHUNK), (99_999, 100_000)];
        let all = chunks(&owned);
        for chunk in &all {
            assert!(chunk.iter().map(|(start, end)| end - start).sum::<u64>() <= CHUNK);
        }
        let pages = |ranges: &[(u64, u64)]| -> Vec<u64> {
            ranges.iter().flat_map(|(start, end)| *start..*end).collect()
        };
        assert_eq!(pages(&all.concat()), pages(&owned));
    }

    #[test]
    fn learned_pages_come_first_with_those_around_them_and_none_is_lost() {
        let owned = [(3, 100), (1000, 1040)];
        assert_eq!(order(&owned, &[]), owned);
        // Page 500 is not owned by the seed.
        let now = order(&owned, &[1020, 4, 500, 5]);
        assert_eq!(now, [(3, 16), (1008, 1024), (16, 100), (1000, 1008), (1024, 1040)]);
    }

    #[test]
    fn no_more_is_preferred_than_is_registered_together() {
        let learned: Vec<u64> = (0..2 * CHUNK).rev().map(|n| n * 2 * BLOCK).collect();
        let all = order(&[(0, 4 * CHUNK * BLOCK)], &learned);
        let (early, late) = all.split_at((CHUNK / BLOCK) as usize);
        assert!(early.iter().all(|(start, end)| end - start == BLOCK && start % (2 * BLOCK) == 0));
        assert_eq!(late.first().map(|(start, _)| *start), Some(0));
        assert_eq!(all.iter().map(|(start, end)| end - start).sum::<u64>(), 4 * CHUNK * BLOCK);
    }

    #[test]
    fn a_copy_lays_ranges_side_by_side_and_ends_with_the_first_error() {
        let fill: Fill = Box::new(|page, count, out| {
            for (n, bytes) in out.chunks_mut(PAGE).enumerate() {
                bytes.fill(page.0 as u8 + n as u8);
            }
            assert_eq!(out.len(), count as usize * PAGE);
            if page.0 > 100 { Err(ReadError::Revoked) } else { Ok(()) }
        });
        let mut out = vec![0; 4 * PAGE];
        assert_eq!(copy(&[(1, 3), (9, 11)], &fill, &mut out), Ok(()));
        let firsts: Vec<u8> = out.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(firsts, [1, 2, 9, 10]);
        assert_eq!(copy(&[(101, 102)], &fill, &mut out), Err(ReadError::Revoked));
    }
}
