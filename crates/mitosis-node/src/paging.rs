//! Whose pages a child needs, and how they come.

use crate::error::NodeError;
use crate::memory::{Place, Shadow};
use crate::node::Node;
use mitosis_descriptor::{Descriptor, Owner, PageIndex, PageRun, Phase, Reference, vma_flags};
use mitosis_pager::{Area, OwnerSource};
use mitosis_proto::{Bound, Transport};
use mitosis_restore::RestorePlan;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The pager's part of a plan.
pub(crate) struct Paging {
    /// Where pages are missing.
    pub areas: Vec<Area>,
    /// Whose they are.
    pub index: PageIndex,
    /// The owners that the index names, no others.
    pub owners: Vec<OwnerSource>,
    /// Shadows of this very node among them, in the order of the owners' local numbers.
    pub local: Vec<Arc<Shadow>>,
    /// `rdma`, `tcp`, `local` or `mixed`.
    pub transport: &'static str,
    /// Why that way.
    pub why: String,
}

/// Chooses the way to each owner.
///
/// # Errors
/// `--transport local` with pages that another node owns; `--transport rdma` where this node or an
/// owner's has none; an address that does not resolve.
pub(crate) fn paging(
    node: &Node,
    transport: Transport,
    descriptor: &Descriptor,
    plan: &RestorePlan,
) -> Result<Paging, NodeError> {
    let (index, used) = compact(plan)?;
    let mut owners = Vec::with_capacity(used.len());
    let mut local = Vec::new();
    let (mut rdma, mut why) = (0, String::new());
    for owner in used {
        let shadow = match transport {
            Transport::Tcp | Transport::Rdma => None,
            _ => shadow_here(node, owner),
        };
        let source = match shadow {
            Some(shadow) => {
                let source = OwnerSource::local(owner.clone(), local.len() as u32);
                local.push(shadow);
                source
            }
            None if transport == Transport::Local => return Err(not_local(owner)),
            None => {
                let mut source = OwnerSource::remote(owner.clone())
                    .map_err(|e| NodeError::step(Phase::Plan, owner.address.clone(), e))?;
                (source.rdma, why) = crate::rdma::choose(node, transport, owner)?;
                rdma += usize::from(source.rdma);
                source
            }
        };
        owners.push(source);
    }
    let here = descriptor.owners.first().is_some_and(|owner| owner.address == node.address);
    let transport = match (owners.len(), local.len()) {
        (0, _) if here => "local",
        (all, _) if all > 0 && all == rdma => "rdma",
        (0, _) => "tcp",
        (_, 0) if rdma == 0 => "tcp",
        (all, here) if all == here => "local",
        _ => "mixed",
    };
    if transport == "local" {
        why = "this daemon owns the pages".into();
    }
    Ok(Paging { areas: areas(descriptor, plan), index, owners, local, transport, why })
}

fn not_local(owner: &Owner) -> NodeError {
    let object = format!("--transport local: seed {}", owner.seed);
    let cause = format!("its pages are at {}, or not in a shadow of this node", owner.address);
    NodeError::step(Phase::Plan, object, cause)
}

/// The shadow of a seed of this node.
///
/// # Errors
/// The seed is not of this node, or has none any more, or may not be forked.
pub(crate) fn shadow(node: &Node, reference: &Reference) -> Result<Arc<Shadow>, NodeError> {
    let Reference { address, seed, secret } = reference.clone();
    let refused = |cause: String| NodeError::step(Phase::Plan, "--via shadow", cause);
    if address != node.address {
        return Err(refused(format!("the seed is not of this node: its shadow is at {address}")));
    }
    let may = node.seeds.forkable(seed, &secret);
    may.map_err(|_| mitosis_transport::ForkError::Refused { address: address.clone() })?;
    let gone = "the seed has no shadow: its pages have moved out of its parent's pid namespace";
    shadow_here(node, &Owner { address, seed, secret }).ok_or_else(|| refused(gone.into()))
}

/// The shadow of an owner that is a seed of this very daemon. A seed whose pages move out of its
/// parent's pid namespace is read over TCP: what is read must not depend on when.
fn shadow_here(node: &Node, owner: &Owner) -> Option<Arc<Shadow>> {
    if owner.address != node.address {
        return None;
    }
    let seed = node.seeds.find(owner.seed, &owner.secret).ok()?;
    match seed.memory.place() {
        Place::Shadow(shadow) if seed.bound() == Bound::Free => Some(shadow),
        _ => None,
    }
}

/// The plan's index with owners numbered anew, so that nobody connects to an owner of nothing.
fn compact(plan: &RestorePlan) -> Result<(PageIndex, Vec<&Owner>), NodeError> {
    let invalid = |what: String| NodeError::step(Phase::Plan, "page index", what);
    let mut numbers: BTreeMap<u16, u16> = BTreeMap::new();
    let mut used = Vec::new();
    let mut runs: Vec<PageRun> = Vec::with_capacity(plan.index.runs().len());
    for run in plan.index.runs() {
        let owner = match numbers.get(&run.owner) {
            Some(number) => *number,
            None => {
                let owner = plan.owners.get(usize::from(run.owner));
                used.push(owner.ok_or_else(|| invalid(format!("owner {}", run.owner)))?);
                let number = (used.len() - 1) as u16;
                numbers.insert(run.owner, number);
                number
            }
        };
        runs.push(PageRun { owner, ..*run });
    }
    let index = PageIndex::from_sorted(runs).map_err(|run| invalid(format!("run {run:?}")))?;
    Ok((index, used))
}

fn areas(descriptor: &Descriptor, plan: &RestorePlan) -> Vec<Area> {
    let wiped = |addr: u64| {
        let at = descriptor.vmas.partition_point(|vma| vma.end <= addr);
        let vma = descriptor.vmas.get(at).filter(|vma| vma.start <= addr);
        vma.is_some_and(|vma| vma.flags & vma_flags::WIPEONFORK != 0)
    };
    let area = |area: &mitosis_restore::Area| Area {
        start: area.start,
        count: area.count,
        grows_down: area.grows_down,
        wipe_on_fork: wiped(area.start.addr()),
    };
    plan.areas.iter().map(area).collect()
}
