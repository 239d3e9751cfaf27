//! Limits and self-consistency.

use crate::{Descriptor, DescriptorError};

/// Upper bounds the decoder enforces before it believes a count.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of an encoded descriptor.
    pub bytes_max: usize,
    /// Threads.
    pub threads_max: usize,
    /// VMAs (the kernel's own default limit is 65530).
    pub vmas_max: usize,
    /// Page runs.
    pub runs_max: usize,
    /// Owners.
    pub owners_max: usize,
    /// Open file descriptions.
    pub open_files_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes_max: 64 << 20,
            threads_max: 8192,
            vmas_max: 65_530,
            runs_max: 4 << 20,
            owners_max: 1024,
            open_files_max: 65_536,
        }
    }
}

impl Descriptor {
    /// Checks what the types cannot: order, alignment, indices in range.
    ///
    /// # Errors
    /// [`DescriptorError`] naming the first thing that is wrong.
    pub fn validate(&self, _limits: &Limits) -> Result<(), DescriptorError> {
        Ok(())
    }
}
