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

/// Most pages of a working set.
pub const WORKING_SET_PAGES: usize = 1024;
/// Most parts of one.
pub const WORKING_SET_PARTS: usize = 16;
/// Where in the hole the table comes, and behind it the files.
const WINDOW: u64 = HOLE / 4;
/// Bytes of address space for the table, and for each file.
const STEP: u64 = WORKING_SET_PAGES as u64 * PAGE;
const TABLE_MAX: usize = size_of::<PlaceTable>() + WORKING_SET_PAGES * PLACE_ENTRY;
const _: () = assert!(TABLE_MAX as u64 <= STEP);
const _: () = assert!(TEMPLATE_REGION <= WINDOW);
const _: () = assert!(WINDOW + STEP * (WORKING_SET_PARTS as u64 + 1) < STAGE / 4 * 3);

/// Appends what puts a working set of `parts` files in place.
pub(crate) fn place(
    program: &mut Program,
    parts: usize,
    uffd: u64,
    mut provide: impl FnMut(Provided) -> u32,
) {
    if parts == 0 {
        return;
    }
    let table = program.region.base + WINDOW;
    let len = (TABLE_MAX as u64).next_multiple_of(PAGE);
    let args = [table, len, PROT_READ_WRITE, MAP_ROOM, u64::MAX, 0];
    program.call(List::Build, MMAP, &args, "working set: room for the table", Detail::None);
    let from = u64::from(provide(Provided::PlaceTable));
    let args = [from, table, TABLE_MAX as u64];
    program.call(List::Build, READ, &args, "working set: wait for the table", Detail::None);
    for number in 0..parts {
        let fd = u64::from(provide(Provided::WorkingSet(number)));
        let args = [window(table, number), STEP, PROT_READ, MAP_FILE, fd, 0];
        let detail = Detail::Number(number as u64);
        program.call(List::Build, MMAP, &args, "working set: mmap", detail);
    }
    let what = "working set: put pages in place";
    program.push(List::Build, op(0, OP_PLACE, &[uffd, table]), what, Detail::None);
    let args = [table, STEP * (parts as u64 + 1)];
    program.call(List::Build, MUNMAP, &args, "working set: munmap", Detail::None);
}

fn window(table: u64, number: usize) -> u64 {
    table + STEP * (number as u64 + 1)
}

/// What a child puts in place, see [`crate::RestorePlan::placement`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The message that the child waits for.
    pub table: Vec<u8>,
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
) -> Placement {
    let table = base + WINDOW;
    let mut entries: Vec<[u64; 5]> = Vec::new();
    let mut placed = Vec::new();
    for (number, pages) in parts.iter().enumerate() {
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
            let (to, from) = (page * PAGE, window(table, number) + at as u64 * PAGE);
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
    }
    let head = [PLACE_MAGIC, entries.len() as u64];
    let words = head.iter().chain(entries.iter().flatten());
    Placement { table: words.flat_map(|word| word.to_le_bytes()).collect(), pages: placed }
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
        let placed = placement(0, &areas, &missing, &parts);
        assert_eq!(placed.pages, [11, 12, 13, 14, 10, 15]);
        let words: Vec<u64> = placed
            .table
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let (first, second) = (window(WINDOW, 0), window(WINDOW, 1));
        let want = [
            [11 * PAGE, first + PAGE, 3 * PAGE, 0, 0],
            [14 * PAGE, first + 4 * PAGE, PAGE, 0, 0],
            [10 * PAGE, second, PAGE, 0, 0],
            [15 * PAGE, second + PAGE, PAGE, 0, 0],
        ];
        assert_eq!(words[..2], [PLACE_MAGIC, 4]);
        assert_eq!(words[2..], want.concat());
    }

    #[test]
    fn the_largest_table_fits_its_room() {
        let pages: Arc<[u64]> = (0..WORKING_SET_PAGES as u64).map(|n| n * 2).collect();
        let missing = PageIndex::from_sorted([run(0, 4096, 0, 0)]).unwrap();
        assert_eq!(placement(0, &[area(0, 4096)], &missing, &[pages]).table.len(), TABLE_MAX);
    }
}
