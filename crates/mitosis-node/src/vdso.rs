//! Vdsos of the kernels of other nodes: each is fetched once.

use crate::error::NodeError;
use mitosis_descriptor::{Descriptor, Owner};
use mitosis_restore::{NodeFacts, is_parents_vdso, vdso_differs};
use mitosis_transport::ControlClient;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Kernels whose vdso is kept: more than a cluster has during an upgrade. The next one takes the
/// place of all.
const KEPT_MAX: usize = 16;

/// How long the seed's node may take to give it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Images by their CRC-32, as descriptors name them.
#[derive(Debug, Default)]
pub(crate) struct Vdsos(Mutex<HashMap<u32, Arc<[u8]>>>);

impl Vdsos {
    /// The image of the parent's vdso, if a plan for a node with `facts` needs it.
    ///
    /// # Errors
    /// The seed's node does not give it.
    pub fn of(
        &self,
        nodes: &ControlClient,
        descriptor: &Descriptor,
        facts: &NodeFacts,
    ) -> Result<Option<Arc<[u8]>>, NodeError> {
        if !vdso_differs(descriptor, facts) {
            return Ok(None);
        }
        let crc = descriptor.origin.vdso_crc;
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = kept().get(&crc) {
            return Ok(Some(Arc::clone(image)));
        }
        // The first owner of pages is the seed itself; without one there is no descriptor.
        let Some(Owner { address, seed, secret }) = descriptor.owners.first() else {
            return Ok(None);
        };
        let image: Arc<[u8]> = nodes.vdso(address, *seed, secret, TIMEOUT)?.into();
        // What is another one is for the plan to refuse.
        if is_parents_vdso(descriptor, &image) {
            let mut kept = kept();
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            kept.insert(crc, Arc::clone(&image));
        }
        Ok(Some(image))
    }
}
