//! What children of the seed begin with is there before they begin.
//!
//! The node has these pages in files in memory, or is receiving them while the child is built. The
//! child puts them in place itself, through its own userfaultfd: that needs no write access, and
//! never makes more than the page, as a fault outside of it would where huge pages are on.

use crate::Request;
use crate::plan::HOLE;
use mitosis_descriptor::{PageRun, Vpn};
use mitosis_state::{Detail, List, Program, Provided};

const POLL: u16 = 7;
const MMAP: u16 = 9;
const MUNMAP: u16 = 11;
const IOCTL: u16 = 16;
const PROT_READ: u64 = 1;
/// MAP_SHARED | MAP_FIXED | MAP_POPULATE
const MAP_READY: u64 = 1 | 0x10 | 0x8000;
const POLLIN: u64 = 1;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const PAGE: u64 = 4096;
/// How long the child waits for what is on its way: longer than the node does, which then ends it.
const WAIT_MS: u64 = 20_000;
/// Where in the hole the files are mapped.
const WINDOW: u64 = HOLE / 2;

/// Consecutive pages that lie one after the other in a part of the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copy {
    page: u64,
    count: u64,
    /// Index of the first in the part.
    at: u64,
}

/// Appends what puts the working set in place, as far as `missing` (ascending) names it as the
/// seed's own; returns the pages, ascending. `provide` gives the number of a descriptor in the
/// child.
pub(crate) fn place(
    program: &mut Program,
    missing: &[PageRun],
    request: &Request,
    uffd: u64,
    mut provide: impl FnMut(Provided) -> u32,
) -> Vec<u64> {
    let mut placed = Vec::new();
    let window = program.region.base + WINDOW;
    for (number, pages) in request.working_set.iter().enumerate() {
        let copies = copies(missing, pages);
        if copies.is_empty() {
            continue;
        }
        let fd = u64::from(provide(Provided::WorkingSet(number)));
        if request.coming && number + 1 == request.working_set.len() {
            let complete = u64::from(provide(Provided::Complete));
            let waited = program.words(&[complete | POLLIN << 32]);
            let what = "working set: wait until it is complete";
            let args = [waited, 1, WAIT_MS];
            program.call_expect(List::Build, POLL, &args, 1, what, Detail::None);
        }
        let len = pages.len() as u64 * PAGE;
        let args = [window, len, PROT_READ, MAP_READY, fd, 0];
        let detail = Detail::Number(number as u64);
        program.call(List::Build, MMAP, &args, "working set: mmap", detail);
        for copy in &copies {
            let (start, len) = (copy.page * PAGE, copy.count * PAGE);
            let order = program.words(&[start, window + copy.at * PAGE, len, 0, 0]);
            let detail = Detail::Range(start, start + len);
            let args = [uffd, UFFDIO_COPY, order];
            program.call(List::Build, IOCTL, &args, "working set: UFFDIO_COPY", detail);
            placed.extend(copy.page..copy.page + copy.count);
        }
        let args = [window, len];
        program.call(List::Build, MUNMAP, &args, "working set: munmap", Detail::None);
    }
    placed.sort_unstable();
    placed
}

/// Which of `pages` (ascending) are missing and the seed's own, where the seed had them. Each lies
/// in one mapping, as runs do.
fn copies(missing: &[PageRun], pages: &[u64]) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::new();
    let mut runs = missing.iter().peekable();
    let mut run_of_last = None;
    for (at, page) in pages.iter().enumerate() {
        while runs.next_if(|run| run.end().0 <= *page).is_some() {}
        let Some(run) = runs.peek().filter(|run| run.start.0 <= *page) else { continue };
        if run.owner != 0 || run.source != run.start {
            continue;
        }
        match copies.last_mut() {
            Some(last)
                if last.page + last.count == *page && run_of_last == Some(run.start) =>
            {
                last.count += 1;
            }
            _ => copies.push(Copy { page: *page, count: 1, at: at as u64 }),
        }
        run_of_last = Some(run.start);
    }
    copies
}

/// The runs without some pages; both ascend.
pub(crate) fn without(runs: Vec<PageRun>, pages: &[u64]) -> Vec<PageRun> {
    if pages.is_empty() {
        return runs;
    }
    let mut out = Vec::with_capacity(runs.len() + pages.len());
    let mut pages = pages.iter().peekable();
    for run in runs {
        let mut at = run.start;
        let mut piece = |from: Vpn, to: u64| {
            if from.0 < to {
                let (count, source) = ((to - from.0) as u32, run.source.0 + (from.0 - run.start.0));
                out.push(PageRun { start: from, count, source: Vpn(source), ..run });
            }
        };
        while let Some(page) = pages.next_if(|page| **page < run.end().0) {
            if *page >= at.0 {
                piece(at, *page);
                at = Vpn(page + 1);
            }
        }
        piece(at, run.end().0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u32, owner: u16, source: u64) -> PageRun {
        PageRun { start: Vpn(start), count, owner, source: Vpn(source) }
    }

    #[test]
    fn copies_stay_within_a_run_and_take_only_what_is_the_seeds_own() {
        let missing =
            [run(10, 4, 0, 10), run(14, 2, 0, 14), run(20, 4, 1, 20), run(30, 2, 0, 90)];
        let pages = [8, 11, 12, 13, 14, 21, 30, 40];
        let want = [Copy { page: 11, count: 3, at: 1 }, Copy { page: 14, count: 1, at: 4 }];
        assert_eq!(copies(&missing, &pages), want);
    }

    #[test]
    fn what_is_in_place_is_missing_no_more_and_the_rest_still_is() {
        let runs = vec![run(10, 5, 0, 10), run(20, 2, 1, 70), run(30, 1, 0, 30)];
        let left = without(runs.clone(), &[9, 10, 12, 13, 21, 30]);
        assert_eq!(left, [run(11, 1, 0, 11), run(14, 1, 0, 14), run(20, 1, 1, 70)]);
        assert_eq!(without(runs.clone(), &[]), runs);
    }
}
