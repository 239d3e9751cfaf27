//! What `ps` says of children.

use super::{Child, Children, shell_status};
use mitosis_pager::ChildStats;
use mitosis_proto::{ChildRow, ChildState};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

impl Child {
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
            pages_around: number(|s| s.pages_around),
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
}
