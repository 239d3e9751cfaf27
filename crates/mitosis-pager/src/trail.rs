//! What earlier children of a seed touched, in order.
//!
//! Children of one seed begin alike: after a fork they go the way their siblings went. So the order
//! of first touches is kept per seed, and a child that touches a page of the trail gets the pages
//! that follow it there. It must be seen to follow: a child that goes another way costs one small
//! window and no more.

use std::collections::HashMap;

/// Most pages of a trail.
const PAGES_MAX: usize = 2048;
/// Pages fetched at the first touch that fits.
const WINDOW_MIN: usize = 4;
/// Most pages fetched ahead: what a child wastes that leaves the trail.
const WINDOW_MAX: usize = 32;

/// The trail of a seed.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    order: Vec<u64>,
    place: HashMap<u64, usize>,
}

impl Trail {
    /// Appends pages that are not in it yet.
    pub fn extend(&mut self, pages: &[u64]) {
        for &page in pages {
            if self.order.len() >= PAGES_MAX {
                return;
            }
            if !self.place.contains_key(&page) {
                self.place.insert(page, self.order.len());
                self.order.push(page);
            }
        }
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u64) -> bool {
        self.place.contains_key(&page)
    }
}

/// How far a child has been seen to follow a trail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follower {
    /// One past the last place asked for.
    asked: usize,
    window: usize,
}

impl Follower {
    /// A touch of `page`: the pages of the trail to fetch now.
    pub fn touch<'a>(&mut self, trail: &'a Trail, page: u64) -> &'a [u64] {
        let Some(&place) = trail.place.get(&page) else { return &[] };
        let near = place + self.window >= self.asked && place <= self.asked + WINDOW_MAX;
        self.window =
            if near && self.window > 0 { (self.window * 2).min(WINDOW_MAX) } else { WINDOW_MIN };
        let from = if near { self.asked.max(place + 1) } else { place + 1 };
        let to = (place + 1 + self.window).min(trail.order.len());
        // While most of the window is on its way, small additions are not worth a request.
        if from + self.window / 2 > to && to < trail.order.len() {
            return &[];
        }
        self.asked = to.max(self.asked.min(from));
        trail.order.get(from..to).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(pages: impl Iterator<Item = u64>) -> Trail {
        let mut trail = Trail::default();
        trail.extend(&pages.collect::<Vec<u64>>());
        trail
    }

    /// Follows `touches`; returns the touches that found nothing, and the pages fetched.
    fn walk(trail: &Trail, touches: impl Iterator<Item = u64>) -> (usize, usize) {
        let mut follower = Follower::default();
        let mut there = std::collections::HashSet::new();
        let mut faults = 0;
        for page in touches {
            if there.insert(page) {
                faults += 1;
                there.extend(follower.touch(trail, page));
            }
        }
        (faults, there.len())
    }

    #[test]
    fn a_child_that_follows_faults_rarely() {
        let order = |n: u64| (n * 7919) % 100_003;
        let trail = trail((0..400).map(order));
        let (faults, fetched) = walk(&trail, (0..400).map(order));
        assert!(faults <= 20, "{faults}");
        assert_eq!(fetched, 400);
    }

    #[test]
    fn a_child_that_leaves_the_trail_wastes_one_window() {
        let trail = trail(0..2000);
        let (_, fetched) = walk(&trail, (0..100).chain(10_000..10_100));
        assert!(fetched <= 200 + WINDOW_MAX, "{fetched}");
    }

    #[test]
    fn a_trail_has_an_end() {
        let mut trail = trail(0..5000);
        assert_eq!(trail.order.len(), PAGES_MAX);
        trail.extend(&[1, 2, 3]);
        assert!(!trail.has(4999));
    }
}
