//! Register state of threads, as this node's CPU wants it laid out.
//!
//! In an XSAVE image each component has its place, and makers of CPUs differ in which: what comes
//! behind AVX lies elsewhere on AMD's than on Intel's. A frame with a component in the wrong place, or
//! that is longer than this CPU's, would make rt_sigreturn(2) restore nothing but SSE, or something
//! else.

use crate::NodeFacts;
use crate::RestoreError;
use mitosis_descriptor::{Descriptor, Thread, XsaveArea};
use std::ops::Range;

/// XSTATE_BV of the XSAVE header.
const XSTATE_BV: Range<usize> = 512..520;
/// The legacy area and the header, which every CPU has in the same place.
const FIXED: usize = 576;

/// The threads with their images laid out anew; `None` where both CPUs have the same layout.
///
/// # Errors
/// [`RestoreError::Incompatible`]: a component has another size here.
pub(crate) fn relay(
    descriptor: &Descriptor,
    node: &NodeFacts,
) -> Result<Option<Vec<Thread>>, RestoreError> {
    let mut moves: Vec<(XsaveArea, usize)> = Vec::new();
    for area in &descriptor.origin.xsave {
        let Some(own) = node.xsave.iter().find(|own| own.bit == area.bit) else {
            // Refused before, if the parent's kernel had it switched on.
            continue;
        };
        if own.bytes != area.bytes {
            return Err(RestoreError::Incompatible(format!(
                "component {} of the parent's register state has {} bytes, this node's {}",
                area.bit, area.bytes, own.bytes
            )));
        }
        moves.push((*area, own.offset as usize));
    }
    if moves.iter().all(|(area, to)| area.offset as usize == *to) {
        return Ok(None);
    }
    let ends = moves.iter().map(|(area, to)| to + area.bytes as usize);
    let len = ends.max().unwrap_or(0).max(FIXED);
    let threads = descriptor
        .threads
        .iter()
        .map(|thread| Thread { xstate: laid_out(&thread.xstate, &moves, len), ..thread.clone() });
    Ok(Some(threads.collect()))
}

fn laid_out(image: &[u8], moves: &[(XsaveArea, usize)], len: usize) -> Vec<u8> {
    if image.len() < FIXED {
        return image.to_vec();
    }
    let mut out = vec![0; len];
    out[..FIXED].copy_from_slice(&image[..FIXED]);
    let mut features = [0; 8];
    features.copy_from_slice(&image[XSTATE_BV]);
    let mut features = u64::from_le_bytes(features);
    let mut carried = 3;
    for (area, to) in moves.iter().filter(|(area, _)| features & (1 << area.bit) != 0) {
        let from = area.offset as usize;
        if let Some(bytes) = image.get(from..from + area.bytes as usize) {
            out[*to..to + bytes.len()].copy_from_slice(bytes);
            carried |= 1 << area.bit;
        }
    }
    features &= carried;
    out[XSTATE_BV].copy_from_slice(&features.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_go_where_this_cpu_has_them() {
        let area = |bit, offset, bytes| XsaveArea { bit, offset, bytes };
        // AVX, and protection keys as Intel and AMD have them.
        let moves = [(area(2, 576, 256), 576), (area(9, 2688, 8), 2432)];
        let mut image = vec![0u8; 2696];
        image[0] = 0x7f;
        image[512..520].copy_from_slice(&0x207u64.to_le_bytes());
        image[576..832].fill(2);
        image[2688..2696].fill(9);
        let out = laid_out(&image, &moves, 2440);
        assert_eq!(out.len(), 2440);
        assert_eq!((out[0], &out[512..520]), (0x7f, &0x207u64.to_le_bytes()[..]));
        assert!(out[576..832].iter().all(|byte| *byte == 2));
        assert!(out[832..2432].iter().all(|byte| *byte == 0));
        assert!(out[2432..].iter().all(|byte| *byte == 9));

        // What is in its initial state is not looked at.
        image[512..520].copy_from_slice(&3u64.to_le_bytes());
        let out = laid_out(&image, &moves, 2440);
        assert!(out[576..].iter().all(|byte| *byte == 0));
    }
}
