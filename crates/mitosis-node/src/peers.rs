//! Connections to the nodes whose seeds are forked here, made before they are needed: a handshake and
//! a thread on the other side would otherwise be on the path of the first child.

use crate::node::Node;
use crate::pager::Pager;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often each connection is looked after.
const EVERY: Duration = Duration::from_secs(5);
/// Bound on the answer of one.
const ANSWER: Duration = Duration::from_secs(1);
/// How often the stop flag and the pager are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Keeps them until the daemon ends.
pub(crate) fn stand(node: &Node) {
    let peers = &node.config.peers;
    if peers.is_empty() {
        return;
    }
    let mut there = vec![true; peers.len()];
    let (mut told, mut due) = (Told::default(), Instant::now());
    let mut addresses = Vec::new();
    while !node.stopping() {
        if Instant::now() >= due {
            for (peer, there) in peers.iter().zip(&mut there) {
                *there = one(node, peer, *there);
            }
            let known = peers.iter().filter_map(|peer| peer.to_socket_addrs().ok()?.next());
            addresses = known.collect();
            due = Instant::now() + EVERY;
        }
        told.tell(node, &addresses);
        std::thread::sleep(TICK);
    }
}

/// Looks after one; says so when it is lost, and when it is back.
fn one(node: &Node, peer: &str, was_there: bool) -> bool {
    let stands = node.nodes.stand(peer, ANSWER);
    match &stands {
        Err(error) if was_there => {
            node.log.warn(format_args!("peer {peer}: {error}; tried every {} s", EVERY.as_secs()));
        }
        Ok(()) if !was_there => node.log.info(format_args!("peer {peer}: connected")),
        _ => {}
    }
    stands.is_ok()
}

/// What a pager was told: it has connections of its own.
#[derive(Default)]
struct Told {
    pager: Weak<Pager>,
    addresses: Vec<SocketAddr>,
}

impl Told {
    /// Tells the present pager, once.
    fn tell(&mut self, node: &Node, addresses: &[SocketAddr]) {
        let Some(pager) = node.pager.now() else { return };
        if Weak::ptr_eq(&self.pager, &Arc::downgrade(&pager)) && self.addresses == addresses {
            return;
        }
        node.note("tell the pager of peers", pager.client.peers(addresses.to_vec()));
        *self = Told { pager: Arc::downgrade(&pager), addresses: addresses.to_vec() };
    }
}
