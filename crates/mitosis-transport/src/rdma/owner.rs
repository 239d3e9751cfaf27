//! The owner's side: which pages of which seeds are registered.
//!
//! Pages are copied out of the shadow, in the background, into memory of the daemon that is
//! registered for remote reads: so registering does not end the shadow's sharing with the parent,
//! takes few registrations however scattered the pages are, and needs nothing of the shadow.

use crate::ReadError;
use crate::wire::{PAGE, RdmaRegion};
use mitosis_descriptor::{SeedId, Vpn};
use mitosis_rdma_sys::{Completions, Device, Exported, Pd, RdmaError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pages registered together: 16 MiB, so that the first are usable soon.
const CHUNK: u64 = 4096;
/// Pages copied at a time.
const STEP: u64 = 256;

/// Reads pages of a seed, as [`crate::OpenSeed::read`] does.
pub type Fill = Box<dyn Fn(Vpn, u32, &mut [u8]) -> Result<(), ReadError> + Send>;

/// What of a seed is registered.
enum Life {
    /// Being registered, or all that will be is.
    Live { complete: bool },
    /// Nothing, because of this. For good.
    Over(String),
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

    /// Deregisters everything: from now on every READ of it fails.
    fn end(&self, why: &str) {
        let mut state = self.state();
        state.life = Life::Over(why.to_owned());
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
            Life::Over(why) => Err(why.clone()),
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

    /// The registered memory of a seed. The first time a thread begins to register the pages
    /// `owned` (ranges `[start, end)`).
    ///
    /// # Errors
    /// [`RdmaError`] when no protection domain can be had.
    pub fn export(
        self: &Arc<Exporter>,
        seed: SeedId,
        owned: &[(u64, u64)],
        fill: Fill,
    ) -> Result<Arc<Export>, RdmaError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut seeds = self.seeds();
        if let Some(export) = seeds.get(&seed) {
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
        let (exporter, mine, owned) = (Arc::clone(self), Arc::clone(&export), owned.to_vec());
        let work = move || {
            if let Err(why) = exporter.register(&mine, &owned, &fill) {
                mine.end(&why);
            }
        };
        if let Err(e) = std::thread::Builder::new().name("rdma-pin".into()).spawn(work) {
            export.end(&e.to_string());
        }
        Ok(export)
    }

    /// A seed has ended: peers' reads of it fail when this returns.
    pub fn end(&self, seed: SeedId, why: &str) {
        let export = self.seeds().remove(&seed);
        if let Some(export) = export {
            export.end(why);
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
            if let Life::Over(why) = &state.life {
                return Err(why.clone());
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
                Some((_, oldest)) => oldest.end("unpinned: others needed the room"),
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
