//! Guards that do not say that their child has ended. A child with `CAP_SYS_PTRACE` can stop its guard,
//! which is pid 1 to it: nobody would reap the child, and it would be counted, and waited for, for ever.

use super::Children;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use std::time::{Duration, Instant};

/// A guard tells within microseconds; on a machine that is out of breath it may take longer.
const WOKEN_AFTER: Duration = Duration::from_secs(1);
/// One that is held by a tracer hears nothing. The kernel ends what is in its namespace with it.
const ENDED_AFTER: Duration = Duration::from_secs(5);

impl Children {
    /// Lets guards go on that were stopped, and ends those that do nothing all the same.
    pub fn late(&self, now: Instant) {
        let mut table = self.table();
        let untold = |child: &&mut super::Child| child.end.is_none() && child.exited.is_none();
        let open = table.values_mut().filter(untold);
        let mut open: Vec<_> = open
            .filter_map(|child| {
                Some((child.pidfd.as_ref()?, child.guard.as_ref()?, &mut child.late))
            })
            .collect();
        let mut ends: Vec<PollFd<'_>> =
            open.iter().map(|(pidfd, ..)| PollFd::new(*pidfd, PollFlags::IN)).collect();
        if poll(&mut ends, Some(&Timespec::default())).is_err() {
            return;
        }
        let ended: Vec<bool> = ends.iter().map(|end| !end.revents().is_empty()).collect();
        for ((_, guard, late), ended) in open.iter_mut().zip(ended) {
            if !ended {
                continue;
            }
            let waited = now.saturating_duration_since(*late.get_or_insert(now));
            // Fails only for one that has ended meanwhile.
            let _ = match waited {
                waited if waited >= ENDED_AFTER => pidfd_send_signal(&guard.pidfd, Signal::KILL),
                waited if waited >= WOKEN_AFTER => pidfd_send_signal(&guard.pidfd, Signal::CONT),
                _ => Ok(()),
            };
        }
    }
}
