//! Time namespaces, so that the monotonic clocks of children go on where their parents' are.
//!
//! Each machine counts from its own start. A process that continues elsewhere would see
//! `CLOCK_MONOTONIC` jump, and half of all times backwards, which no program expects. A time
//! namespace shifts the clocks of those who are in it; one serves all children between whose node
//! and their parent's the difference is the same, so it is kept.

use crate::error::NodeError;
use mitosis_descriptor::Phase;
use mitosis_restore::Time;
use mitosis_sys::clock::{self, Clocks, TimeNamespace};
use std::sync::{Arc, Mutex, PoisonError};

/// How far, in nanoseconds, a shift that is at hand may be ahead of the best estimate: two clocks
/// that run differently by 50 parts in a million need a new namespace each three minutes.
const SLACK: i64 = 10_000_000;
/// Most namespaces kept.
const SPACES_MAX: usize = 64;

/// A time namespace and by how much its clocks are ahead of this node's.
pub(crate) struct Space {
    shift: Clocks,
    /// For the children.
    pub namespace: TimeNamespace,
}

/// What is known of the clocks at one fork.
pub(crate) struct Reading {
    /// This node's clocks before its question to the owner was sent,
    pub asked: Clocks,
    /// the owner's when it answered,
    pub owner: Clocks,
    /// and this node's when the answer was there.
    pub answered: Clocks,
}

/// The time namespaces of this node.
pub(crate) struct Spaces {
    /// By how much this node's clocks are ahead of the machine's.
    own: Clocks,
    /// Why none can be made.
    impossible: Option<String>,
    made: Mutex<Vec<Arc<Space>>>,
}

impl Spaces {
    /// Finds out whether there are any here.
    pub fn probe() -> Spaces {
        let own = clock::shift_of(std::process::id() as i32);
        let tried = own.and_then(|own| TimeNamespace::new(own).map(|_| own));
        let (own, impossible) = match tried {
            Ok(own) => (own, None),
            Err(e) => (Clocks::default(), Some(e.to_string())),
        };
        Spaces { own, impossible, made: Mutex::default() }
    }

    /// Why none can be made here, if so.
    pub fn impossible(&self) -> Option<&str> {
        self.impossible.as_deref()
    }

    /// How the clocks of a child of that parent go on here, and the namespace for it.
    ///
    /// # Errors
    /// The namespace cannot be made: the parent's clocks are out of the kernel's range.
    pub fn of(
        &self,
        reading: &Reading,
        parent: &mitosis_descriptor::Clocks,
    ) -> Result<(Time, Option<Arc<Space>>), NodeError> {
        let (lowest, highest) = bounds(reading, parent);
        if within(Clocks::default(), lowest, highest) {
            return Ok((Time::Same, None));
        }
        if self.impossible.is_some() {
            return Ok((Time::Foreign, None));
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let most = highest.with(Clocks { monotonic: SLACK, boottime: SLACK }, i64::saturating_add);
        let known = made.iter().rev().find(|space| within(space.shift, lowest, most));
        let space = match known {
            Some(space) => Arc::clone(space),
            None => {
                let shift = lowest.with(highest, middle);
                let failed = |e| NodeError::step(Phase::Sandbox, "time namespace", e);
                let namespace = TimeNamespace::new(self.own.with(shift, i64::saturating_add));
                let space = Arc::new(Space { shift, namespace: namespace.map_err(failed)? });
                if made.len() == SPACES_MAX {
                    made.remove(0);
                }
                made.push(Arc::clone(&space));
                space
            }
        };
        Ok((Time::Shifted { monotonic: space.shift.monotonic }, Some(space)))
    }
}

/// The least and the greatest that the child's clocks can be ahead of this node's. With the least
/// they show, at the answer, what the parent's showed when the owner sent it: which is later than
/// anything that the parent saw before it was captured. So no clock runs backwards, however long
/// the answer took.
fn bounds(reading: &Reading, parent: &mitosis_descriptor::Clocks) -> (Clocks, Clocks) {
    let shift = Clocks { monotonic: parent.monotonic_shift, boottime: parent.boottime_shift };
    let seen = Clocks { monotonic: parent.monotonic, boottime: parent.boottime };
    let there = reading.owner.with(shift, i64::saturating_add);
    let lowest = there.with(seen, i64::max).with(reading.answered, i64::saturating_sub);
    let highest = there.with(reading.asked, i64::saturating_sub).with(lowest, i64::max);
    (lowest, highest)
}

/// Both are of another machine, and may be anything.
fn middle(low: i64, high: i64) -> i64 {
    ((i128::from(low) + i128::from(high)) / 2) as i64
}

fn within(shift: Clocks, lowest: Clocks, highest: Clocks) -> bool {
    (lowest.monotonic..=highest.monotonic).contains(&shift.monotonic)
        && (lowest.boottime..=highest.boottime).contains(&shift.boottime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const SECOND: i64 = 1_000_000_000;

    fn both(nanos: i64) -> Clocks {
        Clocks { monotonic: nanos, boottime: nanos }
    }

    /// The owner's clocks are `ahead` of this node's; its answer takes 2 ms, half each way.
    fn reading(ahead: i64) -> Reading {
        let asked = both(100 * SECOND);
        let owner = both(100 * SECOND + ahead + 1_000_000);
        Reading { asked, owner, answered: both(100 * SECOND + 2_000_000) }
    }

    fn parent(captured: i64, shift: i64) -> mitosis_descriptor::Clocks {
        mitosis_descriptor::Clocks {
            monotonic: captured,
            boottime: captured,
            monotonic_shift: shift,
            boottime_shift: shift,
        }
    }

    #[test]
    fn a_clock_that_is_the_parents_already_is_left_alone() {
        let spaces = Spaces::probe();
        let (time, space) = spaces.of(&reading(0), &parent(99 * SECOND, 0)).expect("bounds");
        assert!(time == Time::Same && space.is_none());
    }

    #[test]
    fn shifts_add_up_and_nothing_runs_backwards() {
        let (lowest, highest) = bounds(&reading(7 * SECOND), &parent(90 * SECOND, 5 * SECOND));
        assert_eq!(lowest, both(12 * SECOND - 1_000_000));
        assert_eq!(highest, both(12 * SECOND + 1_000_000));
        // An owner whose clock is behind what the parent saw is not believed.
        let (lowest, highest) = bounds(&reading(-90 * SECOND), &parent(99 * SECOND, 0));
        assert_eq!((lowest, highest), (both(-SECOND - 2_000_000), both(-SECOND - 2_000_000)));
    }

    /// Needs root.
    #[test]
    fn one_namespace_serves_all_children_of_a_pair_of_nodes() {
        let spaces = Spaces::probe();
        assert_eq!(spaces.impossible(), None);
        let inode = |space: Option<Arc<Space>>| {
            let space = space.expect("a space");
            rustix::fs::fstat(space.namespace.as_fd()).expect("fstat").st_ino
        };
        let (time, first) = spaces.of(&reading(7 * SECOND), &parent(0, 0)).expect("made");
        assert_eq!(time, Time::Shifted { monotonic: 7 * SECOND });
        let (_, again) = spaces.of(&reading(7 * SECOND - 500_000), &parent(0, 0)).expect("known");
        let (_, other) = spaces.of(&reading(8 * SECOND), &parent(0, 0)).expect("made");
        let first = inode(first);
        assert_eq!(first, inode(again));
        assert_ne!(first, inode(other));
        let wild = Reading { owner: both(i64::MAX), ..reading(0) };
        assert!(spaces.of(&wild, &parent(i64::MIN / 4, i64::MAX / 4)).is_err());
        // No clock can be below zero.
        let years = 10 * 365 * 86_400 * SECOND;
        assert!(spaces.of(&reading(-years), &parent(-2 * years, 0)).is_err());
    }
}
