//! Lists of pages as they go over the wire: in order, but as stretches of equal steps.
//!
//! What a program touches is mostly runs, or every so-manieth page. So a list is written as the
//! distance from the page before, and, where at least three follow each other at one distance, how many.
//! A page that follows nothing takes at most seven bytes, and a stretch of a thousand about the same.

use crate::wire::TRAIL_PAGES_MAX;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Body of [`crate::wire::Kind::Learn`] and [`crate::wire::Kind::Trail`]: pages of the seed in the order of their
/// touch; of [`crate::wire::Kind::WorkingSet`]: in ascending order; of [`crate::wire::Kind::Gather`]: in the
/// order in which they are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Page numbers, at most [`TRAIL_PAGES_MAX`].
    pub pages: Vec<u64>,
}

/// Page numbers of a user space of 57 bits are below this, so that one takes seven bytes at most.
const PAGE_END: u64 = 1 << 45;
/// From so many pages on a stretch is shorter than its pages.
const STRETCH: usize = 3;

fn fold(step: i64) -> u64 {
    ((step << 1) ^ (step >> 63)) as u64
}

fn unfold(word: u64) -> i64 {
    (word >> 1) as i64 ^ -((word & 1) as i64)
}

/// Words: twice the distance from the page before (from 0, for the first), folded so that small ones
/// are small; plus 1 if two words follow: how many further pages, and their distance from each other.
fn words(pages: &[u64]) -> Vec<u64> {
    let step = |from: u64, to: u64| (to as i64).wrapping_sub(from as i64);
    let mut words = Vec::new();
    let (mut at, mut last) = (0, 0);
    while at < pages.len() {
        let first = pages[at];
        let head = fold(step(last, first)) << 1;
        let next = pages.get(at + 1).map_or(0, |page| step(first, *page));
        let equal =
            pages[at..].windows(2).take_while(|pair| step(pair[0], pair[1]) == next).count();
        if equal + 1 >= STRETCH {
            words.extend([head | 1, equal as u64, fold(next)]);
        } else {
            words.push(head);
        }
        at += if equal + 1 >= STRETCH { equal + 1 } else { 1 };
        last = pages[at - 1];
    }
    words
}

/// The opposite; `None` for what no list of pages is written as.
fn pages(words: &[u64]) -> Option<Vec<u64>> {
    let next = |page: u64, step: i64| page.checked_add_signed(step).filter(|page| *page < PAGE_END);
    let mut words = words.iter();
    let mut pages: Vec<u64> = Vec::new();
    while let Some(head) = words.next() {
        let last = pages.last().copied().unwrap_or(0);
        let mut page = next(last, unfold(head >> 1))?;
        pages.push(page);
        if head & 1 == 1 {
            let (count, step) = (*words.next()?, unfold(*words.next()?));
            if count > (TRAIL_PAGES_MAX - pages.len().min(TRAIL_PAGES_MAX)) as u64 {
                return None;
            }
            for _ in 0..count {
                page = next(page, step)?;
                pages.push(page);
            }
        }
        if pages.len() > TRAIL_PAGES_MAX {
            return None;
        }
    }
    Some(pages)
}

impl Serialize for Pages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        words(&self.pages).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pages, D::Error> {
        let words = Vec::<u64>::deserialize(deserializer)?;
        let pages = pages(&words).ok_or_else(|| D::Error::custom("no list of pages"))?;
        Ok(Pages { pages })
    }
}
