//! What children of the seed begin with is there before they begin.
//!
//! The child's node has these pages in memory, or is receiving them while the child is built. It puts them
//! in place through the child's own userfaultfd, as soon as the child has registered its memory and
//! while it goes on with the rest: that needs no write access, and never makes more than the page, as a
//! fault outside of it would where huge pages are on. The child waits for the node's word as the last
//! step before it drops its privileges, or before it maps shared memory anew: so nothing of its program can drop, move or fork a page that is
//! on its way.

use crate::plan::{Area, provided_base};
use mitosis_descriptor::PageIndex;
use mitosis_state::{Detail, List, Program, Provided};

const READ: u16 = 0;
const PAGE: u64 = 4096;

/// Appends the wait for the node's word.
pub(crate) fn wait(program: &mut Program, provided: &mut Vec<Provided>, fd_base: u32) {
    provided.push(Provided::Filled);
    let from = provided_base(fd_base) + provided.len() as u32 - 1;
    let word = program.words(&[0]);
    let what = "working set: wait until it is in place";
    program.call_expect(List::Build, READ, &[u64::from(from), word, 1], 1, what, Detail::None);
}

/// What is put in place in a child, see [`crate::RestorePlan::placement`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// In the order of the parts, and ascending within each.
    pub runs: Vec<Run>,
    /// The pages, in the same order.
    pub pages: Vec<u64>,
}

/// Pages that lie together, both where they are and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which part of the working set.
    pub part: usize,
    /// The first one's place in it.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Address of the first one in the child.
    pub to: u64,
}

/// The placement of `parts`, each ascending, as far as `missing` names their pages as the seed's own.
/// Each run lies in one mapping, as areas do.
pub(crate) fn placement<'a>(
    areas: &[Area],
    missing: &PageIndex,
    parts: impl Iterator<Item = &'a [u64]>,
) -> Placement {
    let mut done = Placement::default();
    for (number, pages) in parts.enumerate() {
        place_part(areas, missing, number, pages, &mut done);
    }
    done
}

fn place_part(
    areas: &[Area],
    missing: &PageIndex,
    part: usize,
    pages: &[u64],
    done: &mut Placement,
) {
    let mut runs = missing.runs().iter().peekable();
    let mut areas = areas.iter().peekable();
    let mut before = None;
    for (first, page) in pages.iter().enumerate() {
        while runs.next_if(|run| run.end().0 <= *page).is_some() {}
        let Some(run) = runs.peek().filter(|run| run.start.0 <= *page) else { continue };
        if run.owner != 0 || run.source != run.start {
            continue;
        }
        while areas.next_if(|area| area.start.0 + area.count <= *page).is_some() {}
        let Some(area) = areas.peek().filter(|area| area.start.0 <= *page) else { continue };
        done.pages.push(*page);
        let to = page * PAGE;
        match done.runs.last_mut() {
            Some(last)
                if last.part == part
                    && last.first + last.count == first
                    && last.to + last.count as u64 * PAGE == to
                    && before == Some(area.start) =>
            {
                last.count += 1;
            }
            _ => done.runs.push(Run { part, first, count: 1, to }),
        }
        before = Some(area.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_descriptor::{PageRun, Vpn};

    fn run(start: u64, count: u32, owner: u16, source: u64) -> PageRun {
        PageRun { start: Vpn(start), count, owner, source: Vpn(source) }
    }

    fn area(start: u64, count: u64) -> Area {
        Area { start: Vpn(start), count, grows_down: false }
    }

    #[test]
    fn runs_stay_within_an_area_and_take_only_what_is_the_seeds_own() {
        let missing = [run(10, 6, 0, 10), run(20, 4, 1, 20), run(30, 2, 0, 90)];
        let areas = [area(10, 4), area(14, 2), area(20, 12)];
        let missing = PageIndex::from_sorted(missing).unwrap();
        let parts: [&[u64]; 2] = [&[8, 11, 12, 13, 14, 21, 30, 40], &[10, 15]];
        let placed = placement(&areas, &missing, parts.into_iter());
        assert_eq!(placed.pages, [11, 12, 13, 14, 10, 15]);
        let runs: Vec<(usize, usize, usize, u64)> =
            placed.runs.iter().map(|run| (run.part, run.first, run.count, run.to / PAGE)).collect();
        assert_eq!(runs, [(0, 1, 3, 11), (0, 4, 1, 14), (1, 0, 1, 10), (1, 1, 1, 15)]);
    }
}
