//! The seeds of this node: who may fork them, who reads them, when they end.

use crate::error::NodeError;
use crate::habits::{Habits, Places};
use crate::kept::Kept;
use crate::memory::{Memory, Place};
use crate::rdma::OfSeed;
use crate::trail::{BEGINNING, Room, Trail};
use crate::working_set::Part;
use mitosis_descriptor::{Secret, SeedId, Vpn};
use mitosis_proto::{Bound, SeedRow};
use mitosis_transport::rdma::{Export, Exporter};
use mitosis_transport::wire::WORKING_SET_FIRST;

use mitosis_transport::{
    KeptPages, Lease, OpenSeed, ReadError, Refused, SeedService, SeedState, Want,
};
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long an expired seed serves pages at most.
const EXPIRING_MAX: Duration = Duration::from_secs(60);
/// How long it serves at least: a child started in time may be about to connect.
const EXPIRING_MIN: Duration = Duration::from_secs(2);
/// Most pages of all working sets that are kept in files: 256 MiB.
const IMAGE_PAGES_MAX: usize = 64 << 10;
/// What of these is left to beginnings, is not taken for all that is fetched along trails.
const TRAILS_PAGES_MAX: usize = IMAGE_PAGES_MAX / 4 * 3;
/// How long another node may start children without asking again: what `seed rm` may have to wait.
const LEASE: Duration = Duration::from_millis(500);
/// Most seeds of a node.
pub(crate) const SEEDS_MAX: usize = 4096;

/// What can change about a seed.
#[derive(Clone, Debug)]
struct Life {
    state: SeedState,
    reason: Option<String>,
    bound: Bound,
    expired_at: Option<SystemTime>,
    idle_since: Option<SystemTime>,
    /// When the last lease is over.
    leased: Option<Instant>,
}

/// A seed of this node.
#[derive(Debug)]
pub(crate) struct Seed {
    /// Public id.
    pub id: SeedId,
    /// The capability.
    pub secret: Secret,
    /// Name given by the caller.
    pub name: Option<String>,
    /// Pid of the parent, as the host sees it.
    pub parent_pid: i32,
    /// When it was made.
    pub created: SystemTime,
    /// When it expires.
    pub expires: Option<SystemTime>,
    /// The encoded descriptor, with this seed as owner 0.
    pub descriptor: Arc<[u8]>,
    /// Pages that hold data.
    pub pages_total: u64,
    /// Its own pages, and those of its mapped files.
    pub memory: Memory,
    /// Of a process of a tree that is not its root: the root's seed.
    pub tree: Option<SeedId>,
    /// The child of this node whose namespace it lives in, when the parent is one.
    pub home: Option<u64>,
    life: Mutex<Life>,
    readers: AtomicU64,
    forks: AtomicU64,
    /// Where in such processes which page is.
    places: Places,
    /// What its children will need, as far as anybody has shown.
    trail: Mutex<Trail>,
    /// The beginning of that in files: what the first child on a node waits for, and all of it.
    images: Mutex<Images>,
}

/// Beginnings of a trail, each with its pages in a file in memory.
#[derive(Debug, Default)]
struct Images {
    first: Option<Arc<Part>>,
    whole: Option<Arc<Part>>,
    /// What is fetched along the trail.
    kept: Kept,
}

impl Images {
    fn pages(&self) -> usize {
        let parts = [&self.first, &self.whole].into_iter().flatten();
        parts.map(|part| part.pages.len()).sum::<usize>() + self.kept.pages()
    }
}

/// The unchanging part of a seed.
pub(crate) struct SeedParts {
    pub id: SeedId,
    pub secret: Secret,
    pub name: Option<String>,
    pub parent_pid: i32,
    pub created: SystemTime,
    pub expires: Option<SystemTime>,
    pub descriptor: Arc<[u8]>,
    pub pages_total: u64,
    pub memory: Memory,
    pub tree: Option<SeedId>,
    pub home: Option<u64>,
    pub bound: Bound,
    pub places: Places,
}

impl Seed {
    /// A seed that can be forked.
    pub fn new(parts: SeedParts) -> Seed {
        let life = Life {
            state: SeedState::Alive,
            reason: None,
            bound: parts.bound,
            expired_at: None,
            idle_since: None,
            leased: None,
        };
        Seed {
            id: parts.id,
            secret: parts.secret,
            name: parts.name,
            parent_pid: parts.parent_pid,
            created: parts.created,
            expires: parts.expires,
            descriptor: parts.descriptor,
            pages_total: parts.pages_total,
            memory: parts.memory,
            tree: parts.tree,
            home: parts.home,
            life: Mutex::new(life),
            readers: AtomicU64::new(0),
            forks: AtomicU64::new(0),
            places: parts.places,
            trail: Mutex::new(Trail::new()),
            images: Mutex::default(),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state now. A seed past its time counts as expiring even before anybody has noted it.
    pub fn state(&self) -> SeedState {
        match self.life().state {
            SeedState::Alive if self.expires.is_some_and(|end| end <= SystemTime::now()) => {
                SeedState::Expiring
            }
            state => state,
        }
    }

    /// Sets where the seed stands with regard to the parent's pid namespace.
    pub fn set_bound(&self, bound: Bound) {
        self.life().bound = bound;
    }

    /// Where it stands.
    pub fn bound(&self) -> Bound {
        self.life().bound
    }

    /// Ends its life in `state`; its pages are nowhere from now on. Returns where they were.
    pub fn end(&self, state: SeedState, reason: &str) -> Place {
        {
            let mut life = self.life();
            life.state = state;
            life.reason = Some(reason.to_owned());
        }
        *self.images() = Images::default();
        self.memory.replace(Place::Gone(reason.to_owned()))
    }

    /// Lets another node start children without asking, for [`LEASE`], not beyond its own time.
    ///
    /// # Errors
    /// It is not alive any more.
    fn lease(&self) -> Result<Lease, Refused> {
        let working_set = self.trail_pages() as u32;
        let mut life = self.life();
        if life.state != SeedState::Alive {
            return Err(Refused);
        }
        let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
        let time = self.expires.map_or(LEASE, |end| left(end).min(LEASE));
        life.leased = Some(Instant::now() + time);
        Ok(Lease { time, working_set })
    }

    /// When the last lease of a seed that has ended is over.
    pub fn leased(&self) -> Option<Instant> {
        self.life().leased
    }

    /// An earlier daemon may have given leases.
    pub fn adopted(&self) {
        self.life().leased = Some(Instant::now() + LEASE);
    }

    fn known(&self) -> MutexGuard<'_, Trail> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trail_pages(&self) -> usize {
        self.known().pages().len()
    }

    /// What its children will need, in the order in which it became known.
    fn trail(&self) -> Vec<u64> {
        let mut trail = self.known();
        trail.look(&self.memory);
        trail.pages().to_vec()
    }

    /// The part of the working set that a node wants, ascending.
    pub fn working_set(&self, want: Want) -> Vec<u64> {
        want.part(self.trail())
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first pages of the working set in a file in memory, at most `most` of them, if there is
    /// such a file.
    pub fn image(&self, most: usize) -> Option<Arc<Part>> {
        // Of a long working set only the beginning is in a file.
        if most > BEGINNING && self.trail_pages() > BEGINNING {
            return None;
        }
        let images = self.images();
        let fits = |part: &&Arc<Part>| part.pages.len() <= most;
        let first = || images.first.as_ref().filter(|_| most <= WORKING_SET_FIRST);
        images.whole.as_ref().filter(fits).or_else(|| first().filter(fits)).cloned()
    }

    /// Makes these files, or larger ones, as far as `room` pages are enough: the beginning that the
    /// parent's writes or other seeds of its program suggest, and all that children have told. The
    /// seed's memory never changes, so the files stay right as long as the seed lives.
    ///
    /// # Errors
    /// No memory, or the seed has ended.
    pub fn make_images(&self, room: usize) -> Result<(), NodeError> {
        let have = |part: &Option<Arc<Part>>| part.as_ref().map_or(0, |part| part.pages.len());
        let (have_first, have_whole) = {
            let images = self.images();
            (have(&images.first), have(&images.whole))
        };
        let (first, whole) = {
            let mut trail = self.known();
            // Now, so that the next fork need not.
            trail.look(&self.memory);
            // Mostly nothing: this is looked at four times a second, for each seed.
            let more = |pages: &[u64], have: usize| {
                let wanted = pages.len() > have && pages.len() - have <= room;
                wanted.then(|| pages.to_vec())
            };
            let (first, whole) = (trail.pages(), trail.beginning());
            let first = first.get(..WORKING_SET_FIRST).unwrap_or(first);
            let whole = more(whole, have_whole).filter(|_| trail.told());
            (more(first, have_first), whole)
        };
        let make = |pages: Option<Vec<u64>>| {
            let made = pages.map(|mut pages| {
                pages.sort_unstable();
                Part::read(self, pages).map(Arc::new)
            });
            made.transpose()
        };
        let (first, whole) = (make(first)?, make(whole)?);
        let mut images = self.images();
        // A seed that has ended meanwhile keeps nothing.
        if matches!(self.state(), SeedState::Alive | SeedState::Expiring) {
            images.first = first.or(images.first.take());
            images.whole = whole.or(images.whole.take());
        }
        Ok(())
    }

    /// Puts what children have told into the file that is sent along the trail, as far as `room`
    /// pages are enough; gives it up if it is not used, or if memory is `short`. One thread does this.
    ///
    /// # Errors
    /// As [`Seed::make_images`].
    fn keep_trail(&self, room: usize, short: bool) -> Result<(), NodeError> {
        let told = |trail: &Trail| if trail.told() { trail.pages().len() } else { 0 };
        // One lock after the other.
        let length = told(&self.known());
        {
            let kept = &mut self.images().kept;
            if short {
                *kept = Kept::default();
            }
            kept.sweep();
            if short || !kept.wants(length) {
                return Ok(());
            }
        }
        let trail = self.known().pages().to_vec();
        let Some(addition) = self.images().kept.lacks(&trail, room) else { return Ok(()) };
        let memory = addition.read(self)?;
        let mut images = self.images();
        if matches!(self.state(), SeedState::Alive | SeedState::Expiring) {
            images.kept.add(&addition, memory);
        }
        Ok(())
    }

    /// Number of open readers.
    pub fn readers(&self) -> u64 {
        self.readers.load(Ordering::Acquire)
    }

    /// What becomes of it at `now`, given whether a child of this very node still needs it.
    fn advance(&self, now: SystemTime, needed_here: bool) -> Step {
        let Some(expires) = self.expires.filter(|end| *end <= now) else { return Step::Nothing };
        let mut life = self.life();
        if life.state == SeedState::Lost {
            return Step::End;
        }
        if life.expired_at.is_none() {
            life.expired_at = Some(now);
            life.state = SeedState::Expiring;
            return Step::Announce;
        }
        if needed_here || self.readers() > 0 {
            life.idle_since = None;
        } else {
            life.idle_since.get_or_insert(now);
        }
        let over = now.duration_since(expires).unwrap_or_default();
        let idle = life.idle_since.map(|since| now.duration_since(since).unwrap_or_default());
        let unused = idle.is_some_and(|idle| idle >= EXPIRING_MIN / 2) && over >= EXPIRING_MIN;
        if unused || over >= EXPIRING_MAX { Step::End } else { Step::Nothing }
    }

    /// Its row in `seed ls`.
    pub fn row(&self) -> SeedRow {
        let state = match self.state() {
            SeedState::Alive => mitosis_proto::SeedState::Alive,
            SeedState::Expiring => mitosis_proto::SeedState::Expiring,
            SeedState::Lost | SeedState::Revoked => mitosis_proto::SeedState::Lost,
        };
        let now = SystemTime::now();
        let ms = |time: Duration| time.as_millis() as u64;
        let (reason, bound) = {
            let life = self.life();
            (life.reason.clone(), life.bound)
        };
        SeedRow {
            seed: self.id.to_string(),
            name: self.name.clone(),
            state,
            reason,
            bound,
            parent_pid: self.parent_pid,
            shadow_pid: match self.memory.place() {
                Place::Shadow(shadow) => Some(shadow.pid),
                _ => None,
            },
            age_ms: ms(now.duration_since(self.created).unwrap_or_default()),
            ttl_left_ms: self.expires.map(|end| ms(end.duration_since(now).unwrap_or_default())),
            pages_total: self.pages_total,
            pages_owned: self.memory.pages_owned(),
            descriptor_bytes: self.descriptor.len() as u64,
            readers: self.readers(),
            forks: self.forks.load(Ordering::Relaxed),
            pages_rdma: 0,
            pages_rdma_shadow: 0,
            rdma_registrations: 0,
            rdma_copied_bytes: 0,
            rdma_register_us: 0,
            rdma_note: None,
            working_set: self.trail_pages() as u64,
        }
    }
}

/// What time does to a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Nothing.
    Nothing,
    /// Its time is over: tell those who depend on it.
    Announce,
    /// Nobody depends on it any more, or not for too long.
    End,
}

/// A seed opened by one connection.
struct Reader(Arc<Seed>, Result<Arc<Exporter>, String>, Arc<Habits>, Arc<Room>);

impl OpenSeed for Reader {
    fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        if self.0.life().state == SeedState::Revoked {
            return Err(ReadError::Revoked);
        }
        self.0.memory.read(source, count, out)
    }
    fn learn(&self, pages: &[u64]) {
        // Whoever tells of others would spoil every fork that follows.
        let pages: Vec<u64> =
            pages.iter().copied().filter(|page| self.0.memory.owns(*page)).collect();
        let known = {
            let mut trail = self.0.known();
            let before = trail.beginning().len();
            trail.learn(&pages, &self.3);
            let known = trail.beginning();
            (known.len() > before).then(|| known.to_vec())
        };
        self.0.images().kept.used();
        if let Some(known) = known {
            self.2.learn(&self.0.places, &known);
        }
    }
    fn trail(&self) -> Vec<u64> {
        self.0.trail()
    }
    fn told(&self) -> bool {
        self.0.known().told()
    }
    fn image(&self, most: usize) -> Option<(Arc<[u64]>, Arc<File>)> {
        self.0.image(most).map(|image| (Arc::clone(&image.pages), Arc::clone(&image.file)))
    }
    fn kept(&self, pages: &[u64]) -> Option<Vec<KeptPages>> {
        self.0.images().kept.find(pages)
    }
    fn rdma(&self) -> Result<Arc<Export>, String> {
        let exporter = self.1.as_ref().map_err(String::clone)?;
        let (owned, learned) = (self.0.memory.owned(), self.0.trail());
        let memory = Arc::new(OfSeed(Arc::clone(&self.0)));
        exporter.export(self.0.id, owned, &learned, memory).map_err(|e| e.to_string())
    }
    fn state(&self) -> SeedState {
        self.0.state()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

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
        seed.forks.fetch_add(1, Ordering::Relaxed);
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
        seed.readers.fetch_add(1, Ordering::AcqRel);
        seed.images().kept.used();
        let (habits, room) = (Arc::clone(&self.habits), Arc::clone(&self.room));
        Ok(Arc::new(Reader(seed, Registry::rdma(self), habits, room)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_descriptor::PAGE_SIZE;

    fn seed(number: u8, ttl: Option<Duration>) -> Arc<Seed> {
        let created = SystemTime::now();
        let memory = Memory::empty(Place::Gone("test".into()));
        Arc::new(Seed::new(SeedParts {
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
            bound: Bound::Free,
            places: Places::default(),
        }))
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
