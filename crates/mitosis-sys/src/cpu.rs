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

/// Where a component lies in an XSAVE image of standard format. Makers of CPUs differ in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// Its bit in XCR0, 2 or above: the first two have their fixed places.
    pub bit: u8,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// The areas of the components `features` on this machine.
pub fn xsave_areas(features: u64) -> Vec<Area> {
    let bits = (2..63u8).filter(|bit| features & (1 << bit) != 0);
    let area = |bit: u8| {
        let leaf = __cpuid_count(0xd, bit.into());
        Area { bit, offset: leaf.ebx, bytes: leaf.eax }
    };
    bits.map(area).collect()
}

/// The words of [`cpuid`]: leaf, subleaf, and which of eax, ebx, ecx and edx.
const WORDS: [(u32, u32, usize); 9] = [
    (1, 0, 2),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (7, 1, 3),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
];

/// What programs may find by CPUID and then use: word of [`cpuid`], bit, name. What goes with register
/// state that XCR0 names is left out, and so are hints.
const INSTRUCTIONS: [(usize, u32, &str); 48] = [
    (0, 0, "SSE3"),
    (0, 1, "PCLMULQDQ"),
    (0, 9, "SSSE3"),
    (0, 12, "FMA"),
    (0, 13, "CMPXCHG16B"),
    (0, 19, "SSE4.1"),
    (0, 20, "SSE4.2"),
    (0, 22, "MOVBE"),
    (0, 23, "POPCNT"),
    (0, 25, "AES"),
    (0, 29, "F16C"),
    (0, 30, "RDRAND"),
    (1, 0, "FSGSBASE"),
    (1, 3, "BMI1"),
    (1, 5, "AVX2"),
    (1, 8, "BMI2"),
    (1, 11, "RTM"),
    (1, 17, "AVX512DQ"),
    (1, 18, "RDSEED"),
    (1, 19, "ADX"),
    (1, 21, "AVX512IFMA"),
    (1, 23, "CLFLUSHOPT"),
    (1, 24, "CLWB"),
    (1, 28, "AVX512CD"),
    (1, 29, "SHA"),
    (1, 30, "AVX512BW"),
    (1, 31, "AVX512VL"),
    (2, 1, "AVX512VBMI"),
    (2, 5, "WAITPKG"),
    (2, 6, "AVX512VBMI2"),
    (2, 8, "GFNI"),
    (2, 9, "VAES"),
    (2, 10, "VPCLMULQDQ"),
    (2, 11, "AVX512VNNI"),
    (2, 12, "AVX512BITALG"),
    (2, 14, "AVX512VPOPCNTDQ"),
    (2, 22, "RDPID"),
    (2, 27, "MOVDIRI"),
    (2, 28, "MOVDIR64B"),
    (3, 23, "AVX512FP16"),
    (4, 4, "AVX-VNNI"),
    (4, 5, "AVX512BF16"),
    (6, 0, "XSAVEOPT"),
    (6, 1, "XSAVEC"),
    (7, 0, "LAHF64"),
    (7, 5, "LZCNT"),
    (7, 6, "SSE4A"),
    (8, 27, "RDTSCP"),
];

/// The registers of CPUID that name instructions.
pub fn cpuid() -> Vec<u32> {
    let highest = [__cpuid_count(0, 0).eax, __cpuid_count(0x8000_0000, 0).eax];
    let word = |&(leaf, subleaf, register): &(u32, u32, usize)| {
        if leaf > highest[usize::from(leaf >= 0x8000_0000)] {
            return 0;
        }
        let found = __cpuid_count(leaf, subleaf);
        [found.eax, found.ebx, found.ecx, found.edx][register]
    };
    WORDS.iter().map(word).collect()
}

/// Names of the instructions that a machine with the words `there` has and one with the words `here`
/// lacks.
pub fn lacking(there: &[u32], here: &[u32]) -> Vec<&'static str> {
    let has =
        |words: &[u32], word: usize, bit: u32| words.get(word).is_some_and(|w| w >> bit & 1 != 0);
    let lacks = INSTRUCTIONS
        .iter()
        .filter(|(word, bit, _)| has(there, *word, *bit) && !has(here, *word, *bit));
    lacks.map(|(_, _, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_lie_behind_the_header_and_the_image_ends_with_the_last() {
        let areas = xsave_areas(frame_features());
        assert!(areas.iter().all(|area| area.offset >= 576 && area.bytes > 0), "{areas:?}");
        let end = areas.iter().map(|area| (area.offset + area.bytes) as usize).max();
        assert_eq!(end.unwrap_or(576).max(576), xsave_bytes(frame_features()));
    }

    #[test]
    fn a_machine_lacks_nothing_of_itself_and_all_of_what_another_has_more() {
        let own = cpuid();
        assert_eq!(own.len(), WORDS.len());
        assert!(lacking(&own, &own).is_empty());
        assert_eq!(lacking(&[1 << 20, 1 << 5], &[1 << 20]), ["AVX2"]);
        assert_eq!(std::is_x86_feature_detected!("avx2"), own[1] & (1 << 5) != 0);
        assert_eq!(std::is_x86_feature_detected!("sha"), own[1] & (1 << 29) != 0);
    }
}
