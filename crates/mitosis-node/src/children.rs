//! The children of this node: a mirror of what the pager knows, and what only the daemon knows.

mod late;

use crate::listeners::Share;
use mitosis_pager::{ChildId, ChildStats};
use mitosis_proto::{ChildRow, ChildState, Exited, PhaseTime};
use rustix::process::{Signal, pidfd_send_signal};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Most ended children remembered.
const ENDED_MAX: usize = 1000;
/// How long an ended child is remembered.
const ENDED_FOR: Duration = Duration::from_secs(600);

/// A child, as it was started. Written to a file so that a restarted daemon knows it again.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Start {
    /// Name between daemon and pager.
    pub id: u64,
    /// Pid, as the host sees it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: with the pid, the identity of the process.
    pub start_ticks: u64,
    /// Public id of the seed.
    pub seed: String,
    /// How it was made.
    pub via: String,
    /// How its pages come.
    pub transport: String,
    /// Why that way.
    #[serde(default)]
    pub transport_why: String,
    /// Path of its own network namespace.
    pub netns: Option<String>,
    /// Its generation number.
    #[serde(default)]
    pub generation: String,
    /// Microseconds from the request to the first instruction.
    pub start_us: u64,
    /// Where that time went.
    pub phases: Vec<PhaseTime>,
    /// When, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Its log.
    pub log: PathBuf,
    /// The range that its restore left mapped, which is no part of its own image.
    pub resident: Option<(u64, u64)>,
    /// Its control groups.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
    /// Of a process of a tree that is not its root: the root's id.
    #[serde(default)]
    pub main: Option<u64>,
    /// Functions that a child of it may have to call.
    #[serde(default)]
    pub functions: Vec<mitosis_descriptor::Function>,
}

/// The end of a child.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Raw wait status of the main process, if it exited by itself.
    pub status: Option<i32>,
    /// Why it was ended.
    pub reason: Option<String>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, self.status) {
            (Some(reason), _) => f.write_str(reason),
            (None, Some(raw)) if raw & 0x7f == 0 => {
                write!(f, "exited with status {}", (raw >> 8) & 0xff)
            }
            (None, Some(raw)) => write!(f, "ended by signal {}", raw & 0x7f),
            (None, None) => f.write_str("ended"),
        }
    }
}

/// The guard of a running child: pid 1 of its namespace.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// Readable when the namespace is empty.
    pub pidfd: OwnedFd,
}

impl Guarded {
    /// Ends the guard, and with it everything in its namespace, and reaps it.
    pub fn end(self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}

/// What is left to do when everything of a child has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The child.
    pub start: Start,
    /// How it ended, unless that was told when its main process exited.
    pub news: Option<End>,
    /// Its guard, if there is one to be reaped.
    pub guard: Option<Guarded>,
}

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

/// Exit status as a shell has it.
pub(crate) fn shell_status(end: &End) -> i32 {
    match end.status {
        Some(raw) if raw & 0x7f == 0 => (raw >> 8) & 0xff,
        Some(raw) => 128 + (raw & 0x7f),
        // Whoever is ended by its node is ended by SIGKILL.
        None => 128 + 9,
    }
}

impl Child {
    fn exit(&self) -> Option<End> {
        self.end.as_ref().map(|(end, _)| end).or(self.exited.as_ref()).cloned()
    }

    fn row(&self) -> ChildRow {
        let start = &self.start;
        let end = self.exit();
        let stats = self.stats.as_ref();
        let started = SystemTime::UNIX_EPOCH + Duration::from_millis(start.started_unix_ms);
        let age = SystemTime::now().duration_since(started).unwrap_or_default();
        let number = |of: fn(&ChildStats) -> u64| stats.map_or(0, of);
        ChildRow {
            pid: start.pid,
            seed: start.seed.clone(),
            state: if end.is_some() { ChildState::Ended } else { ChildState::Running },
            exit: end.as_ref().map(shell_status),
            reason: end.and_then(|end| end.reason),
            pages_total: number(|s| s.pages_total),
            pages_fetched: number(|s| s.pages_fetched),
            pages_prefetched: number(|s| s.pages_prefetched),
            faults: number(|s| s.faults),
            bytes_fetched: number(|s| s.bytes_fetched),
            independent: stats.is_some_and(|s| s.independent),
            via: start.via.clone(),
            transport: start.transport.clone(),
            pages_rdma: number(|s| s.pages_rdma),
            pages_cached: number(|s| s.pages_cached),
            pages_held: number(|s| s.pages_held),
            pages_held_touched: number(|s| s.pages_held_touched),
            rdma_reach: number(|s| s.rdma_reach),
            rdma_link_us: number(|s| s.rdma_link_us),
            rdma_note: stats.and_then(|s| s.rdma_note.clone()),
            processes: 1,
            netns: start.netns.clone(),
            generation: start.generation.clone(),
            start_us: start.start_us,
            age_ms: age.as_millis() as u64,
            phases: start.phases.clone(),
        }
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

    /// Rows for `ps`, oldest first. A tree has one, with what all its processes have fetched.
    pub fn rows(&self) -> Vec<ChildRow> {
        let table = self.table();
        let mut rows: BTreeMap<u64, ChildRow> = BTreeMap::new();
        let alone = table.iter().filter(|(_, child)| child.start.main.is_none());
        rows.extend(alone.map(|(id, child)| (*id, child.row())));
        for child in table.values() {
            if let Some(row) = child.start.main.and_then(|main| rows.get_mut(&main)) {
                let more = child.row();
                row.processes += 1;
                row.pages_total += more.pages_total;
                row.pages_fetched += more.pages_fetched;
                row.pages_prefetched += more.pages_prefetched;
                row.pages_rdma += more.pages_rdma;
                row.faults += more.faults;
                row.bytes_fetched += more.bytes_fetched;
                row.independent &= more.independent;
            }
        }
        rows.into_values().collect()
    }

    /// The root of the tree of which a child is a process; itself if it is alone.
    pub fn main_of(&self, id: u64) -> u64 {
        self.table().get(&id).and_then(|child| child.start.main).unwrap_or(id)
    }

    /// Waits until the main process of the newest child with this pid has exited, at most for
    /// `limit`. `None`: no such child; `Some(None)`: not yet.
    pub fn wait(&self, pid: i32, limit: Duration) -> Option<Option<Exited>> {
        let deadline = Instant::now() + limit;
        let mut table = self.table();
        let id = Self::by_pid(&table, pid)?.start.id;
        loop {
            // Forgotten meanwhile counts as no such child.
            if let Some(end) = table.get(&id)?.exit() {
                let exit = shell_status(&end);
                return Some(Some(Exited { pid, exit, reason: end.reason }));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(None);
            }
            let waited = self.changed.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many run.
    pub fn running(&self) -> usize {
        let table = self.table();
        table.values().filter(|c| c.start.main.is_none() && c.exit().is_none()).count()
    }

    /// The raw status of the main process of a child that exited by itself, if that is told within `limit`.
    pub fn exit_status(&self, id: u64, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        let mut table = self.table();
        loop {
            if let Some(end) = table.get(&id)?.exit() {
                return end.status;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
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
    fn exit_statuses_are_a_shells() {
        let end = |status| End { status, reason: None };
        assert_eq!(shell_status(&end(Some(3 << 8))), 3);
        assert_eq!(shell_status(&end(Some(15))), 143);
        assert_eq!(shell_status(&end(Some(11 | 0x80))), 139);
        assert_eq!(shell_status(&end(None)), 137);
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
