//! What a node offers to other nodes.

use crate::wire::PAGE;
use crate::{ReadError, Refused};
use mitosis_descriptor::{Secret, SeedId, Vpn};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The right to start children of a seed without asking again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// For how long, from when it was asked for.
    pub time: Duration,
    /// Pages of the seed's working set so far.
    pub working_set: u32,
}

/// Consecutive pages in memory that nothing changes any more.
#[derive(Clone, Debug)]
pub struct KeptPages {
    memory: Arc<[u8]>,
    pages: Range<usize>,
}

impl KeptPages {
    /// Some `pages` of those that `memory` holds; `None` if it does not hold them.
    pub fn new(memory: Arc<[u8]>, pages: Range<usize>) -> Option<KeptPages> {
        let fits = pages.start <= pages.end && pages.end <= memory.len() / PAGE;
        fits.then_some(KeptPages { memory, pages })
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.pages.start * PAGE..self.pages.end * PAGE]
    }
}

/// Whether a seed's pages can still be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SeedState {
    /// Served, and open to new forks.
    Alive,
    /// Past its TTL: no new forks; pages are served a while, so that children become independent.
    Expiring,
    /// Revoked: nothing is served.
    Revoked,
    /// Its memory is gone.
    Lost,
}

/// The seeds of one node, as the server sees them. Called from many threads at once.
pub trait SeedService: Send + Sync {
    /// The encoded descriptor of a seed, for a fork.
    ///
    /// # Errors
    /// [`Refused`], the same for an unknown seed, a wrong capability and an ended seed.
    fn fork(&self, seed: SeedId, secret: &Secret) -> Result<Arc<[u8]>, Refused>;

    /// Lets another node start children of a seed for a while without asking again.
    ///
    /// # Errors
    /// [`Refused`], as [`SeedService::fork`].
    fn lease(&self, _seed: SeedId, _secret: &Secret) -> Result<Lease, Refused> {
        Err(Refused)
    }

    /// Opens a seed for page reads. An expiring seed can still be opened: a child that was started
    /// in time may connect after the TTL.
    ///
    /// # Errors
    /// [`Refused`], the same for an unknown seed, a wrong capability and an ended seed.
    fn open(&self, seed: SeedId, secret: &Secret) -> Result<Arc<dyn OpenSeed>, Refused>;

    /// The image of this node's vdso, which all its seeds have, for the holder of a capability.
    ///
    /// # Errors
    /// As [`SeedService::fork`].
    fn vdso(&self, _seed: SeedId, _secret: &Secret) -> Result<Arc<[u8]>, Refused> {
        Err(Refused)
    }

    /// The device over which this node lets the one at an address read, for people.
    ///
    /// # Errors
    /// Why there is none.
    fn rdma(&self, _peer: IpAddr) -> Result<String, String> {
        Err("this node offers no RDMA".into())
    }
}

/// A seed held open by one connection. The server drops its `Arc` when the connection or the
/// handle closes, so the count tells the node whether anybody still depends on the seed.
pub trait OpenSeed: Send + Sync {
    /// Reads `count` pages starting at page `source` of the seed's address space. `out` is exactly
    /// `count` pages long and holds anything: `Ok` says that all of it was written. It is sent only
    /// then.
    ///
    /// # Errors
    /// [`ReadError`] if any of the pages cannot be had; then none is sent.
    fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError>;

    /// Pages that a child touched, in order. A hint, to be kept or not.
    fn learn(&self, _pages: &[u64]) {}

    /// Whether a child has told what it touched.
    fn told(&self) -> bool {
        false
    }

    /// What earlier children touched, in order; at most [`crate::wire::TRAIL_PAGES_MAX`] pages.
    fn trail(&self) -> Vec<u64> {
        Vec::new()
    }

    /// The beginning of that, at most `most` pages, as a file in memory: the pages, ascending, and a
    /// file that holds them one after the other.
    fn image(&self, most: usize) -> Option<(Arc<[u64]>, Arc<std::fs::File>)> {
        let _ = most;
        None
    }

    /// These pages in their order, if all of them are kept in memory.
    fn kept(&self, _pages: &[u64]) -> Option<Vec<KeptPages>> {
        None
    }

    /// The seed's memory registered for RDMA; the first call begins to register it.
    ///
    /// # Errors
    /// Why there is none.
    fn rdma(&self) -> Result<Arc<crate::rdma::Export>, String> {
        Err("this node offers no RDMA".into())
    }

    /// The present state; asked before and after each read, and for each ping.
    fn state(&self) -> SeedState;
}
