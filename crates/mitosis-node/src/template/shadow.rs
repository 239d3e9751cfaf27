//! Shadows whose children are copies of themselves, on the seed's own node. Such a child has all the
//! memory from the start; only what is shared is made anew in each.

use super::{Copied, Files, Process, Template};
use crate::error::NodeError;
use crate::node::Node;
use crate::paging;
use crate::recipe::fetch;
use mitosis_descriptor::{Backing, Descriptor, Phase, Reference, SeedId, Vpn};
use mitosis_proto::{ForkRequest, Transport, Via};
use mitosis_restore::Time;
use mitosis_transport::Want;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Seeds of so many pages have children by their shadow where nothing else is asked for. A copy takes
/// 68 us for each MiB of pages of 4 KiB, and nothing later; one of a template takes as long whatever the
/// size, but its first pages are fetched one by one.
const PAGES_MAX: u64 = 4096;

/// Whether children of the seed had best be copies of its shadow, if they can.
pub(super) fn is_best(node: &Node, request: &ForkRequest, reference: &Reference) -> bool {
    let local = matches!(request.transport, Transport::Auto | Transport::Local);
    let small = || {
        let seed = node.seeds.find(reference.seed, &reference.secret);
        seed.is_ok_and(|seed| seed.pages_total <= PAGES_MAX)
    };
    local && reference.address == node.address && small()
}

/// Those that were asked, by seed, with what came of it.
#[derive(Default)]
pub(super) struct Shadows {
    table: Mutex<HashMap<SeedId, Result<Arc<Template>, String>>>,
}

impl Shadows {
    fn table(&self) -> MutexGuard<'_, HashMap<SeedId, Result<Arc<Template>, String>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shadow of a seed and how the children of a request are made of it, or why it cannot make
    /// any. It is asked each time whether the seed may be forked.
    ///
    /// # Errors
    /// The seed is another node's or may not be forked; such children cannot be had here.
    pub fn choose(
        &self,
        node: &Node,
        request: &ForkRequest,
        reference: &Reference,
    ) -> Result<Result<Copied, String>, NodeError> {
        paging::shadow(node, reference)?;
        let mut table = self.table();
        let known = match table.get(&reference.seed) {
            Some(known) => known.clone(),
            None => {
                let made = make(node, reference).map(Arc::new).map_err(|e| e.to_string());
                table.insert(reference.seed, made.clone());
                made
            }
        };
        drop(table);
        let shadow = match known {
            Ok(shadow) => shadow,
            Err(why) => return Ok(Err(why)),
        };
        let recipe = shadow.recipe(node, request)?;
        Ok(Ok((shadow, recipe)))
    }

    /// Whether children of a request that says nothing else are copies of the shadow.
    pub fn serves(&self, node: &Node, request: &ForkRequest, reference: &Reference) -> bool {
        is_best(node, request, reference)
            && self.table().get(&reference.seed).is_some_and(Result::is_ok)
    }

    /// Its seed has ended.
    pub fn drop_seed(&self, seed: SeedId) {
        let gone = self.table().remove(&seed);
        drop(gone);
    }
}

fn make(node: &Node, reference: &Reference) -> Result<Template, NodeError> {
    let (descriptor, reading, _) = fetch(node, reference, Want::default())?;
    let shadow = paging::shadow(node, reference)?;
    if !descriptor.rare.tree.is_alone() {
        return Err(NodeError::step(Phase::Sandbox, "shadow", "it is one of a tree's"));
    }
    let clocks = node.times.of(&reading, &descriptor.clocks)?;
    if clocks.0 != Time::Same {
        let cause = "its clocks are not those of this node";
        return Err(NodeError::step(Phase::Sandbox, "shadow", cause));
    }
    let region = mitosis_restore::region(&descriptor)?;
    let process = (shadow.pid, shadow.pidfd.as_fd());
    let orders = mitosis_capture::serve(process, &descriptor, region)?;
    Ok(Template {
        orders,
        held: held(&descriptor),
        via: Via::Shadow,
        pages: Arc::from([]),
        known: 0,
        descriptor: Arc::new(descriptor),
        files: Files { known: Vec::new() },
        clocks,
        recipes: Mutex::default(),
        process: Process::Shadow(shadow),
    })
}

/// Pages that are not of shared memory.
fn held(descriptor: &Descriptor) -> u64 {
    let shared = descriptor.vmas.iter().filter(|vma| matches!(vma.backing, Backing::Shared { .. }));
    let runs = shared.flat_map(|vma| {
        descriptor
            .pages
            .within(Vpn::of(vma.start), Vpn::of(vma.end))
            .map(|run| u64::from(run.count))
    });
    descriptor.pages.pages() - runs.sum::<u64>()
}
