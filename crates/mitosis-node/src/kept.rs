//! The trail of a seed in memory: who fetches along it is sent pages from there, which costs this side one
//! copy, where reading the shadow costs three.
//!
//! Children's pagers ask for the trail in parts of [`GATHERED`] pages, each ascending; so it is kept in
//! such parts, and most questions are answered by one stretch of one of them. A part is never changed, since
//! it may be about to be sent: one that was not full is replaced.

use crate::error::NodeError;
use crate::seed::Seed;
use crate::working_set::read;
use mitosis_transport::{KeptPages, wire::GATHERED};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the trail of a seed is kept that nobody opens or reads.
const UNUSED: Duration = Duration::from_secs(20);
/// Pages by which a trail must have grown.
const GROWN: usize = 32;
/// Most pages added at a time: a twentieth of a second.
const ADDED: usize = 16 << 10;

/// What is kept of one seed.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    parts: Vec<Arc<[u8]>>,
    /// Where each page is: the part, and the place in it.
    places: HashMap<u64, (u32, u32)>,
    used: Option<Instant>,
}

/// What is to be added.
pub(crate) struct Addition {
    /// The part with which it begins.
    first: usize,
    /// The pages of each part.
    pages: Vec<Vec<u64>>,
}

impl Kept {
    /// Somebody reads the seed, or is about to.
    pub fn used(&mut self) {
        self.used = Some(Instant::now());
    }

    /// Pages that it takes.
    pub fn pages(&self) -> usize {
        self.places.len()
    }

    /// Gives it up if nobody has used it for long.
    pub fn sweep(&mut self) {
        if self.used.is_none_or(|at| at.elapsed() > UNUSED) {
            *self = Kept::default();
        }
    }

    /// Pages in their order, if all of them are here.
    pub fn find(&mut self, pages: &[u64]) -> Option<Vec<KeptPages>> {
        let mut stretches: Vec<(u32, u32, u32)> = Vec::new();
        for page in pages {
            let (part, place) = *self.places.get(page)?;
            match stretches.last_mut() {
                Some((of, _, end)) if (*of, *end) == (part, place) => *end += 1,
                _ => stretches.push((part, place, place + 1)),
            }
        }
        self.used();
        let kept = stretches.into_iter().map(|(part, first, end)| {
            let memory = Arc::clone(self.parts.get(part as usize)?);
            KeptPages::new(memory, first as usize..end as usize)
        });
        kept.collect()
    }

    /// Whether it is worth looking what it lacks of a trail of `length` pages.
    pub fn wants(&self, length: usize) -> bool {
        self.used.is_some() && length >= self.pages() + GROWN
    }

    /// What it lacks of a trail, as far as `room` pages are enough.
    pub fn lacks(&self, trail: &[u64], room: usize) -> Option<Addition> {
        let first = self.pages() / GATHERED;
        let most = ADDED.min(room / GATHERED * GATHERED);
        if !self.wants(trail.len()) || most == 0 {
            return None;
        }
        let more = trail.chunks(GATHERED).skip(first).take(most / GATHERED);
        let mut pages: Vec<Vec<u64>> = more.map(<[u64]>::to_vec).collect();
        pages.iter_mut().for_each(|part| part.sort_unstable());
        Some(Addition { first, pages })
    }

    /// The memory of an addition has been read. Not if anything has been given up meanwhile.
    pub fn add(&mut self, addition: &Addition, memory: Vec<Arc<[u8]>>) {
        if addition.first != self.pages() / GATHERED {
            return;
        }
        self.parts.truncate(addition.first);
        for (part, memory) in addition.pages.iter().zip(memory) {
            let number = self.parts.len() as u32;
            let places = part.iter().zip(0..);
            self.places.extend(places.map(|(page, place)| (*page, (number, place))));
            self.parts.push(memory);
        }
    }
}

impl Addition {
    /// Reads it from the seed.
    ///
    /// # Errors
    /// The seed has ended.
    pub fn read(&self, seed: &Seed) -> Result<Vec<Arc<[u8]>>, NodeError> {
        let part = |pages: &Vec<u64>| {
            let mut bytes = Vec::new();
            read(seed, pages, |_, more| {
                bytes.extend_from_slice(more);
                Ok(())
            })?;
            Ok(Arc::from(bytes))
        };
        self.pages.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_descriptor::PAGE_SIZE;

    /// Every page says which it is.
    fn grow(kept: &mut Kept, trail: &[u64], room: usize) -> bool {
        let Some(addition) = kept.lacks(trail, room) else { return false };
        let page = |page: &u64| vec![*page as u8; PAGE_SIZE as usize];
        let part = |pages: &Vec<u64>| pages.iter().flat_map(page).collect();
        kept.add(&addition, addition.pages.iter().map(part).collect());
        true
    }

    /// How many stretches hold these pages, which must be right.
    fn find(kept: &mut Kept, pages: &[u64]) -> Option<usize> {
        let found = kept.find(pages)?;
        let bytes: Vec<u8> = found.iter().flat_map(|part| part.bytes().to_vec()).collect();
        assert_eq!(bytes.len(), pages.len() * PAGE_SIZE as usize);
        for (bytes, page) in bytes.chunks(PAGE_SIZE as usize).zip(pages) {
            assert!(bytes.iter().all(|byte| *byte == *page as u8), "page {page}");
        }
        Some(found.len())
    }

    #[test]
    fn parts_of_a_trail_are_found_as_a_pager_asks_for_them() {
        let mut kept = Kept::default();
        // Downwards: a pager sorts each part.
        let trail: Vec<u64> = (0..300).rev().map(|n| 10 + n * 4).collect();
        assert!(!grow(&mut kept, &trail, 1000), "nobody reads the seed");
        kept.used();
        assert!(grow(&mut kept, &trail, 1000));
        for part in trail.chunks(GATHERED) {
            let mut part = part.to_vec();
            part.sort_unstable();
            assert_eq!(find(&mut kept, &part), Some(1));
            // One that is not wanted any more divides it.
            part.remove(20);
            assert_eq!(find(&mut kept, &part), Some(2));
        }
        assert_eq!(find(&mut kept, &[trail[0], 11]), None, "a page that is not there");
        let scattered: Vec<u64> = trail.iter().copied().step_by(3).collect();
        assert_eq!(find(&mut kept, &scattered), Some(100));
    }

    #[test]
    fn it_grows_within_its_room_and_is_given_up() {
        let mut kept = Kept::default();
        kept.used();
        let trail: Vec<u64> = (0..1000).map(|n| n * 7).collect();
        assert!(grow(&mut kept, &trail[..200], 1000));
        assert!(!grow(&mut kept, &trail[..210], 1000), "not for a few pages");
        let before = kept.find(&trail[GATHERED..200]).unwrap();
        assert!(grow(&mut kept, &trail[..256], 1000));
        assert_eq!((kept.pages(), kept.parts.len()), (256, 2));
        assert_eq!(find(&mut kept, &trail[GATHERED..256]), Some(1));
        assert_eq!(before[0].bytes()[0], trail[GATHERED] as u8, "it is being sent");
        assert!(grow(&mut kept, &trail, 300));
        assert_eq!(kept.pages(), 4 * GATHERED);
        assert!(!grow(&mut kept, &trail, GATHERED - 1));
        // Given up while more was being read: that is not taken for the beginning.
        let late = kept.lacks(&trail, 1000).unwrap();
        kept.used = Instant::now().checked_sub(2 * UNUSED);
        kept.sweep();
        kept.add(&late, vec![Arc::from(vec![0; PAGE_SIZE as usize])]);
        assert_eq!((kept.pages(), find(&mut kept, &trail[..1])), (0, None));
    }
}
