//! One address space: what it misses, and how pages get into it.

use crate::areas::{Areas, Piece, Traits};
use crate::map::{PageMap, Tag};
use crate::message::ChildId;
use crate::prefetch::Streams;
use crate::trail::Follower;
use mitosis_sys::uffd::{Placed, Stop, Uffd};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages placed by one call: enough to amortise it, few enough to let the child go on.
const COPY_PAGES: u64 = 64;
/// Pages of zeros placed by one fault.
const ZERO_PAGES: u64 = 16;
/// A hole of so many pages is unregistered as a whole instead: ordinary faults cost a tenth.
const HOLE_PAGES: u64 = 64;
/// One past the last page of user space (4-level paging, less the guard page at its end).
const ADDRESS_END: u64 = (1 << 35) - 1;
/// An address that every process may have, whether mapped or not, to ask whether it lives.
const ANY_ADDRESS: u64 = 16 << 20;
/// Most holes unregistered one by one; each splits a mapping, and a process may have 65530.
const HOLES_MAX: u32 = 2048;

/// What an address space is to its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// That of the main process.
    Main,
    /// That of a process forked from it; the guard holds its userfaultfd in a slot.
    Fork(u32),
    /// That of the shadow of a seed made of the child: frozen, so nothing is fetched for it. Its
    /// userfaultfd stays open, so that a read of a missing page is an error and not a zero.
    Shadow(u32),
}

/// How an operation on an address space ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// The process is changing its mappings; events must be read first.
    Again,
    /// The address space is gone.
    Gone,
    /// The child cannot be served correctly any more.
    Kill(String),
}

/// An address space with missing pages.
pub struct Space {
    /// Whose it is.
    pub child: ChildId,
    /// What it is to the child.
    pub role: Role,
    /// Its userfaultfd.
    pub uffd: Uffd,
    /// Registered ranges.
    pub areas: Areas,
    /// Missing pages. Shared with forks until one of them changes it.
    pub map: Arc<PageMap>,
    /// Sequential runs.
    pub streams: Streams,
    /// How it follows the trail of its seed.
    pub follower: Follower,
    /// Where the background fill goes on.
    pub cursor: u64,
    /// Pages in flight that were touched.
    pub waiting: Vec<u64>,
    /// Ranges moved here whose registration is to be confirmed, see [`Space::confirm`].
    pub doubts: Vec<(u64, u64)>,
    /// Destinations of moves from unknown places: a fault there cannot be answered.
    poisoned: Areas,
    /// Ranges unregistered while a fork was on its way, which may have copied the registration:
    /// known to the forks whose events come next.
    former: Areas,
    /// Some range could not be unregistered yet.
    pub untidy: bool,
    /// Nothing is missing and the guard was told to drop its duplicate; closed at this time.
    pub closing: Option<Instant>,
    holes: u32,
}

impl Space {
    /// An address space that misses what `map` says.
    pub fn new(child: ChildId, role: Role, uffd: Uffd, areas: Areas, map: Arc<PageMap>) -> Space {
        Space {
            child,
            role,
            uffd,
            areas,
            map,
            streams: Streams::default(),
            follower: Follower::default(),
            cursor: 0,
            waiting: Vec::new(),
            doubts: Vec::new(),
            poisoned: Areas::default(),
            former: Areas::default(),
            untidy: false,
            closing: None,
            holes: 0,
        }
    }

    /// The state of a process that this one forked.
    pub fn fork(&mut self, uffd: Uffd, role: Role) -> Space {
        let mut map = Arc::clone(&self.map);
        if map.pending() > 0 {
            Arc::make_mut(&mut map).unmark_all();
        }
        for piece in self.areas.iter().filter(|piece| piece.traits.wipe_on_fork) {
            if map.any(piece.start, piece.end) {
                Arc::make_mut(&mut map).remove(piece.start, piece.end);
            }
        }
        let mut areas = self.areas.clone();
        for known in self.areas.iter() {
            self.former.remove(known.start, known.end);
        }
        self.former.iter().for_each(|piece| areas.insert(piece));
        if !self.changing() {
            self.former = Areas::default();
        }
        let mut space = Space::new(self.child, role, uffd, areas, map);
        space.poisoned = self.poisoned.clone();
        space.doubts = self.doubts.clone();
        space
    }

    /// The missing pages, to be changed.
    pub fn map_mut(&mut self) -> &mut PageMap {
        Arc::make_mut(&mut self.map)
    }

    /// Those of `pages` that are missing and `owner`'s, by its own numbers, in the area of the first.
    pub fn lacks(&self, pages: Range<u64>, owner: u16) -> Vec<u64> {
        let end = self.areas.find(pages.start).map_or(pages.start, |area| area.end.min(pages.end));
        let of_owner = self.map.within(pages.start, end).filter(|run| run.owner == owner);
        of_owner.flat_map(|run| run.source..run.source + run.count).collect()
    }

    fn wake(&self, page: u64, count: u64) {
        // It can only fail for what is no range.
        let _ = self.uffd.wake(page * PAGE, count * PAGE);
    }

    /// What a read was to bring of `[page, end)` is remote again: whoever waits touches it anew.
    pub fn not_coming(&mut self, page: u64, end: u64, tag: Tag) {
        self.map_mut().unmark(page, end, tag);
        self.wake(page, end - page);
    }

    /// Wakes who waits for pages that have come meanwhile. Whoever touched one of which this is not
    /// known yet is woken when it is.
    pub fn wake_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|page| {
            let coming = self.map.find(*page).is_some_and(|run| run.tag.is_some());
            if !coming {
                self.wake(*page, 1);
            }
            coming
        });
        self.waiting = waiting;
    }

    /// Places what a read has brought for `[page, ...)`, as far as it is still wanted, and wakes who
    /// waits for it if `wake`. Returns the pages placed.
    pub fn place(&mut self, page: u64, bytes: &[u8], tag: Tag, wake: bool) -> (u64, Outcome) {
        let end = page + bytes.len() as u64 / PAGE;
        let mut done = 0;
        let mut at = page;
        while at < end {
            // Single pages are looked up at once.
            if at + 1 == end && at == page && self.map.is_claimed(page, tag) {
                return self.copy(page, bytes, wake);
            }
            let Some(run) = self.map.next(at).filter(|run| run.start < end) else { break };
            let lo = run.start.max(at);
            let hi = run.end().min(end).min(lo + COPY_PAGES);
            at = hi;
            if run.tag != Some(tag) {
                continue;
            }
            let from = ((lo - page) * PAGE) as usize;
            let piece = &bytes[from..from + ((hi - lo) * PAGE) as usize];
            match self.copy(lo, piece, wake) {
                (placed, Outcome::Done) => done += placed,
                (placed, other) => return (done + placed, other),
            }
        }
        (done, Outcome::Done)
    }

    /// Places consecutive pages, whatever mappings they lie in.
    fn copy(&mut self, page: u64, bytes: &[u8], wake: bool) -> (u64, Outcome) {
        let count = bytes.len() as u64 / PAGE;
        let (mut at, mut placed) = (0, 0);
        let mut step = count;
        while at < count {
            step = step.min(count - at);
            let part = &bytes[(at * PAGE) as usize..((at + step) * PAGE) as usize];
            let Placed { bytes: done, stop } = self.uffd.copy((page + at) * PAGE, part, wake);
            let pages = done / PAGE;
            self.settled(page + at, pages);
            at += pages;
            placed += pages;
            match stop {
                None => step = count,
                Some(Stop::Exists) => {
                    self.settled(page + at, 1);
                    self.wake(page + at, 1);
                    at += 1;
                }
                // The range spans mappings: find the border by halving.
                Some(Stop::Unmapped) if step > 1 => step /= 2,
                Some(Stop::Unmapped) => {
                    self.vanished(page + at);
                    at += 1;
                    step = count;
                }
                Some(Stop::Again) => return (placed, Outcome::Again),
                Some(Stop::Gone) => return (placed, Outcome::Gone),
                Some(Stop::NoMemory) => return (placed, kill("no memory for a page")),
                Some(Stop::Failed(e)) => return (placed, kill(format!("placing a page: {e}"))),
            }
        }
        (placed, Outcome::Done)
    }

    fn settled(&mut self, page: u64, count: u64) {
        if count > 0 {
            self.map_mut().remove(page, page + count);
        }
    }

    /// A page is in no registered mapping though all events are read: it went away in a way that
    /// sends none. It is forgotten with its area, so that a fault there is not taken for a zero.
    fn vanished(&mut self, page: u64) {
        self.settled(page, 1);
        self.areas.remove(page, page + 1);
        self.wake(page, 1);
    }

    /// Answers a touch of a page that is not missing: a zero, unless it is there.
    pub fn zero(&mut self, page: u64) -> (u64, Outcome) {
        let Some(area) = self.areas.find(page) else { return (0, kill(outside(page))) };
        let (lo, hi) = self.map.hole(page, area.start, area.end);
        if hi - lo >= HOLE_PAGES && self.holes < HOLES_MAX && self.unregister(lo, hi) {
            self.holes += 1;
            return (0, Outcome::Done);
        }
        let mut count = ZERO_PAGES.min(hi - page);
        loop {
            let Placed { bytes, stop } = self.uffd.zeropage(page * PAGE, count * PAGE);
            match stop {
                None => return (bytes / PAGE, Outcome::Done),
                Some(Stop::Exists) => {
                    self.wake(page, 1);
                    return (0, Outcome::Done);
                }
                Some(Stop::Unmapped) if count > 1 => count = 1,
                // It was unmapped meanwhile: whoever waits must see that.
                Some(Stop::Unmapped) => {
                    self.wake(page, 1);
                    return (0, Outcome::Done);
                }
                // It faults again after the change.
                Some(Stop::Again) => {
                    self.wake(page, 1);
                    return (0, Outcome::Again);
                }
                Some(Stop::Gone) => return (0, Outcome::Gone),
                Some(Stop::NoMemory) => return (0, kill("no memory for a page of zeros")),
                Some(Stop::Failed(e)) => return (0, kill(format!("placing zeros: {e}"))),
            }
        }
    }

    /// Hands a range without missing pages back to the kernel; whether it was possible now.
    ///
    /// Not while mappings are changing: a move into the range, not yet known here, would lose its
    /// registration with its pages missing. What the mapping has grown by goes with it: left
    /// registered, it would no longer be known to belong to anything.
    fn unregister(&mut self, lo: u64, hi: u64) -> bool {
        let Some(area) = self.areas.find(lo) else { return true };
        let Ok(there) = self.uffd.registered(lo * PAGE, PAGE) else { return false };
        let above = self.areas.above(lo).map_or(ADDRESS_END, |next| next.start);
        let below = lo.checked_sub(1).and_then(|page| self.areas.at_or_below(page));
        let end = if hi == area.end {
            let room = above.saturating_sub(hi);
            hi + self.extent(room, |count| (hi - 1, hi + count))
        } else {
            hi
        };
        let start = if area.traits.grows_down && lo == area.start {
            let room = lo - below.map_or(1, |piece| piece.end).min(lo);
            lo - self.extent(room, |count| (lo - count, lo + 1))
        } else {
            lo
        };
        // What is not there (`MADV_DONTFORK` in a fork, say) cannot and need not be unregistered.
        let done = self.uffd.unregister(start * PAGE, (end - start) * PAGE).is_ok() || !there;
        if done {
            self.areas.remove(start, end);
            // A fork that began after the question above has copied the registration, and its
            // event is still to come: it must not find the range unknown.
            if self.changing() {
                self.former.insert(Piece { start, end, traits: area.traits });
            }
        }
        done
    }

    /// Whether events are on their way that have not been read.
    fn changing(&self) -> bool {
        self.uffd.registered(ANY_ADDRESS, PAGE) == Err(Stop::Again)
    }

    /// By how many pages, at most `room`, a mapping exceeds what is known of it. `range` names the
    /// pages that must lie in one mapping with it.
    fn extent(&self, room: u64, range: impl Fn(u64) -> (u64, u64)) -> u64 {
        let same = |count: u64| {
            let (lo, hi) = range(count);
            matches!(self.uffd.registered(lo * PAGE, (hi - lo) * PAGE), Ok(true))
        };
        let (mut sure, mut step) = (0, 1);
        while step > 0 && sure < room {
            if sure + step <= room && same(sure + step) {
                sure += step;
                step *= 2;
            } else {
                step /= 2;
            }
        }
        sure
    }

    /// Unregisters the areas around `[start, end)` that miss no page any more.
    pub fn tidy(&mut self, start: u64, end: u64) {
        for piece in self.areas.overlapping(start, end) {
            if !self.map.any(piece.start, piece.end) && !self.unregister(piece.start, piece.end) {
                self.untidy = true;
            }
        }
    }

    /// Pages dropped by the process: zero from now on.
    pub fn removed(&mut self, start: u64, end: u64) {
        if self.map.any(start, end) && self.map_mut().remove(start, end) {
            self.wake(start, end - start);
        }
    }

    /// A mapping that went away.
    pub fn unmapped(&mut self, start: u64, end: u64) {
        for piece in self.areas.overlapping(start, end) {
            let (lo, hi) = (piece.start.max(start), piece.end.min(end));
            if piece.traits.moved && self.map.any(lo, hi) {
                // Perhaps the event of what was here before the move. Ask when things are quiet.
                self.doubts.push((lo, hi));
                continue;
            }
            self.areas.remove(lo, hi);
            self.removed(lo, hi);
        }
        self.poisoned.remove(start, end);
    }

    /// A mapping that moved. Its old place stays known until its unmap event comes, because with
    /// `MREMAP_DONTUNMAP` it stays mapped, and is zero.
    pub fn remapped(&mut self, from: u64, to: u64, count: u64) {
        let old = self.areas.overlapping(from, from + count);
        let Some(first) = old.first() else {
            let traits = Traits::default();
            self.poisoned.insert(Piece { start: to, end: to + count, traits });
            return;
        };
        let traits = Traits { moved: true, ..first.traits };
        self.areas.insert(Piece { start: to, end: to + count, traits });
        self.poisoned.remove(to, to + count);
        if self.map.any(from, from + count) || self.map.any(to, to + count) {
            if self.map_mut().relocate(from, to, count) {
                self.wake(from, count);
            }
            self.doubts.push((to, to + count));
        }
    }

    /// Looks whether doubtful ranges are registered mappings still. Ranges that are not are
    /// forgotten, so that a fault there ends the child rather than being answered wrongly.
    pub fn confirm(&mut self) -> Outcome {
        for (lo, hi) in std::mem::take(&mut self.doubts) {
            if !self.areas.overlapping(lo, hi).is_empty() {
                match self.uffd.registered(lo * PAGE, PAGE) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.areas.remove(lo, hi);
                        self.map_mut().remove(lo, hi);
                        self.wake(lo, hi - lo);
                    }
                    Err(Stop::Again) => self.doubts.push((lo, hi)),
                    Err(Stop::Gone) => return Outcome::Gone,
                    Err(stop) => return kill(format!("asking for a mapping: {stop:?}")),
                }
            }
        }
        Outcome::Done
    }

    /// A touch outside the areas: a stack that grew, or a mapping enlarged by `mremap(2)`, which
    /// sends no event. The kernel proves it: the page lies in one mapping with a known one.
    pub fn grow(&mut self, page: u64) -> Outcome {
        if self.poisoned.find(page).is_some() {
            return kill(format!("address {:#x} was moved in an unknown order", page * PAGE));
        }
        let below = self.areas.at_or_below(page);
        let above = self.areas.above(page).filter(|piece| piece.traits.grows_down);
        let grown = [
            below.map(|p| (p.end - 1, page + 1, Piece { start: p.end, end: page + 1, ..p })),
            above.map(|p| (page, p.start + 1, Piece { start: page, end: p.start, ..p })),
        ];
        for (lo, hi, piece) in grown.into_iter().flatten() {
            match self.uffd.registered(lo * PAGE, (hi - lo) * PAGE) {
                Ok(true) => {
                    self.areas.insert(piece);
                    return Outcome::Done;
                }
                Ok(false) => {}
                Err(Stop::Again) => {
                    self.wake(page, 1);
                    return Outcome::Again;
                }
                Err(Stop::Gone) => return Outcome::Gone,
                Err(stop) => return kill(format!("asking for a mapping: {stop:?}")),
            }
        }
        // The fault may be older than the unmapping of its page.
        match self.uffd.registered(page * PAGE, PAGE) {
            Ok(false) => {
                self.wake(page, 1);
                Outcome::Done
            }
            Err(Stop::Again) => {
                self.wake(page, 1);
                Outcome::Again
            }
            Err(Stop::Gone) => Outcome::Gone,
            _ => kill(outside(page)),
        }
    }

    /// Whether its missing pages make the child depend on their owners.
    pub fn counts(&self) -> bool {
        !matches!(self.role, Role::Shadow(_))
    }

    /// Whether the process still has this address space.
    pub fn alive(&self) -> bool {
        self.uffd.registered(ANY_ADDRESS, PAGE) != Err(Stop::Gone)
    }
}

fn kill(reason: impl Into<String>) -> Outcome {
    Outcome::Kill(reason.into())
}

fn outside(page: u64) -> String {
    format!("a touch of address {:#x}, of which nothing is known", page * PAGE)
}
