//! The registered ranges of one address space.

use crate::message::Area;
use mitosis_descriptor::Vpn;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of a registered range besides its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Grows downwards when touched below.
    pub grows_down: bool,
    /// Zero in a fork.
    pub wipe_on_fork: bool,
    /// Came here by `mremap(2)`. A late unmap event for the same place may mean its predecessor.
    pub moved: bool,
}

/// A registered range `[start, end)`, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First page.
    pub start: u64,
    /// One past the last page.
    pub end: u64,
    /// The rest.
    pub traits: Traits,
}

/// Sorted, non-overlapping pieces. A copy shares them until one of both is changed: most children of
/// a template never change theirs.
#[derive(Clone, Debug, Default)]
pub struct Areas {
    pieces: Arc<BTreeMap<u64, (u64, Traits)>>,
}

impl Areas {
    /// From what the daemon announced.
    pub fn new(areas: &[Area]) -> Areas {
        let mut all = Areas::default();
        for area in areas {
            let Area { grows_down, wipe_on_fork, .. } = *area;
            let traits = Traits { grows_down, wipe_on_fork, moved: false };
            all.insert(Piece { start: area.start.0, end: area.end().0, traits });
        }
        all
    }

    /// Puts a piece in place of whatever was there.
    pub fn insert(&mut self, piece: Piece) {
        if piece.start < piece.end {
            self.remove(piece.start, piece.end);
            Arc::make_mut(&mut self.pieces).insert(piece.start, (piece.end, piece.traits));
        }
    }

    /// The piece that holds a page.
    pub fn find(&self, page: u64) -> Option<Piece> {
        self.at_or_below(page).filter(|piece| page < piece.end)
    }

    /// The last piece that starts at or below a page.
    pub fn at_or_below(&self, page: u64) -> Option<Piece> {
        let (start, (end, traits)) = self.pieces.range(..=page).next_back()?;
        Some(Piece { start: *start, end: *end, traits: *traits })
    }

    /// The first piece that starts above a page.
    pub fn above(&self, page: u64) -> Option<Piece> {
        let (start, (end, traits)) = self.pieces.range(page + 1..).next()?;
        Some(Piece { start: *start, end: *end, traits: *traits })
    }

    /// The pieces that overlap `[start, end)`, whole.
    pub fn overlapping(&self, start: u64, end: u64) -> Vec<Piece> {
        let first = self.find(start).map_or(start, |piece| piece.start);
        self.pieces
            .range(first..end.max(first))
            .map(|(start, (end, traits))| Piece { start: *start, end: *end, traits: *traits })
            .collect()
    }

    /// Cuts `[start, end)` out.
    pub fn remove(&mut self, start: u64, end: u64) {
        for piece in self.overlapping(start, end) {
            let pieces = Arc::make_mut(&mut self.pieces);
            pieces.remove(&piece.start);
            if piece.start < start {
                pieces.insert(piece.start, (start, piece.traits));
            }
            if end < piece.end {
                pieces.insert(end, (piece.end, piece.traits));
            }
        }
    }

    /// All pieces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.iter().map(|(start, (end, traits))| Piece {
            start: *start,
            end: *end,
            traits: *traits,
        })
    }

    /// Whether nothing is registered any more.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// As the daemon knows them.
    pub fn to_areas(&self) -> Vec<Area> {
        let area = |piece: Piece| Area {
            start: Vpn(piece.start),
            count: piece.end - piece.start,
            grows_down: piece.traits.grows_down,
            wipe_on_fork: piece.traits.wipe_on_fork,
        };
        self.iter().map(area).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(list: &[(u64, u64)]) -> Areas {
        let mut all = Areas::default();
        for (start, end) in list {
            all.insert(Piece { start: *start, end: *end, traits: Traits::default() });
        }
        all
    }

    fn list(areas: &Areas) -> Vec<(u64, u64)> {
        areas.iter().map(|piece| (piece.start, piece.end)).collect()
    }

    #[test]
    fn cutting_splits_pieces() {
        let mut all = areas(&[(10, 20), (30, 40)]);
        all.remove(15, 35);
        assert_eq!(list(&all), [(10, 15), (35, 40)]);
        all.remove(11, 12);
        assert_eq!(list(&all), [(10, 11), (12, 15), (35, 40)]);
        all.remove(0, 100);
        assert!(all.is_empty());
    }

    #[test]
    fn pages_are_found_in_their_piece_only() {
        let all = areas(&[(10, 20), (30, 40)]);
        assert_eq!(all.find(9), None);
        assert_eq!(all.find(19).map(|p| p.start), Some(10));
        assert_eq!(all.find(20), None);
        assert_eq!(all.at_or_below(25).map(|p| p.end), Some(20));
        assert_eq!(all.above(25).map(|p| p.start), Some(30));
        assert_eq!(all.above(30), None);
    }
}
