//! XSAVE images without their zeros. An AVX-512 machine's image is 2.7 KB, an AMX machine's 11 KB,
//! and an idle thread uses a few hundred bytes of it.

use crate::DescriptorError;
use serde::{Deserialize, Serialize};

/// Shorter stretches of zeros stay: leaving one out costs two bytes of lengths.
const ZEROS_MIN: usize = 4;

/// The pieces of an image that are not zero, in order.
#[derive(Serialize, Deserialize)]
pub(super) struct Packed {
    len: u32,
    pieces: Vec<Piece>,
}

#[derive(Serialize, Deserialize)]
struct Piece {
    /// Zeros before it.
    zeros: u32,
    bytes: Vec<u8>,
}

impl Packed {
    /// Bytes of the image once unpacked; a claim until then, to be held against a limit.
    pub(super) fn unpacked_len(&self) -> usize {
        self.len as usize
    }
}

/// Leaves out the zeros.
pub(super) fn pack(image: &[u8]) -> Packed {
    let mut pieces = Vec::new();
    let mut at = 0;
    loop {
        let zeros = zeros_at(&image[at..]);
        let begin = at + zeros;
        let mut end = begin;
        while end < image.len() {
            let run = zeros_at(&image[end..]);
            if run >= ZEROS_MIN || end + run == image.len() {
                break;
            }
            end += run.max(1);
        }
        if begin == end {
            break;
        }
        pieces.push(Piece { zeros: zeros as u32, bytes: image[begin..end].to_vec() });
        at = end;
    }
    Packed { len: image.len() as u32, pieces }
}

/// Puts the zeros back. The caller has bounded [`Packed::unpacked_len`].
pub(super) fn unpack(packed: &Packed) -> Result<Vec<u8>, DescriptorError> {
    let mut image = vec![0; packed.unpacked_len()];
    let mut at = 0usize;
    for piece in &packed.pieces {
        let begin = at.saturating_add(piece.zeros as usize);
        let end = begin.saturating_add(piece.bytes.len());
        let Some(place) = image.get_mut(begin..end) else {
            return Err(DescriptorError::Malformed("XSAVE image longer than it says".to_owned()));
        };
        place.copy_from_slice(&piece.bytes);
        at = end;
    }
    Ok(image)
}

fn zeros_at(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| **b == 0).count()
}
