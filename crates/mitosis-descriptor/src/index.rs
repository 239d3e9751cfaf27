//! Which page is whose.

use crate::validate::VPN_END;
use crate::{PageRun, Vpn};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// Sorted, non-overlapping runs of pages with their owners.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct PageIndex {
    runs: Vec<PageRun>,
}

/// Runs that make no index are an error: whoever looks a page up believes in their order.
impl<'de> Deserialize<'de> for PageIndex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PageIndex, D::Error> {
        /// As it is written.
        #[derive(Deserialize)]
        #[serde(rename = "PageIndex")]
        struct Written {
            runs: Vec<PageRun>,
        }
        let Written { runs } = Written::deserialize(from)?;
        PageIndex::from_sorted(runs)
            .map_err(|run| D::Error::custom(format_args!("page run {:#x}", run.start.0)))
    }
}

impl PageIndex {
    /// Builds an index from runs in ascending order; joins runs that continue each other.
    ///
    /// # Errors
    /// Returns the first run that is empty, begins before its predecessor ended, or leaves user
    /// space (in the child or in its owner).
    pub fn from_sorted(runs: impl IntoIterator<Item = PageRun>) -> Result<PageIndex, PageRun> {
        let mut out: Vec<PageRun> = Vec::new();
        for run in runs {
            let below = |vpn: Vpn| vpn.0 <= VPN_END - u64::from(run.count);
            if run.count == 0 || !below(run.start) || !below(run.source) {
                return Err(run);
            }
            match out.last_mut() {
                Some(last) if run.start < last.end() => return Err(run),
                Some(last) if last.continues_with(&run) => last.count += run.count,
                _ => out.push(run),
            }
        }
        Ok(PageIndex { runs: out })
    }

    /// The index of runs that the codec has checked, joining nothing: whoever sent them counted
    /// them.
    pub(crate) fn from_wire(runs: Vec<PageRun>) -> PageIndex {
        PageIndex { runs }
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Number of pages in all runs.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.count)).sum()
    }

    /// The parts of runs that lie in `[start, end)`, ascending.
    pub fn within(&self, start: Vpn, end: Vpn) -> impl Iterator<Item = PageRun> + '_ {
        let first = self.runs.partition_point(|r| r.end() <= start);
        self.runs[first..]
            .iter()
            .take_while(move |r| r.start < end)
            .map(move |r| r.clip(start, end))
    }
}

impl PageRun {
    fn continues_with(&self, next: &PageRun) -> bool {
        self.end() == next.start
            && self.owner == next.owner
            && self.source.0 + u64::from(self.count) == next.source.0
            && self.count.checked_add(next.count).is_some()
    }

    /// The part of the run inside `[start, end)`; the caller knows that they overlap.
    pub fn clip(&self, start: Vpn, end: Vpn) -> PageRun {
        let lo = self.start.0.max(start.0);
        let hi = self.end().0.min(end.0);
        PageRun {
            start: Vpn(lo),
            count: hi.saturating_sub(lo) as u32,
            owner: self.owner,
            source: Vpn(self.source.0 + (lo - self.start.0)),
        }
    }
}
