//! What CPUs differ in that a process can see.

use core::arch::x86_64::{__cpuid_count, _xgetbv};

/// AMX tile state: larger than what a task without permission may have in a signal frame.
const AMX: u64 = (1 << 17) | (1 << 18);

/// State components that the operating system has enabled (XCR0); 3 where there is no XSAVE.
pub fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever XSAVE does.
        unsafe { _xgetbv(0) }
    }
    if std::is_x86_feature_detected!("xsave") {
        // SAFETY: the feature was just detected.
        unsafe { read() }
    } else {
        3
    }
}

/// Size in bytes of an XSAVE image of the components `features`, in standard format.
pub fn xsave_bytes(features: u64) -> usize {
    (2..63)
        .filter(|bit| features & (1 << bit) != 0)
        .map(|bit| {
            let leaf = __cpuid_count(0xd, bit);
            leaf.ebx as usize + leaf.eax as usize
        })
        .fold(576, usize::max)
}

/// Components that a signal frame may always hold.
pub fn frame_features() -> u64 {
    xcr0() & !AMX
}
