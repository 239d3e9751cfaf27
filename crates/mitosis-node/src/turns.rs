//! One at a time with each process: two that prepare one parent would trace it at the same time.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Who is being worked on.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<HashSet<i32>>,
    changed: Condvar,
}

/// The right to work on a process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    pid: i32,
}

impl Turns {
    fn taken(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for it, at most so long; `None` if others took longer.
    pub fn take(&self, pid: i32, bound: Duration) -> Option<Turn<'_>> {
        let waited =
            self.changed.wait_timeout_while(self.taken(), bound, |taken| taken.contains(&pid));
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        taken.insert(pid).then(|| Turn { turns: self, pid })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.pid);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_for_the_other_but_not_for_ever() {
        let turns = Turns::default();
        let first = turns.take(1, Duration::ZERO).unwrap();
        assert!(turns.take(2, Duration::ZERO).is_some());
        assert!(turns.take(1, Duration::from_millis(5)).is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| turns.take(1, Duration::from_secs(60)).is_some());
            drop(first);
            assert!(second.join().unwrap());
        });
    }
}
