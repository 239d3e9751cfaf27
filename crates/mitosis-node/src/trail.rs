//! What the parent and the children of a seed have touched since it was made.

use crate::memory::Memory;
use mitosis_transport::wire::{TRAIL_PAGES_MAX, WORKING_SET_FIRST};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Pages that each trail may have.
const SURE: usize = 2048;
/// Most pages of all trails together, as far as they are longer than that; each takes some 30 bytes.
const ROOM: usize = 1 << 20;
/// The pages of a trail that are kept in a file, and that are remembered of a program.
pub(crate) const BEGINNING: usize = 1024;

/// How many pages the trails of a node may still grow by.
#[derive(Debug)]
pub(crate) struct Room(AtomicUsize);

impl Default for Room {
    fn default() -> Room {
        Room(AtomicUsize::new(ROOM))
    }
}

impl Room {
    /// Room for one page, if there is any.
    fn take(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// Most pages written by the parent that are taken for what a child will need.
const REWRITTEN_MAX: usize = 768;
/// Most of them that go before what children of other seeds have touched.
const REWRITTEN_FIRST: usize = WORKING_SET_FIRST / 2;
/// What was seen of the parent's writes stands for so long, and for half of the seed's age: what
/// children begin with is what the parent does first.
const REWRITTEN_AGE: Duration = Duration::from_millis(100);

/// It only grows, so that a node which has the first part of it can ask for the rest.
#[derive(Debug)]
pub(crate) struct Trail {
    pages: Vec<u64>,
    known: HashSet<u64>,
    born: Instant,
    /// When it was last looked what the parent has written.
    looked: Option<Instant>,
    /// How many pages that has brought.
    rewritten: usize,
    /// A child has told what it touched.
    told: bool,
    /// The room that it takes, and how much of it.
    taken: Option<(Arc<Room>, usize)>,
}

impl Drop for Trail {
    fn drop(&mut self) {
        if let Some((room, pages)) = &self.taken {
            room.0.fetch_add(*pages, Ordering::Relaxed);
        }
    }
}

impl Trail {
    /// Of a new seed.
    pub fn new() -> Trail {
        Trail {
            pages: Vec::new(),
            known: HashSet::new(),
            born: Instant::now(),
            looked: None,
            rewritten: 0,
            told: false,
            taken: None,
        }
    }

    fn extend(&mut self, pages: &[u64], most: usize) -> usize {
        let before = self.pages.len();
        for page in pages {
            if self.pages.len() < most && self.known.insert(*page) {
                self.pages.push(*page);
            }
        }
        self.pages.len() - before
    }

    /// What children of such seeds have touched, before any of this one has.
    pub fn guess(&mut self, pages: &[u64]) {
        self.extend(pages, SURE);
    }

    /// A child has touched these. Beyond what each trail may have, as far as there is `room`.
    pub fn learn(&mut self, pages: &[u64], room: &Arc<Room>) {
        self.told = true;
        self.extend(pages, SURE);
        let (_, taken) = self.taken.get_or_insert_with(|| (Arc::clone(room), 0));
        for page in pages {
            if self.pages.len() < SURE || self.pages.len() == TRAIL_PAGES_MAX {
                return;
            }
            if !self.known.contains(page) {
                if !room.take() {
                    return;
                }
                *taken += 1;
                self.known.insert(*page);
                self.pages.push(*page);
            }
        }
    }

    /// A child has told.
    pub fn told(&self) -> bool {
        self.told
    }

    /// In the order in which it became known.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The part that is kept in a file.
    pub fn beginning(&self) -> &[u64] {
        self.pages.get(..BEGINNING).unwrap_or(&self.pages)
    }

    /// The parent goes the way that its children will go, only earlier, so what it wrote since the
    /// seed was made is looked up, until a child has told; one that has written more than a beginning
    /// tells nothing any more.
    pub fn look(&mut self, memory: &Memory) {
        let stands = REWRITTEN_AGE.max(self.born.elapsed() / 2);
        let fresh = self.looked.is_some_and(|at| self.told || at.elapsed() < stands);
        if fresh || self.rewritten >= REWRITTEN_MAX {
            return;
        }
        let first = self.looked.replace(Instant::now()).is_none();
        if let Some(pages) = memory.rewritten(REWRITTEN_MAX) {
            self.rewritten += if first { self.begin(&pages) } else { self.extend(&pages, SURE) };
        }
    }

    /// Puts first what the parent wrote first: of its very next steps children of other seeds know
    /// nothing. Nobody has been told anything yet, for that follows a look.
    fn begin(&mut self, pages: &[u64]) -> usize {
        let (first, more) = pages.split_at(pages.len().min(REWRITTEN_FIRST));
        let guessed = std::mem::replace(&mut self.pages, first.to_vec());
        let before = guessed.len();
        self.known = first.iter().copied().collect();
        self.extend(&guessed, SURE);
        self.extend(more, SURE);
        self.pages.len() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parent_wrote_first_goes_before_a_guess() {
        let mut trail = Trail::new();
        trail.guess(&[50, 3, 700]);
        assert_eq!(trail.begin(&[3, 9]), 1);
        assert_eq!(trail.pages(), [3, 9, 50, 700]);
        let mut trail = Trail::new();
        trail.guess(&[50, 3]);
        let written: Vec<u64> = (100..100 + 2 * REWRITTEN_FIRST as u64).collect();
        trail.begin(&written);
        assert_eq!(trail.pages()[..REWRITTEN_FIRST], written[..REWRITTEN_FIRST]);
        assert_eq!(trail.pages()[REWRITTEN_FIRST..][..2], [50, 3]);
        assert_eq!(trail.pages().len(), written.len() + 2);
    }

    #[test]
    fn all_trails_together_are_bounded_and_one_that_ends_makes_room() {
        let room = Arc::new(Room(AtomicUsize::new(40_000)));
        let learned = |pages: u64| {
            let mut trail = Trail::new();
            trail.learn(&(0..pages).collect::<Vec<u64>>(), &room);
            trail
        };
        let first = learned(100_000);
        assert_eq!(first.pages().len(), TRAIL_PAGES_MAX);
        let second = learned(100_000);
        assert_eq!(second.pages().len(), 40_000 - (TRAIL_PAGES_MAX - SURE) + SURE);
        let third = learned(100_000);
        assert_eq!(third.pages().len(), SURE, "each has some");
        drop(first);
        assert_eq!(learned(100_000).pages().len(), TRAIL_PAGES_MAX);
        assert!(third.told() && second.beginning().len() == BEGINNING);
    }
}
