//! A process and all its descendants, captured at one moment.
//!
//! Each member is captured as a process alone is, on a thread of its own, since ptrace belongs to a
//! thread. The threads wait for one another where that matters: no member is stopped before all are
//! planted, none is read before all stand still, none is let go before all shadows are made.

use crate::{CaptureError, Inherited, Options, Seeded, capture_once};
use mitosis_sys::procfs::{self, Status};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// One process of a captured tree.
#[derive(Debug)]
pub struct Member {
    /// Its pid, as this node sees it.
    pub pid: i32,
    /// Which member is its parent: one that comes before it. `None` for the root, the first.
    pub parent: Option<usize>,
    /// What was captured.
    pub seeded: Seeded,
}

/// What a member still has in its parent's pager: see [`Inherited`].
pub type InheritedOf<'a> = dyn Fn(i32) -> Box<dyn Inherited + Send + 'a> + Sync + 'a;

/// Captures process `root` and all its descendants, as they were at one moment.
///
/// # Errors
/// As [`crate::prepare`], and [`CaptureError::Refused`] for a tree of more than `members_max`
/// processes. Whatever happens all members run on, and nothing of ours is left in them.
pub fn prepare_tree(
    root: i32,
    options: &Options,
    members_max: usize,
    inherited: &InheritedOf<'_>,
) -> Result<Vec<Member>, CaptureError> {
    let deadline = Instant::now() + options.stop_timeout;
    loop {
        // Before it is stopped the tree may grow: the look that counts is `Meeting::look`.
        let places = scan(root, &[])?;
        if let Some(place) = places.get(members_max) {
            let parent = place.parent.map_or(root, |parent| places[parent].pid);
            let why = format!(
                "has the child {}: seeds of trees of more than {members_max} process(es) are not \
                 available yet",
                place.pid
            );
            return Err(CaptureError::Refused { pid: parent, why });
        }
        if let Some(members) = attempt(&places, options, inherited)? {
            return Ok(members);
        }
        if Instant::now() >= deadline {
            let why = "has descendants that start and end faster than all can be stopped";
            return Err(CaptureError::Refused { pid: root, why: why.into() });
        }
    }
}

/// A member and where it hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    pid: i32,
    parent: Option<usize>,
}

/// All members, a parent before its children. `ours` are children that are none: our helpers.
fn scan(root: i32, ours: &[i32]) -> Result<Vec<Place>, CaptureError> {
    let mut places = vec![Place { pid: root, parent: None }];
    let mut next = 0;
    while let Some(place) = places.get(next).copied() {
        let children = match children(place.pid) {
            Ok(children) => children,
            Err(_) if place.parent.is_none() => return Err(CaptureError::NoSuchProcess(root)),
            // It has ended since its parent was asked. If the parent stood still, it is a zombie
            // by now, which has no children.
            Err(_) => Vec::new(),
        };
        let children = children.into_iter().filter(|child| !ours.contains(child));
        places.extend(children.map(|pid| Place { pid, parent: Some(next) }));
        next += 1;
    }
    Ok(places)
}

/// Children of all threads of a process, but for earlier shadows of an init.
fn children(pid: i32) -> Result<Vec<i32>, mitosis_sys::SysError> {
    let is_init = Status::read(pid)?.numbers("NSpid", 10).last() == Some(&1);
    let mut children = Vec::new();
    for tid in procfs::threads(pid)? {
        let text = procfs::text(pid, &format!("task/{tid}/children"))?;
        children.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    children.retain(|child| !(is_init && is_shadow(*child)));
    Ok(children)
}

/// A shadow whose parent is the init of its pid namespace is its child, made so that it cannot see
/// it: without an exit signal, and with all signals blocked.
fn is_shadow(pid: i32) -> bool {
    /// All but SIGKILL and SIGSTOP, which cannot be blocked.
    const BLOCKED: u64 = !(1 << 8 | 1 << 18);
    let exit_signal = procfs::stat(pid).map(|fields| procfs::stat_field(&fields, 38));
    let blocked = Status::read(pid).map(|status| status.number("SigBlk", 16));
    exit_signal.is_ok_and(|signal| signal == 0) && blocked.is_ok_and(|set| set & BLOCKED == BLOCKED)
}

/// Captures these members at one moment; `None` if they are not all, or not any more.
fn attempt(
    places: &[Place],
    options: &Options,
    inherited: &InheritedOf<'_>,
) -> Result<Option<Vec<Member>>, CaptureError> {
    let meeting = Meeting::new(places);
    let capture = |pid: i32| {
        let seat = Seat(&meeting);
        let result = capture_once(pid, options, &mut *inherited(pid), true, Some(&meeting));
        if result.is_ok() {
            std::mem::forget(seat);
        }
        result
    };
    let results: Vec<Result<Seeded, CaptureError>> = std::thread::scope(|scope| {
        let spawn = |place: &Place| {
            let pid = place.pid;
            let capture = &capture;
            let builder = std::thread::Builder::new().name("capture".into());
            let spawned = builder.spawn_scoped(scope, move || capture(pid));
            if spawned.is_err() {
                drop(Seat(&meeting));
            }
            spawned.map_err(|e| CaptureError::Internal(e.to_string()))
        };
        let threads: Vec<_> = places.iter().map(spawn).collect();
        let panicked = || CaptureError::Internal("a capture thread panicked".into());
        let join = |thread: Result<std::thread::ScopedJoinHandle<'_, _>, _>| {
            thread.and_then(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
        };
        threads.into_iter().map(join).collect()
    });
    gather(places, results, meeting.has_changed())
}

/// All members, or why there are none; then no shadow stays.
fn gather(
    places: &[Place],
    results: Vec<Result<Seeded, CaptureError>>,
    mut changed: bool,
) -> Result<Option<Vec<Member>>, CaptureError> {
    let (mut members, mut cause) = (Vec::new(), None);
    for (place, result) in places.iter().zip(results) {
        match result {
            Ok(seeded) => {
                members.push(Member { pid: place.pid, parent: place.parent, seeded });
            }
            Err(CaptureError::LetGo(_)) => {}
            // A descendant that ended before all stood still is none any more.
            Err(CaptureError::NoSuchProcess(_)) if place.parent.is_some() => changed = true,
            Err(CaptureError::Ended { phase: "inspect" | "plant" | "stop", .. })
                if place.parent.is_some() =>
            {
                changed = true;
            }
            Err(e) => cause = cause.or(Some(e)),
        }
    }
    if members.len() == places.len() {
        return Ok(Some(members));
    }
    members.iter().for_each(|member| member.seeded.shadow.end());
    match cause {
        Some(cause) => Err(cause),
        None if changed => Ok(None),
        None => Err(CaptureError::Internal("all members of a tree were let go".into())),
    }
}

/// Where the threads that capture the members wait for one another.
pub(crate) struct Meeting {
    places: Vec<Place>,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// How many have come to each [`Point`].
    here: [usize; 3],
    /// Helpers in the members, which are children of theirs.
    helpers: Vec<i32>,
    /// A member has failed, or the tree has changed: all are let go.
    broken: bool,
    changed: bool,
}

/// Where all members are before any goes on.
#[derive(Clone, Copy)]
pub(crate) enum Point {
    /// With a helper that can fork, whose pid this is.
    Planted(Option<i32>),
    Stopped,
    /// Has a shadow.
    Forked,
}

impl Point {
    fn index(self) -> usize {
        match self {
            Point::Planted(_) => 0,
            Point::Stopped => 1,
            Point::Forked => 2,
        }
    }
}

/// A thread's part in the meeting: dropped when it failed or panicked.
struct Seat<'a>(&'a Meeting);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.lock().broken = true;
        self.0.moved.notify_all();
    }
}

impl Meeting {
    fn new(places: &[Place]) -> Meeting {
        Meeting { places: places.to_vec(), state: Mutex::default(), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_changed(&self) -> bool {
        self.lock().changed
    }

    /// Waits until all members are at `point`. What each does on its way there is bounded in time.
    pub(crate) fn reach(&self, pid: i32, point: Point) -> Result<(), CaptureError> {
        let mut state = self.lock();
        let index = point.index();
        if let Point::Planted(helper) = point {
            state.helpers.extend(helper);
        }
        state.here[index] += 1;
        if state.here[index] == self.places.len() {
            if matches!(point, Point::Stopped) {
                state.changed = !self.is_whole(&state.helpers);
                state.broken |= state.changed;
            }
            self.moved.notify_all();
        }
        let waits = |state: &mut State| !state.broken && state.here[index] < self.places.len();
        let state = self.moved.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        match state.broken {
            true => Err(CaptureError::LetGo(pid)),
            false => Ok(()),
        }
    }

    /// Whether these are all members, now that all stand still.
    fn is_whole(&self, helpers: &[i32]) -> bool {
        self.places.first().is_some_and(|root| {
            scan(root.pid, helpers).is_ok_and(|now| {
                now.len() == self.places.len() && now.iter().all(|place| self.holds(&now, place))
            })
        })
    }

    /// The kernel lists children in the order in which they were born, which nothing changes; but
    /// those of another thread may have moved to this one.
    fn holds(&self, now: &[Place], place: &Place) -> bool {
        let parent = |places: &[Place], place: &Place| place.parent.map(|at| places[at].pid);
        let held = self.places.iter().find(|held| held.pid == place.pid);
        held.is_some_and(|held| parent(&self.places, held) == parent(now, place))
    }
}
