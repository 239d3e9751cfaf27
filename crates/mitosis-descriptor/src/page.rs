//! Pages as numbers, not as pointers: an address in another process is not an address of ours.

use serde::{Deserialize, Serialize};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page (x86-64 base pages; huge pages are described as runs of these).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A virtual page number: an address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Vpn(pub u64);

impl Vpn {
    /// The page that holds `addr`.
    pub fn of(addr: u64) -> Vpn {
        Vpn(addr >> PAGE_SHIFT)
    }
    /// The first byte of the page.
    pub fn addr(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

/// A run of consecutive pages `[start, start + count)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageRange {
    /// First page.
    pub start: Vpn,
    /// Number of pages.
    pub count: u64,
}

impl PageRange {
    /// One past the last page.
    pub fn end(self) -> Vpn {
        Vpn(self.start.0 + self.count)
    }
}

/// A run of pages that live in the memory (or mapped file) of one owner.
///
/// `source` is where the run starts in the *owner's* address space. It differs from `start` only
/// after an intermediate child has moved a mapping with `mremap(2)` before fetching it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageRun {
    /// First page in the child.
    pub start: Vpn,
    /// Number of pages; at least one.
    pub count: u32,
    /// Index into [`Descriptor::owners`](crate::Descriptor::owners).
    pub owner: u16,
    /// First page in the owner.
    pub source: Vpn,
}

impl PageRun {
    /// One past the last page, in the child.
    pub fn end(&self) -> Vpn {
        Vpn(self.start.0 + u64::from(self.count))
    }
}
