//! What is known of processes that were prepared before: it spares them a stop.

use crate::prepare::start_ticks;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Processes that are remembered: far more than are prepared again and again.
const PARENTS_MAX: usize = 1024;

/// Those with memory that they keep from their forks (`MADV_DONTFORK`), as V8 does: pid and time of
/// the start. That such a process has some is found when its shadow lacks it, so the first time it
/// stands still, and forks, twice.
#[derive(Default)]
pub(crate) struct Parents {
    dontfork: Mutex<HashMap<i32, u64>>,
}

impl Parents {
    /// Whether the process had such memory when it was prepared last.
    pub fn has_dontfork(&self, pid: i32) -> bool {
        let known = self.dontfork.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).copied();
        known.is_some_and(|ticks| start_ticks(pid).is_ok_and(|now| now == ticks))
    }

    /// It has been prepared.
    pub fn prepared(&self, pid: i32, dontfork: bool) {
        let ticks = start_ticks(pid).ok().filter(|_| dontfork);
        let mut known = self.dontfork.lock().unwrap_or_else(PoisonError::into_inner);
        match ticks {
            Some(ticks) => {
                if known.len() == PARENTS_MAX {
                    known.retain(|pid, ticks| start_ticks(*pid).is_ok_and(|now| now == *ticks));
                }
                if known.len() < PARENTS_MAX {
                    known.insert(pid, ticks);
                }
            }
            None => drop(known.remove(&pid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_as_long_as_it_has_such_memory() {
        let (parents, own) = (Parents::default(), std::process::id() as i32);
        assert!(!parents.has_dontfork(own));
        parents.prepared(own, true);
        assert!(parents.has_dontfork(own) && !parents.has_dontfork(1));
        // Another process of that pid.
        parents.dontfork.lock().unwrap().insert(own, 1);
        assert!(!parents.has_dontfork(own));
        parents.prepared(own, true);
        parents.prepared(own, false);
        assert!(!parents.has_dontfork(own));
    }
}
