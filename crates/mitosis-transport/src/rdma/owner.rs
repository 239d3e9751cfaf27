//! The owner's side: which pages of which seeds are registered.
//!
//! In the background, never on the way of `prepare`. Pages that the shadow shares with its parent are
//! copied into memory of the daemon: pinning them where they are would end the sharing, a copy as well,
//! and take one registration for each run. Pages that it has for itself (the parent is gone, or has
//! written its own since) are registered where they are, by the shadow itself.

use super::export::{Export, Life, Pinned};
use super::memory::{self, InPlace, Pinning, SeedMemory};
use super::networks::Networks;
use super::plan::{self, CHUNK, Ranges};
use crate::wire::PAGE;
use mitosis_descriptor::SeedId;
use mitosis_rdma_sys::{Device, Exposed, foreign};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Pages registered in one visit of the shadow: 64 MiB.
const VISIT: u64 = 16_384;

/// Registers seeds of a node, within a bound on pinned memory.
pub struct Exporter {
    device: Device,
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
    pub fn new(device: Device, bytes_max: u64, pinning: Pinning, networks: Networks) -> Exporter {
        let driver = device.driver().map_err(|e| e.to_string());
        let pages_max = bytes_max / PAGE as u64;
        let (clock, seeds) = (AtomicU64::new(0), Mutex::default());
        Exporter { device, pages_max, pinning, networks, driver, clock, seeds }
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
    pub fn export(
        self: &Arc<Exporter>,
        seed: SeedId,
        owned: &[(u64, u64)],
        learned: &[u64],
        memory: Arc<dyn SeedMemory>,
    ) -> Arc<Export> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut seeds = self.seeds();
        if let Some(export) = seeds.get(&seed).filter(|export| !export.rested()) {
            export.used.store(now, Ordering::Relaxed);
            return Arc::clone(export);
        }
        let export = Arc::new(Export::new(self, memory, now));
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
        export
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
        export.map_or_else(Pinned::default, |export| export.figures())
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
        export.complete(all);
        Ok(())
    }

    /// Registers copies; `false`: there is no room for more, what is left stays with TCP.
    pub(super) fn copies(&self, export: &Export, ranges: &[(u64, u64)]) -> Result<bool, String> {
        for chunk in plan::chunks(ranges, CHUNK) {
            let fits = self.fitting(export, &chunk);
            if !fits.is_empty() {
                let since = Instant::now();
                let (copy, parts) = memory::copy(&self.device, &fits, &*export.memory()?)?;
                export.add(vec![(Exposed::Own(copy), parts)], since, plan::pages(&fits))?;
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
                    .and_then(|driver| memory::in_place(&self.device, driver, &fits, &*memory));
                if let Err(why) = &done {
                    // Each attempt may take seconds.
                    driver = Err(why.clone());
                }
                let refused =
                    |why| InPlace { refused: fits.clone(), why: Some(why), ..InPlace::default() };
                let InPlace { memory: mine, refused, why } = done.unwrap_or_else(refused);
                let taken = mine.iter().map(|(_, p)| (p.page, p.page + u64::from(p.pages)));
                let shared = plan::pages(&plan::split(&plan::sorted(taken.collect()), free).1);
                let mine = mine.into_iter().map(|(one, part)| (Exposed::Foreign(one), vec![part]));
                export.add(mine.collect(), since, shared)?;
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
