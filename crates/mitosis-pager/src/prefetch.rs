//! What to fetch beyond the page that was touched.
//!
//! A page that was fetched and not needed costs the network and the child's memory; a page that was
//! needed and not fetched costs a round trip. So scattered touches bring one neighbour, and a
//! sequential run brings ahead of itself in proportion to what it has consumed.

/// Pages fetched for a touch that continues nothing.
pub const RANDOM: u64 = 2;
/// Up to so many pages, a run may be ahead by as much as it has consumed.
const EAGER: u64 = 16;
/// Most pages a run is ahead.
pub const AHEAD_MAX: u64 = 1024;
/// Runs remembered per address space.
const STREAMS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Stream {
    start: u64,
    touched: u64,
    end: u64,
    used: u64,
}

/// The sequential runs of one address space.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

fn ahead(consumed: u64) -> u64 {
    (consumed / 4).max(consumed.min(EAGER)).min(AHEAD_MAX)
}

impl Streams {
    /// A touch of a missing page. Returns the end of the range to fetch, which begins at the page;
    /// parts of it may be on their way already.
    pub fn touch(&mut self, page: u64) -> u64 {
        self.clock += 1;
        let clock = self.clock;
        let known = self.streams.iter_mut().find(|s| s.touched <= page && page <= s.end + 1);
        if let Some(stream) = known {
            stream.used = clock;
            stream.touched = page;
            let ahead = ahead(page + 1 - stream.start);
            let target = page + 1 + ahead;
            // While most of it is on its way, small additions are not worth a request.
            if page >= stream.end || target >= stream.end + ahead / 4 {
                stream.end = stream.end.max(target);
            }
            return stream.end;
        }
        let stream = Stream { start: page, touched: page, end: page + RANDOM, used: clock };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
        stream.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fetches whatever the policy asks for; returns the pages fetched.
    fn run(pages: impl Iterator<Item = u64>) -> (u64, u64) {
        let mut streams = Streams::default();
        let mut there = std::collections::HashSet::new();
        let mut faults = 0;
        for page in pages {
            if !there.contains(&page) {
                faults += 1;
                there.extend(page..streams.touch(page));
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
    fn a_run_overshoots_by_a_quarter_and_faults_rarely() {
        for length in [1000, 5000, 16384] {
            let (fetched, faults) = run(0..length);
            assert!(fetched <= length + length / 4 + 1, "{fetched} of {length}");
            assert!(faults <= 60, "{faults} faults for {length}");
        }
    }

    #[test]
    fn interleaved_runs_are_told_apart() {
        let (fetched, faults) = run((0..2000).flat_map(|i| [i, 1_000_000 + i, 2_000_000 + i]));
        assert!(fetched <= 6000 + 1600, "{fetched}");
        assert!(faults <= 150, "{faults}");
    }
}
