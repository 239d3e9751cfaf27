//! VMAs as distances in pages: about nine bytes each instead of two 64-bit addresses and more.

use crate::{Backing, DescriptorError, PAGE_SHIFT, PAGE_SIZE, Vma};
use serde::{Deserialize, Serialize};

/// A VMA, told relative to the one before.
#[derive(Serialize, Deserialize)]
pub(super) struct Packed {
    /// Pages between the end of the VMA before (or address 0) and this one.
    gap: u64,
    /// Pages in it.
    pages: u64,
    prot: u8,
    flags: u16,
    backing: Backing,
}

/// Packs VMAs that are page-aligned, ascending and disjoint; an error names the first that is not.
pub(super) fn pack(vmas: &[Vma]) -> Result<Vec<Packed>, DescriptorError> {
    let mut end_before = 0;
    let mut packed = Vec::with_capacity(vmas.len());
    for vma in vmas {
        // Destructured, so that a field added to the image cannot be forgotten here.
        let &Vma { start, end, prot, flags, backing } = vma;
        if start % PAGE_SIZE != 0 || end % PAGE_SIZE != 0 || start < end_before || end <= start {
            return Err(DescriptorError::Invalid(format!(
                "VMA {start:#x}-{end:#x}: unaligned, empty or overlapping"
            )));
        }
        let (gap, pages) = ((start - end_before) >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT);
        packed.push(Packed { gap, pages, prot, flags, backing });
        end_before = end;
    }
    Ok(packed)
}

/// The VMAs that `packed` tells of; addresses beyond 64 bits are an error.
pub(super) fn unpack(packed: Vec<Packed>) -> Result<Vec<Vma>, DescriptorError> {
    let mut page = 0u64;
    let mut vmas = Vec::with_capacity(packed.len());
    for Packed { gap, pages, prot, flags, backing } in packed {
        let first = page.checked_add(gap);
        let last = first.and_then(|f| f.checked_add(pages));
        let (Some(first), Some(last)) = (first, last.filter(|l| *l <= u64::MAX >> PAGE_SHIFT))
        else {
            return Err(DescriptorError::Invalid("VMA beyond the address space".to_owned()));
        };
        let (start, end) = (first << PAGE_SHIFT, last << PAGE_SHIFT);
        vmas.push(Vma { start, end, prot, flags, backing });
        page = last;
    }
    Ok(vmas)
}
