//! Which pages of a seed can be had by RDMA, and where.

use crate::wire::{PAGE, RdmaRegion};
use std::collections::BTreeMap;

/// Registered pages, as the owner told them.
#[derive(Default, Debug)]
pub(crate) struct Regions(BTreeMap<u64, RdmaRegion>);

impl Regions {
    /// Adds one. `false`: it contradicts itself or another one.
    pub fn add(&mut self, region: RdmaRegion) -> bool {
        let pages = u64::from(region.pages);
        let end = region.page.checked_add(pages).filter(|end| *end <= 1 << 52);
        let bytes = region.address.checked_add(pages * PAGE as u64);
        let before = self.0.range(..=region.page).next_back();
        let clear = before.is_none_or(|(_, b)| b.page + u64::from(b.pages) <= region.page);
        let after = self.0.range(region.page..).next().map(|(page, _)| *page);
        let good = pages > 0 && bytes.is_some() && clear;
        match end {
            Some(end) if good && after.is_none_or(|after| end <= after) => {
                self.0.insert(region.page, region);
                true
            }
            _ => false,
        }
    }

    /// The longest stretch from `page`, at most `most` pages, that comes one way: its pages, and
    /// address and key if that way is RDMA.
    pub fn part(&self, page: u64, most: u32) -> (u32, Option<(u64, u32)>) {
        if let Some((_, r)) = self.0.range(..=page).next_back() {
            let into = page - r.page;
            if into < u64::from(r.pages) {
                let pages = (u64::from(r.pages) - into).min(u64::from(most)) as u32;
                return (pages, Some((r.address + into * PAGE as u64, r.rkey)));
            }
        }
        let next = self.0.range(page..).next().map_or(u64::MAX, |(next, _)| *next);
        ((next - page).min(u64::from(most)) as u32, None)
    }

    /// Address and key of some page.
    pub fn any(&self) -> Option<(u64, u32)> {
        self.0.values().next().map(|region| (region.address, region.rkey))
    }

    /// Pages in them.
    pub fn pages(&self) -> u64 {
        self.0.values().map(|region| u64::from(region.pages)).sum()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
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

    #[test]
    fn what_overlaps_or_overflows_is_refused() {
        let mut regions = Regions::default();
        assert!(regions.add(region(10, 5)));
        for bad in [region(14, 1), region(8, 3), region(10, 1), region(20, 0)] {
            assert!(!regions.add(bad), "{bad:?}");
        }
        assert!(!regions.add(RdmaRegion { address: u64::MAX - 5, ..region(20, 1) }));
        assert!(!regions.add(RdmaRegion { page: u64::MAX, ..region(20, 1) }));
        assert_eq!(regions.count(), 1);
    }
}
