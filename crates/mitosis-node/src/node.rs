//! The state of a running node, and how its seeds and children end.

use crate::children::{Children, End};
use crate::config::Config;
use crate::error::NodeError;
use crate::hashes::Hashes;
use crate::listeners::Listeners;
use crate::log::Log;
use crate::memory::{Place, Shadow};
use crate::pager::PagerSlot;
use crate::registry::Registry;
use crate::seed::Seed;
use crate::store::Store;
use crate::working_set::WorkingSets;
use mitosis_descriptor::SeedId;
use mitosis_pager::ChildId;
use mitosis_restore::NodeFacts;
use mitosis_transport::{ControlClient, SeedState};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

/// Everything that the threads of a daemon share. No lock in here is held across a wait.
pub(crate) struct Node {
    /// As it was started.
    pub config: Config,
    /// `HOST:PORT` in references.
    pub address: String,
    /// Standard error.
    pub log: Log,
    /// Seeds; shared with the page server.
    pub seeds: Arc<Registry>,
    /// Children.
    pub children: Children,
    /// Which file has which bytes.
    pub hashes: Hashes,
    /// Sockets that children of a seed share.
    pub listeners: Listeners,
    /// What of this machine matters to a restore.
    pub facts: NodeFacts,
    /// Parents that are being prepared.
    pub preparing: crate::turns::Turns,
    /// What is known of those that were prepared before.
    pub parents: crate::parents::Parents,
    /// Time namespaces for children.
    pub times: crate::time::Spaces,
    /// The pager.
    pub pager: PagerSlot,
    /// What a restarted daemon must know.
    pub store: Store,
    /// Descriptors of other nodes' seeds.
    pub nodes: ControlClient,
    /// Vdsos of other kernels.
    pub vdsos: crate::vdso::Vdsos,
    /// What children of seeds begin with.
    pub working_sets: WorkingSets,
    /// Whether more children are taken.
    pub admission: crate::admission::Admission,
    /// Processes to copy children from.
    pub templates: crate::template::Templates,
    /// What they said about RDMA.
    pub offers: crate::rdma::Offers,
    /// Set when the daemon ends.
    pub stop: Arc<AtomicBool>,
    /// Set when the page server has ended and its address is free.
    pub pages_closed: AtomicBool,
    /// Tells the main thread to end.
    pub ended: SyncSender<()>,
    last_id: AtomicU64,
}

/// The parts of a node that are there before it is.
pub(crate) struct Parts {
    pub config: Config,
    pub address: String,
    pub hashes: Hashes,
    pub facts: NodeFacts,
    pub store: Store,
    pub templates: crate::template::Templates,
    pub stop: Arc<AtomicBool>,
    pub ended: SyncSender<()>,
}

impl Node {
    /// A node without seeds, children or pager.
    pub fn new(parts: Parts) -> Node {
        let Config { memory_min, children_max, .. } = parts.config;
        Node {
            admission: crate::admission::Admission::new(memory_min, children_max),
            log: Log(parts.config.log_level),
            config: parts.config,
            address: parts.address,
            seeds: Arc::default(),
            children: Children::default(),
            hashes: parts.hashes,
            listeners: Listeners::default(),
            facts: parts.facts,
            preparing: crate::turns::Turns::default(),
            parents: crate::parents::Parents::default(),
            times: crate::time::Spaces::probe(),
            pager: PagerSlot::default(),
            store: parts.store,
            nodes: ControlClient::new(),
            vdsos: crate::vdso::Vdsos::default(),
            working_sets: WorkingSets::default(),
            templates: parts.templates,
            offers: crate::rdma::Offers::default(),
            stop: parts.stop,
            pages_closed: AtomicBool::new(false),
            ended: parts.ended,
            last_id: AtomicU64::new(0),
        }
    }

    /// Whether the daemon is ending.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// An id for a child: never used before, by earlier daemons of this node either.
    pub fn next_child_id(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Microseconds: the pager takes ids of 56 bits.
        let now = now.as_micros() as u64;
        let step = |last: u64| Some(now.max(last + 1));
        let last = self.last_id.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        now.max(last.unwrap_or(0) + 1)
    }

    /// Kills a shadow and ends the pager's interest in it.
    pub fn drop_shadow(&self, shadow: &Shadow) {
        shadow.kill();
        if let Some(pager) = self.pager.now() {
            // A pager that is gone has no interest either.
            let _ = pager.client.untrack_shadow(shadow.pid.unsigned_abs());
        }
    }

    /// Revokes a seed: no further page from now on, and no new child anywhere once this returns.
    /// Children that still need it are ended by whoever pages them.
    pub fn revoke(&self, id: SeedId) -> Result<(), NodeError> {
        let seed = self.seeds.get(id).filter(|seed| seed.tree.is_none());
        let seed = seed.and_then(|seed| self.seeds.remove(seed.id));
        let seed = seed.ok_or_else(|| NodeError::control("seed", "no such seed on this node"))?;
        self.end_seed(&seed, SeedState::Revoked, "seed revoked");
        // Until then other nodes may start children, which do not live long. Half a second at most.
        if let Some(leased) = seed.leased() {
            std::thread::sleep(leased.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Ends a seed that can no longer be found (`Revoked`), or marks one whose pages are gone
    /// (`Lost`).
    pub fn end_seed(&self, seed: &Seed, state: SeedState, reason: &str) {
        let place = seed.end(state, reason);
        // From here on no READ of it succeeds.
        self.seeds.end_rdma(seed.id, reason);
        if let Some(pager) = self.pager.now() {
            let told = pager.client.seed_state(seed.id, state);
            self.note("tell the pager of a seed's end", told);
        }
        if let Place::Shadow(shadow) = place {
            self.drop_shadow(&shadow);
        }
        self.end_kin(seed, state, reason);
        self.templates.drop_seed(&(self.address.clone(), seed.id));
        self.store.drop_seed(seed.id);
        self.release_home(seed);
        self.log.info(format_args!("seed {}: {reason}", seed.id));
    }

    /// A tree is whole or not at all: its root takes the others with it, and whoever is lost all.
    fn end_kin(&self, seed: &Seed, state: SeedState, reason: &str) {
        for other in self.seeds.kin(seed) {
            let lives = matches!(other.state(), SeedState::Alive | SeedState::Expiring);
            if lives && (state == SeedState::Lost || other.tree == Some(seed.id)) {
                if state == SeedState::Revoked {
                    self.seeds.remove(other.id);
                }
                self.end_seed(&other, state, reason);
            }
        }
    }

    /// The namespace of a child is no longer kept for a seed, unless another seed lives there.
    fn release_home(&self, seed: &Seed) {
        let Some(home) = seed.home else { return };
        let other = self.seeds.all().into_iter().any(|other| {
            other.home == Some(home) && other.id != seed.id && other.state() != SeedState::Lost
        });
        if let (false, true, Some(pager)) = (other, self.children.is_live(home), self.pager.now()) {
            self.note("release a namespace", pager.client.keep(ChildId(home), false));
        }
    }

    /// Ends a child, with everything in its namespace.
    pub fn end_child(&self, id: u64, reason: &str) {
        match self.pager.now().map(|pager| pager.client.end(ChildId(id), reason)) {
            Some(Ok(())) => {}
            // The pager does not know it, or there is none: its guard is gone, or ends here.
            _ => self.child_ended(id, End { status: None, reason: Some(reason.to_owned()) }),
        }
    }

    /// A child has ended: reap its guard, note the reason, give back what it held.
    pub fn child_ended(&self, id: u64, end: End) {
        let reason = end.reason.clone();
        // First: whoever sees that it has ended finds the reason in its log.
        if let Some(reason) = &reason
            && let Some(start) = self.children.announce_end(id)
            && start.main.is_none()
        {
            self.append_reason(&start, reason);
        }
        if let Some(ended) = self.children.ended(id, end) {
            if let Some(guard) = ended.guard {
                guard.end();
            }
            let start = ended.start;
            mitosis_sandbox::group::remove(&start.groups);
            if let Some(end) = ended.news.filter(|_| start.main.is_none()) {
                self.log.info(format_args!("child {}: {end}", start.pid));
            }
        }
    }

    /// The main process of a child has exited: what it held is free, even if its namespace stays.
    pub fn child_exited(&self, id: u64, status: i32) {
        let reason = self.children.start_of(id).and_then(|start| {
            let of = if start.main.is_none() { &*start.groups } else { &[] };
            let bytes = mitosis_sandbox::group::out_of_memory(of).filter(|_| status & 0x7f == 9)?;
            let why = format!("killed: its control group was out of memory ({} MiB)", bytes >> 20);
            self.append_reason(&start, &why);
            Some(why)
        });
        let end = End { status: Some(status), reason };
        let exited = self.children.exited(id, end.clone());
        if let Some(start) = exited.filter(|start| start.main.is_none()) {
            self.log.info(format_args!("child {}: {end}", start.pid));
        }
    }

    fn append_reason(&self, start: &crate::children::Start, reason: &str) {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(&start.log);
        let line = format!("mitosis: child {}: {reason}\n", start.pid);
        let written = log.and_then(|mut log| log.write_all(line.as_bytes()));
        self.note("write to a child's log", written);
    }

    /// Logs an error that changes nothing.
    pub fn note<E: std::fmt::Display>(&self, what: &str, result: Result<(), E>) {
        if let Err(error) = result {
            self.log.warn(format_args!("{what}: {error}"));
        }
    }

    /// Takes over the pager's figures. Those of children that have ended came with their ends.
    pub fn refresh(&self) {
        if let Some(pager) = self.pager.now() {
            match pager.client.stats_of_running() {
                Ok(stats) => self.children.update(stats),
                Err(error) => self.log.debug(format_args!("pager: {error}")),
            }
        }
    }

    /// Ends all children and seeds, the pager and the servers: when this returns, another daemon can
    /// start in the same place.
    pub fn end_everything(&self) {
        for id in self.children.live() {
            self.end_child(id, "the node was stopped");
        }
        for seed in self.seeds.all() {
            self.seeds.remove(seed.id);
            self.end_seed(&seed, SeedState::Revoked, "the node was stopped");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.children.live().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop.store(true, Ordering::Release);
        self.templates.clear();
        if let Some(pager) = self.pager.set(None) {
            match pager.client.shutdown() {
                Ok(()) => pager.reap(),
                Err(_) => pager.kill(),
            }
        }
        for start in self.store.children() {
            self.store.drop_child(&start);
        }
        self.store.close();
        let _ = std::fs::remove_file(self.config.run_path("pager.sock"));
        let log = self.config.state_dir.join("pager.log");
        if std::fs::metadata(&log).is_ok_and(|meta| meta.len() == 0) {
            let _ = std::fs::remove_file(log);
        }
        let _ = std::fs::remove_file(&self.config.socket);
        while !self.pages_closed.load(Ordering::Acquire) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
