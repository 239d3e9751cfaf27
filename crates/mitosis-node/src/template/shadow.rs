//! Shadows whose children are copies of themselves, on the seed's own node. Such a child has all the
//! memory from the start; only what is shared is made anew in each.

use super::Copied;
use super::one::{Files, Process, Template};
use crate::error::NodeError;
use crate::node::Node;
use crate::paging;
use crate::recipe::{Got, fetch};
use mitosis_descriptor::{Backing, Descriptor, Phase, Reference, SeedId, Vpn};
use mitosis_proto::{ForkRequest, Transport, Via};
use mitosis_restore::Time;
use mitosis_transport::Want;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Seeds of so many pages have children by their shadow where nothing else is asked for. A copy takes
/// longer with each MiB of pages of 4 KiB (bench/results/vias.json), and nothing later; one of a template
/// takes as long whatever the size, but its first pages are fetched one by one.
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

/// What came of asking a shadow, once that is known.
type Asked = Arc<OnceLock<Result<Arc<Template>, String>>>;

/// Those that were asked, by seed.
#[derive(Default)]
pub(super) struct Shadows {
    table: Mutex<HashMap<SeedId, Asked>>,
}

impl Shadows {
    fn table(&self) -> MutexGuard<'_, HashMap<SeedId, Asked>> {
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
        let asked = Arc::clone(self.table().entry(reference.seed).or_default());
        // Whoever comes meanwhile for the same seed waits for this, and nobody else does.
        let made = || make(node, reference).map(Arc::new).map_err(|e| e.to_string());
        let known = asked.get_or_init(made).clone();
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
            && self
                .asked(reference.seed)
                .is_some_and(|asked| asked.get().is_some_and(Result::is_ok))
    }

    fn asked(&self, seed: SeedId) -> Option<Asked> {
        self.table().get(&seed).cloned()
    }

    /// Its seed has ended.
    pub fn drop_seed(&self, seed: SeedId) {
        let gone = self.table().remove(&seed);
        drop(gone);
    }
}

fn make(node: &Node, reference: &Reference) -> Result<Template, NodeError> {
    let got = fetch(node, reference, Want::default(), Transport::Local)?;
    let Got { descriptor, reading, .. } = got;
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
        made: Instant::now(),
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
