//! Where the threads that capture the members of a tree wait for one another: no member is stopped before
//! all that are known are planted, none is read before all stand still, none is let go before all shadows
//! are made.
//!
//! Whoever stands still has no children any more. So when all that are known do, those that were born
//! meanwhile are stopped, too, while the others wait, until there is no new one.

use crate::CaptureError;
use crate::tree::{Place, scan, too_large};
use mitosis_state::tree::{Held, Share, share};
use mitosis_sys::procfs::{self, Status};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
pub(crate) struct Meeting {
    root: i32,
    /// There was more than one process when it began.
    is_tree: bool,
    members_max: usize,
    /// Until when new members are waited for.
    deadline: Instant,
    /// How long one waits at a point for the others.
    patience: Duration,
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
    /// Those that are captured.
    members: BTreeSet<i32>,
    /// Those of them that nobody has begun to capture.
    waiting: Vec<i32>,
    /// Who has come to each [`Point`], and whether that were all.
    here: [BTreeSet<i32>; POINTS],
    reached: [bool; POINTS],
    /// Helpers in the members, which are children of theirs.
    helpers: Vec<i32>,
    /// A member takes the orphans of those below it.
    subreaper: bool,
    /// A member has failed, or the tree has changed: all are let go.
    broken: bool,
    changed: bool,
    /// All processes, when all stand still.
    places: Vec<Place>,
    /// In their order.
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

/// Longer than all that a member does between two points, each of which has a bound of its own: it passes
/// only if one of them hangs where it must not, and then all others go on.
const PATIENCE: Duration = Duration::from_secs(60);

const POINTS: usize = 6;
const STOPPED: usize = 1;

impl Point {
    fn index(self) -> usize {
        match self {
            Point::Planted(..) => 0,
            Point::Stopped => STOPPED,
            Point::Seen => 2,
            Point::Forked => 3,
            Point::TakesNobody => 4,
            Point::Orphaned => 5,
        }
    }
}

/// A thread's part in the meeting: dropped when it failed or panicked.
pub(crate) struct Seat<'a>(pub &'a Meeting);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.lock().broken = true;
        self.0.moved.notify_all();
    }
}

impl Meeting {
    /// For these processes to begin with; the root is the first. Not before `deadline` does it give up
    /// waiting for those that are born.
    pub(crate) fn new(places: &[Place], members_max: usize, deadline: Instant) -> Meeting {
        let waiting: Vec<i32> =
            places.iter().filter(|place| !place.zombie).map(|place| place.pid).collect();
        let members = waiting.iter().copied().collect();
        let state = Mutex::new(State { members, waiting, ..State::default() });
        let (root, is_tree) = (places.first().map_or(0, |root| root.pid), places.len() > 1);
        let (patience, moved) = (PATIENCE, Condvar::new());
        Meeting { root, is_tree, members_max, deadline, patience, state, moved }
    }

    /// Whether there is more than one process.
    pub(crate) fn is_tree(&self) -> bool {
        self.is_tree
    }

    /// Whether orphans of some members would become children of another.
    pub(crate) fn takes_orphans(&self) -> bool {
        self.is_tree && self.lock().subreaper
    }

    /// The next one to be captured; `None` when there will be no more.
    pub(crate) fn next_member(&self) -> Option<i32> {
        let open = |state: &mut State| {
            state.waiting.is_empty() && !state.broken && !state.reached[STOPPED]
        };
        let state = self.moved.wait_while(self.lock(), open);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.broken { None } else { state.waiting.pop() }
    }

    /// A member has ended before all stood still: it is none any more, or a zombie. False if it is too late
    /// for that.
    pub(crate) fn leave(&self, pid: i32) -> bool {
        let mut state = self.lock();
        if state.broken || state.reached[STOPPED] {
            return false;
        }
        state.members.remove(&pid);
        for here in &mut state.here {
            here.remove(&pid);
        }
        for index in 0..=STOPPED {
            if !state.here[index].is_empty() && self.complete(index, &mut state).is_err() {
                state.broken = true;
            }
        }
        self.moved.notify_all();
        true
    }

    /// Says what a member has open, and learns what it makes and what it gets.
    pub(crate) fn exchange(&self, pid: i32) -> Result<Share, CaptureError> {
        let held = Held::of(pid)?;
        let at = self.lock().places.iter().position(|place| place.pid == pid);
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
    pub(crate) fn over(&self) -> (bool, Vec<Place>, Vec<Look>) {
        let mut state = self.lock();
        (state.changed, std::mem::take(&mut state.places), std::mem::take(&mut state.looks))
    }

    /// Waits until all members are at `point`: not longer than [`PATIENCE`], then all are let go.
    pub(crate) fn reach(&self, pid: i32, point: Point) -> Result<(), CaptureError> {
        let mut state = self.lock();
        let index = point.index();
        if let Point::Planted(helper, subreaper) = point {
            state.helpers.extend(helper);
            state.subreaper |= subreaper;
        }
        state.here[index].insert(pid);
        let done = self.complete(index, &mut state);
        state.broken |= done.is_err();
        self.moved.notify_all();
        done?;
        let waits = |state: &mut State| !state.broken && !state.reached[index];
        let waited = self.moved.wait_timeout_while(state, self.patience, waits);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && waits(&mut state) {
            state.broken = true;
            self.moved.notify_all();
            let late = state.members.difference(&state.here[index]).next().copied();
            return Err(CaptureError::Late { pid: late.unwrap_or(pid), bound: self.patience });
        }
        match state.broken {
            true => Err(CaptureError::LetGo(pid)),
            false => Ok(()),
        }
    }

    /// What is done when the last one has come to a point.
    fn complete(&self, index: usize, state: &mut State) -> Result<(), CaptureError> {
        if state.broken || state.reached[index] || state.here[index].len() < state.members.len() {
            return Ok(());
        }
        match index {
            STOPPED => self.look_again(state),
            2 => {
                state.reached[index] = true;
                divide(state)
            }
            _ => {
                state.reached[index] = true;
                Ok(())
            }
        }
    }

    /// All that are known stand still: whether there are more.
    fn look_again(&self, state: &mut State) -> Result<(), CaptureError> {
        let places = scan(self.root, &state.helpers)?;
        if places.len() > self.members_max {
            return Err(too_large(self.root, self.members_max));
        }
        let living: BTreeSet<i32> =
            places.iter().filter(|place| !place.zombie).map(|place| place.pid).collect();
        let new: Vec<i32> = living.difference(&state.members).copied().collect();
        // One that stands still is gone only if it was an orphan before, and is none of the tree.
        let gone = !state.members.is_subset(&living);
        if gone || !new.is_empty() && (!self.is_tree || Instant::now() >= self.deadline) {
            (state.changed, state.broken) = (true, true);
            return Ok(());
        }
        if new.is_empty() {
            state.looks = places.iter().map(Look::of).collect();
            state.held.resize_with(places.len(), || None);
            state.shares.resize_with(places.len(), || None);
            state.places = places;
            state.reached[STOPPED] = true;
        }
        state.members.extend(&new);
        state.waiting.extend(new);
        Ok(())
    }
}

/// Says who makes what of all that the members have.
fn divide(state: &mut State) -> Result<(), CaptureError> {
    let held: Vec<Held> = state.held.iter_mut().filter_map(Option::take).collect();
    let shares = share(&held).map_err(|(pid, e)| CaptureError::Refused {
        pid,
        why: format!("has in common with others of its tree: {e}"),
    })?;
    let living = state.places.iter().zip(&mut state.shares);
    let living = living.filter(|(place, _)| !place.zombie);
    living.zip(shares).for_each(|((_, slot), share)| *slot = Some(share));
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_one_that_does_not_come() {
        let place = |pid, parent| Place { pid, parent, zombie: false };
        let places = [place(1, None), place(2, Some(0))];
        let mut meeting = Meeting::new(&places, 8, Instant::now());
        meeting.patience = Duration::from_millis(10);
        while meeting.lock().waiting.pop().is_some() {}
        let late = meeting.reach(1, Point::Planted(None, false));
        assert!(matches!(late, Err(CaptureError::Late { pid: 2, .. })), "{late:?}");
        let late = meeting.reach(2, Point::Planted(None, false));
        assert!(late.is_err(), "it comes too late: the other has been let go");
        assert_eq!(meeting.next_member(), None);
    }
}
