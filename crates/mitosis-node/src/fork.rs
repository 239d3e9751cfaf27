//! Starting children of a seed: what all children of one request have in common, and that they start all
//! or not at all.

mod one;
mod outcome;
mod supply;

use crate::admission;
use crate::error::NodeError;
use crate::node::Node;
use crate::pager::Pager;
use crate::recipe::{Basis, Got, Placed, Recipe, fetch, in_bulk};
use crate::template::{Copied, Template};
use crate::tree;
use crate::working_set::WorkingSet;
use mitosis_descriptor::{Phase, Reference};
use mitosis_proto::{ForkRequest, Forked, ForkedChild, Transport, Via};
use mitosis_restore::Part;
use mitosis_sandbox::Guard;
use mitosis_transport::Want;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// The longest host name the kernel takes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Where standard input, output and error of the children go.
pub(crate) enum Stdio {
    /// To the caller's.
    Caller([OwnedFd; 3]),
    /// To a log for each child; input is empty.
    Log,
}

/// What all children of one request have in common.
pub(crate) struct Batch<'a> {
    pub node: &'a Arc<Node>,
    pub pager: Arc<Pager>,
    request: &'a ForkRequest,
    stdio: &'a Stdio,
    seed: String,
    pub recipe: Arc<Recipe>,
    /// Of a tree: how the other processes are made.
    pub members: Vec<Arc<Recipe>>,
    pub working_set: WorkingSet<'a>,
    /// What they are copied from, if there is a template.
    template: Option<Arc<Template>>,
    /// Why they are not copies of the shadow, as they were to be: they read it.
    not_copied: Option<String>,
    arrived: Instant,
    fetch_us: u64,
    plan_us: u64,
}

/// Starts the children of a request: all, or none. `arrived` is when it came.
pub(crate) fn fork(
    node: &Arc<Node>,
    request: &ForkRequest,
    stdio: &Stdio,
    arrived: Instant,
) -> Result<Forked, NodeError> {
    refuse(request)?;
    let reference: Reference =
        request.reference.parse().map_err(|e| NodeError::Usage(format!("{e}")))?;
    let admitted = node.admission.admit(node, request.count as usize)?;
    let attempt = || -> Result<(Forked, bool), NodeError> {
        let (template, not_copied) = match request.via {
            Via::Shadow => match node.templates.of_shadow(node, request, &reference)? {
                Ok(shadow) => (Some(shadow), None),
                Err(why) => (None, Some(why)),
            },
            _ => (node.templates.choose(node, request, &reference)?, None),
        };
        let batch =
            batch(node, request, stdio, &reference, (template.clone(), not_copied), arrived)?;
        let forked = fork_batch(&batch).map_err(|error| match template {
            // It may be ended by whoever runs out of memory: it is only a cache.
            Some((template, _)) if !template.alive() => NodeError::TemplateEnded,
            _ => error,
        })?;
        Ok((forked, batch.recipe.descriptor.rare.tree.is_alone()))
    };
    let done = match attempt() {
        Err(NodeError::TemplateEnded) => attempt(),
        done => done,
    };
    drop(admitted);
    let (forked, alone) = done?;
    if alone {
        node.templates.forked(node, request, &reference);
    }
    Ok(forked)
}

fn fork_batch(batch: &Batch<'_>) -> Result<Forked, NodeError> {
    let Batch { node, request, .. } = *batch;
    let mut started: Vec<(u64, ForkedChild)> = Vec::new();
    for nth in 0..request.count {
        // All of them have been admitted, but by now they may have used what there was.
        let admitted = if nth == 0 { Ok(()) } else { node.admission.room(1) };
        let admitted = admitted.map_err(admission::refused);
        match admitted.and_then(|()| batch.start_one()) {
            Ok(child) => started.push(child),
            Err(error) => return Err(give_up(node, &started, error)),
        }
    }
    // Only now: the children run them at the same time.
    for at in 0..started.len() {
        let (id, child) = &mut started[at];
        match batch.await_hooks(*id, child) {
            Ok(us) => child.hooks_us = us,
            Err(error) => {
                node.end_child(*id, &error.to_string());
                started.remove(at);
                return Err(give_up(node, &started, error));
            }
        }
    }
    Ok(Forked { children: started.into_iter().map(|(_, child)| child).collect() })
}

/// All children of a request, or none.
fn give_up(node: &Node, started: &[(u64, ForkedChild)], error: NodeError) -> NodeError {
    for (id, _) in started {
        node.end_child(*id, "another child of the same request could not be started");
    }
    error
}

fn refuse(request: &ForkRequest) -> Result<(), NodeError> {
    if !(1..=1024).contains(&request.count) {
        return Err(NodeError::Usage(format!("--count {}: want 1 to 1024", request.count)));
    }
    if request.via == Via::Shadow && matches!(request.transport, Transport::Tcp | Transport::Rdma) {
        let text = "--via shadow: its memory is of this node, want --transport auto or local";
        return Err(NodeError::Usage(text.into()));
    }
    let bad = |name: &String| {
        name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || name.chars().any(char::is_control)
    };
    if request.hostname.as_ref().is_some_and(bad) {
        return Err(NodeError::Usage("--hostname: want 1 to 64 bytes".into()));
    }
    Ok(())
}

fn batch<'a>(
    node: &'a Arc<Node>,
    request: &'a ForkRequest,
    stdio: &'a Stdio,
    reference: &Reference,
    (copied, not_copied): (Option<Copied>, Option<String>),
    arrived: Instant,
) -> Result<Batch<'a>, NodeError> {
    let pager = node.pager.get()?;
    let key = (reference.address.clone(), reference.seed);
    let none = |key| WorkingSet::none(&node.nodes, &node.working_sets, key);
    let (fetched, working_set, template, recipe, members) = match copied {
        Some((template, recipe)) => {
            (arrived.elapsed(), none(key), Some(template), recipe, Vec::new())
        }
        None => {
            let (working_set, want) = match in_bulk(node, reference, request.transport) {
                true => {
                    let here = reference.address == node.address;
                    let kept = WorkingSet::kept(&node.nodes, &node.working_sets, key);
                    // The pager fetches ahead what is another node's only.
                    let want = kept.want_first(here);
                    (kept, want)
                }
                false => (none(key), Want::default()),
            };
            let Got { descriptor, reading, rest, came } =
                fetch(node, reference, want, request.transport)?;
            rest.into_iter().for_each(|rest| working_set.follows(rest));
            let fetched = arrived.elapsed();
            let clocks = node.times.of(&reading, &descriptor.clocks)?;
            let descriptor = Arc::new(descriptor);
            let members = tree::Members::of(&descriptor)?;
            let tree = members.spare(0);
            let (part, placed, proven) = (Part::Whole, Placed::Pages(&[]), &node.hashes);
            let filled = working_set.is_expected();
            let basis = Basis { part, filled, tree, placed, proven };
            let members = members.recipes(node, request, &basis, &clocks)?;
            let mut recipe = Recipe::new(node, request, descriptor, &basis, clocks)?;
            recipe.paging.why.push_str(&came);
            (fetched, working_set, None, Arc::new(recipe), members)
        }
    };
    let plan_us = (arrived.elapsed() - fetched).as_micros() as u64;
    Ok(Batch {
        node,
        pager,
        request,
        stdio,
        seed: reference.seed.to_string(),
        recipe,
        members,
        working_set,
        template,
        not_copied,
        arrived,
        fetch_us: fetched.as_micros() as u64,
        plan_us,
    })
}

/// A guard that is ended with all that it guards unless the child was handed over.
pub(crate) struct Held(pub Option<Guard>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            guard.end();
        }
    }
}

impl Held {
    pub(crate) fn guard(&self) -> Result<&Guard, NodeError> {
        self.0.as_ref().ok_or_else(|| NodeError::step(Phase::Sandbox, "guard", "gone"))
    }
}
