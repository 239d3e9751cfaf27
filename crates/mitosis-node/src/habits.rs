//! Which pages the children of a program touch, whichever seed they are of.
//!
//! A new seed has no children yet that could tell. But most seeds are not the first of their program:
//! a function is prepared again when its seed has expired, when its node is replaced, when it has a
//! new version. Addresses differ from process to process (ASLR), places do not: the page of a library
//! at a distance from the library's beginning, the page of the heap at a distance from the heap's.
//! Such a guess costs some pages where it is wrong, and never a wrong page.

use mitosis_descriptor::{Backing, Descriptor, Vpn};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Most programs remembered; each counts twice, see [`Sort`].
const PROGRAMS_MAX: usize = 128;
/// Most pages of one.
const PAGES_MAX: usize = 1024;

/// A stretch of an address space that moves as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    /// A file's mappings with the anonymous memory behind them (`.bss`): which file, and the how
    /// manieth time it is mapped.
    File(u64, u32),
    /// The anonymous memory that follows the first file's mappings.
    Heap,
    /// Anonymous memory below a file's mappings, which is handed out downwards: the file's name, 0 for
    /// none, and the how manieth below it.
    Below(u64, u32),
}

/// A page by where it is: counted from the end for [`Key::Below`], else from the beginning.
type Place = (Key, u64);

#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    end: u64,
    key: Key,
}

impl Block {
    fn place(&self, page: u64) -> Place {
        match self.key {
            Key::Below(..) => (self.key, self.end - page),
            Key::File(..) | Key::Heap => (self.key, page - self.start),
        }
    }

    fn page(&self, place: u64) -> Option<u64> {
        let page = match self.key {
            Key::Below(..) => self.end.checked_sub(place)?,
            Key::File(..) | Key::Heap => self.start.checked_add(place)?,
        };
        (self.start..self.end).contains(&page).then_some(page)
    }
}

/// The address space of a seed, and what it is a process of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Digest of the files that it maps.
    files: [u8; 32],
    /// Number of its mappings.
    vmas: usize,
    /// Ascending.
    blocks: Vec<Block>,
}

impl Places {
    /// Of a seed.
    pub fn of(descriptor: &Descriptor) -> Places {
        let names: Vec<u64> = descriptor.files.iter().map(|file| name(&file.path)).collect();
        let mut all: Vec<_> = descriptor.files.iter().map(|f| (&f.path, f.size, f.hash)).collect();
        all.sort_unstable();
        let mut digest = blake3::Hasher::new();
        for (path, size, hash) in all {
            digest.update(path.as_bytes()).update(&size.to_le_bytes());
            digest.update(&hash.unwrap_or_default());
        }
        let mut found: Vec<(u64, u64, Option<u64>)> = Vec::new();
        for vma in &descriptor.vmas {
            let file = match vma.backing {
                Backing::File { file, .. } => names.get(file as usize).copied(),
                Backing::Anonymous => None,
                _ => continue,
            };
            let (start, end) = (Vpn::of(vma.start).0, Vpn::of(vma.end).0);
            match found.last_mut() {
                Some(last) if last.1 == start && (file.is_none() || file == last.2) => last.1 = end,
                _ => found.push((start, end, file)),
            }
        }
        Places {
            files: *digest.finalize().as_bytes(),
            vmas: descriptor.vmas.len(),
            blocks: keyed(&found),
        }
    }

    fn place(&self, page: u64) -> Option<Place> {
        let at = self.blocks.partition_point(|block| block.end <= page);
        let block = self.blocks.get(at).filter(|block| block.start <= page)?;
        Some(block.place(page))
    }

    fn sorts(&self) -> [Sort; 2] {
        [(self.files, Some(self.vmas)), (self.files, None)]
    }
}

fn name(path: &str) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..8]);
    // 0 is nobody's.
    u64::from_le_bytes(eight).max(1)
}

fn keyed(found: &[(u64, u64, Option<u64>)]) -> Vec<Block> {
    let mut times: HashMap<u64, u32> = HashMap::new();
    let (mut above, mut below) = (0, 0);
    let first_file = found.iter().position(|(_, _, file)| file.is_some());
    let mut blocks = Vec::with_capacity(found.len());
    for (at, (start, end, file)) in found.iter().enumerate().rev() {
        let key = match file {
            Some(file) => {
                let time = times.entry(*file).or_default();
                *time += 1;
                (above, below) = (*file, 0);
                Key::File(*file, *time)
            }
            None if first_file.is_some_and(|first| first + 1 == at) => Key::Heap,
            None => {
                below += 1;
                Key::Below(above, below)
            }
        };
        blocks.push(Block { start: *start, end: *end, key });
    }
    blocks.reverse();
    blocks
}

/// Of what processes something is known: those that map the same files and have as many mappings, in
/// which every place is likely to mean the same; or only the same files, of which just the pages of
/// files are.
type Sort = ([u8; 32], Option<usize>);

#[derive(Debug)]
struct Habit {
    pages: Vec<Place>,
    known: HashSet<Place>,
    used: Instant,
}

/// What was learned, by program. In the memory of this daemon only.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    programs: Mutex<HashMap<Sort, Habit>>,
}

impl Habits {
    /// Children of a seed have touched `pages`, in that order.
    pub fn learn(&self, places: &Places, pages: &[u64]) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        for sort in places.sorts() {
            let fresh = || Habit { pages: vec![], known: HashSet::new(), used: Instant::now() };
            let habit = programs.entry(sort).or_insert_with(fresh);
            habit.used = Instant::now();
            for place in pages.iter().filter_map(|page| places.place(*page)) {
                let told = sort.1.is_some() || matches!(place.0, Key::File(..));
                if told && habit.pages.len() < PAGES_MAX && habit.known.insert(place) {
                    habit.pages.push(place);
                }
            }
        }
        while programs.len() > 2 * PROGRAMS_MAX {
            let oldest = programs.iter().min_by_key(|(_, habit)| habit.used).map(|(sort, _)| *sort);
            let Some(oldest) = oldest else { return };
            programs.remove(&oldest);
        }
    }

    /// What children of a new seed will touch, by all that is known.
    pub fn guess(&self, places: &Places) -> Vec<u64> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sort) = places.sorts().into_iter().find(|sort| programs.contains_key(sort)) else {
            return Vec::new();
        };
        let Some(habit) = programs.get_mut(&sort) else { return Vec::new() };
        habit.used = Instant::now();
        let blocks: HashMap<Key, &Block> = places.blocks.iter().map(|b| (b.key, b)).collect();
        let page = |(key, at): &Place| blocks.get(key)?.page(*at);
        habit.pages.iter().filter_map(page).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: u64 = 1;
    const LIBC: u64 = 2;

    /// A program at `exe`, with a heap of `heap` pages, arenas and a library, of which it maps another
    /// copy below.
    fn places(exe: u64, heap: u64, arenas: u64, lib: u64, vmas: usize) -> Places {
        let found = [
            (exe, exe + 100, Some(PYTHON)),
            (exe + 500, exe + 500 + heap, None),
            (lib - 1000, lib - 900, Some(LIBC)),
            (lib - arenas, lib, None),
            (lib, lib + 50, Some(LIBC)),
            (lib + 900, lib + 950, None),
        ];
        Places { files: [7; 32], vmas, blocks: keyed(&found) }
    }

    #[test]
    fn places_move_with_what_they_are_in() {
        let (old, new) = (places(10, 30, 64, 90_000, 9), places(5_000, 40, 80, 70_000, 9));
        let habits = Habits::default();
        // The text, the heap, an arena, both copies of the library, the stack.
        let seen = [12, 512, 89_990, 90_003, 89_001, 90_949];
        habits.learn(&old, &seen);
        assert_eq!(habits.guess(&new), [5_002, 5_502, 69_990, 70_003, 69_001, 70_949]);
        assert_eq!(habits.guess(&old), seen);
    }

    #[test]
    fn a_place_that_is_not_there_is_no_page() {
        let (large, small) = (places(10, 30, 64, 90_000, 9), places(10, 5, 8, 90_000, 9));
        let habits = Habits::default();
        habits.learn(&large, &[510 + 29, 90_000 - 64, 12]);
        assert_eq!(habits.guess(&small), [12]);
    }

    #[test]
    fn of_another_shape_only_files_are_known_and_of_other_files_nothing() {
        let habits = Habits::default();
        habits.learn(&places(10, 30, 64, 90_000, 9), &[12, 512, 90_003]);
        let other = places(10, 30, 64, 90_000, 10);
        assert_eq!(habits.guess(&other), [12, 90_003]);
        assert!(habits.guess(&Places { files: [8; 32], ..other }).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let habits = Habits::default();
        let program = |n: u8| Places { files: [n; 32], ..places(10, 3000, 64, 90_000, 9) };
        for n in 0..=PROGRAMS_MAX as u8 {
            let pages: Vec<u64> = (510..3000).collect();
            habits.learn(&program(n), &pages);
        }
        assert!(habits.guess(&program(0)).is_empty());
        assert_eq!(habits.guess(&program(PROGRAMS_MAX as u8)).len(), PAGES_MAX);
    }
}
