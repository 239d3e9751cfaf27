//! A process and all its descendants, captured at one moment.
//!
//! Each member is captured as a process alone is, on a thread of its own, since ptrace belongs to a
//! thread. The threads wait for one another where that matters: no member is stopped before all are
//! planted, none is read before all stand still, none is let go before all shadows are made.

use crate::{CaptureError, Inherited, Options, Seeded, capture_once, together};
use mitosis_descriptor::Zombie;
use mitosis_state::tree::{Held, Share, share};
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

/// A captured tree.
#[derive(Debug)]
pub struct Captured {
    /// Processes that live, the root first.
    pub members: Vec<Member>,
    /// Those that have ended and were not waited for.
    pub zombies: Vec<Zombie>,
}

impl Captured {
    /// Ends all shadows.
    pub fn end(&self) {
        self.members.iter().for_each(|member| member.seeded.shadow.end());
    }
}

/// What a member still has in its parent's pager: see [`Inherited`].
pub type InheritedOf<'a> = dyn Fn(i32) -> Box<dyn Inherited + Send + 'a> + Sync + 'a;

/// How to capture each of them.
pub type OptionsOf<'a> = dyn Fn(i32) -> Options + Sync + 'a;

/// Captures process `root` and all its descendants, as they were at one moment.
///
/// # Errors
/// As [`crate::prepare`], and [`CaptureError::Refused`] for a tree of more than `members_max`
/// processes. Whatever happens all members run on, and nothing of ours is left in them.
pub fn prepare_tree(
    root: i32,
    options: &OptionsOf<'_>,
    members_max: usize,
    inherited: &InheritedOf<'_>,
) -> Result<Captured, CaptureError> {
    let deadline = Instant::now() + options(root).stop_timeout;
    loop {
        // Before it is stopped the tree may grow: the look that counts is `Meeting::look`.
        let places = scan(root, &[])?;
        if places.len() > members_max {
            let why = format!("has a tree of more than {members_max} processes");
            return Err(CaptureError::Refused { pid: root, why });
        }
        if let Some((members, looks)) = attempt(&places, options, inherited)? {
            let mut captured = Captured { members, zombies: Vec::new() };
            return match together::join(&mut captured, &places, &looks) {
                Ok(()) => Ok(captured),
                Err(e) => {
                    captured.end();
                    Err(e)
                }
            };
        }
        if Instant::now() >= deadline {
            let why = "has descendants that start and end faster than all can be stopped";
            return Err(CaptureError::Refused { pid: root, why: why.into() });
        }
    }
}

/// A process of the tree and where it hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub pid: i32,
    pub parent: Option<usize>,
    /// It has ended and was not waited for.
    pub zombie: bool,
}

/// All members, a parent before its children. `ours` are children that are none: our helpers.
fn scan(root: i32, ours: &[i32]) -> Result<Vec<Place>, CaptureError> {
    let mut places = vec![Place { pid: root, parent: None, zombie: false }];
    let mut next = 0;
    while let Some(place) = places.get(next).copied() {
        if place.parent.is_some() && is_zombie(place.pid) {
            places[next].zombie = true;
            next += 1;
            continue;
        }
        let children = match children(place.pid) {
            Ok(children) => children,
            Err(_) if place.parent.is_none() => return Err(CaptureError::NoSuchProcess(root)),
            // It has ended since its parent was asked. If the parent stood still, it is a zombie
            // by now, which has no children.
            Err(_) => Vec::new(),
        };
        let children = children.into_iter().filter(|child| !ours.contains(child));
        places.extend(children.map(|pid| Place { pid, parent: Some(next), zombie: false }));
        next += 1;
    }
    Ok(places)
}

/// Children of all threads of a process, but for earlier shadows.
fn children(pid: i32) -> Result<Vec<i32>, mitosis_sys::SysError> {
    let mut children = Vec::new();
    for tid in procfs::threads(pid)? {
        let text = procfs::text(pid, &format!("task/{tid}/children"))?;
        children.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    children.retain(|child| !is_shadow(*child));
    Ok(children)
}

/// Whether all of a process has ended, and not only its leading thread.
fn is_zombie(pid: i32) -> bool {
    let dead = Status::read(pid).is_ok_and(|status| status.field("State").starts_with(['Z', 'X']));
    dead && procfs::threads(pid).is_ok_and(|threads| threads.len() <= 1)
}

/// Whether a process has ended, or has begun to.
fn is_ending(pid: i32) -> bool {
    /// include/linux/sched.h
    const PF_EXITING: u64 = 4;
    procfs::stat(pid).map_or(true, |stat| {
        let state = stat.first().map_or("X", String::as_str);
        state.starts_with(['Z', 'X']) || procfs::stat_field(&stat, 9) & PF_EXITING != 0
    })
}

/// Shadows of an init are its children, and those of a subreaper's descendants, made when these were
/// seeds without their tree, go to it. One that has ended, and that it has not waited for, has
/// nothing but its name.
fn is_shadow(pid: i32) -> bool {
    /// All but SIGKILL and SIGSTOP, which cannot be blocked.
    const BLOCKED: u64 = !(1 << 8 | 1 << 18);
    Status::read(pid).is_ok_and(|status| {
        let ended = status.field("State").starts_with(['Z', 'X']);
        let blocked = ended || status.number("SigBlk", 16) & BLOCKED == BLOCKED;
        blocked && status.field("Name") == "mitosis-shadow"
    })
}

/// Members that were captured, and what was seen of all processes meanwhile.
type Seen = (Vec<Member>, Vec<Look>);

/// Captures these members at one moment; `None` if they are not all, or not any more.
fn attempt(
    places: &[Place],
    options: &OptionsOf<'_>,
    inherited: &InheritedOf<'_>,
) -> Result<Option<Seen>, CaptureError> {
    let meeting = Meeting::new(places);
    let capture = |pid: i32| {
        let seat = Seat(&meeting);
        let result = capture_once(pid, &options(pid), &mut *inherited(pid), true, Some(&meeting));
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
        let threads: Vec<_> = places.iter().filter(|place| !place.zombie).map(spawn).collect();
        let panicked = || CaptureError::Internal("a capture thread panicked".into());
        let join = |thread: Result<std::thread::ScopedJoinHandle<'_, _>, _>| {
            thread.and_then(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
        };
        threads.into_iter().map(join).collect()
    });
    let (changed, looks) = meeting.over();
    let members = gather(places, results, changed)?;
    Ok(members.map(|members| (members, looks)))
}

/// All members, or why there are none; then no shadow stays.
fn gather(
    places: &[Place],
    results: Vec<Result<Seeded, CaptureError>>,
    mut changed: bool,
) -> Result<Option<Vec<Member>>, CaptureError> {
    let (mut members, mut cause) = (Vec::new(), None);
    let living: Vec<&Place> = places.iter().filter(|place| !place.zombie).collect();
    for (place, result) in living.iter().zip(results) {
        match result {
            Ok(seeded) => {
                let parent = place.parent.map(|at| together::living(places, at));
                members.push(Member { pid: place.pid, parent, seeded });
            }
            Err(CaptureError::LetGo(_)) => {}
            // A descendant that has ended is none any more, or a zombie. While it ends much of it cannot
            // be had, or looks like what is refused.
            Err(_) if place.parent.is_some() && is_ending(place.pid) => changed = true,
            Err(e) => cause = cause.or(Some(e)),
        }
    }
    if members.len() == living.len() {
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
    /// How many of them live.
    living: usize,
    state: Mutex<State>,
    moved: Condvar,
}

/// What was seen of a process while all stood still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Its pid, process group and session as the tree sees them; 0 for one that it does not see.
    pub pid: i32,
    pub group: i32,
    pub session: i32,
    /// Of a zombie, how it ended.
    pub status: u32,
}

#[derive(Default)]
struct State {
    /// How many have come to each [`Point`].
    here: [usize; 6],
    /// Helpers in the members, which are children of theirs.
    helpers: Vec<i32>,
    /// A member takes the orphans of those below it.
    subreaper: bool,
    /// A member has failed, or the tree has changed: all are let go.
    broken: bool,
    changed: bool,
    /// In the order of the places.
    looks: Vec<Look>,
    /// What the members have, by their places, and how that is divided.
    held: Vec<Option<Held>>,
    shares: Vec<Option<Share>>,
}

/// Where all members are before any goes on.
#[derive(Clone, Copy)]
pub(crate) enum Point {
    /// With a helper that can fork, whose pid this is; and whether it is a subreaper.
    Planted(Option<i32>, bool),
    Stopped,
    /// Has said what it has open.
    Seen,
    /// Has a shadow.
    Forked,
    /// Is no subreaper for the moment: see [`crate::inject::Planted::orphan`].
    TakesNobody,
    /// Its helper is gone, so its shadow is an orphan.
    Orphaned,
}

impl Point {
    fn index(self) -> usize {
        match self {
            Point::Planted(..) => 0,
            Point::Stopped => 1,
            Point::Seen => 2,
            Point::Forked => 3,
            Point::TakesNobody => 4,
            Point::Orphaned => 5,
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
        let living = places.iter().filter(|place| !place.zombie).count();
        let mut state = State::default();
        state.held.resize_with(places.len(), || None);
        state.shares.resize_with(places.len(), || None);
        let (places, state) = (places.to_vec(), Mutex::new(state));
        Meeting { places, living, state, moved: Condvar::new() }
    }

    /// Whether there is more than one process.
    pub(crate) fn is_tree(&self) -> bool {
        self.places.len() > 1
    }

    /// Whether orphans of some members would become children of another.
    pub(crate) fn takes_orphans(&self) -> bool {
        self.is_tree() && self.lock().subreaper
    }

    /// Says what a member has open, and learns what it makes and what it gets.
    pub(crate) fn exchange(&self, pid: i32) -> Result<Share, CaptureError> {
        let held = Held::of(pid)?;
        let at = self.places.iter().position(|place| place.pid == pid);
        let at = at.ok_or_else(|| CaptureError::Internal(format!("{pid} is no member")))?;
        self.lock().held[at] = Some(held);
        self.reach(pid, Point::Seen)?;
        let share = self.lock().shares[at].take();
        share.ok_or_else(|| CaptureError::Internal(format!("{pid} has no share")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the tree has changed, and what was seen of it.
    fn over(&self) -> (bool, Vec<Look>) {
        let mut state = self.lock();
        (state.changed, std::mem::take(&mut state.looks))
    }

    /// What the last one does who comes to a point.
    fn all_are_at(&self, point: Point, state: &mut State) -> Result<(), CaptureError> {
        match point {
            Point::Stopped => {
                state.changed = !self.is_whole(&state.helpers);
                state.broken |= state.changed;
                state.looks = self.places.iter().map(Look::of).collect();
            }
            Point::Seen => {
                let held: Vec<Held> = state.held.iter_mut().filter_map(Option::take).collect();
                let shares = share(&held).map_err(|(pid, e)| CaptureError::Refused {
                    pid,
                    why: format!("has in common with others of its tree: {e}"),
                })?;
                let living = self.places.iter().zip(&mut state.shares);
                let living = living.filter(|(place, _)| !place.zombie);
                living.zip(shares).for_each(|((_, slot), share)| *slot = Some(share));
            }
            Point::Planted(..) | Point::Forked | Point::TakesNobody | Point::Orphaned => {}
        }
        Ok(())
    }

    /// Waits until all members are at `point`. What each does on its way there is bounded in time.
    pub(crate) fn reach(&self, pid: i32, point: Point) -> Result<(), CaptureError> {
        let mut state = self.lock();
        let index = point.index();
        if let Point::Planted(helper, subreaper) = point {
            state.helpers.extend(helper);
            state.subreaper |= subreaper;
        }
        state.here[index] += 1;
        if state.here[index] == self.living {
            let done = self.all_are_at(point, &mut state);
            state.broken |= done.is_err();
            self.moved.notify_all();
            done?;
        }
        let waits = |state: &mut State| !state.broken && state.here[index] < self.living;
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
        held.is_some_and(|held| {
            held.zombie == place.zombie && parent(&self.places, held) == parent(now, place)
        })
    }
}

impl Look {
    fn of(place: &Place) -> Look {
        let status = Status::read(place.pid).ok();
        let innermost = |field: &str| {
            let numbers = status.as_ref().map(|status| status.numbers(field, 10));
            numbers.and_then(|numbers| numbers.last().copied()).unwrap_or(0) as i32
        };
        let ended = |stat: Vec<String>| procfs::stat_field(&stat, 52) as u32;
        let exit = if place.zombie { procfs::stat(place.pid).map(ended).unwrap_or(0) } else { 0 };
        let (pid, group, session) = (innermost("NSpid"), innermost("NSpgid"), innermost("NSsid"));
        Look { pid, group, session, status: exit }
    }
}
