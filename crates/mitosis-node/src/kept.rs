//! The trail of a seed in a file in memory: who fetches along it is sent pages of that file, which costs
//! this side no copy, where reading the shadow costs three.
//!
//! Children's pagers ask for the trail in parts of [`GATHERED`] pages, each ascending; so the file
//! holds such parts one behind the other, and most questions are answered by one stretch of it. The file
//! only grows: pages that are being sent are pages of the file, and must never change.

use crate::error::NodeError;
use crate::registry::Seed;
use crate::working_set::{memory_file, read};
use mitosis_descriptor::PAGE_SIZE;
use mitosis_transport::{InFile, wire::GATHERED};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the file of a seed is kept that nobody opens or reads.
const UNUSED: Duration = Duration::from_secs(20);
/// Pages by which a trail must have grown.
const GROWN: usize = 32;
/// Most pages added at a time: a twentieth of a second.
const ADDED: usize = 16 << 10;
/// Pages that a stretch has at least, on average: for less, a call for each costs more than copying.
const STRETCH: usize = 8;

/// The file of one seed.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    file: Option<Arc<File>>,
    /// Where in the file each page is.
    places: HashMap<u64, u32>,
    /// How much of the trail is in it.
    covered: usize,
    /// Pages of the file, those that are in it twice included.
    length: usize,
    used: Option<Instant>,
}

/// What is to be added to a file.
pub(crate) struct Addition {
    file: Arc<File>,
    /// From here on.
    at: usize,
    pages: Vec<u64>,
    covered: usize,
}

impl Kept {
    /// Somebody reads the seed, or is about to.
    pub fn used(&mut self) {
        self.used = Some(Instant::now());
    }

    /// Pages that it takes.
    pub fn pages(&self) -> usize {
        self.length
    }

    /// Gives it up if nobody has used it for long.
    pub fn sweep(&mut self) {
        if self.used.is_none_or(|at| at.elapsed() > UNUSED) {
            *self = Kept::default();
        }
    }

    /// Where pages are in the file, if all of them are, in stretches that are worth it.
    pub fn find(&mut self, pages: &[u64]) -> Option<InFile> {
        let file = self.file.as_ref()?;
        let mut stretches: Vec<(u32, u32)> = Vec::new();
        for page in pages {
            let place = *self.places.get(page)?;
            match stretches.last_mut() {
                Some((first, count)) if *first + *count == place => *count += 1,
                _ => stretches.push((place, 1)),
            }
        }
        if stretches.len() > pages.len().div_ceil(STRETCH) {
            return None;
        }
        let found = InFile { file: Arc::clone(file), stretches };
        self.used();
        Some(found)
    }

    /// Whether it is worth looking what it lacks of a trail of `length` pages.
    pub fn wants(&self, length: usize) -> bool {
        self.used.is_some() && length >= self.covered + GROWN
    }

    /// What of a trail it lacks, as far as `room` pages are enough. The last part may be in it
    /// already as far as it went then, and is added anew.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub fn lacks(&mut self, trail: &[u64], room: usize) -> Result<Option<Addition>, NodeError> {
        let from = self.covered / GATHERED * GATHERED;
        let most = ADDED.min(room / GATHERED * GATHERED);
        if !self.wants(trail.len()) || most == 0 {
            return Ok(None);
        }
        let covered = trail.len().min(from + most);
        let mut pages = trail[from..covered].to_vec();
        pages.chunks_mut(GATHERED).for_each(<[u64]>::sort_unstable);
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(memory_file()?))),
        };
        Ok(Some(Addition { file, at: self.length, pages, covered }))
    }

    /// An addition is in the file. Not if the file is another one by now.
    pub fn add(&mut self, addition: &Addition) {
        if self.file.as_ref().is_some_and(|file| Arc::ptr_eq(file, &addition.file)) {
            let places = (addition.at as u32..).zip(&addition.pages);
            self.places.extend(places.map(|(place, page)| (*page, place)));
            self.length = addition.at + addition.pages.len();
            self.covered = addition.covered;
        }
    }
}

impl Addition {
    /// Reads it from the seed.
    ///
    /// # Errors
    /// No memory, or the seed has ended.
    pub fn read(&self, seed: &Seed) -> Result<(), NodeError> {
        let place = |at: usize| (self.at + at) as u64 * PAGE_SIZE;
        read(seed, &self.pages, |at, bytes| self.file.write_all_at(bytes, place(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grow(kept: &mut Kept, trail: &[u64], room: usize) -> bool {
        let addition = kept.lacks(trail, room).unwrap();
        addition.inspect(|addition| kept.add(addition)).is_some()
    }

    fn find(kept: &mut Kept, pages: &[u64]) -> Option<Vec<(u32, u32)>> {
        kept.find(pages).map(|found| found.stretches)
    }

    #[test]
    fn parts_of_a_trail_are_found_as_a_pager_asks_for_them() {
        let mut kept = Kept::default();
        // Downwards: a pager sorts each part.
        let trail: Vec<u64> = (0..300).rev().map(|n| 10 + n * 4).collect();
        assert!(!grow(&mut kept, &trail, 1000), "nobody reads the seed");
        kept.used();
        assert!(grow(&mut kept, &trail, 1000));
        for (number, part) in trail.chunks(GATHERED).enumerate() {
            let mut part = part.to_vec();
            part.sort_unstable();
            let at = (number * GATHERED) as u32;
            assert_eq!(find(&mut kept, &part), Some(vec![(at, part.len() as u32)]));
            // One that is not wanted any more divides it.
            part.remove(20);
            let left = vec![(at, 20), (at + 21, part.len() as u32 - 20)];
            assert_eq!(find(&mut kept, &part), Some(left));
        }
        assert_eq!(find(&mut kept, &[trail[0], 11]), None, "a page that is not there");
        let scattered: Vec<u64> = trail.iter().copied().step_by(3).take(GATHERED).collect();
        assert_eq!(find(&mut kept, &scattered), None);
    }

    #[test]
    fn the_file_only_grows_and_within_its_room() {
        let mut kept = Kept::default();
        kept.used();
        let trail: Vec<u64> = (0..1000).map(|n| n * 7).collect();
        assert!(grow(&mut kept, &trail[..200], 1000));
        assert!(!grow(&mut kept, &trail[..210], 1000), "not for a few pages");
        assert!(grow(&mut kept, &trail[..256], 1000));
        // The second part was there as far as 200; it is there anew behind that.
        let second = find(&mut kept, &trail[GATHERED..2 * GATHERED]).unwrap();
        assert_eq!(second, vec![(200, GATHERED as u32)]);
        assert_eq!(kept.pages(), 200 + GATHERED);
        assert!(grow(&mut kept, &trail, 300) && kept.covered == 2 * GATHERED + 2 * GATHERED);
        assert!(!grow(&mut kept, &trail, GATHERED - 1));
        kept.used = Instant::now().checked_sub(2 * UNUSED);
        kept.sweep();
        assert_eq!((kept.pages(), find(&mut kept, &trail[..1])), (0, None));
    }
}
