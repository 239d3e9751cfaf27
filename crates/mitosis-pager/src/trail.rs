//! What earlier children of a seed touched, in order.
//!
//! Children of one seed begin alike: after a fork they go the way their siblings went. So the order
//! of first touches is kept per seed, and a child that touches a page of the trail gets the pages
//! that follow it there. It must be seen to follow: a child that goes another way wastes
//! half of what it had in common with the others, and no more.

use std::collections::HashMap;

/// Pages that each trail may have.
pub const PAGES_SURE: usize = 2048;
/// Most pages of a trail, if there is room.
const PAGES_MAX: usize = mitosis_transport::wire::TRAIL_PAGES_MAX;
/// Most pages of all trails together, as far as they are longer than [`PAGES_SURE`]: 32 bytes each.
pub const PAGES_ALL: usize = 512 << 10;
/// Pages fetched at the first touch that fits.
const WINDOW_MIN: usize = 16;
/// Most pages fetched ahead.
const WINDOW_MAX: usize = 256;
/// Places on the trail that are followed at once: what was learned later stands behind what was
/// learned first, but is touched in between.
const CURSORS: usize = 4;

/// The trail of a seed.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    order: Vec<u64>,
    place: HashMap<u64, usize>,
    full: bool,
}

impl Trail {
    /// Appends pages that are not in it yet, while it has less than `most`.
    pub fn extend(&mut self, pages: &[u64], most: usize) {
        let most = most.clamp(PAGES_SURE, PAGES_MAX);
        for &page in pages {
            if self.order.len() >= most {
                self.full = true;
                return;
            }
            if !self.place.contains_key(&page) {
                self.place.insert(page, self.order.len());
                self.order.push(page);
            }
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many pages it has.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether it has refused a page.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// At most `count` pages from the `at`-th on.
    pub fn part(&self, at: usize, count: usize) -> &[u64] {
        let all = self.order.len();
        &self.order[at.min(all)..at.saturating_add(count).min(all)]
    }

    /// The place of a page.
    pub fn place(&self, page: u64) -> Option<usize> {
        self.place.get(&page).copied()
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u64) -> bool {
        self.place.contains_key(&page)
    }
}

/// A place on the trail.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// The last touch.
    last: usize,
    /// One past the last place asked for.
    asked: usize,
    used: u64,
}

/// How far a child has been seen to follow a trail.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    cursors: Vec<Cursor>,
    clock: u64,
    /// Places passed: how well it follows.
    passed: usize,
}

impl Follower {
    /// A touch of `page`: the pages of the trail to fetch now. At most half as many as it has
    /// passed: a child that leaves the trail has wasted no more than that.
    pub fn touch<'a>(&mut self, trail: &'a Trail, page: u64) -> &'a [u64] {
        let Some(&place) = trail.place.get(&page) else { return &[] };
        self.clock += 1;
        let window = (self.passed / 2).clamp(WINDOW_MIN, WINDOW_MAX);
        let near = |c: &&mut Cursor| c.last <= place && place <= c.asked + WINDOW_MIN;
        let from = match self.cursors.iter_mut().find(near) {
            Some(cursor) => {
                self.passed += place - cursor.last;
                cursor.used = self.clock;
                cursor.last = place;
                cursor.asked.max(place + 1)
            }
            None => {
                self.passed += 1;
                self.replace(place);
                place + 1
            }
        };
        let window = (self.passed / 2).clamp(WINDOW_MIN, WINDOW_MAX).min(2 * window);
        let to = (place + 1 + window).min(trail.order.len());
        // While most of the window is on its way, small additions are not worth a request.
        if from + window / 2 > to && to < trail.order.len() {
            return &[];
        }
        if let Some(cursor) = self.cursors.iter_mut().find(|c| c.last == place) {
            cursor.asked = cursor.asked.max(to);
        }
        trail.order.get(from..to).unwrap_or(&[])
    }

    /// A new place is followed, if need be instead of the one not met for longest.
    fn replace(&mut self, place: usize) {
        let cursor = Cursor { last: place, asked: place + 1, used: self.clock };
        if self.cursors.len() < CURSORS {
            self.cursors.push(cursor);
        } else if let Some(oldest) = self.cursors.iter_mut().min_by_key(|c| c.used) {
            *oldest = cursor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(pages: impl Iterator<Item = u64>) -> Trail {
        let mut trail = Trail::default();
        trail.extend(&pages.collect::<Vec<u64>>(), PAGES_MAX);
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
    fn a_child_that_leaves_the_trail_wastes_half_of_what_it_passed() {
        let trail = trail(0..2000);
        let (_, fetched) = walk(&trail, (0..100).chain(10_000..10_100));
        assert!(fetched <= 200 + 100 / 2 + WINDOW_MIN, "{fetched}");
    }

    #[test]
    fn what_was_learned_later_is_followed_in_between() {
        // Every third page was learned by a second child and stands at the end.
        let late = |n: &u64| n % 3 == 2;
        let mut trail = trail((0..600).filter(|n| !late(n)));
        trail.extend(&(0..600).filter(late).collect::<Vec<u64>>(), PAGES_MAX);
        let (faults, _) = walk(&trail, 0..600);
        assert!(faults <= 50, "{faults}");
    }

    #[test]
    fn a_trail_has_an_end() {
        let mut trail = trail(0..40_000);
        assert_eq!(trail.len(), PAGES_MAX);
        trail.extend(&[1, 2, 3], PAGES_MAX);
        assert!(!trail.has(39_999) && trail.is_full());
        let mut short = Trail::default();
        short.extend(trail.part(0, 5000), 0);
        assert_eq!(short.len(), PAGES_SURE);
    }
}
