//! The children of this node: a mirror of what the pager knows, and what only the daemon knows.

mod end;
mod late;
mod row;
mod start;
mod wait;

pub(crate) use end::{End, Ended, Guarded, shell_status};
pub(crate) use start::Start;

use crate::listeners::Share;
use mitosis_pager::{ChildId, ChildStats};
use rustix::process::{Signal, pidfd_send_signal};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most ended children remembered.
const ENDED_MAX: usize = 1000;
/// How long an ended child is remembered.
const ENDED_FOR: Duration = Duration::from_secs(600);

struct Child {
    start: Start,
    pidfd: Option<OwnedFd>,
    guard: Option<Guarded>,
    shares: Vec<Share>,
    /// The main process exited; its namespace may be kept for a seed.
    exited: Option<End>,
    /// Since when it has been seen that it exited, before its guard has told.
    late: Option<Instant>,
    end: Option<(End, Instant)>,
    /// Somebody writes down why it ends.
    announced: bool,
    stats: Option<ChildStats>,
}

/// The table.
#[derive(Default)]
pub(crate) struct Children {
    table: Mutex<BTreeMap<u64, Child>>,
    /// Ends of children that are not in the table: told before whoever starts them adds them.
    early: Mutex<VecDeque<(u64, End)>>,
    /// What the pager said of these at the end.
    early_stats: Mutex<VecDeque<ChildStats>>,
    changed: Condvar,
}

/// Most of them. Most starts take a millisecond or two; those that fail leave theirs behind.
const EARLY_MAX: usize = 2048;

impl Child {
    fn exit(&self) -> Option<End> {
        self.end.as_ref().map(|(end, _)| end).or(self.exited.as_ref()).cloned()
    }
}

impl Children {
    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, Child>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a running child.
    pub fn add(
        &self,
        start: Start,
        pidfd: Option<OwnedFd>,
        guard: Option<Guarded>,
        shares: Vec<Share>,
    ) {
        // The table first, so that `update` finds the one or the other.
        let mut table = self.table();
        let mut early = self.early_stats.lock().unwrap_or_else(PoisonError::into_inner);
        let at = early.iter().position(|stats| stats.child == ChildId(start.id));
        let stats = at.and_then(|at| early.remove(at));
        drop(early);
        let child = Child {
            pidfd,
            guard,
            shares,
            exited: None,
            late: None,
            end: None,
            announced: false,
            stats,
            start,
        };
        table.insert(child.start.id, child);
    }

    /// The end of a child that was told before it was added.
    pub fn early(&self, id: u64) -> Option<End> {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let at = early.iter().position(|(early, _)| *early == id)?;
        early.remove(at).map(|(_, end)| end)
    }

    /// Ids of the children that have not ended, namespaces kept included.
    pub fn live(&self) -> Vec<u64> {
        let table = self.table();
        table.iter().filter(|(_, child)| child.end.is_none()).map(|(id, _)| *id).collect()
    }

    /// Whether a child with this id has not ended.
    pub fn is_live(&self, id: u64) -> bool {
        self.table().get(&id).is_some_and(|child| child.end.is_none())
    }

    /// Pids of the running ones whose seed this is.
    pub fn pids_of_seed(&self, seed: &str) -> Vec<i32> {
        let table = self.table();
        let mine = table.values().filter(|c| c.start.seed == seed && c.exit().is_none());
        mine.map(|child| child.start.pid).collect()
    }

    /// The newest child with this pid: running ones first.
    fn by_pid(table: &BTreeMap<u64, Child>, pid: i32) -> Option<&Child> {
        let mut same = table.values().filter(|child| child.start.pid == pid);
        same.clone().rfind(|child| child.exit().is_none()).or_else(|| same.next_back())
    }

    /// The id of the child with this pid, if its main process runs.
    pub fn id_of(&self, pid: i32) -> Option<u64> {
        let table = self.table();
        Self::by_pid(&table, pid).filter(|child| child.exit().is_none()).map(|c| c.start.id)
    }

    /// The log of the newest child with this pid.
    pub fn log_of(&self, pid: i32) -> Option<PathBuf> {
        Self::by_pid(&self.table(), pid).map(|child| child.start.log.clone())
    }

    /// The logs of those that run.
    pub fn logs(&self) -> Vec<PathBuf> {
        let table = self.table();
        let live = table.values().filter(|child| child.end.is_none() && child.start.main.is_none());
        live.map(|child| child.start.log.clone()).collect()
    }

    /// The start record of a child.
    pub fn start_of(&self, id: u64) -> Option<Start> {
        self.table().get(&id).map(|child| child.start.clone())
    }

    /// Signals the main process of a child. `None`: no such child. An ended one: ESRCH.
    pub fn signal(&self, pid: i32, signal: Signal) -> Option<rustix::io::Result<()>> {
        let table = self.table();
        let child = Self::by_pid(&table, pid)?;
        match (&child.pidfd, child.exit()) {
            (Some(pidfd), None) => Some(pidfd_send_signal(pidfd, signal)),
            _ => Some(Err(rustix::io::Errno::SRCH)),
        }
    }

    /// The main process of a child exited; its namespace may stay for a seed. Returns what it was
    /// started as, the first time.
    pub fn exited(&self, id: u64, end: End) -> Option<Start> {
        let mut table = self.table();
        let running = |child: &&mut Child| child.end.is_none() && child.exited.is_none();
        let child = table.get_mut(&id).filter(running)?;
        child.exited = Some(end);
        child.pidfd = None;
        // Under the lock: who finds that it has ended finds its addresses free.
        child.shares.clear();
        let start = child.start.clone();
        drop(table);
        self.changed.notify_all();
        Some(start)
    }

    /// The child is about to end for a reason, which the first to be told here writes down.
    pub fn announce_end(&self, id: u64) -> Option<Start> {
        let mut table = self.table();
        let open = |child: &&mut Child| child.end.is_none() && child.exited.is_none();
        let child = table.get_mut(&id).filter(open)?;
        (!std::mem::replace(&mut child.announced, true)).then(|| child.start.clone())
    }

    /// A child ended, with everything in its namespace. Returns, the first time, what there is to
    /// say about it and its guard, to be reaped.
    pub fn ended(&self, id: u64, end: End) -> Option<Ended> {
        let mut table = self.table();
        if !table.contains_key(&id) {
            // Under the lock of the table, so that whoever adds it finds this.
            let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
            if early.len() == EARLY_MAX {
                early.pop_front();
            }
            early.push_back((id, end));
            return None;
        }
        let child = table.get_mut(&id).filter(|child| child.end.is_none())?;
        // One that exited earlier was not ended by what ended its kept namespace.
        let (end, told) = match child.exited.take() {
            Some(exited) => (exited, true),
            None => (end, false),
        };
        child.end = Some((end.clone(), Instant::now()));
        child.pidfd = None;
        // Under the lock, as above.
        child.shares.clear();
        let news = (!told).then_some(end);
        let ended = Ended { start: child.start.clone(), news, guard: child.guard.take() };
        drop(table);
        self.changed.notify_all();
        Some(ended)
    }

    /// Takes over what the pager says.
    pub fn update(&self, stats: Vec<ChildStats>) {
        let mut table = self.table();
        for one in stats {
            let ChildId(id) = one.child;
            match table.get_mut(&id) {
                Some(child) => child.stats = Some(one),
                None if one.state == mitosis_pager::ChildState::Ended => {
                    let early = self.early_stats.lock();
                    let mut early = early.unwrap_or_else(PoisonError::into_inner);
                    if early.len() == EARLY_MAX {
                        early.pop_front();
                    }
                    early.push_back(one);
                }
                None => {}
            }
        }
    }

    /// The root of the tree of which a child is a process; itself if it is alone.
    pub fn main_of(&self, id: u64) -> u64 {
        self.table().get(&id).and_then(|child| child.start.main).unwrap_or(id)
    }

    /// How many run.
    pub fn running(&self) -> usize {
        let table = self.table();
        table.values().filter(|c| c.start.main.is_none() && c.exit().is_none()).count()
    }

    /// Forgets what is too old or too much; returns what was forgotten.
    pub fn prune(&self, now: Instant) -> Vec<Start> {
        let mut table = self.table();
        let mut ended: Vec<(Instant, u64)> =
            table.iter().filter_map(|(id, c)| c.end.as_ref().map(|(_, at)| (*at, *id))).collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(ENDED_MAX);
        let old = |at: Instant| now.saturating_duration_since(at) > ENDED_FOR;
        let gone = ended.iter().enumerate().filter(|(n, (at, _))| *n < surplus || old(*at));
        let gone: Vec<u64> = gone.map(|(_, (_, id))| *id).collect();
        gone.iter().filter_map(|id| table.remove(id)).map(|child| child.start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(id: u64, pid: i32) -> Start {
        Start {
            id,
            pid,
            start_ticks: 0,
            seed: "s".into(),
            via: "direct".into(),
            transport: "tcp".into(),
            transport_why: String::new(),
            netns: None,
            generation: String::new(),
            start_us: 1,
            phases: Vec::new(),
            started_unix_ms: 0,
            log: PathBuf::new(),
            resident: None,
            groups: Vec::new(),
            main: None,
            functions: Vec::new(),
        }
    }

    fn exit(status: i32) -> End {
        End { status: Some(status), reason: None }
    }

    #[test]
    fn a_reused_pid_means_the_running_child() {
        let children = Children::default();
        children.add(start(1, 77), None, None, Vec::new());
        children.ended(1, End { status: Some(0), reason: None });
        children.add(start(2, 77), None, None, Vec::new());
        assert_eq!(children.id_of(77), Some(2));
        assert_eq!(children.wait(77, Duration::ZERO), Some(None));
        assert_eq!(children.wait(78, Duration::ZERO), None);
        children.ended(2, End { status: None, reason: Some("seed revoked".into()) });
        let end = children.wait(77, Duration::ZERO).flatten().unwrap();
        assert_eq!((end.exit, end.reason.as_deref()), (137, Some("seed revoked")));
    }

    #[test]
    fn the_end_of_a_kept_namespace_is_not_the_childs() {
        let children = Children::default();
        children.add(start(1, 5), None, None, Vec::new());
        children.exited(1, exit(3 << 8));
        children.ended(1, End { status: None, reason: Some("pager died".into()) });
        let end = children.wait(5, Duration::ZERO).flatten().unwrap();
        assert_eq!((end.exit, end.reason), (3, None));
    }

    #[test]
    fn an_end_is_told_in_words_and_when_it_is_known() {
        let children = Children::default();
        children.add(start(1, 5), None, None, Vec::new());
        assert!(children.exited(1, exit(9)).is_some());
        assert!(children.exited(1, exit(9)).is_none());
        let ended = children.ended(1, End { status: None, reason: Some("seed revoked".into()) });
        assert!(ended.unwrap().news.is_none(), "it was told already");
        children.add(start(2, 6), None, None, Vec::new());
        let ended = children.ended(2, End { status: Some(3 << 8), reason: None });
        let end = ended.unwrap().news.unwrap();
        assert_eq!(end.to_string(), "exited with status 3");
        let text = |status| End { status, reason: None }.to_string();
        assert_eq!(
            [text(Some(9)), text(Some(11 | 0x80))],
            ["ended by signal 9", "ended by signal 11"]
        );
    }

    #[test]
    fn an_end_is_told_once() {
        let children = Children::default();
        children.add(start(1, 5), None, None, Vec::new());
        let end = End { status: None, reason: None };
        assert!(children.ended(1, end.clone()).is_some());
        assert!(children.ended(1, end).is_none());
        assert!(children.early(1).is_none());
    }

    #[test]
    fn an_end_that_comes_before_its_child_is_not_lost() {
        let children = Children::default();
        assert!(children.ended(1, End { status: Some(0), reason: None }).is_none());
        children.add(start(1, 5), None, None, Vec::new());
        let end = children.early(1).unwrap();
        assert!(children.ended(1, end).is_some());
        assert!(children.early(1).is_none());
    }

    #[test]
    fn ended_children_are_forgotten_in_time() {
        let children = Children::default();
        children.add(start(1, 5), None, None, Vec::new());
        children.add(start(2, 6), None, None, Vec::new());
        children.ended(1, End { status: None, reason: None });
        assert!(children.prune(Instant::now()).is_empty());
        let later = Instant::now() + ENDED_FOR + Duration::from_secs(1);
        assert_eq!(children.prune(later).len(), 1);
        assert_eq!(children.rows().len(), 1);
    }
}
