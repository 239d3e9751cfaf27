//! A process and all its descendants, captured at one moment.
//!
//! Each member is captured as a process alone is, on a thread of its own, since ptrace belongs to a
//! thread. The threads wait for one another ([`crate::meeting`]) where that matters.

use crate::meeting::{Look, Meeting, Seat};
use crate::{CaptureError, Inherited, Options, Seeded, capture_once, together};
use mitosis_descriptor::Zombie;
use mitosis_sys::kcmp;
use mitosis_sys::procfs::{self, Status};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
        // Before it is stopped the tree may grow: the look that counts is the meeting's.
        let places = scan(root, &[])?;
        if places.len() > members_max {
            return Err(too_large(root, members_max));
        }
        if let Some((parent, child)) = in_vfork(&places) {
            if Instant::now() < deadline {
                std::thread::sleep(A_MOMENT);
                continue;
            }
            let why = format!("waits in vfork(2) for process {child}, which does not go on");
            return Err(CaptureError::Refused { pid: parent, why });
        }
        let meeting = Meeting::new(&places, members_max, deadline);
        if let Some(seen) = attempt(&places, &meeting, options, inherited)? {
            let mut captured = Captured { members: seen.members, zombies: Vec::new() };
            return match together::join(&mut captured, &seen.places, &seen.looks) {
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

/// Until a process that is being started has a memory of its own.
const A_MOMENT: Duration = Duration::from_millis(1);

pub(crate) fn too_large(root: i32, members_max: usize) -> CaptureError {
    let why = format!("has a tree of more than {members_max} processes");
    CaptureError::Refused { pid: root, why }
}

/// A member that waits for its child to execute or end (vfork(2), posix_spawn(3)), and that child: it
/// would never stop while the child stands still, and the child is none of the tree's yet.
fn in_vfork(places: &[Place]) -> Option<(i32, i32)> {
    let waits = |pid: i32| {
        let state =
            |tid| Status::of_thread(pid, tid).map(|status| status.field("State").to_owned());
        let threads = procfs::threads(pid).unwrap_or_default();
        threads.into_iter().any(|tid| state(tid).is_ok_and(|state| state.starts_with('D')))
    };
    let pairs = places.iter().filter_map(|place| Some((places[place.parent?].pid, place.pid)));
    let mut sharing =
        pairs.filter(|(parent, child)| kcmp::shares_memory(*parent, *child).unwrap_or(false));
    sharing.find(|(parent, _)| waits(*parent))
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
pub(crate) fn scan(root: i32, ours: &[i32]) -> Result<Vec<Place>, CaptureError> {
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
struct Seen {
    members: Vec<Member>,
    places: Vec<Place>,
    looks: Vec<Look>,
}

/// What came of each member, by its pid.
type Results = BTreeMap<i32, Result<Seeded, CaptureError>>;

/// Captures the members at one moment; `None` if some have come or gone that nothing could be done about.
fn attempt(
    first: &[Place],
    meeting: &Meeting,
    options: &OptionsOf<'_>,
    inherited: &InheritedOf<'_>,
) -> Result<Option<Seen>, CaptureError> {
    let root = first[0].pid;
    let results = Mutex::new(Results::new());
    let capture = |pid: i32| {
        let seat = Seat(meeting);
        let result = capture_once(pid, &options(pid), &mut *inherited(pid), true, Some(meeting));
        // While it ends much of it cannot be had, or looks like what is refused.
        if result.is_ok() || pid != root && is_ending(pid) && meeting.leave(pid) {
            std::mem::forget(seat);
        }
        results.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, result);
    };
    std::thread::scope(|scope| {
        while let Some(pid) = meeting.next_member() {
            let capture = &capture;
            let builder = std::thread::Builder::new().name("capture".into());
            if let Err(e) = builder.spawn_scoped(scope, move || capture(pid)) {
                drop(Seat(meeting));
                let failed = Err(CaptureError::Internal(e.to_string()));
                results.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, failed);
            }
        }
    });
    let (changed, places, looks) = meeting.over();
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let members = gather(root, &places, results, changed)?;
    Ok(members.map(|members| Seen { members, places, looks }))
}

/// All members, or why there are none; then no shadow stays.
fn gather(
    root: i32,
    places: &[Place],
    mut results: Results,
    mut changed: bool,
) -> Result<Option<Vec<Member>>, CaptureError> {
    let living: Vec<&Place> = places.iter().filter(|place| !place.zombie).collect();
    let mut members = Vec::new();
    for place in &living {
        match results.remove(&place.pid) {
            Some(Ok(seeded)) => {
                let parent = place.parent.map(|at| together::living(places, at));
                members.push(Member { pid: place.pid, parent, seeded });
            }
            Some(failed) => drop(results.insert(place.pid, failed)),
            None => {}
        }
    }
    if !living.is_empty() && members.len() == living.len() {
        return Ok(Some(members));
    }
    members.iter().for_each(|member| member.seeded.shadow.end());
    let mut cause = None;
    for (pid, result) in results {
        match result {
            Ok(seeded) => seeded.shadow.end(),
            Err(CaptureError::LetGo(_)) => {}
            // A descendant that has ended is none any more, or a zombie.
            Err(_) if pid != root && is_ending(pid) => changed = true,
            Err(e) => cause = cause.or(Some(e)),
        }
    }
    match cause {
        Some(cause) => Err(cause),
        None if changed => Ok(None),
        None => Err(CaptureError::Internal("all members of a tree were let go".into())),
    }
}
