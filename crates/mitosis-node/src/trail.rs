//! What the parent and the children of a seed have touched since it was made.

use crate::memory::Memory;
use mitosis_transport::wire::{TRAIL_PAGES_MAX, WORKING_SET_MAX};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Most pages written by the parent that are taken for what a child will need.
const REWRITTEN_MAX: usize = 768;
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
        }
    }

    fn extend(&mut self, pages: &[u64]) -> usize {
        let before = self.pages.len();
        for page in pages {
            if self.pages.len() < TRAIL_PAGES_MAX && self.known.insert(*page) {
                self.pages.push(*page);
            }
        }
        self.pages.len() - before
    }

    /// What children of such seeds have touched, before any of this one has.
    pub fn guess(&mut self, pages: &[u64]) {
        self.extend(pages);
    }

    /// A child has touched these.
    pub fn learn(&mut self, pages: &[u64]) {
        self.extend(pages);
        self.told = true;
    }

    /// A child has told.
    pub fn told(&self) -> bool {
        self.told
    }

    /// In the order in which it became known.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The part that is sent behind a descriptor.
    pub fn beginning(&self) -> &[u64] {
        self.pages.get(..WORKING_SET_MAX).unwrap_or(&self.pages)
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
        self.looked = Some(Instant::now());
        if let Some(pages) = memory.rewritten(REWRITTEN_MAX) {
            self.rewritten += self.extend(&pages);
        }
    }
}
