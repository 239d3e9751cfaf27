//! What to fetch beyond the page that was touched.
//!
//! A page that was fetched and not needed costs the network and the child's memory; a page that was
//! needed and not fetched costs a round trip. So scattered touches bring one neighbour, and a run, be it
//! of consecutive pages or of pages at equal steps, up or down, brings ahead of itself in proportion to
//! what it has consumed.

use std::collections::VecDeque;

/// Pages fetched for a touch that continues nothing.
pub const RANDOM: u64 = 2;
/// Up to so many pages, a run may be ahead by as much as it has consumed.
const EAGER: u64 = 16;
/// Most pages a run of consecutive pages is ahead.
pub const AHEAD_MAX: u64 = 1024;
/// Most pages a run at larger steps is ahead.
const STRIDED_MAX: u64 = 256;
/// The largest step: 4 MiB.
const STEP_MAX: i64 = 1024;
/// Runs remembered per address space.
const STREAMS: usize = 8;
/// Touches that continued nothing and are remembered, to see whether three of them are at equal steps.
const LONELY: usize = 12;

/// What to fetch at a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The pages from the one touched up to this one. Parts of it may be on their way already.
    To(u64),
    /// The page touched, and `count` pages from `first` on that are `step` pages apart.
    Every {
        /// The first of them.
        first: u64,
        /// From one to the next; may be negative.
        step: i64,
        /// How many.
        count: u64,
    },
}

/// What a touch says of the pages before it: `count` pages, the last of them the one touched, `step`
/// pages apart, were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How many; at least the page itself.
    pub count: u64,
    /// From one to the next.
    pub step: i64,
}

impl Passed {
    /// These pages, in the order of use, if the last is `page`.
    pub fn pages(self, page: u64) -> impl Iterator<Item = u64> {
        let back = move |n: u64| page.checked_add_signed(-(n as i64 * self.step));
        (0..self.count).rev().filter_map(back)
    }
}

/// A run of consecutive pages.
#[derive(Clone, Copy, Debug)]
struct Stream {
    start: u64,
    touched: u64,
    end: u64,
    used: u64,
}

/// A run of pages at larger steps, or downwards.
#[derive(Clone, Copy, Debug)]
struct Strided {
    step: i64,
    touched: u64,
    /// Steps consumed.
    consumed: u64,
    /// Steps asked for beyond `touched`.
    asked: u64,
    used: u64,
}

/// The runs of one address space.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
    strided: Vec<Strided>,
    lonely: VecDeque<u64>,
    clock: u64,
}

fn ahead(consumed: u64) -> u64 {
    (consumed / 5).max(consumed.min(EAGER)).min(AHEAD_MAX)
}

impl Strided {
    /// How many steps further on `page` is, if it is one that this run comes to.
    fn steps(&self, page: u64) -> Option<u64> {
        let distance = page as i64 - self.touched as i64;
        let steps = distance / self.step;
        let fits = distance % self.step == 0 && (0..=self.asked as i64 + 1).contains(&steps);
        fits.then_some(steps as u64)
    }

    /// A touch so many steps further on.
    fn touch(&mut self, page: u64, steps: u64, clock: u64) -> Window {
        (self.used, self.touched) = (clock, page);
        self.consumed += steps;
        self.asked -= steps.min(self.asked);
        let target = ahead(self.consumed).min(STRIDED_MAX);
        // While most of it is on its way, small additions are not worth a request.
        let count = if target > self.asked + self.asked / 4 { target - self.asked } else { 0 };
        let first = page.saturating_add_signed((self.asked as i64 + 1) * self.step);
        self.asked += count;
        Window::Every { first, step: self.step, count }
    }
}

impl Streams {
    /// A touch of a missing page: what to fetch, and what it says of pages before. One that continues
    /// nothing brings `scattered` pages.
    pub fn touch(&mut self, page: u64, scattered: u64) -> (Window, Passed) {
        self.clock += 1;
        let clock = self.clock;
        let alone = Passed { count: 1, step: 1 };
        let known = self.streams.iter_mut().find(|s| s.touched <= page && page <= s.end);
        if let Some(stream) = known {
            let passed = Passed { count: (page - stream.touched).max(1), step: 1 };
            let second = stream.touched == stream.start;
            (stream.used, stream.touched) = (clock, page);
            // What the first touch brought beside it ends here: whoever reads all pages comes to this one now,
            // and so does whoever reads every other. Only this page, and the next touch tells.
            if second && page == stream.end && page > stream.start + 1 {
                stream.end = page + 1;
                remember(&mut self.lonely, page);
                return (Window::To(stream.end), alone);
            }
            let ahead = ahead(page + 1 - stream.start);
            let target = page + 1 + ahead;
            // While most of it is on its way, small additions are not worth a request.
            if page >= stream.end || target >= stream.end + ahead / 4 {
                stream.end = stream.end.max(target);
            }
            return (Window::To(stream.end), passed);
        }
        let known = self.strided.iter_mut().find_map(|s| Some((s.steps(page)?, s)));
        if let Some((steps, strided)) = known {
            let passed = Passed { count: steps.max(1), step: strided.step };
            return (strided.touch(page, steps, clock), passed);
        }
        if let Some(step) = self.equal_steps(page) {
            let mut strided = Strided { step, touched: page, consumed: 3, asked: 0, used: clock };
            let window = strided.touch(page, 0, clock);
            insert(&mut self.strided, strided, |s| s.used);
            return (window, alone);
        }
        let stream = Stream { start: page, touched: page, end: page + scattered, used: clock };
        insert(&mut self.streams, stream, |s| s.used);
        (Window::To(stream.end), alone)
    }

    /// Whether two touches that continued nothing lie at equal steps before this one; else it is
    /// remembered as one of these.
    fn equal_steps(&mut self, page: u64) -> Option<i64> {
        let step = self.lonely.iter().rev().find_map(|last| {
            let step = page as i64 - *last as i64;
            let before = last.checked_add_signed(-step)?;
            let fits = step != 0 && step.abs() <= STEP_MAX && self.lonely.contains(&before);
            fits.then_some(step)
        });
        if step.is_none() {
            remember(&mut self.lonely, page);
        }
        step
    }
}

/// Remembers a touch, if need be instead of the oldest.
fn remember(lonely: &mut VecDeque<u64>, page: u64) {
    if lonely.len() == LONELY {
        lonely.pop_front();
    }
    lonely.push_back(page);
}

/// Adds a run, if need be instead of the one not met for longest.
fn insert<T>(runs: &mut Vec<T>, run: T, used: impl Fn(&T) -> u64) {
    if runs.len() < STREAMS {
        runs.push(run);
    } else if let Some(oldest) = runs.iter_mut().min_by_key(|run| used(run)) {
        *oldest = run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Fetches whatever the policy asks for; returns the pages fetched, the faults, and whether all
    /// pages said to have been used were.
    fn run(pages: impl Iterator<Item = u64>) -> (u64, u64) {
        run_with(pages, RANDOM)
    }

    fn run_with(pages: impl Iterator<Item = u64>, scattered: u64) -> (u64, u64) {
        let mut streams = Streams::default();
        let mut there = HashSet::new();
        let mut touched = HashSet::new();
        let mut faults = 0;
        for page in pages {
            touched.insert(page);
            if !there.contains(&page) {
                faults += 1;
                there.insert(page);
                let (window, passed) = streams.touch(page, scattered);
                assert_eq!(passed.pages(page).last(), Some(page));
                let unused = passed.pages(page).filter(|page| !touched.contains(page)).count();
                assert!(unused <= 1, "{passed:?} at {page}");
                match window {
                    Window::To(end) => there.extend(page..end),
                    Window::Every { first, step, count } => {
                        let at = |n: u64| first.checked_add_signed(n as i64 * step);
                        there.extend((0..count).filter_map(at));
                    }
                }
            }
        }
        (there.len() as u64, faults)
    }

    #[test]
    fn scattered_touches_move_little() {
        let (fetched, _) = run((0..1000).map(|i| (i * 7919) % 100_000 * 20));
        assert!(fetched <= 3 * 1000, "{fetched}");
    }

    #[test]
    fn a_run_overshoots_by_a_fifth_and_faults_rarely() {
        for length in [1000, 5000, 16384] {
            let (fetched, faults) = run(0..length);
            assert!(fetched <= length + length / 5 + 1, "{fetched} of {length}");
            assert!(faults <= 60, "{faults} faults for {length}");
        }
    }

    #[test]
    fn interleaved_runs_are_told_apart() {
        let (fetched, faults) = run((0..2000).flat_map(|i| [i, 1_000_000 + i, 2_000_000 + i]));
        assert!(fetched <= 6000 + 1600, "{fetched}");
        assert!(faults <= 150, "{faults}");
    }

    #[test]
    fn steps_are_seen_and_what_lies_between_is_not_fetched() {
        for step in [3, 4, 7, 64, 512] {
            let (fetched, faults) = run((0..4000).map(|i| i * step));
            assert!(fetched <= 4000 + 256 + 10, "{fetched} at steps of {step}");
            assert!(faults <= 80, "{faults} at steps of {step}");
        }
    }

    #[test]
    fn every_other_page_is_no_run_of_all() {
        for scattered in [1, RANDOM] {
            let (fetched, faults) = run_with((0..4000).map(|i| i * 2), scattered);
            assert!(fetched <= 4000 + 256 + 10, "{fetched}");
            assert!(faults <= 80, "{faults}");
            let (fetched, faults) = run_with(0..4000, scattered);
            assert!(fetched <= 5001, "{fetched}");
            assert!(faults <= 60, "{faults}");
        }
    }

    #[test]
    fn runs_downwards_are_seen() {
        for step in [1, 4] {
            let (fetched, faults) = run((1..4000).rev().map(|i| i * step));
            assert!(fetched <= 4000 + 256 + 10, "{fetched} at steps of {step}");
            assert!(faults <= 80, "{faults} at steps of {step}");
        }
    }

    #[test]
    fn steps_amid_scattered_touches_are_seen() {
        let scattered = |i: u64| 10_000_000 + (i * 7919) % 100_000 * 20;
        let (fetched, faults) = run((0..2000).flat_map(|i| [i * 4, scattered(i), 900_000 - i * 6]));
        assert!(fetched <= 2000 * 4 + 1100, "{fetched}");
        assert!(faults <= 2000 + 200, "{faults}");
    }

    #[test]
    fn the_next_step_is_not_taken_for_a_run_of_all_pages() {
        let mut streams = Streams::default();
        let windows = [0, 3, 6].map(|page| streams.touch(page, RANDOM).0);
        assert_eq!(windows[2], Window::Every { first: 9, step: 3, count: 3 });
    }
}
