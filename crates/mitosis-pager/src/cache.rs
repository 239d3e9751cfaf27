//! Pages of other nodes' seeds that were fetched for a child of this node, for its siblings.
//!
//! The memory of a seed never changes, so what one child was sent another may have, too, if it has the
//! capability under which it was fetched. It is a cache and nothing else: what is not here is asked for,
//! and all of it may go at any moment. The oldest goes when there is too much; all of a seed's when nobody
//! has used it for long, or the seed has ended; everything when memory is short.

use crate::space::PAGE;
use mitosis_descriptor::{Owner, SeedId};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Pages that are forgotten together.
const CHUNK_PAGES: usize = 64;
/// Most pages of all seeds: 256 MiB.
const PAGES_MAX: usize = 64 << 10;
/// How long a seed's pages are kept that nobody asks for.
const KEPT: Duration = Duration::from_secs(20);

/// Some pages of one seed, in the order in which they came.
struct Chunk {
    seed: SeedId,
    pages: Vec<u64>,
    bytes: Vec<u8>,
    used: u64,
}

/// What there is of one seed.
struct Seed {
    owner: Owner,
    /// Chunk and place in it.
    places: HashMap<u64, (u64, u32)>,
    /// The chunk that is being filled.
    open: Option<u64>,
    used: Instant,
}

/// The cache.
pub(crate) struct Cache {
    seeds: HashMap<SeedId, Seed>,
    chunks: BTreeMap<u64, Chunk>,
    /// Counts uses and chunks.
    clock: u64,
    most: usize,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::of(PAGES_MAX)
    }
}

impl Cache {
    fn of(pages: usize) -> Cache {
        let most = pages / CHUNK_PAGES;
        Cache { seeds: HashMap::new(), chunks: BTreeMap::new(), clock: 0, most }
    }

    fn seed(&mut self, owner: &Owner) -> Option<&mut Seed> {
        self.seeds.get_mut(&owner.seed).filter(|seed| seed.owner == *owner)
    }

    /// Whether there is any page of a seed.
    pub fn knows(&self, owner: &Owner) -> bool {
        self.seeds.get(&owner.seed).is_some_and(|seed| seed.owner == *owner)
    }

    /// Whether a page of a seed is here.
    pub fn has(&self, owner: &Owner, page: u64) -> bool {
        let seed = self.seeds.get(&owner.seed).filter(|seed| seed.owner == *owner);
        seed.is_some_and(|seed| seed.places.contains_key(&page))
    }

    /// A page of a seed.
    pub fn get(&mut self, owner: &Owner, page: u64) -> Option<&[u8]> {
        let seed = self.seed(owner)?;
        let (chunk, place) = *seed.places.get(&page)?;
        seed.used = Instant::now();
        self.clock += 1;
        let chunk = self.chunks.get_mut(&chunk)?;
        chunk.used = self.clock;
        let at = place as usize * PAGE as usize;
        chunk.bytes.get(at..at + PAGE as usize)
    }

    /// Keeps a page that has come. Nobody waits for this.
    pub fn put(&mut self, owner: &Owner, page: u64, bytes: &[u8]) {
        self.clock += 1;
        let clock = self.clock;
        let fresh = || Seed {
            owner: owner.clone(),
            places: HashMap::new(),
            open: None,
            used: Instant::now(),
        };
        let seed = self.seeds.entry(owner.seed).or_insert_with(fresh);
        // Another secret for the same seed is none of ours.
        if seed.owner != *owner || seed.places.contains_key(&page) {
            return;
        }
        seed.used = Instant::now();
        let id = *seed.open.get_or_insert(clock);
        let chunk = self.chunks.entry(id).or_insert_with(|| Chunk {
            seed: owner.seed,
            pages: Vec::with_capacity(CHUNK_PAGES),
            bytes: Vec::with_capacity(CHUNK_PAGES * PAGE as usize),
            used: clock,
        });
        seed.places.insert(page, (id, chunk.pages.len() as u32));
        chunk.pages.push(page);
        chunk.bytes.extend_from_slice(bytes);
        chunk.used = clock;
        if chunk.pages.len() == CHUNK_PAGES {
            seed.open = None;
        }
        if self.chunks.len() > self.most {
            self.shrink();
        }
    }

    /// Forgets the chunk that was not used for longest.
    fn shrink(&mut self) {
        let oldest = self.chunks.iter().min_by_key(|(_, chunk)| chunk.used).map(|(id, _)| *id);
        let Some((id, chunk)) = oldest.and_then(|id| Some((id, self.chunks.remove(&id)?))) else {
            return;
        };
        let Some(seed) = self.seeds.get_mut(&chunk.seed) else { return };
        for page in &chunk.pages {
            seed.places.remove(page);
        }
        seed.open = seed.open.filter(|open| *open != id);
        if seed.places.is_empty() {
            self.seeds.remove(&chunk.seed);
        }
    }

    /// Forgets a seed that has ended.
    pub fn forget(&mut self, seed: SeedId) {
        if self.seeds.remove(&seed).is_some() {
            self.chunks.retain(|_, chunk| chunk.seed != seed);
        }
    }

    /// Forgets what nobody has used for long.
    pub fn sweep(&mut self, now: Instant) {
        let idle = |seed: &Seed| now.saturating_duration_since(seed.used) > KEPT;
        let idle = self.seeds.iter().filter(|(_, seed)| idle(seed)).map(|(id, _)| *id);
        for seed in idle.collect::<Vec<SeedId>>() {
            self.forget(seed);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Cache::of(self.most * CHUNK_PAGES);
    }

    /// Pages that are here.
    #[cfg(test)]
    fn pages(&self) -> usize {
        self.chunks.values().map(|chunk| chunk.pages.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_descriptor::Secret;

    fn owner(number: u8, secret: u8) -> Owner {
        let address = "10.0.0.1:7000".to_owned();
        Owner { address, seed: SeedId([number; 8]), secret: Secret([secret; 32]) }
    }

    fn page(number: u64) -> Vec<u8> {
        number.to_le_bytes().repeat(512)
    }

    #[test]
    fn a_page_is_had_by_whoever_has_the_capability_under_which_it_came() {
        let mut cache = Cache::default();
        cache.put(&owner(1, 1), 7, &page(7));
        cache.put(&owner(1, 1), 9, &page(9));
        assert_eq!(cache.get(&owner(1, 1), 7), Some(page(7).as_slice()));
        assert_eq!(cache.get(&owner(1, 1), 9), Some(page(9).as_slice()));
        assert_eq!(cache.get(&owner(1, 1), 8), None);
        assert_eq!(cache.get(&owner(1, 2), 7), None, "another secret");
        assert_eq!(cache.get(&owner(2, 1), 7), None, "another seed");
        cache.put(&owner(1, 2), 8, &page(0));
        assert_eq!(cache.get(&owner(1, 1), 8), None);
        assert_eq!(cache.get(&owner(1, 2), 8), None);
    }

    #[test]
    fn it_is_bounded_and_what_was_not_used_for_longest_goes_first() {
        let mut cache = Cache::of(4 * CHUNK_PAGES);
        let chunk = CHUNK_PAGES as u64;
        for n in 0..4 * chunk {
            cache.put(&owner(1, 1), n, &page(n));
        }
        assert!(cache.get(&owner(1, 1), 0).is_some());
        for n in 0..2 * chunk {
            cache.put(&owner(2, 1), n, &page(n + 1));
        }
        assert_eq!(cache.pages(), 4 * CHUNK_PAGES);
        let there =
            |cache: &mut Cache, n: u64| cache.get(&owner(1, 1), n) == Some(page(n).as_slice());
        let left: Vec<u64> = (0..4 * chunk).filter(|n| there(&mut cache, *n)).collect();
        let want: Vec<u64> = (0..chunk).chain(3 * chunk..4 * chunk).collect();
        assert_eq!(left, want);
        // What was forgotten can come again.
        cache.put(&owner(1, 1), chunk, &page(chunk));
        assert!(there(&mut cache, chunk));
    }

    #[test]
    fn a_seed_that_has_ended_and_one_that_is_idle_are_forgotten() {
        let mut cache = Cache::default();
        cache.put(&owner(1, 1), 1, &page(1));
        cache.put(&owner(2, 1), 1, &page(1));
        cache.forget(SeedId([1; 8]));
        assert!(!cache.knows(&owner(1, 1)) && cache.knows(&owner(2, 1)));
        cache.sweep(Instant::now());
        assert_eq!(cache.pages(), 1);
        cache.sweep(Instant::now() + 2 * KEPT);
        assert_eq!(cache.pages(), 0);
        cache.put(&owner(2, 1), 1, &page(1));
        cache.clear();
        assert!(cache.get(&owner(2, 1), 1).is_none());
    }
}
