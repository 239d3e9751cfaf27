//! What the child lacks: the areas to be registered, and whose pages belong there.

use super::Memory;
use crate::RestoreError;
use crate::plan::Area;
use mitosis_descriptor::{PageIndex, PageRun, Vma, Vpn, vma_flags};

/// A hole of at most so many pages between two runs is registered with them: fewer VMAs, and the
/// pager answers it with zeros in one window.
const JOIN_PAGES: u64 = 32;

impl<'a> Memory<'a> {
    /// Areas and runs for the pager.
    ///
    /// # Errors
    /// Runs that make no index: without one the pager would take every page for zero.
    pub(crate) fn missing(self) -> Result<(Vec<Area>, PageIndex), RestoreError> {
        let index = PageIndex::from_sorted(self.runs).map_err(|run| {
            let (start, count) = (run.start.0, run.count);
            RestoreError::Incompatible(format!("page run {start:#x}+{count:#x} out of order"))
        })?;
        Ok((self.areas, index))
    }

    /// Whether it waits for the node to put pages in place: without an area there is no userfaultfd
    /// through which that could.
    pub(crate) fn waits(&self) -> bool {
        self.filled && !self.areas.is_empty()
    }

    /// What the template has is not missing, and where nothing else is, nothing is registered.
    pub(super) fn leave_out(&mut self) {
        let mut placed = self.placed.iter().copied().peekable();
        let mut runs = Vec::with_capacity(self.runs.len());
        for run in std::mem::take(&mut self.runs) {
            while placed.next_if(|page| *page < run.start.0).is_some() {}
            let mut from = run.start;
            while let Some(page) = placed.next_if(|page| *page < run.end().0) {
                runs.extend((from.0 < page).then(|| run.clip(from, Vpn(page))));
                from = Vpn(page + 1);
            }
            runs.extend((from < run.end()).then(|| run.clip(from, run.end())));
        }
        self.runs = runs;
        let runs = &self.runs;
        // An area is left out or stays whole: where its ends were cut off the kernel would divide mappings,
        // in each child.
        self.areas.retain(|area| {
            let end = area.start.0 + area.count;
            let first = runs.partition_point(|run| run.end() <= area.start);
            runs.get(first).is_some_and(|run| run.start.0 < end)
        });
    }

    pub(super) fn runs_of(&self, vma: &Vma) -> impl Iterator<Item = PageRun> + use<'a> {
        self.descriptor.pages.within(Vpn::of(vma.start), Vpn::of(vma.end))
    }

    /// Notes what is missing in an anonymous mapping. With `file_bytes` all pages up to that many
    /// bytes hold data: those of no run are the owner's file.
    pub(super) fn missing_in(&mut self, vma: &Vma, file_bytes: Option<u64>) {
        let mut runs: Vec<PageRun> = self.runs_of(vma).collect();
        if let Some(bytes) = file_bytes {
            let pages = bytes.div_ceil(4096);
            let end = Vpn::of(vma.start).0 + pages.min((vma.end - vma.start) >> 12);
            fill_gaps(&mut runs, Vpn::of(vma.start), Vpn(end));
        }
        let grows_down = vma.flags & vma_flags::GROWSDOWN != 0;
        if grows_down && !runs.is_empty() {
            let start = Vpn::of(vma.start);
            let count = (vma.end - vma.start) >> 12;
            self.areas.push(Area { start, count, grows_down });
        } else {
            self.join_areas(&runs);
        }
        self.runs.extend(runs);
    }

    fn join_areas(&mut self, runs: &[PageRun]) {
        let from = self.areas.len();
        for run in runs {
            match self.areas[from..].last_mut() {
                Some(last) if run.start.0 - (last.start.0 + last.count) <= JOIN_PAGES => {
                    last.count = run.end().0 - last.start.0;
                }
                _ => self.areas.push(Area {
                    start: run.start,
                    count: u64::from(run.count),
                    grows_down: false,
                }),
            }
        }
    }
}

/// Adds runs of owner 0 for all pages of `[start, end)` that are in no run.
fn fill_gaps(runs: &mut Vec<PageRun>, start: Vpn, end: Vpn) {
    // A mapping can have more pages than one run can count.
    let own = |from: Vpn, to: Vpn, out: &mut Vec<PageRun>| {
        let mut from = from;
        while from < to {
            let count = u32::try_from(to.0 - from.0).unwrap_or(u32::MAX);
            out.push(PageRun { start: from, count, owner: 0, source: from });
            from.0 += u64::from(count);
        }
    };
    let mut out = Vec::with_capacity(2 * runs.len() + 1);
    let mut at = start;
    for run in runs.iter() {
        if at < run.start && at < end {
            own(at, Vpn(run.start.0.min(end.0)), &mut out);
        }
        out.push(*run);
        at = run.end();
    }
    if at < end {
        own(at, end, &mut out);
    }
    *runs = out;
}
