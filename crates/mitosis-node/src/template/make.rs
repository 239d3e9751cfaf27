//! How a template is made, and when: in the background, after the children that it is for.

use super::one::{Files, Process, Template};
use super::{Jobs, key};
use crate::error::NodeError;
use crate::fill::{Arrival, fill};
use crate::node::Node;
use crate::recipe::{self, Basis, Got, Placed, Recipe, fetch, pair};
use crate::working_set::WorkingSet;
use mitosis_descriptor::{PAGE_SIZE, Phase, Reference};
use mitosis_proto::{ForkRequest, Transport, Via};
use mitosis_restore::{Building, Part, StartFds, Time};
use mitosis_sandbox::{Blank, GuardImage};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long after the first child a template is made: the child comes first.
const SETTLE: Duration = Duration::from_millis(100);
/// It comes first as long as children of the seed fetch so many pages in this time, but for no longer than
/// that.
const BUSY_PAGES: u64 = 64;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(2);

/// Makes one, with what is known of the working set in it.
///
/// # Errors
/// Memory is short, the seed's node refuses or cannot be reached, or the process could not be made.
pub(super) fn make(
    image: &GuardImage,
    node: &Node,
    request: &ForkRequest,
    reference: &Reference,
) -> Result<Template, NodeError> {
    if node.admission.is_short() {
        return Err(NodeError::step(Phase::Sandbox, "template", "memory is short"));
    }
    let working_set = WorkingSet::kept(&node.nodes, &node.working_sets, key(reference));
    let Got { descriptor, reading, rest, .. } =
        fetch(node, reference, working_set.want(), Transport::Tcp)?;
    rest.into_iter().for_each(|rest| working_set.follows(rest));
    let clocks = node.times.of(&reading, &descriptor.clocks)?;
    let descriptor = Arc::new(descriptor);
    let (of, time) = (Arc::clone(&descriptor), (Time::Same, None));
    let files = Files::now(node, &descriptor);
    let (part, placed) = (Part::Memory, Placed::Pages(&[]));
    let filled = working_set.is_expected();
    let basis = Basis { part, filled, tree: None, placed, proven: &files };
    let recipe = Recipe::new(node, request, of, &basis, time)?;
    let process = Blank::start(image)?;
    let (filled, word) = pair()?;
    let (arrival, pager) = pair()?;
    let mut provided = Vec::new();
    for wanted in &recipe.plan.provided {
        let one = recipe::provide_memory(node, &descriptor, wanted, Some(&filled))?;
        let unknown = || NodeError::step(Phase::Build, format!("{wanted:?}"), "in a template");
        provided.push(one.ok_or_else(unknown)?);
    }
    drop(filled);
    let (mut placed, mut pages) = (Ok(()), Vec::new());
    let meanwhile = |building: &Building<'_>| {
        let ends = (Arrival::Own(&arrival), &word);
        placed = fill(&working_set, &recipe.plan, ends, building, |all, _| pages = all);
        placed.is_ok()
    };
    let control = process.control.as_fd();
    let fds = StartFds { pager, provided, cgroup: None };
    let orders = mitosis_restore::start_template(&recipe.plan, control, fds, meanwhile);
    placed?;
    pages.sort_unstable();
    let template = Template {
        orders: orders?,
        known: working_set.pages(),
        made: Instant::now(),
        held: pages.len() as u64,
        via: Via::Template,
        pages: Arc::from(pages),
        descriptor,
        files,
        clocks,
        recipes: Mutex::default(),
        process: Process::Made(process),
    };
    // What the first of its children would have to wait for, who finds out if it cannot be.
    if let Some(pager) = node.pager.now() {
        let recipe = template.recipe(node, request);
        let told = recipe.and_then(|recipe| recipe.shape(node, &pager));
        told.inspect_err(|e| node.log.debug(format_args!("template: {e}"))).ok();
    }
    Ok(template)
}

/// Waits while children of a seed fetch much: a template would fetch the same at the same time.
fn settle(node: &Node, reference: &Reference) {
    let seed = reference.seed.to_string();
    let fetched = || {
        let stats = node.pager.now()?.client.stats_of_running().ok()?;
        let of_seed = stats.iter().filter(|child| child.seed == seed);
        Some(of_seed.map(|child| child.bytes_fetched).sum::<u64>() / PAGE_SIZE)
    };
    let begun = Instant::now();
    let mut before = fetched();
    while begun.elapsed() < BUSY_MAX && !node.stopping() {
        std::thread::sleep(BUSY_PAUSE);
        let now = fetched();
        match (before, now) {
            (Some(before), Some(now)) if now >= before + BUSY_PAGES => {}
            _ => return,
        }
        before = now;
    }
}

/// Makes templates until the daemon ends.
pub(crate) fn work(node: &Node, jobs: &Jobs) {
    while !node.stopping() {
        let Ok((request, reference)) = jobs.recv_timeout(Duration::from_millis(250)) else {
            continue;
        };
        if node.templates.is_new(&reference) {
            std::thread::sleep(SETTLE);
            settle(node, &reference);
        }
        node.templates.renew(node, &request, &reference);
    }
}
