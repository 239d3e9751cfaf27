//! Descriptor numbers in use. The kernel gives the lowest free one; a plan must know which that is, for
//! processes with many thousands of them, too.

use std::collections::BTreeSet;

/// Numbers in use.
#[derive(Debug, Default)]
pub struct Numbers {
    used: BTreeSet<u32>,
    /// None below is free.
    lowest: u32,
}

impl Numbers {
    /// One more is in use.
    pub fn insert(&mut self, fd: u32) {
        self.used.insert(fd);
        while self.used.contains(&self.lowest) {
            self.lowest += 1;
        }
    }

    /// One is free again.
    pub fn remove(&mut self, fd: u32) {
        self.used.remove(&fd);
        self.lowest = self.lowest.min(fd);
    }

    /// The `n` lowest free ones.
    pub fn lowest(&self, n: usize) -> Vec<u32> {
        (self.lowest..).filter(|fd| !self.used.contains(fd)).take(n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_numbers_are_given() {
        let mut numbers = Numbers::default();
        for fd in [1, 0, 3, 1000] {
            numbers.insert(fd);
        }
        assert_eq!(numbers.lowest(3), [2, 4, 5]);
        numbers.insert(2);
        assert_eq!(numbers.lowest(1), [4]);
        numbers.remove(1);
        numbers.remove(7);
        assert_eq!(numbers.lowest(2), [1, 4]);
        numbers.insert(1);
        assert_eq!(numbers.lowest(1), [4]);
    }
}
