//! One seed: what it is, who holds it, and what time does to it.

mod ahead;

use crate::habits::Places;
use crate::memory::{Memory, Place};
use crate::trail::Trail;
use ahead::Images;
use mitosis_descriptor::{Secret, SeedId};
use mitosis_proto::{Bound, SeedRow};
use mitosis_transport::{Lease, Refused, SeedState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long an expired seed serves pages at most.
const EXPIRING_MAX: Duration = Duration::from_secs(60);
/// How long it serves at least: a child started in time may be about to connect.
const EXPIRING_MIN: Duration = Duration::from_secs(2);
/// How long another node may start children without asking again: what `seed rm` may have to wait.
const LEASE: Duration = Duration::from_millis(500);

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
    /// Where in such processes which page is.
    pub places: Places,
    /// What changes about it.
    pub course: Course,
}

/// What happens to a seed in its life. Only the seed itself looks inside.
#[derive(Debug)]
pub(crate) struct Course {
    life: Mutex<Life>,
    readers: AtomicU64,
    forks: AtomicU64,
    /// What its children will need, as far as anybody has shown.
    trail: Mutex<Trail>,
    /// The beginning of that in files: what the first child on a node waits for, and all of it.
    images: Mutex<Images>,
}

impl Course {
    /// That of a seed which can be forked and was not yet.
    pub fn new(bound: Bound) -> Course {
        let life = Life {
            state: SeedState::Alive,
            reason: None,
            bound,
            expired_at: None,
            idle_since: None,
            leased: None,
        };
        Course {
            life: Mutex::new(life),
            readers: AtomicU64::new(0),
            forks: AtomicU64::new(0),
            trail: Mutex::new(Trail::new()),
            images: Mutex::default(),
        }
    }
}

impl Seed {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.course.life.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn lease(&self) -> Result<Lease, Refused> {
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

    /// Whether it was taken away.
    pub fn revoked(&self) -> bool {
        self.life().state == SeedState::Revoked
    }

    /// One reader more.
    pub fn opened(&self) {
        self.course.readers.fetch_add(1, Ordering::AcqRel);
    }

    /// One reader less.
    pub fn closed(&self) {
        self.course.readers.fetch_sub(1, Ordering::AcqRel);
    }

    /// One fork more.
    pub fn forked(&self) {
        self.course.forks.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of open readers.
    pub fn readers(&self) -> u64 {
        self.course.readers.load(Ordering::Acquire)
    }

    /// What becomes of it at `now`, given whether a child of this very node still needs it.
    pub fn advance(&self, now: SystemTime, needed_here: bool) -> Step {
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
            forks: self.course.forks.load(Ordering::Relaxed),
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
