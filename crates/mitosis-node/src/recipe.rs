//! What children of one seed on this node have in common, and getting it.

use crate::error::NodeError;
use crate::node::Node;
use crate::pager::Pager;
use crate::paging::{self, Paging};
use crate::time::{Reading, Space};
use crate::working_set::Rest;
use mitosis_descriptor::{Descriptor, Limits, Phase, Reference, decode};
use mitosis_proto::{ForkRequest, Net, Transport};
use mitosis_restore::{Part, ProvenFiles, Provided, RestorePlan, Time};
use mitosis_sys::clock::Clocks;
use mitosis_transport::Want;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the seed's node may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How to make children that were asked for in the same way.
pub(crate) struct Recipe {
    /// What they are copies of.
    pub descriptor: Arc<Descriptor>,
    /// What each does to become one.
    pub plan: RestorePlan,
    /// Whose pages they miss.
    pub paging: Paging,
    /// For their clocks.
    pub space: Option<Arc<Space>>,
    shape: Mutex<Option<Shape>>,
}

/// What all children of a recipe lack, as the pager knows it.
struct Shape {
    pager: Arc<Pager>,
    name: u64,
}

impl Drop for Shape {
    fn drop(&mut self) {
        // A pager that is gone knows none any more.
        let _ = self.pager.client.drop_shape(self.name);
    }
}

/// What is there before a process performs its plan.
pub(crate) struct Basis<'a> {
    /// Which part of the plan it performs.
    pub part: Part,
    /// It waits for pages that the node puts in place.
    pub filled: bool,
    /// See [`mitosis_restore::Request::tree`].
    pub tree: Option<i32>,
    /// Pages that it has from its template.
    pub placed: Placed<'a>,
    /// Which of the parent's files are here.
    pub proven: &'a dyn ProvenFiles,
}

/// Pages that are in place already.
#[derive(Clone, Copy)]
pub(crate) enum Placed<'a> {
    /// These, ascending.
    Pages(&'a [u64]),
    /// All that are not of shared memory: the process is a copy of the shadow.
    All,
}

impl Recipe {
    /// The name by which the pager knows what its children lack; tells it, the first time.
    ///
    /// # Errors
    /// The pager is gone.
    pub fn shape(&self, node: &Node, pager: &Arc<Pager>) -> Result<u64, NodeError> {
        let mut shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shape.as_ref().filter(|known| Arc::ptr_eq(&known.pager, pager)) {
            return Ok(known.name);
        }
        let Paging { areas, index, owners, .. } = &self.paging;
        let name = node.next_child_id();
        pager.client.add_shape(name, areas.clone(), index.clone(), owners.clone())?;
        *shape = Some(Shape { pager: Arc::clone(pager), name });
        Ok(name)
    }

    /// Works it out.
    ///
    /// # Errors
    /// The machines differ, or something cannot be had here.
    pub fn new(
        node: &Node,
        request: &ForkRequest,
        descriptor: Arc<Descriptor>,
        basis: &Basis<'_>,
        (time, space): (Time, Option<Arc<Space>>),
    ) -> Result<Recipe, NodeError> {
        let Basis { part, filled, tree, placed, proven } = *basis;
        if part != Part::Whole && !descriptor.rare.tree.is_alone() {
            let cause = "the processes of a tree are made from nothing each time";
            return Err(NodeError::step(Phase::Plan, "template", cause));
        }
        if tree.is_some() && request.new_pid {
            let cause = "the processes of a tree know each other by their pids";
            return Err(NodeError::step(Phase::Plan, "--new-pid", cause));
        }
        let vdso = node.vdsos.of(&node.nodes, &descriptor, &node.facts)?;
        let wanted = mitosis_restore::Request {
            // Pid 1 of a child's namespace is its guard.
            new_pid: request.new_pid || descriptor.process.pid == 1,
            hostname: request.hostname.clone(),
            own_net: request.net == Net::Own,
            filled,
            time,
            no_hooks: request.hooks == mitosis_proto::Hooks::None,
            part,
            tree,
            placed: match placed {
                Placed::Pages(pages) => pages.to_vec(),
                Placed::All => Vec::new(),
            },
            all_placed: matches!(placed, Placed::All),
            vdso,
        };
        let plan = mitosis_restore::plan(&descriptor, &node.facts, &wanted, proven)?;
        let paging = paging::paging(node, request.transport, &descriptor, &plan)?;
        Ok(Recipe { descriptor, plan, paging, space, shape: Mutex::default() })
    }
}

/// What [`fetch`] got.
pub(crate) struct Got {
    pub descriptor: Descriptor,
    pub reading: Reading,
    pub rest: Option<Rest>,
    /// How the descriptor came, for people; nothing if that is not worth a word.
    pub came: String,
}

/// One round trip: capability check, descriptor, what the clocks show meanwhile, and behind it what
/// this node lacks of the working set.
pub(crate) fn fetch(
    node: &Node,
    reference: &Reference,
    want: Want,
    transport: Transport,
) -> Result<Got, NodeError> {
    let limits = Limits::default();
    let asked = Clocks::now();
    if reference.address == node.address {
        let refused = |_| mitosis_transport::ForkError::Refused { address: node.address.clone() };
        let seed = node.seeds.forkable(reference.seed, &reference.secret).map_err(refused)?;
        let reading = Reading { asked, owner: asked, answered: asked };
        let descriptor = decode(&seed.descriptor, &limits)?;
        let rest = (want.want > 0).then_some(Rest::Local(seed, want));
        return Ok(Got { descriptor, reading, rest, came: String::new() });
    }
    let Reference { address, seed, secret } = reference;
    let by = crate::rdma::descriptor(node, transport, address);
    let fetched = node.nodes.fork(address, (*seed, secret), want, by.as_ref(), FETCH_TIMEOUT)?;
    let answered = Clocks::now();
    let owner = Clocks { monotonic: fetched.clocks.monotonic, boottime: fetched.clocks.boottime };
    let descriptor = decode(&fetched.descriptor, &limits)?;
    let reading = Reading { asked, owner, answered };
    let came = crate::rdma::came(fetched.descriptor.len(), &fetched.by);
    Ok(Got { descriptor, reading, rest: fetched.incoming.map(Box::new).map(Rest::Remote), came })
}

/// Whether pages may come in bulk from the seed's node. Not where they are to be read one-sidedly.
pub(crate) fn in_bulk(node: &Node, reference: &Reference, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => reference.address != node.address,
        Transport::Auto | Transport::Local => node.seeds.rdma().is_err(),
        Transport::Rdma => false,
    }
}

/// Descriptors that have to do with memory, and nothing with what else a child is.
///
/// # Errors
/// A file that is not the parent's any more, or no descriptor; `Ok(None)`: it is of another kind.
pub(crate) fn provide_memory(
    node: &Node,
    descriptor: &Descriptor,
    wanted: &Provided,
    filled: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, NodeError> {
    let failed = |e| NodeError::step(Phase::Build, format!("{wanted:?}"), e);
    Ok(Some(match wanted {
        Provided::MappedFile(path) => mapped_file(node, descriptor, path)?,
        Provided::Filled => match filled {
            Some(filled) => filled.try_clone().map_err(failed)?,
            None => return Ok(None),
        },
        Provided::Executable(path) => {
            File::open(path).map_err(|e| NodeError::step(Phase::Build, path.as_str(), e))?.into()
        }
        Provided::Stdio(_)
        | Provided::Listener { .. }
        | Provided::Member(_)
        | Provided::Terminal(_)
        | Provided::TimeNamespace
        | Provided::UserNamespace => return Ok(None),
    }))
}

/// Opens a file that was proven to be the parent's, and proves it again: the path may lead to
/// another one by now.
fn mapped_file(node: &Node, descriptor: &Descriptor, path: &str) -> Result<OwnedFd, NodeError> {
    let failed = |cause: String| NodeError::step(Phase::Build, path, cause);
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut wanted = descriptor.files.iter().filter(|file| file.path == path);
    if !wanted.any(|wanted| node.hashes.proven_open(&file, wanted)) {
        return Err(failed("changed while the child was being made".into()));
    }
    Ok(file.into())
}

/// A pair of connected sockets that carry messages.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), NodeError> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| NodeError::step(Phase::Sandbox, "socketpair", e))
}
