//! Guards made ahead of time. One thread makes them; takers wait only when none is ready.

use crate::{Guard, GuardImage, Network, SandboxError};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many guards are kept ready.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// With the node's network.
    pub node_net: usize,
    /// With a network namespace of their own. They are made from the first time one is asked for.
    pub own_net: usize,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig { node_net: 8, own_net: 4 }
    }
}

#[derive(Default)]
struct State {
    node: Vec<Guard>,
    own: Vec<Guard>,
    own_wanted: bool,
    waiting_node: usize,
    waiting_own: usize,
    failed: Option<String>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool. Dropping it ends the guards that were not taken.
pub struct Pool {
    shared: Arc<Shared>,
    maker: Option<JoinHandle<()>>,
}

const TAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the maker lets others work when nobody waits for a guard: a child that has just got one
/// starts meanwhile, and answers.
const PAUSE: Duration = Duration::from_millis(40);
/// How long it does when less than half of the guards are left.
const PAUSE_SHORT: Duration = Duration::from_millis(5);

impl Pool {
    /// Starts making guards that watch the pager behind `pager` (a pidfd).
    ///
    /// # Errors
    /// The guard image cannot be made, or the thread not be started.
    pub fn new(config: PoolConfig, pager: OwnedFd) -> Result<Pool, SandboxError> {
        let image = GuardImage::new()?;
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new() });
        let theirs = shared.clone();
        let maker = std::thread::Builder::new()
            .name("guard-pool".into())
            .spawn(move || fill(&theirs, config, &image, &pager))
            .map_err(|e| SandboxError::NotReady(e.to_string()))?;
        Ok(Pool { shared, maker: Some(maker) })
    }

    /// Takes a guard; waits (at most 10 s) if none is ready.
    ///
    /// # Errors
    /// Guards cannot be made (the reason is in the error), or the pool is closed.
    pub fn take(&self, network: Network) -> Result<Guard, SandboxError> {
        let mut state = self.shared.lock();
        state.own_wanted |= network == Network::Own;
        loop {
            let list = if network == Network::Own { &mut state.own } else { &mut state.node };
            if let Some(guard) = list.pop() {
                self.shared.changed.notify_all();
                return Ok(guard);
            }
            if state.closed {
                return Err(SandboxError::Closed);
            }
            if let Some(reason) = state.failed.take() {
                return Err(SandboxError::NotReady(reason));
            }
            *waiting(&mut state, network) += 1;
            self.shared.changed.notify_all();
            let (back, timeout) = self
                .shared
                .changed
                .wait_timeout(state, TAKE_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            *waiting(&mut state, network) -= 1;
            if timeout.timed_out() {
                return Err(SandboxError::NotReady("none in 10 s".into()));
            }
        }
    }
}

fn waiting(state: &mut State, network: Network) -> &mut usize {
    if network == Network::Own { &mut state.waiting_own } else { &mut state.waiting_node }
}

/// What to make next, if anything.
fn wanted(state: &State, config: PoolConfig) -> Option<Network> {
    if state.failed.is_some() {
        return None;
    }
    let own = if state.own_wanted { config.own_net.max(state.waiting_own) } else { 0 };
    if state.waiting_own > state.own.len() {
        return Some(Network::Own);
    }
    if state.node.len() < config.node_net.max(state.waiting_node) {
        return Some(Network::Node);
    }
    (state.own.len() < own).then_some(Network::Own)
}

fn fill(shared: &Shared, config: PoolConfig, image: &GuardImage, pager: &OwnedFd) {
    let mut state = shared.lock();
    let mut rested = true;
    loop {
        if state.closed {
            break;
        }
        if wanted(&state, config).is_none() {
            rested = false;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        if !rested && state.waiting_node + state.waiting_own == 0 {
            // A guard was just taken: the child that it was taken for comes first.
            let pause = if 2 * state.node.len() < config.node_net { PAUSE_SHORT } else { PAUSE };
            let pause = shared.changed.wait_timeout_while(state, pause, |state| {
                state.waiting_node + state.waiting_own == 0 && !state.closed
            });
            state = pause.unwrap_or_else(PoisonError::into_inner).0;
            rested = true;
        }
        let Some(network) = wanted(&state, config).filter(|_| !state.closed) else { continue };
        drop(state);
        let made = Guard::start(image, pager.as_fd(), network);
        state = shared.lock();
        match made {
            Ok(guard) if network == Network::Own => state.own.push(guard),
            Ok(guard) => state.node.push(guard),
            Err(e) => state.failed = Some(e.to_string()),
        }
        shared.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (node, own) = {
            let mut state = self.shared.lock();
            state.closed = true;
            (std::mem::take(&mut state.node), std::mem::take(&mut state.own))
        };
        self.shared.changed.notify_all();
        node.into_iter().chain(own).for_each(|guard| {
            let _ = guard.end();
        });
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
        let mut state = self.shared.lock();
        let late: Vec<Guard> = state.node.drain(..).collect();
        let late_own: Vec<Guard> = state.own.drain(..).collect();
        drop(state);
        late.into_iter().chain(late_own).for_each(|guard| {
            let _ = guard.end();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards come up in namespaces of their own and are gone when the pool is dropped.
    #[test]
    fn guards_start_and_end() {
        let me = rustix::process::getpid();
        let pager =
            rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let pool = Pool::new(PoolConfig { node_net: 2, own_net: 1 }, pager).expect("pool");
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
