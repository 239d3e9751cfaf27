//! What children of the seed begin with is there before they begin.
//!
//! The node has these pages in files in memory, or is receiving them while the child is built. The
//! child puts them in place itself, through its own userfaultfd: that needs no write access, and
//! never makes more than the page, as a fault outside of it would where huge pages are on. Which
//! pages, it learns from a table that comes in one message when all are there, so that a plan
//! waits for nothing.

use crate::plan::{Area, HOLE, STAGE};
use mitosis_descriptor::PageIndex;
use mitosis_state::{Detail, List, Program, Provided, op};
use mitosis_stub::abi::{OP_PLACE, PLACE_ENTRY, PLACE_MAGIC, PlaceTable, TEMPLATE_REGION};
use std::sync::Arc;

const READ: u16 = 0;
const MMAP: u16 = 9;
const MUNMAP: u16 = 11;
const PROT_READ: u64 = 1;
const PROT_READ_WRITE: u64 = 3;
/// MAP_SHARED | MAP_FIXED | MAP_POPULATE
const MAP_FILE: u64 = 1 | 0x10 | 0x8000;
/// MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
const MAP_ROOM: u64 = 2 | 0x10 | 0x20;
const PAGE: u64 = 4096;

/// Most parts of a working set.
pub const WORKING_SET_PARTS: usize = 16;
/// Pages put in place at a time.
const STEP_PAGES: usize = 1024;
/// Where in the hole a table comes, and behind it a part of a file.
const WINDOW: u64 = HOLE / 4;
/// Bytes of address space for each of both.
const STEP: u64 = STEP_PAGES as u64 * PAGE;
const TABLE_MAX: usize = size_of::<PlaceTable>() + STEP_PAGES * PLACE_ENTRY;
const _: () = assert!(TABLE_MAX as u64 <= STEP);
const _: () = assert!(TEMPLATE_REGION <= WINDOW);
const _: () = assert!(WINDOW + STEP * 2 < STAGE / 4 * 3);

/// How many steps it takes to put the pages of a file in place that may have so many.
fn steps(pages: usize) -> usize {
    pages.div_ceil(STEP_PAGES).max(1)
}

/// Appends what puts a working set in place that comes in files; `parts` says how many pages each of them
/// may have.
pub(crate) fn place(
    program: &mut Program,
    parts: &[usize],
    uffd: u64,
    mut provide: impl FnMut(Provided) -> u32,
) {
    if parts.is_empty() {
        return;
    }
    let table = program.region.base + WINDOW;
    let len = (TABLE_MAX as u64).next_multiple_of(PAGE);
    let args = [table, len, PROT_READ_WRITE, MAP_ROOM, u64::MAX, 0];
    program.call(List::Build, MMAP, &args, "working set: room for the table", Detail::None);
    let from = u64::from(provide(Provided::PlaceTable));
    for (number, pages) in parts.iter().enumerate() {
        let fd = u64::from(provide(Provided::WorkingSet(number)));
        for step in 0..steps(*pages) as u64 {
            let args = [from, table, TABLE_MAX as u64];
            program.call(List::Build, READ, &args, "working set: wait for a table", Detail::None);
            // In the place of the one before.
            let args = [table + STEP, STEP, PROT_READ, MAP_FILE, fd, step * STEP];
            let detail = Detail::Number(number as u64);
            program.call(List::Build, MMAP, &args, "working set: mmap", detail);
            let what = "working set: put pages in place";
            program.push(List::Build, op(0, OP_PLACE, &[uffd, table]), what, Detail::None);
        }
    }
    let args = [table, STEP * 2];
    program.call(List::Build, MUNMAP, &args, "working set: munmap", Detail::None);
}

/// What a child puts in place, see [`crate::RestorePlan::placement`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The messages that the child waits for, one after the other.
    pub tables: Vec<Vec<u8>>,
    /// The pages, ascending within each part.
    pub pages: Vec<u64>,
}

/// The placement of `parts`, each ascending and one page after the other in its file, as far as
/// `missing` names them as the seed's own. Each entry lies in one mapping, as areas do.
pub(crate) fn placement(
    base: u64,
    areas: &[Area],
    missing: &PageIndex,
    parts: &[Arc<[u64]>],
    planned: &[usize],
) -> Placement {
    let mut done = Placement::default();
    for (pages, planned) in parts.iter().zip(planned) {
        for step in 0..steps(*planned) {
            let (from, to) = (step * STEP_PAGES, (step + 1) * STEP_PAGES);
            let pages = &pages[from.min(pages.len())..to.min(pages.len())];
            let table = table(base + WINDOW + STEP, areas, missing, pages, &mut done.pages);
            done.tables.push(table);
        }
    }
    done
}

/// The table of pages that come one after the other from `window` on.
fn table(
    window: u64,
    areas: &[Area],
    missing: &PageIndex,
    pages: &[u64],
    placed: &mut Vec<u64>,
) -> Vec<u8> {
    let mut entries: Vec<[u64; 5]> = Vec::new();
    let mut runs = missing.runs().iter().peekable();
    let mut areas = areas.iter().peekable();
    let mut before = None;
    for (at, page) in pages.iter().enumerate() {
        while runs.next_if(|run| run.end().0 <= *page).is_some() {}
        let Some(run) = runs.peek().filter(|run| run.start.0 <= *page) else { continue };
        if run.owner != 0 || run.source != run.start {
            continue;
        }
        while areas.next_if(|area| area.start.0 + area.count <= *page).is_some() {}
        let Some(area) = areas.peek().filter(|area| area.start.0 <= *page) else { continue };
        placed.push(*page);
        let (to, from) = (page * PAGE, window + at as u64 * PAGE);
        match entries.last_mut() {
            Some([last_to, last_from, len, ..])
                if *last_to + *len == to
                    && *last_from + *len == from
                    && before == Some(area.start) =>
            {
                *len += PAGE;
            }
            _ => entries.push([to, from, PAGE, 0, 0]),
        }
        before = Some(area.start);
    }
    let head = [PLACE_MAGIC, entries.len() as u64];
    let words = head.iter().chain(entries.iter().flatten());
    words.flat_map(|word| word.to_le_bytes()).collect()
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
    fn entries_stay_within_an_area_and_take_only_what_is_the_seeds_own() {
        let missing = [run(10, 6, 0, 10), run(20, 4, 1, 20), run(30, 2, 0, 90)];
        let areas = [area(10, 4), area(14, 2), area(20, 12)];
        let missing = PageIndex::from_sorted(missing).unwrap();
        let parts: [Arc<[u64]>; 2] =
            [Arc::from([8, 11, 12, 13, 14, 21, 30, 40]), Arc::from([10, 15])];
        let placed = placement(0, &areas, &missing, &parts, &[8, 2]);
        assert_eq!(placed.pages, [11, 12, 13, 14, 10, 15]);
        let words: Vec<Vec<u64>> = placed.tables.iter().map(|table| words(table)).collect();
        let first = WINDOW + STEP;
        let want =
            [[11 * PAGE, first + PAGE, 3 * PAGE, 0, 0], [14 * PAGE, first + 4 * PAGE, PAGE, 0, 0]];
        assert_eq!(words[0], [&[PLACE_MAGIC, 2], want.concat().as_slice()].concat());
        let want = [[10 * PAGE, first, PAGE, 0, 0], [15 * PAGE, first + PAGE, PAGE, 0, 0]];
        assert_eq!(words[1], [&[PLACE_MAGIC, 2], want.concat().as_slice()].concat());
    }

    fn words(table: &[u8]) -> Vec<u64> {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        table.chunks_exact(8).map(word).collect()
    }

    #[test]
    fn a_large_part_comes_in_steps_and_one_that_falls_short_of_its_plan_has_empty_ones() {
        let missing = PageIndex::from_sorted([run(0, 8192, 0, 0)]).unwrap();
        let parts: [Arc<[u64]>; 1] = [(0..1500).map(|n| n * 2).collect()];
        let placed = placement(0, &[area(0, 8192)], &missing, &parts, &[2100]);
        assert_eq!(placed.pages[..], parts[0][..]);
        let counts: Vec<u64> = placed.tables.iter().map(|table| words(table)[1]).collect();
        assert_eq!(counts, [1024, 476, 0]);
        assert_eq!(words(&placed.tables[1])[2..4], [2048 * PAGE, WINDOW + STEP]);
    }

    #[test]
    fn the_largest_table_fits_its_room() {
        let pages: Arc<[u64]> = (0..STEP_PAGES as u64).map(|n| n * 2).collect();
        let missing = PageIndex::from_sorted([run(0, 4096, 0, 0)]).unwrap();
        let placed = placement(0, &[area(0, 4096)], &missing, &[pages], &[STEP_PAGES]);
        assert_eq!(placed.tables[0].len(), TABLE_MAX);
    }
}
