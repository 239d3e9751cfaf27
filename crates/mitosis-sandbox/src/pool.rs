//! Guards made ahead of time, as many as are asked for. Takers wait only when none is ready.

use crate::{Groups, Guard, GuardImage, Network, Nursery, SandboxError, Users};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many guards are kept ready at least.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// With the node's network.
    pub node_net: usize,
    /// With a network namespace of their own. They are made from the first time one is asked for.
    pub own_net: usize,
    /// Where each gets a control group.
    pub groups: Option<Groups>,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig { node_net: 8, own_net: 4, groups: None }
    }
}

const TAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the makers let others work when nobody waits for a guard: a child that has just got one
/// starts meanwhile, and answers.
const PAUSE: Duration = Duration::from_millis(40);
/// How long they do when less than half of the guards are left.
const PAUSE_SHORT: Duration = Duration::from_millis(5);
/// As many as were taken in so long are kept ready,
const RECENT: Duration = Duration::from_millis(100);
/// but not more than this.
const DEMAND_MAX: usize = 64;
/// With so many taken lately there is no pause: somebody is waiting all the time.
const BUSY: usize = 6;
/// How long nobody takes one until those that are too many are ended.
const SURPLUS: Duration = Duration::from_secs(2);
/// Threads that make guards. Most of the time they wait for the kernel.
const MAKERS: usize = 2;

/// Guards of one kind.
#[derive(Default)]
struct Shelf {
    ready: Vec<Guard>,
    least: usize,
    waiting: usize,
    making: usize,
    taken: VecDeque<Instant>,
}

impl Shelf {
    /// How many were taken lately.
    fn recent(&self) -> usize {
        self.taken.iter().filter(|at| at.elapsed() < RECENT).count()
    }

    fn target(&self) -> usize {
        self.least.max(self.waiting).max(self.recent())
    }

    fn lacks(&self) -> bool {
        self.ready.len() + self.making < self.target()
    }

    fn note_taken(&mut self) {
        if self.taken.len() == DEMAND_MAX {
            self.taken.pop_front();
        }
        self.taken.push_back(Instant::now());
    }

    /// One that is too many, if nobody wanted any for a while.
    fn surplus(&mut self) -> Option<Guard> {
        let rest = self.taken.back().is_none_or(|at| at.elapsed() >= SURPLUS);
        if rest && self.ready.len() > self.target() { self.ready.pop() } else { None }
    }
}

#[derive(Default)]
struct State {
    node: Shelf,
    own: Shelf,
    failed: Option<String>,
    closed: bool,
    /// How often takers were woken.
    #[cfg(test)]
    woken: u64,
}

impl State {
    fn shelf(&mut self, network: Network) -> &mut Shelf {
        if network == Network::Own { &mut self.own } else { &mut self.node }
    }

    fn waiting(&self) -> usize {
        self.node.waiting + self.own.waiting
    }

    /// What to make next, if anything.
    fn wanted(&self) -> Option<Network> {
        if self.failed.is_some() {
            return None;
        }
        let urgent = |shelf: &Shelf| shelf.ready.len() + shelf.making < shelf.waiting;
        match (&self.node, &self.own) {
            (_, own) if urgent(own) => Some(Network::Own),
            (node, _) if node.lacks() => Some(Network::Node),
            (_, own) if own.lacks() => Some(Network::Own),
            _ => None,
        }
    }

    /// How long to let others work first.
    fn pause(&self) -> Duration {
        let shelves = [&self.node, &self.own];
        if shelves.iter().any(|shelf| shelf.recent() >= BUSY) {
            return Duration::ZERO;
        }
        let short = shelves.iter().any(|shelf| 2 * shelf.ready.len() < shelf.least);
        if short { PAUSE_SHORT } else { PAUSE }
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the makers: one was taken, or is waited for.
    taken: Condvar,
    /// For the takers. They wait apart from the makers, and wake nobody when they wait on: two of them
    /// would wake each other without an end.
    made: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool. Dropping it ends the guards that were not taken.
pub struct Pool {
    shared: Arc<Shared>,
    own_least: usize,
    groups: Option<Groups>,
    /// For guards that are not made ahead.
    nursery: Mutex<Nursery>,
    makers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts making guards that watch the pager behind `pager` (a pidfd).
    ///
    /// # Errors
    /// No thread, or no memory for the guard's program.
    pub fn new(config: PoolConfig, pager: OwnedFd) -> Result<Pool, SandboxError> {
        let image = GuardImage::new()?;
        let node = Shelf { least: config.node_net, ..Shelf::default() };
        let state = Mutex::new(State { node, ..State::default() });
        let shared = Arc::new(Shared { state, taken: Condvar::new(), made: Condvar::new() });
        let PoolConfig { own_net, groups, .. } = config;
        let nursery = Mutex::new(Nursery::new(&image, pager.as_fd())?);
        let mut pool = Pool { shared, own_least: own_net, groups, nursery, makers: Vec::new() };
        for _ in 0..MAKERS {
            let shared = pool.shared.clone();
            let mut nursery = Nursery::new(&image, pager.as_fd())?;
            let groups = pool.groups.clone();
            let maker = std::thread::Builder::new()
                .name("guard-pool".into())
                .spawn(move || make(&shared, &mut nursery, groups.as_ref()))
                .map_err(|e| SandboxError::NotReady(e.to_string()))?;
            pool.makers.push(maker);
        }
        Ok(pool)
    }

    /// Makes a guard in a user namespace of its own. There is none ahead: each is like its child's parent's.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind.
    pub fn make_below(&self, network: Network, users: &Users) -> Result<Guard, SandboxError> {
        let mut nursery = self.nursery.lock().unwrap_or_else(PoisonError::into_inner);
        Guard::start(&mut nursery, network, Some(users), self.groups.as_ref())
    }

    /// Takes a guard; waits (at most 10 s) if none is ready.
    ///
    /// # Errors
    /// Guards cannot be made (the reason is in the error), or the pool is closed.
    pub fn take(&self, network: Network) -> Result<Guard, SandboxError> {
        let mut state = self.shared.lock();
        if network == Network::Own {
            state.own.least = self.own_least;
        }
        let mut told = false;
        loop {
            if let Some(guard) = state.shelf(network).ready.pop() {
                state.shelf(network).note_taken();
                self.shared.taken.notify_all();
                return Ok(guard);
            }
            if state.closed {
                return Err(SandboxError::Closed);
            }
            if let Some(reason) = state.failed.take() {
                // The makers have stopped: others may wait for them.
                self.shared.taken.notify_all();
                return Err(SandboxError::NotReady(reason));
            }
            state.shelf(network).waiting += 1;
            if !told {
                // Two kinds are made by whoever is free, and one of the makers may pause.
                self.shared.taken.notify_all();
                told = true;
            }
            let (back, timeout) = self
                .shared
                .made
                .wait_timeout(state, TAKE_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            #[cfg(test)]
            {
                state.woken += 1;
            }
            state.shelf(network).waiting -= 1;
            if timeout.timed_out() {
                return Err(SandboxError::NotReady("none in 10 s".into()));
            }
        }
    }
}

/// Makes what is wanted, and ends what nobody wants any more, until the pool is closed.
fn make(shared: &Shared, nursery: &mut Nursery, groups: Option<&Groups>) {
    let mut state = shared.lock();
    let mut rested = true;
    while !state.closed {
        if state.wanted().is_none() {
            rested = false;
            let waited = shared.taken.wait_timeout(state, SURPLUS);
            let (back, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = back;
            while timeout.timed_out() {
                let surplus = state.node.surplus().or_else(|| state.own.surplus());
                let Some(guard) = surplus else { break };
                drop(state);
                guard.end();
                state = shared.lock();
            }
            continue;
        }
        let pause = state.pause();
        if !rested && state.waiting() == 0 && !pause.is_zero() {
            // A guard was just taken: the child that it was taken for comes first.
            let pause = shared
                .taken
                .wait_timeout_while(state, pause, |state| state.waiting() == 0 && !state.closed);
            state = pause.unwrap_or_else(PoisonError::into_inner).0;
            rested = true;
            continue;
        }
        let Some(network) = state.wanted() else { continue };
        state.shelf(network).making += 1;
        drop(state);
        let made = Guard::start(nursery, network, None, groups);
        state = shared.lock();
        let shelf = state.shelf(network);
        shelf.making -= 1;
        match made {
            Ok(guard) => shelf.ready.push(guard),
            Err(e) => state.failed = Some(e.to_string()),
        }
        if state.waiting() > 0 {
            shared.made.notify_all();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.taken.notify_all();
        self.shared.made.notify_all();
        for maker in self.makers.drain(..) {
            let _ = maker.join();
        }
        let mut state = self.shared.lock();
        let (node, own) =
            (std::mem::take(&mut state.node.ready), std::mem::take(&mut state.own.ready));
        drop(state);
        node.into_iter().chain(own).for_each(|guard| {
            let _ = guard.end();
        });
        if let Some(groups) = &self.groups {
            groups.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takers that find no guard wait on and wake nobody: two of them would else wake each other without
    /// an end. Here nobody makes any.
    #[test]
    fn takers_do_not_wake_one_another() {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            taken: Condvar::new(),
            made: Condvar::new(),
        });
        let me = rustix::process::getpid();
        let pager =
            rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let image = GuardImage::new().expect("image");
        let nursery = Mutex::new(Nursery::new(&image, pager.as_fd()).expect("nursery"));
        let pool = Pool { shared, own_least: 1, groups: None, nursery, makers: Vec::new() };
        let both_wait = |woken: u64| {
            while pool.shared.lock().waiting() < 2 || pool.shared.lock().woken < woken {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        std::thread::scope(|scope| {
            for network in [Network::Node, Network::Own] {
                let pool = &pool;
                scope.spawn(move || assert!(pool.take(network).is_err()));
            }
            both_wait(0);
            // As a maker does whose guard somebody else was faster to take.
            pool.shared.made.notify_all();
            both_wait(2);
            // Time for those that would wake each other.
            std::thread::sleep(Duration::from_millis(50));
            pool.shared.lock().closed = true;
            pool.shared.made.notify_all();
        });
        let woken = pool.shared.lock().woken;
        // Once each by the maker and by the end; a few more are the system's to give.
        assert!(woken <= 16, "{woken}");
    }

    /// Guards come up in namespaces of their own and are gone when the pool is dropped.
    #[test]
    fn guards_start_and_end() {
        let me = rustix::process::getpid();
        let pager =
            rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let pool =
            Pool::new(PoolConfig { node_net: 2, own_net: 1, groups: None }, pager).expect("pool");
        let guard = pool.take(Network::Node).expect("guard");
        let own = pool.take(Network::Own).expect("guard with a network");
        let ns = |pid: i32, kind: &str| {
            std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace")
        };
        let us = std::process::id() as i32;
        assert_ne!(ns(guard.pid, "pid"), ns(us, "pid"));
        assert_eq!(ns(guard.pid, "net"), ns(us, "net"));
        assert_ne!(ns(own.pid, "net"), ns(us, "net"));
        let pid = guard.pid;
        guard.end();
        own.end();
        drop(pool);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
