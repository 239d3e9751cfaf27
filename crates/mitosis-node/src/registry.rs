//! All seeds of this node, and who may fork and read them.

use crate::error::NodeError;
use crate::habits::Habits;
use crate::memory::Place;
use crate::reader::Reader;
use crate::seed::{Seed, Step};
use crate::trail::Room;
use mitosis_descriptor::{Secret, SeedId};
use mitosis_proto::SeedRow;
use mitosis_transport::rdma::Exporter;
use mitosis_transport::{Lease, OpenSeed, Refused, SeedService, SeedState};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

/// Most pages of all working sets that are kept in files: 256 MiB.
const IMAGE_PAGES_MAX: usize = 64 << 10;
/// What of these is left to beginnings, is not taken for all that is fetched along trails.
const TRAILS_PAGES_MAX: usize = IMAGE_PAGES_MAX / 4 * 3;
/// Most seeds of a node.
pub(crate) const SEEDS_MAX: usize = 4096;

/// All seeds of a node.
#[derive(Default)]
pub(crate) struct Registry {
    seeds: Mutex<HashMap<SeedId, Arc<Seed>>>,
    rdma: OnceLock<Result<Arc<Exporter>, String>>,
    habits: Arc<Habits>,
    /// For all trails.
    room: Arc<Room>,
}

impl Registry {
    fn seeds(&self) -> MutexGuard<'_, HashMap<SeedId, Arc<Seed>>> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What registers seeds for RDMA, or why nothing does. Once.
    pub fn set_rdma(&self, rdma: Result<Arc<Exporter>, String>) {
        let _ = self.rdma.set(rdma);
    }

    /// What registers seeds for RDMA.
    pub fn rdma(&self) -> Result<Arc<Exporter>, String> {
        self.rdma.get().cloned().unwrap_or_else(|| Err("not set up yet".into()))
    }

    /// Deregisters a seed: RDMA reads of it fail when this returns.
    pub fn end_rdma(&self, id: SeedId, why: &str) {
        if let Ok(exporter) = self.rdma() {
            exporter.end(id, why);
        }
    }

    /// The row of a seed in `seed ls`.
    pub fn row(&self, seed: &Seed) -> SeedRow {
        let pinned = self.rdma().map(|exporter| exporter.pinned(seed.id)).unwrap_or_default();
        SeedRow {
            pages_rdma: pinned.pages,
            pages_rdma_shadow: pinned.in_place,
            rdma_registrations: pinned.registrations,
            rdma_copied_bytes: pinned.copied,
            rdma_register_us: pinned.took.as_micros() as u64,
            rdma_note: pinned.note,
            ..seed.row()
        }
    }

    /// Adds a seed; `false` when there are too many.
    pub fn add(&self, seed: Arc<Seed>) -> bool {
        let mut guess = self.habits.guess(&seed.places);
        guess.retain(|page| seed.memory.owns(*page));
        seed.known().guess(&guess);
        let mut seeds = self.seeds();
        if seeds.len() >= SEEDS_MAX {
            return false;
        }
        seeds.insert(seed.id, seed);
        true
    }

    /// Takes a seed out: it can no longer be found.
    pub fn remove(&self, id: SeedId) -> Option<Arc<Seed>> {
        self.seeds().remove(&id)
    }

    /// A seed by its public id, for this node's own operator.
    pub fn get(&self, id: SeedId) -> Option<Arc<Seed>> {
        self.seeds().get(&id).cloned()
    }

    /// All seeds, oldest first.
    pub fn all(&self) -> Vec<Arc<Seed>> {
        let mut all: Vec<_> = self.seeds().values().cloned().collect();
        all.sort_by_key(|seed| seed.created);
        all
    }

    /// The seeds of the other processes of its tree.
    pub fn kin(&self, seed: &Seed) -> Vec<Arc<Seed>> {
        let root = seed.tree.unwrap_or(seed.id);
        let seeds = self.seeds();
        let kin = seeds.values().filter(|other| other.tree == Some(root) || other.id == root);
        kin.filter(|other| other.id != seed.id).cloned().collect()
    }

    /// The seed, if the capability is right: one answer for unknown and wrong.
    pub fn find(&self, id: SeedId, secret: &Secret) -> Result<Arc<Seed>, Refused> {
        let seed = self.get(id);
        // Compared even when there is none, so that the time does not tell either.
        let against = seed.as_ref().map_or(Secret([0; 32]), |seed| seed.secret);
        let right = against == *secret;
        seed.filter(|_| right).ok_or(Refused)
    }

    /// The seed, if it may be forked now. Counts the fork.
    pub fn forkable(&self, id: SeedId, secret: &Secret) -> Result<Arc<Seed>, Refused> {
        let seed = self.find(id, secret)?;
        // A process of a tree is forked with its root only.
        if seed.state() != SeedState::Alive || seed.tree.is_some() {
            return Err(Refused);
        }
        // That it has died is written down a moment later.
        if let Place::Shadow(shadow) = seed.memory.place()
            && !shadow.alive()
        {
            return Err(Refused);
        }
        seed.forked();
        Ok(seed)
    }

    /// Puts what children have told into files, within a bound on all of them together. If memory is
    /// `short` only the beginnings are there.
    ///
    /// # Errors
    /// The last failure; the others were tried all the same.
    pub fn make_images(&self, short: bool) -> Result<(), NodeError> {
        let seeds = self.all();
        let pages = |seed: &Arc<Seed>| seed.images().pages();
        let mut all: usize = seeds.iter().map(pages).sum();
        let mut result = Ok(());
        for seed in &seeds {
            let before = pages(seed);
            let left = |most: usize| most.saturating_sub(all);
            let made = seed
                .make_images(left(IMAGE_PAGES_MAX))
                .and_then(|()| seed.keep_trail(left(TRAILS_PAGES_MAX), short));
            // A seed that ends meanwhile gives all of them back.
            all = (all + pages(seed)).saturating_sub(before);
            if made.is_err() && seed.state() == SeedState::Alive {
                result = made;
            }
        }
        result
    }

    /// What time does to each seed that it does anything to.
    pub fn advance(
        &self,
        now: SystemTime,
        needed_here: impl Fn(&Seed) -> bool,
    ) -> Vec<(Arc<Seed>, Step)> {
        let steps = self.all().into_iter().map(|seed| {
            let step = seed.advance(now, needed_here(&seed));
            (seed, step)
        });
        steps.filter(|(_, step)| *step != Step::Nothing).collect()
    }
}

impl SeedService for Registry {
    fn fork(&self, seed: SeedId, secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        self.forkable(seed, secret).map(|seed| Arc::clone(&seed.descriptor))
    }

    fn vdso(&self, seed: SeedId, secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        self.forkable(seed, secret)?;
        // Every process of this machine has the same.
        let own = mitosis_sys::procfs::vdso(std::process::id() as i32);
        own.map(Arc::from).map_err(|_| Refused)
    }

    fn lease(&self, seed: SeedId, secret: &Secret) -> Result<Lease, Refused> {
        self.find(seed, secret)?.lease()
    }

    fn rdma(&self) -> Result<String, String> {
        Registry::rdma(self).map(|exporter| exporter.describe())
    }

    fn open(&self, seed: SeedId, secret: &Secret) -> Result<Arc<dyn OpenSeed>, Refused> {
        // A lost seed opens, so that its reader learns what happened; it reads nothing.
        let seed = self.find(seed, secret)?;
        let (habits, room) = (Arc::clone(&self.habits), Arc::clone(&self.room));
        Ok(Arc::new(Reader::new(seed, Registry::rdma(self), habits, room)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::habits::Places;
    use crate::memory::Memory;
    use crate::seed::Course;
    use mitosis_descriptor::{PAGE_SIZE, Vpn};
    use mitosis_proto::Bound;
    use mitosis_transport::ReadError;
    use std::time::Duration;

    fn seed(number: u8, ttl: Option<Duration>) -> Arc<Seed> {
        let created = SystemTime::now();
        let memory = Memory::empty(Place::Gone("test".into()));
        Arc::new(Seed {
            id: SeedId([number; 8]),
            secret: Secret([number; 32]),
            name: None,
            parent_pid: 1,
            created,
            expires: ttl.map(|ttl| created + ttl),
            descriptor: Arc::from(vec![number]),
            pages_total: 0,
            memory,
            tree: None,
            home: None,
            places: Places::default(),
            course: Course::new(Bound::Free),
        })
    }

    #[test]
    fn one_answer_for_unknown_wrong_and_expired() {
        let registry = Registry::default();
        registry.add(seed(1, None));
        registry.add(seed(2, Some(Duration::ZERO)));
        assert!(registry.fork(SeedId([1; 8]), &Secret([1; 32])).is_ok());
        let wrong = registry.fork(SeedId([1; 8]), &Secret([9; 32])).unwrap_err();
        let unknown = registry.fork(SeedId([3; 8]), &Secret([1; 32])).unwrap_err();
        let expired = registry.fork(SeedId([2; 8]), &Secret([2; 32])).unwrap_err();
        assert_eq!((wrong, unknown), (expired, expired));
    }

    #[test]
    fn a_removed_seed_is_neither_found_nor_read() {
        let registry = Registry::default();
        registry.add(seed(1, None));
        let open = registry.open(SeedId([1; 8]), &Secret([1; 32])).ok().unwrap();
        let removed = registry.remove(SeedId([1; 8])).unwrap();
        removed.end(SeedState::Revoked, "seed revoked");
        assert_eq!(open.state(), SeedState::Revoked);
        let mut page = vec![0; PAGE_SIZE as usize];
        assert_eq!(open.read(Vpn(1), 1, &mut page), Err(ReadError::Revoked));
        assert!(registry.fork(SeedId([1; 8]), &Secret([1; 32])).is_err());
        assert!(registry.open(SeedId([1; 8]), &Secret([1; 32])).is_err());
    }

    #[test]
    fn an_expired_seed_waits_for_its_readers_but_not_for_ever() {
        let registry = Registry::default();
        registry.add(seed(1, Some(Duration::from_secs(10))));
        let start = registry.all()[0].created;
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let step = |seconds, here| {
            let steps = registry.advance(at(seconds), |_| here);
            steps.first().map(|(_, step)| *step)
        };
        let reader = registry.open(SeedId([1; 8]), &Secret([1; 32])).ok();
        assert_eq!(step(9, false), None);
        assert_eq!(step(10, false), Some(Step::Announce));
        assert_eq!(step(20, false), None);
        drop(reader);
        assert_eq!(step(21, true), None);
        assert_eq!(step(22, false), None);
        assert_eq!(step(23, false), Some(Step::End));
        let _reader = registry.open(SeedId([1; 8]), &Secret([1; 32])).ok();
        assert_eq!(step(24, false), None);
        assert_eq!(step(70, false), Some(Step::End));
    }
}
