//! RDMA as a node uses it: what it offers to others, and which way it goes to them.

use crate::config::Config;
use crate::error::NodeError;
use crate::node::Node;
use crate::registry::Registry;
use mitosis_descriptor::{Owner, Phase};
use mitosis_proto::Transport;
use mitosis_transport::Device;
use mitosis_transport::rdma::Exporter;
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
    let exporter = Exporter::new(device, config.rdma_limit).map_err(|e| e.to_string())?;
    Ok(Arc::new(exporter))
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
    let wanted = match (transport, node.config.transport) {
        (Transport::Auto, Transport::Rdma) => Transport::Rdma,
        (other, _) => other,
    };
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

fn both_ends(node: &Node, address: &str) -> Result<(String, String), String> {
    let here = node.seeds.rdma().map(|exporter| exporter.describe())?;
    if address == node.address {
        return Ok((here.clone(), here));
    }
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
