//! The owner's side: which pages of which seeds are registered.
//!
//! In the background, never on the way of `prepare`. Pages that the shadow shares with its parent are
//! copied into memory of the daemon: pinning them where they are would end the sharing, a copy as well,
//! and take one registration for each run. Pages that it has for itself (the parent is gone, or has
//! written its own since) are registered where they are, by the shadow itself.

use super::memory::{self, InPlace, Pinning, SeedMemory};
use super::networks::Networks;
use super::plan::{self, CHUNK, Ranges};
use crate::wire::{DESCRIPTOR_REGISTERED_MAX, PAGE, RdmaRegion};
use mitosis_descriptor::SeedId;
use mitosis_rdma_sys::{Completions, Device, Exported, Foreign, Pd, RdmaError, foreign};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Pages of mapped files are registered with those around them: 4 MiB.
const MISSED: u64 = 1024;
/// Pages registered in one visit of the shadow: 64 MiB.
const VISIT: u64 = 16_384;
/// A seed that was unpinned for others is not pinned again before this has passed, so that seeds for
/// which there is no room together do not take turns.
const REST: Duration = Duration::from_secs(10);

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

/// What of a seed is registered, in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Pages registered now.
    pub pages: u64,
    /// Those of them that are where they were, in the shadow.
    pub in_place: u64,
    /// Registrations that hold them.
    pub registrations: u64,
    /// Bytes that were copied for it, by this process or by the kernel.
    pub copied: u64,
    /// What registering took.
    pub took: Duration,
    /// Why pages that could have been registered in the shadow were copied, or not registered.
    pub note: Option<String>,
}

struct State {
    life: Life,
    copies: Vec<Exported>,
    in_place: Vec<Foreign>,
    regions: Vec<RdmaRegion>,
    /// With its length.
    descriptor: Option<(Exported, usize)>,
    figures: Pinned,
    /// Registrations under way that somebody has missed.
    pending: u32,
    /// Until the end: a connection may keep the rest of this for long.
    memory: Option<Arc<dyn SeedMemory>>,
}

/// A seed's registered memory.
pub struct Export {
    pub(crate) pd: Pd,
    pub(crate) completions: Completions,
    state: Mutex<State>,
    used: AtomicU64,
    exporter: Weak<Exporter>,
    /// Parts of the address space of which pages of mapped files were asked for.
    missed: Mutex<HashSet<u64>>,
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
        state.copies.clear();
        state.in_place.clear();
        state.regions.clear();
        state.descriptor = None;
        state.memory = None;
        let Pinned { copied, took, note, .. } = std::mem::take(&mut state.figures);
        state.figures = Pinned { copied, took, note, ..Pinned::default() };
    }

    /// The memory to register from.
    fn memory(&self) -> Result<Arc<dyn SeedMemory>, String> {
        let state = self.state();
        let ended = || state.life.ended().unwrap_or_default();
        state.memory.clone().ok_or_else(ended)
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
                Ok((regions, *complete && state.pending == 0 && last))
            }
        }
    }

    /// Pages registered now, those of the descriptor included.
    fn pages(&self) -> u64 {
        let state = self.state();
        let descriptor = state.descriptor.as_ref().map_or(0, |(_, bytes)| bytes.div_ceil(PAGE));
        state.figures.pages + descriptor as u64
    }

    /// A node with a queue pair to this asked for pages over TCP. Those of mapped files are registered
    /// then, with what is around them: that node does not have the file.
    pub(crate) fn missed(self: &Arc<Export>, page: u64, count: u32) {
        let blocks = page / MISSED..=(page + u64::from(count.max(1)) - 1) / MISSED;
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            if !missed.insert(block) {
                continue;
            }
            let Ok(memory) = self.memory() else { return };
            let mapped = memory.mapped(block * MISSED, (block + 1) * MISSED);
            if mapped.is_empty() {
                continue;
            }
            self.state().pending += 1;
            let mine = Arc::clone(self);
            let work = move || {
                let done = mine.exporter.upgrade().map(|exporter| exporter.copies(&mine, &mapped));
                // A file that cannot be read any more: its readers are told, over TCP.
                if let Some(Err(why)) = done {
                    mine.note(why);
                }
                mine.state().pending -= 1;
            };
            // Where no thread is to be had, its pages go on coming over TCP.
            if std::thread::Builder::new().name("rdma-pin".into()).spawn(work).is_err() {
                self.state().pending -= 1;
            }
        }
    }

    /// Address, key and length of the seed's descriptor, which is registered when it is first asked
    /// for.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(crate) fn descriptor(&self, bytes: &[u8]) -> Result<(u64, u32, u32), String> {
        if bytes.is_empty() || bytes.len() > DESCRIPTOR_REGISTERED_MAX {
            return Err(format!("{} bytes are too many to be registered", bytes.len()));
        }
        let mut state = self.state();
        if let Some(why) = state.life.ended() {
            return Err(why);
        }
        let (memory, length) = match &mut state.descriptor {
            Some(known) => known,
            none => {
                let room = bytes.len().next_multiple_of(PAGE);
                let made = Exported::new(&self.pd, room, |out| {
                    out[..bytes.len()].copy_from_slice(bytes);
                    Ok::<(), RdmaError>(())
                });
                none.insert((made.map_err(|e| e.to_string())?, bytes.len()))
            }
        };
        Ok((memory.address(), memory.rkey(), *length as u32))
    }

    fn add(
        &self,
        copies: Option<Exported>,
        in_place: Vec<Foreign>,
        regions: Vec<RdmaRegion>,
        since: Instant,
        copied: u64,
    ) -> Result<(), String> {
        let pages: u64 = regions.iter().map(|region| u64::from(region.pages)).sum();
        let mut state = self.state();
        if let Some(why) = state.life.ended() {
            return Err(why);
        }
        let figures = &mut state.figures;
        figures.pages += pages;
        figures.registrations += (copies.iter().len() + in_place.len()) as u64;
        figures.took += since.elapsed();
        figures.copied += copied * PAGE as u64;
        if copies.is_none() {
            figures.in_place += pages;
        }
        state.copies.extend(copies);
        state.in_place.extend(in_place);
        state.regions.extend(regions);
        Ok(())
    }

    fn note(&self, why: String) {
        self.state().figures.note = Some(why);
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
    pinning: Pinning,
    networks: Networks,
    /// The number of the device's driver, or why shadows cannot register.
    driver: Result<u32, String>,
    clock: AtomicU64,
    seeds: Mutex<HashMap<SeedId, Arc<Export>>>,
}

impl Exporter {
    /// An exporter on a device that pins at most `bytes_max` bytes, for peers in these networks.
    ///
    /// # Errors
    /// [`RdmaError`] when the device refuses.
    pub fn new(
        device: Device,
        bytes_max: u64,
        pinning: Pinning,
        networks: Networks,
    ) -> Result<Exporter, RdmaError> {
        let completions = Completions::new(&device)?;
        let driver = device.driver().map_err(|e| e.to_string());
        let pages_max = bytes_max / PAGE as u64;
        let (clock, seeds) = (AtomicU64::new(0), Mutex::default());
        Ok(Exporter { device, completions, pages_max, pinning, networks, driver, clock, seeds })
    }

    /// The networks that are trusted.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
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
        memory: Arc<dyn SeedMemory>,
    ) -> Result<Arc<Export>, RdmaError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut seeds = self.seeds();
        if let Some(export) = seeds.get(&seed).filter(|export| !export.rested()) {
            export.used.store(now, Ordering::Relaxed);
            return Ok(Arc::clone(export));
        }
        let life = Life::Live { complete: false };
        let state = State {
            life,
            copies: Vec::new(),
            in_place: Vec::new(),
            regions: Vec::new(),
            descriptor: None,
            figures: Pinned::default(),
            pending: 0,
            memory: Some(memory),
        };
        let export = Arc::new(Export {
            pd: self.device.pd()?,
            completions: self.completions.clone(),
            state: Mutex::new(state),
            used: AtomicU64::new(now),
            exporter: Arc::downgrade(self),
            missed: Mutex::default(),
        });
        seeds.insert(seed, Arc::clone(&export));
        drop(seeds);
        let (exporter, mine) = (Arc::clone(self), Arc::clone(&export));
        let (early, late) = plan::order(owned, learned);
        let work = move || {
            if let Err(why) = exporter.register(&mine, early, late) {
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

    /// What is registered of a seed.
    pub fn pinned(&self, seed: SeedId) -> Pinned {
        let export = self.seeds().get(&seed).cloned();
        export.map_or_else(Pinned::default, |export| export.state().figures.clone())
    }

    fn register(&self, export: &Export, early: Ranges, late: Ranges) -> Result<(), String> {
        let memory = export.memory()?;
        let free = if self.driver.is_ok() && self.pinning != Pinning::Copy {
            memory.in_place(true)
        } else {
            Ranges::new()
        };
        let own = match self.pinning {
            Pinning::Copy => Ranges::new(),
            Pinning::Auto => plan::worth_it(free.clone()),
            Pinning::Shadow => memory.in_place(false),
        };
        let (early_own, early) = plan::split(&early, &own);
        let (late_own, late) = plan::split(&late, &own);
        let own = plan::eager(early_own, late_own);
        let all = self.copies(export, &early)?
            && self.in_place(export, &own, &free)?
            && self.copies(export, &late)?;
        let mut state = export.state();
        if !all && state.figures.note.is_none() {
            state.figures.note = Some("there is no room for more".into());
        }
        if let Life::Live { complete } = &mut state.life {
            *complete = true;
        }
        Ok(())
    }

    /// Registers copies; `false`: there is no room for more, what is left stays with TCP.
    fn copies(&self, export: &Export, ranges: &[(u64, u64)]) -> Result<bool, String> {
        for chunk in plan::chunks(ranges, CHUNK) {
            let fits = self.fitting(export, &chunk);
            if !fits.is_empty() {
                let since = Instant::now();
                let (copies, regions) = memory::copy(&export.pd, &fits, &*export.memory()?)?;
                export.add(Some(copies), Vec::new(), regions, since, plan::pages(&fits))?;
            }
            if fits != chunk {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Registers ranges where they are, and copies of those of which that cannot be done. What is not
    /// `free` the kernel copies.
    fn in_place(
        &self,
        export: &Export,
        ranges: &[(u64, u64)],
        free: &[(u64, u64)],
    ) -> Result<bool, String> {
        let memory = export.memory()?;
        let mut driver = self.driver.clone();
        for visit in plan::chunks(ranges, VISIT) {
            for part in visit.chunks(memory.calls_max(foreign::CALL).max(1)) {
                let fits = self.fitting(export, part);
                if fits.is_empty() {
                    return Ok(false);
                }
                let since = Instant::now();
                let done = driver
                    .clone()
                    .and_then(|driver| memory::in_place(&export.pd, driver, &fits, &*memory));
                if let Err(why) = &done {
                    // Each attempt may take seconds.
                    driver = Err(why.clone());
                }
                let refused =
                    |why| InPlace { refused: fits.clone(), why: Some(why), ..InPlace::default() };
                let InPlace { memory: mine, regions, refused, why } = done.unwrap_or_else(refused);
                let taken = regions.iter().map(|r| (r.page, r.page + u64::from(r.pages)));
                let shared = plan::pages(&plan::split(&plan::sorted(taken.collect()), free).1);
                export.add(None, mine, regions, since, shared)?;
                if let Some(why) = why {
                    export.note(why);
                }
                if !self.copies(export, &refused)? || fits != part {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The beginning of `ranges` for which there is room.
    fn fitting(&self, export: &Export, ranges: &[(u64, u64)]) -> Ranges {
        let wanted = plan::pages(ranges);
        match self.room(export, wanted) {
            0 => Ranges::new(),
            room if room >= wanted => ranges.to_vec(),
            room => plan::chunks(ranges, room).swap_remove(0),
        }
    }

    /// Makes room for `pages`, at the cost of seeds used longer ago than `export`; for how many there
    /// is.
    fn room(&self, export: &Export, pages: u64) -> u64 {
        loop {
            let all: Vec<Arc<Export>> = self.seeds().values().cloned().collect();
            let pinned: u64 = all.iter().map(|one| one.pages()).sum();
            if pinned + pages <= self.pages_max {
                return pages;
            }
            let mine = export.used.load(Ordering::Relaxed);
            let older = all.iter().filter(|one| one.pages() > 0);
            let older = older.map(|one| (one.used.load(Ordering::Relaxed), one));
            match older.filter(|(used, _)| *used < mine).min_by_key(|(used, _)| *used) {
                Some((_, oldest)) => oldest.end(Life::Unpinned(Instant::now())),
                None => return self.pages_max.saturating_sub(pinned),
            }
        }
    }
}
