//! Which pages of a seed can be had by RDMA, and where.

use crate::wire::{PAGE, RdmaRegion};
use std::collections::BTreeMap;

/// Registered pages, as the owner told them.
#[derive(Default, Debug)]
pub(crate) struct Regions {
    known: BTreeMap<u64, RdmaRegion>,
    /// A question is on its way. The owner may take longer than from one ping to the next, and would
    /// tell the same regions in answer to each.
    asked: bool,
}

impl Regions {
    /// From which on to ask the owner; `None`: it has been asked, and has not answered.
    pub fn ask(&mut self) -> Option<u32> {
        (!std::mem::replace(&mut self.asked, true)).then_some(self.known.len() as u32)
    }

    /// The answer to that. `false`: it contradicts itself or what is known.
    pub fn answer(&mut self, more: Vec<RdmaRegion>) -> bool {
        self.asked = false;
        more.into_iter().all(|region| self.add(region))
    }

    /// Adds one. `false`: it contradicts itself or another one.
    fn add(&mut self, region: RdmaRegion) -> bool {
        let pages = u64::from(region.pages);
        let end = region.page.checked_add(pages).filter(|end| *end <= 1 << 52);
        let bytes = region.address.checked_add(pages * PAGE as u64);
        let before = self.known.range(..=region.page).next_back();
        let clear = before.is_none_or(|(_, b)| b.page + u64::from(b.pages) <= region.page);
        let after = self.known.range(region.page..).next().map(|(page, _)| *page);
        let good = pages > 0 && bytes.is_some() && clear;
        match end {
            Some(end) if good && after.is_none_or(|after| end <= after) => {
                self.known.insert(region.page, region);
                true
            }
            _ => false,
        }
    }

    /// The longest stretch from `page`, at most `most` pages, that comes one way: its pages, and
    /// address and key if that way is RDMA.
    pub fn part(&self, page: u64, most: u32) -> (u32, Option<(u64, u32)>) {
        if let Some((_, r)) = self.known.range(..=page).next_back() {
            let into = page - r.page;
            if into < u64::from(r.pages) {
                let pages = (u64::from(r.pages) - into).min(u64::from(most)) as u32;
                return (pages, Some((r.address + into * PAGE as u64, r.rkey)));
            }
        }
        let next = self.known.range(page..).next().map_or(u64::MAX, |(next, _)| *next);
        ((next - page).min(u64::from(most)) as u32, None)
    }

    /// Address and key of some page.
    pub fn any(&self) -> Option<(u64, u32)> {
        self.known.values().next().map(|region| (region.address, region.rkey))
    }

    /// Pages in them.
    pub fn pages(&self) -> u64 {
        self.known.values().map(|region| u64::from(region.pages)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(page: u64, pages: u32) -> RdmaRegion {
        RdmaRegion { page, pages, address: page * 0x1000 + 7, rkey: 3 }
    }

    #[test]
    fn reads_are_cut_where_the_way_changes() {
        let mut regions = Regions::default();
        assert!(regions.add(region(10, 5)) && regions.add(region(15, 1)));
        assert_eq!(regions.part(5, 256), (5, None));
        assert_eq!(regions.part(12, 256), (3, Some((12 * 0x1000 + 7, 3))));
        assert_eq!(regions.part(12, 2), (2, Some((12 * 0x1000 + 7, 3))));
        assert_eq!(regions.part(16, 9), (9, None));
    }

    /// An owner that is slow, or was stopped, answers every question that it finds when it goes on.
    #[test]
    fn an_owner_that_has_not_answered_is_not_asked_again() {
        let mut regions = Regions::default();
        assert_eq!(regions.ask(), Some(0));
        assert_eq!(regions.ask(), None);
        assert!(regions.answer(vec![region(10, 5), region(15, 1)]));
        assert_eq!((regions.ask(), regions.ask()), (Some(2), None));
        assert!(regions.answer(Vec::new()));
        assert_eq!(regions.ask(), Some(2));
        assert!(!regions.answer(vec![region(14, 1)]));
    }

    #[test]
    fn what_overlaps_or_overflows_is_refused() {
        let mut regions = Regions::default();
        assert!(regions.add(region(10, 5)));
        for bad in [region(14, 1), region(8, 3), region(10, 1), region(20, 0)] {
            assert!(!regions.add(bad), "{bad:?}");
        }
        assert!(!regions.add(RdmaRegion { address: u64::MAX - 5, ..region(20, 1) }));
        assert!(!regions.add(RdmaRegion { page: u64::MAX, ..region(20, 1) }));
        assert_eq!(regions.known.len(), 1);
    }
}
