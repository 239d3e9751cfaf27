//! Magic, version, length, checksum, body.

use crate::{Descriptor, DescriptorError, Limits};

/// First bytes of every descriptor.
pub const MAGIC: [u8; 4] = *b"MITO";
/// Version written by this build.
pub const VERSION: u16 = 1;

/// Encodes a descriptor.
pub fn encode(descriptor: &Descriptor) -> Result<Vec<u8>, DescriptorError> {
    postcard::to_stdvec(descriptor).map_err(|e| DescriptorError::Malformed(e.to_string()))
}

/// Decodes and validates a descriptor.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Descriptor, DescriptorError> {
    let d: Descriptor =
        postcard::from_bytes(bytes).map_err(|e| DescriptorError::Malformed(e.to_string()))?;
    d.validate(limits)?;
    Ok(d)
}
