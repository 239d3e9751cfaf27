//! Starting all processes of a tree: one guard, one plan for each, and none goes on before all can.

use crate::error::NodeError;
use crate::fill::{Arrival, fill};
use crate::fork::{Batch, Held};
use crate::node::Node;
use crate::recipe::{Basis, Recipe, pair};
use crate::terminals::{self, Terminals};
use crate::time::Space;
use mitosis_descriptor::{Descriptor, Limits, spare_pids};
use mitosis_pager::Asked;
use mitosis_proto::{ForkRequest, ForkedChild};
use mitosis_restore::Provided;
use mitosis_restore::has_names;
use mitosis_restore::tree::{Maker, Mounts, Process, ids, spare_pid, start_tree, table};
use mitosis_restore::{Building, StartFds, Steward, Time};
use mitosis_sandbox::Network;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Questions to the pager that wait for an answer at the same time: each has a connection, and the
/// pager serves no more than so many.
const ASKED_MAX: usize = 16;

/// Waits for the answers.
fn answers(asked: &mut Vec<Result<Asked<'_>, NodeError>>) -> Result<(), NodeError> {
    asked.drain(..).try_for_each(|one| {
        one?.done()?;
        Ok(())
    })
}

/// The processes below the root.
pub(crate) struct Members {
    images: Vec<Descriptor>,
    /// For each process, the root first, a pid that nothing of the tree has.
    spares: Vec<i32>,
}

impl Members {
    /// Those of a root; none of a process alone.
    ///
    /// # Errors
    /// [`mitosis_descriptor::DescriptorError`].
    pub fn of(root: &Descriptor) -> Result<Members, NodeError> {
        let tree = &root.rare.tree;
        if tree.is_alone() {
            return Ok(Members { images: Vec::new(), spares: Vec::new() });
        }
        let images = tree.images(&Limits::default())?;
        let taken = ids(root, &images.iter().collect::<Vec<_>>());
        let free = spare_pids(|pid| taken.contains(&pid));
        let spares = free.take(1 + images.len()).collect();
        Ok(Members { images, spares })
    }

    /// A pid for process `number` to use for a moment; `None` if it is alone.
    pub fn spare(&self, number: usize) -> Option<i32> {
        self.spares.get(number).copied()
    }

    /// How they are made. Their clocks are the root's.
    ///
    /// # Errors
    /// As [`Recipe::new`].
    pub fn recipes(
        self,
        node: &Node,
        request: &ForkRequest,
        basis: &Basis<'_>,
        clocks: &(Time, Option<Arc<Space>>),
    ) -> Result<Vec<Arc<Recipe>>, NodeError> {
        let spares = self.spares.into_iter().skip(1);
        let recipe = |(image, spare): (Descriptor, i32)| {
            let basis = Basis { filled: false, tree: Some(spare), ..*basis };
            Recipe::new(node, request, Arc::new(image), &basis, clocks.clone()).map(Arc::new)
        };
        self.images.into_iter().zip(spares).map(recipe).collect()
    }
}

/// Sockets between processes of a tree, by which they hand open files to one another.
#[derive(Default)]
struct Between {
    /// The other ends of those of which one has been given out: whose they are, and whom they reach.
    others: HashMap<(u32, u32), OwnedFd>,
}

impl Between {
    /// The end of process `own` of the socket to process `other`.
    fn take(&mut self, own: u32, other: u32) -> Option<OwnedFd> {
        if let Some(end) = self.others.remove(&(own, other)) {
            return Some(end);
        }
        let (ours, theirs) = pair().ok()?;
        self.others.insert((other, own), theirs);
        Some(ours)
    }
}

impl Batch<'_> {
    /// Starts a tree whose root is child `id`.
    pub(crate) fn build_tree(
        &self,
        id: u64,
        network: Network,
    ) -> Result<(u64, ForkedChild), NodeError> {
        let recipes: Vec<&Arc<Recipe>> =
            std::iter::once(&self.recipe).chain(&self.members).collect();
        let count = recipes.len() as u32;
        let ids: Vec<u64> =
            (0..count).map(|n| if n == 0 { id } else { self.node.next_child_id() }).collect();
        let mut held = Held(Some(self.guard(network)?));
        let steward = self.steward()?;
        if let (Some(steward), Some(group)) = (&steward, &held.guard()?.group) {
            // Where the guard is: the tree is born there.
            group.enter(steward.pid)?;
        }
        let (filled, word) = pair()?;
        let log = self.log(id)?;
        let mut between = Between::default();
        let terminals = Terminals::of(&recipes)?;
        let (mut processes, mut arrivals, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for (number, recipe) in (0u32..).zip(&recipes) {
            let (uffd_rx, uffd_tx) = pair()?;
            let of_tree = |wanted: &Provided| match wanted {
                Provided::Member(other) => between.take(number, *other),
                Provided::Terminal(index) => terminals.as_ref()?.master(*index),
                _ => None,
            };
            let streams = (log.as_ref(), Some(&filled));
            let (provided, share) = self.provide(recipe, streams, held.guard()?, of_tree)?;
            let fds = StartFds { pager: uffd_tx, provided, cgroup: None };
            processes.push(Process { plan: &recipe.plan, fds });
            arrivals.push(uffd_rx);
            shares.push(share);
        }
        drop((filled, between));
        let guard = held.guard()?;
        let mut asked: Vec<Result<Asked<'_>, NodeError>> = Vec::new();
        let (mut placed, mut answered) = (Ok(()), Ok(()));
        let page = |building: &Building<'_>| {
            let of = |number: usize| Some((id, number as u32, count));
            let (set, plan) = (&self.working_set, &self.recipe.plan);
            let ends = (Arrival::Pagers(&arrivals[0]), &word);
            placed = fill(set, plan, ends, building, |pages, bytes| {
                let root = (id, of(0));
                asked.push(self.page(&self.recipe, root, guard, &arrivals[0], (pages, bytes)));
            });
            for number in 1..recipes.len() {
                let this = (ids[number], of(number));
                let none = (Vec::new(), 0);
                asked.push(self.page(recipes[number], this, guard, &arrivals[number], none));
                if asked.len() >= ASKED_MAX && answered.is_ok() {
                    answered = answers(&mut asked);
                }
            }
            placed.is_ok() && answered.is_ok()
        };
        let members: Vec<&Descriptor> =
            self.members.iter().map(|recipe| &*recipe.descriptor).collect();
        let named = recipes.iter().any(|recipe| has_names(&recipe.descriptor));
        let memory = if named { Some(terminals::memory()?) } else { None };
        let mounts = Mounts {
            terminals: terminals.as_ref().map(Terminals::mount),
            memory: memory.as_ref().map(AsFd::as_fd),
        };
        let root = &self.recipe.descriptor;
        let started = table(root, &members).and_then(|table| {
            let maker = match &steward {
                None => Maker::Guard,
                Some(steward) => {
                    let (orders, guard, generation) =
                        (steward.control.as_fd(), guard.pidfd.as_fd(), guard.generation);
                    let steward = Steward { orders, guard, generation };
                    Maker::Steward(steward, spare_pid(root, &members, &table))
                }
            };
            start_tree(processes, &table, mounts, (guard.control.as_fd(), maker), page)
        });
        drop((terminals, memory));
        drop(arrivals);
        answered?;
        answers(&mut asked)?;
        placed?;
        let started = started.map_err(|error| self.not_started(id, error))?;
        // The root last: it takes the guard along.
        let mut tree = Vec::new();
        let mut rest: Vec<_> = ids.iter().zip(&recipes).zip(&started).zip(shares).collect();
        let root = rest.remove(0);
        for (((own, recipe), started), shares) in rest {
            tree.push(started.pid);
            self.enter(recipe, (*own, Some(id)), &mut held, started, shares)?;
        }
        let (((_, recipe), started), shares) = root;
        let child = self.enter(recipe, (id, None), &mut held, started, shares)?;
        Ok((id, ForkedChild { tree, ..child }))
    }
}
