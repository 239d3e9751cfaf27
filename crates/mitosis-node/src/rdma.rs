//! RDMA as a node uses it: what it offers to others, and which way it goes to them.

use crate::config::Config;
use crate::error::NodeError;
use crate::memory::Place;
use crate::node::Node;
use crate::registry::Registry;
use crate::seed::Seed;
use mitosis_capture::{IoctlCalls, calls_max, ioctls};
use mitosis_descriptor::{Owner, PAGE_SIZE, Phase, Vpn};
use mitosis_proto::Transport;
use mitosis_sys::{SysError, pagemap::Pagemap, procfs};
use mitosis_transport::rdma::{Calls, Exporter, SeedMemory};
use mitosis_transport::{Device, FetchedBy, ReadBy, ReadError, wire};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long another node may take to say whether it offers RDMA.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long its answer holds.
const ANSWER_FOR: Duration = Duration::from_secs(10);

/// The device of a node, or why there is none.
type Offer = Result<String, String>;

/// What other nodes have said, and when.
#[derive(Debug, Default)]
pub(crate) struct Offers(Mutex<HashMap<String, (Instant, Offer)>>);

/// Opens the device of a node, unless its operator forbids.
///
/// # Errors
/// `--transport rdma` without a usable device.
pub(crate) fn set_up(registry: &Registry, config: &Config) -> Result<(), NodeError> {
    let found = match config.transport {
        Transport::Tcp => Err("this node was started with --transport tcp".to_owned()),
        Transport::Local => Err("this node was started with --transport local".to_owned()),
        Transport::Auto | Transport::Rdma => exporter(config),
    };
    if let (Transport::Rdma, Err(why)) = (config.transport, &found) {
        return Err(NodeError::control("--transport rdma", why.clone()));
    }
    registry.set_rdma(found);
    Ok(())
}

fn exporter(config: &Config) -> Result<Arc<Exporter>, String> {
    let device = Device::open(config.rdma_device.as_deref()).map_err(|e| e.to_string())?;
    let networks = config.rdma_networks.clone();
    Ok(Arc::new(Exporter::new(device, config.rdma_limit, config.rdma_memory, networks)))
}

/// Whether pages of an owner come by RDMA, and why so.
///
/// # Errors
/// `--transport rdma` where this node or the owner's has none.
pub(crate) fn choose(
    node: &Node,
    transport: Transport,
    owner: &Owner,
) -> Result<(bool, String), NodeError> {
    let wanted = asked(node, transport);
    if matches!(wanted, Transport::Tcp | Transport::Local) {
        return Ok((false, "tcp was asked for".into()));
    }
    let way = both_ends(node, &owner.address);
    match way {
        Ok((here, there)) => Ok((true, format!("RDMA {here} here, {there} at {}", owner.address))),
        Err(why) if wanted == Transport::Rdma => {
            Err(NodeError::step(Phase::Plan, "--transport rdma", why))
        }
        Err(why) => Ok((false, format!("no RDMA: {why}"))),
    }
}

/// Whether and how a descriptor is read by RDMA; where it is not certain that this is asked for, only a
/// large one.
pub(crate) fn descriptor(node: &Node, transport: Transport, address: &str) -> Option<ReadBy> {
    let above = match asked(node, transport) {
        Transport::Tcp | Transport::Local => return None,
        Transport::Auto => wire::DESCRIPTOR_INLINE,
        Transport::Rdma => 0,
    };
    both_ends(node, address).ok()?;
    let device = node.seeds.rdma().ok()?.device().clone();
    Some(ReadBy { device, above })
}

/// How a descriptor came, to be added to why its pages come as they do.
pub(crate) fn came(bytes: usize, by: &FetchedBy) -> String {
    match by {
        FetchedBy::Answer => String::new(),
        FetchedBy::Read { linked, took } => format!(
            "; descriptor ({bytes} bytes) read in {} us, of which its queue pair took {}",
            took.as_micros(),
            linked.as_micros()
        ),
        FetchedBy::Again(why) => format!("; descriptor over TCP: {why}"),
    }
}

/// What is wanted, with what the node was started with.
fn asked(node: &Node, transport: Transport) -> Transport {
    match (transport, node.config.transport) {
        (Transport::Auto, Transport::Rdma) => Transport::Rdma,
        (other, _) => other,
    }
}

fn both_ends(node: &Node, address: &str) -> Result<(String, String), String> {
    let exporter = node.seeds.rdma()?;
    let here = exporter.describe();
    if address == node.address {
        return Ok((here.clone(), here));
    }
    exporter.networks().trust_node(address)?;
    let offers = || node.offers.0.lock().unwrap_or_else(PoisonError::into_inner);
    let known = offers().get(address).filter(|(at, _)| at.elapsed() < ANSWER_FOR).cloned();
    let there = match known {
        Some((_, there)) => there,
        None => {
            let asked = node.nodes.rdma_offer(address, ASK_TIMEOUT);
            let there = asked.unwrap_or_else(|e| Err(e.to_string()));
            offers().insert(address.to_owned(), (Instant::now(), there.clone()));
            there
        }
    };
    there.map(|there| (here, there)).map_err(|why| format!("{address}: {why}"))
}

/// The memory of a seed, to be registered.
pub(crate) struct OfSeed(pub Arc<Seed>);

impl OfSeed {
    /// Of the owned pages, those of its shadow that may be registered there: never of a mapping that
    /// cannot be written, which the kernel refuses to pin for windows.
    fn ranges(&self, pid: i32, exclusive: bool) -> Result<Vec<(u64, u64)>, SysError> {
        let owned = self.0.memory.owned();
        let mut found = Vec::new();
        let mut map = Pagemap::open(pid)?;
        for mapping in procfs::ranges(pid)?.iter().filter(|one| one.perms.starts_with(b"rw")) {
            let (start, end) = (mapping.start / PAGE_SIZE, mapping.end / PAGE_SIZE);
            let from = owned.partition_point(|range| range.1 <= start);
            let here = owned[from..].iter().take_while(|range| range.0 < end);
            let here: Vec<_> = here.map(|r| (r.0.max(start), r.1.min(end))).collect();
            if exclusive {
                found.extend(map.exclusive_ranges(&here)?);
                continue;
            }
            // What is not there is not to be made.
            let mut there = Vec::new();
            for (start, end) in here {
                map.private_ranges(start * PAGE_SIZE, end * PAGE_SIZE, &mut there)?;
            }
            found.extend(there.iter().map(|(start, end)| (start / PAGE_SIZE, end / PAGE_SIZE)));
        }
        Ok(found)
    }
}

impl SeedMemory for OfSeed {
    fn read(&self, page: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        // A seed that has ended meanwhile gives an error at its first page.
        self.0.memory.read(page, count, out)
    }

    fn in_place(&self, exclusive: bool) -> Vec<(u64, u64)> {
        let Place::Shadow(shadow) = self.0.memory.place() else { return Vec::new() };
        // Of a shadow that is gone there are none.
        self.ranges(shadow.pid, exclusive).unwrap_or_default()
    }

    fn mapped(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        self.0.memory.mapped(start, end)
    }

    fn calls_max(&self, size: usize) -> usize {
        calls_max(size)
    }

    fn calls(&self, calls: &Calls<'_>) -> Result<Vec<(i64, Vec<u8>)>, String> {
        let Place::Shadow(shadow) = self.0.memory.place() else {
            return Err("the pages are in no shadow any more".into());
        };
        // One visit at a time: an export that was given up may still be at it.
        let _visit = shadow.visit.lock().unwrap_or_else(PoisonError::into_inner);
        if !shadow.alive() {
            return Err("the shadow has ended".into());
        }
        let none = Rlimit { current: None, maximum: None };
        prlimit(Pid::from_raw(shadow.pid), Resource::Memlock, none).map_err(|e| e.to_string())?;
        let Calls { file, request, size, count, argument } = *calls;
        ioctls(shadow.pid, &IoctlCalls { file, request, size, count, argument })
            .map_err(|e| e.to_string())
    }
}
