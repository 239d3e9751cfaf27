//! One-sided RDMA reads, beside TCP.
//!
//! A seed has a protection domain of its own at the owner's node, with the memory that peers may
//! read; a node that shows the seed's capability (on its TCP connection) gets a queue pair in that
//! domain, and reads what was registered without any thread of the owner's. What is not registered,
//! or no more, comes over the same TCP connection, page by page, and is counted.

mod fetch;
mod memory;
mod networks;
mod offer;
mod owner;
mod plan;
mod regions;
mod serve;
mod source;

pub(crate) use fetch::Fetcher;
pub use fetch::{FetchedBy, ReadBy};
pub use memory::{Calls, Pinning, SeedMemory};
pub use networks::Networks;
pub(crate) use offer::ask;
pub use owner::{Export, Exporter, Pinned};
pub(crate) use regions::Regions;
pub(crate) use serve::Links;
pub use source::{RdmaSource, connector};

use crate::wire;
use mitosis_rdma_sys::EndPoint;

impl From<EndPoint> for wire::RdmaEnd {
    fn from(end: EndPoint) -> wire::RdmaEnd {
        let EndPoint { qpn, psn, gid, lid, mtu } = end;
        wire::RdmaEnd { qpn, psn, gid, lid, mtu }
    }
}

impl From<wire::RdmaEnd> for EndPoint {
    fn from(end: wire::RdmaEnd) -> EndPoint {
        let wire::RdmaEnd { qpn, psn, gid, lid, mtu } = end;
        EndPoint { qpn, psn, gid, lid, mtu }
    }
}
