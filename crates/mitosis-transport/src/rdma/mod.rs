//! One-sided RDMA reads, beside TCP.
//!
//! A node that shows a seed's capability (on its TCP connection) gets windows on the memory that is
//! registered of it, on the one queue pair of that connection, and reads it without any thread of the
//! owner's. What is not registered, or no more, comes over the same TCP connection, page by page, and is
//! counted.

mod bell;
mod export;
mod fetch;
mod memory;
mod networks;
mod offer;
mod owner;
mod plan;
mod reading;
mod regions;
mod serve;
mod source;

pub(crate) use bell::Heard;
pub use export::{Export, Pinned};
pub(crate) use fetch::Fetcher;
pub use fetch::{FetchedBy, ReadBy};
pub use memory::{Calls, Pinning, SeedMemory};
pub use networks::Networks;
pub(crate) use offer::ask;
pub use owner::Exporter;
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
