//! Which pages of a seed are registered how, and in which order: page ranges `[start, end)`.

use std::collections::HashSet;

/// Page ranges.
pub(super) type Ranges = Vec<(u64, u64)>;

/// Pages registered together: 16 MiB, so that the first are usable soon.
pub(super) const CHUNK: u64 = 4096;
/// Learned pages are registered with those around them, in blocks of 64 KiB: a window that is read
/// around a fault is then not cut into single pages.
const BLOCK: u64 = 16;
/// Fewer pages than this are copied rather than registered where they are: a registration of their own
/// costs more than the copy.
const IN_PLACE_MIN: u64 = 64;
/// Most ranges of one seed that are registered where they are; the longest.
const IN_PLACE_MAX: usize = 2048;

/// Pages in ranges.
pub(super) fn pages(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}

/// Those with the blocks of `learned` pages, as many as are registered together, and all others.
pub(super) fn order(owned: &[(u64, u64)], learned: &[u64]) -> (Ranges, Ranges) {
    let mut blocks = HashSet::new();
    for page in learned {
        if blocks.len() as u64 == CHUNK / BLOCK {
            break;
        }
        blocks.insert(page / BLOCK);
    }
    let (mut early, mut late) = (Ranges::new(), Ranges::new());
    for &(start, end) in owned {
        let mut at = start;
        while at < end {
            let stop = ((at / BLOCK + 1) * BLOCK).min(end);
            let part = if blocks.contains(&(at / BLOCK)) { &mut early } else { &mut late };
            match part.last_mut() {
                Some((_, last)) if *last == at => *last = stop,
                _ => part.push((at, stop)),
            }
            at = stop;
        }
    }
    (early, late)
}

/// Cuts ranges into groups of at most `most` pages.
pub(super) fn chunks(ranges: &[(u64, u64)], most: u64) -> Vec<Ranges> {
    let (mut all, mut now, mut room) = (Vec::new(), Vec::new(), most);
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let count = room.min(end - at);
            now.push((at, at + count));
            (at, room) = (at + count, room - count);
            if room == 0 {
                all.push(std::mem::take(&mut now));
                room = most;
            }
        }
    }
    if !now.is_empty() {
        all.push(now);
    }
    all
}

/// What of `all` is in `some`, and what is not; both are ascending.
pub(super) fn split(all: &[(u64, u64)], some: &[(u64, u64)]) -> (Ranges, Ranges) {
    let (mut inside, mut outside) = (Ranges::new(), Ranges::new());
    let mut some = some.iter().peekable();
    for &(start, end) in all {
        let mut at = start;
        while at < end {
            while some.next_if(|range| range.1 <= at).is_some() {}
            match some.peek() {
                Some((from, until)) if *from <= at => {
                    let stop = end.min(*until);
                    inside.push((at, stop));
                    at = stop;
                }
                next => {
                    let stop = next.map_or(end, |range| end.min(range.0));
                    outside.push((at, stop));
                    at = stop;
                }
            }
        }
    }
    (inside, outside)
}

/// Ranges in ascending order, those that touch as one.
pub(super) fn sorted(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touching = before.1 == next.0;
        if touching {
            before.1 = next.1;
        }
        touching
    });
    ranges
}

/// The ranges of both lists, ascending and joined where they touch, in pieces that are registered
/// together; those pieces first that hold some of the first list. They are cut at multiples of their
/// size, so that no page of 2 MiB is in two of them.
pub(super) fn eager(first: Ranges, then: Ranges) -> Ranges {
    let first = sorted(first);
    let all = sorted(first.iter().copied().chain(then).collect());
    let mut pieces: Ranges = Vec::new();
    for (start, end) in all {
        let mut at = start;
        while at < end {
            let stop = ((at / CHUNK + 1) * CHUNK).min(end);
            pieces.push((at, stop));
            at = stop;
        }
    }
    let none = |piece: &(u64, u64)| split(&[*piece], &first).0.is_empty();
    pieces.sort_by_key(none);
    pieces
}

/// The ranges that are worth a registration of their own, ascending.
pub(super) fn worth_it(ranges: Ranges) -> Ranges {
    let mut long: Ranges = ranges.into_iter().filter(|r| r.1 - r.0 >= IN_PLACE_MIN).collect();
    long.sort_by_key(|(start, end)| std::cmp::Reverse(end - start));
    long.truncate(IN_PLACE_MAX);
    long.sort_unstable();
    long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_every_page_once_and_no_more_than_they_may() {
        let owned = [(3, 5), (100, 100 + 2 * CHUNK), (99_999, 100_000)];
        let all = chunks(&owned, CHUNK);
        for chunk in &all {
            assert!(pages(chunk) <= CHUNK);
        }
        let list = |ranges: &[(u64, u64)]| -> Vec<u64> {
            ranges.iter().flat_map(|(start, end)| *start..*end).collect()
        };
        assert_eq!(list(&all.concat()), list(&owned));
    }

    #[test]
    fn learned_pages_come_first_with_those_around_them_and_none_is_lost() {
        let owned = [(3, 100), (1000, 1040)];
        assert_eq!(order(&owned, &[]), (vec![], owned.to_vec()));
        // Page 500 is not owned by the seed.
        let (early, late) = order(&owned, &[1020, 4, 500, 5]);
        assert_eq!(early, [(3, 16), (1008, 1024)]);
        assert_eq!(late, [(16, 100), (1000, 1008), (1024, 1040)]);
    }

    #[test]
    fn no_more_is_preferred_than_is_registered_together() {
        let learned: Vec<u64> = (0..2 * CHUNK).rev().map(|n| n * 2 * BLOCK).collect();
        let (early, late) = order(&[(0, 4 * CHUNK * BLOCK)], &learned);
        assert_eq!(early.len() as u64, CHUNK / BLOCK);
        assert!(early.iter().all(|(start, end)| end - start == BLOCK && start % (2 * BLOCK) == 0));
        assert_eq!(late.first().map(|(start, _)| *start), Some(0));
        assert_eq!(pages(&early) + pages(&late), 4 * CHUNK * BLOCK);
    }

    #[test]
    fn ranges_are_split_at_every_border() {
        let all = [(0, 10), (20, 30), (40, 41)];
        let (inside, outside) = split(&all, &[(2, 4), (8, 25), (26, 27), (40, 90)]);
        assert_eq!(inside, [(2, 4), (8, 10), (20, 25), (26, 27), (40, 41)]);
        assert_eq!(outside, [(0, 2), (4, 8), (25, 26), (27, 30)]);
        assert_eq!(split(&all, &[]), (vec![], all.to_vec()));
    }

    #[test]
    fn pieces_that_hold_what_is_wanted_first_come_first() {
        let first = vec![(CHUNK + 16, CHUNK + 32)];
        let then = vec![(0, CHUNK + 16), (CHUNK + 32, 2 * CHUNK + 9), (3 * CHUNK, 3 * CHUNK + 1)];
        let pieces = [(CHUNK, 2 * CHUNK), (0, CHUNK), (2 * CHUNK, 2 * CHUNK + 9)];
        assert_eq!(eager(first, then)[..3], pieces);
    }

    #[test]
    fn a_page_of_2_mib_is_in_one_piece() {
        const HUGE: u64 = 512;
        let range = (3 * HUGE, 3 * HUGE + 2 * CHUNK);
        let pieces = eager(Ranges::new(), vec![range]);
        assert_eq!(pieces, [(3 * HUGE, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, range.1)]);
        assert!(pieces.iter().all(|(start, end)| start % HUGE == 0 && end % HUGE == 0));
        // Whatever begins elsewhere is cut there, too.
        let pieces = eager(Ranges::new(), vec![(7, CHUNK + HUGE)]);
        assert_eq!(pieces, [(7, CHUNK), (CHUNK, CHUNK + HUGE)]);
    }

    #[test]
    fn short_ranges_are_not_worth_a_registration() {
        let ranges = vec![(0, 1), (100, 100 + IN_PLACE_MIN), (500, 499 + IN_PLACE_MIN)];
        assert_eq!(worth_it(ranges), [(100, 100 + IN_PLACE_MIN)]);
        let many: Ranges = (0..5000).map(|n| (n * 1000, n * 1000 + 100 + n % 7)).collect();
        let kept = worth_it(many);
        assert!(kept.len() == IN_PLACE_MAX && kept.is_sorted());
        assert!(kept.iter().all(|(start, end)| end - start >= 103));
    }
}
