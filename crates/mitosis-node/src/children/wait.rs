//! Those who wait for the end of a child, each for a bounded time.

use super::{Children, shell_status};
use mitosis_proto::Exited;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

impl Children {
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
}
