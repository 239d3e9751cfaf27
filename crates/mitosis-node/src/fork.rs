//! Starting children of a seed.

use crate::admission;
use crate::children::{Guarded, Start};
use crate::error::NodeError;
use crate::listeners::Share;
use crate::node::Node;
use crate::pager::Pager;
use crate::prepare::start_ticks;
use crate::recipe::{self, Basis, Got, Placed, Recipe, fetch, in_bulk, pair};
use crate::template::{Copied, Template};
use crate::tree;
use crate::working_set::WorkingSet;
use crate::{millis, monotonic_ns};
use mitosis_descriptor::{PageIndex, Phase, Reference};
use mitosis_pager::{AddChild, Asked, ChildFds, ChildId};
use mitosis_proto::{ForkRequest, Forked, ForkedChild, Net, PhaseTime, Transport, Via};
use mitosis_restore::{Maker, Part, Provided, StartFds, Started};
use mitosis_sandbox::{Guard, Network};
use mitosis_transport::Want;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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
            rest.map_or(Ok(()), |rest| working_set.follows(rest))?;
            let fetched = arrived.elapsed();
            let clocks = node.times.of(&reading, &descriptor.clocks)?;
            let (descriptor, parts) = (Arc::new(descriptor), working_set.sizes());
            let members = tree::Members::of(&descriptor)?;
            let tree = members.spare(0);
            let (part, placed, proven) = (Part::Whole, Placed::Pages(&[]), &node.hashes);
            let basis = Basis { part, working_set: &parts, tree, placed, proven };
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

impl Batch<'_> {
    fn start_one(&self) -> Result<(u64, ForkedChild), NodeError> {
        let id = self.node.next_child_id();
        let network = match self.request.net {
            Net::Node => Network::Node,
            Net::Own => Network::Own,
        };
        let started = match self.recipe.descriptor.rare.tree.is_alone() {
            true => self.build(id, network),
            false => self.build_tree(id, network),
        };
        if started.is_err() {
            let _ = std::fs::remove_file(self.node.store.log_path(id));
        }
        started
    }

    fn build(&self, id: u64, network: Network) -> Result<(u64, ForkedChild), NodeError> {
        let plan = &self.recipe.plan;
        let mut held = Held(Some(self.pager.pool.take(network)?));
        let (uffd_rx, uffd_tx) = pair()?;
        let (table_rx, table_tx) = pair()?;
        let log = self.log(id)?;
        let recipe = &self.recipe;
        let (provided, shares) = self.provide(recipe, log.as_ref(), &table_rx, |_| None)?;
        drop(table_rx);
        let guard = held.guard()?;
        // A guard's child is born where the guard is.
        let group = guard.group.as_ref().filter(|_| self.template.is_some());
        let cgroup = group.map(mitosis_sandbox::Group::unified).transpose()?.flatten();
        let fds = StartFds { pager: uffd_tx, provided, cgroup };
        // The pager gets its books while the child is built; a touch of the child's, in one of the
        // stub's last system calls, waits for it.
        let mut added = None;
        let mut placed = Ok(());
        let page = || {
            let mut announce = |pages, bytes| {
                added = Some(self.page(recipe, (id, None), guard, &uffd_rx, (pages, bytes)));
            };
            match &self.template {
                Some(_) => announce(Vec::new(), 0),
                None => placed = recipe::place(&self.working_set, plan, &table_tx, announce),
            }
            placed.is_ok()
        };
        let maker = match &self.template {
            Some(template) => Maker::Template {
                orders: template.orders.as_fd(),
                guard: guard.pidfd.as_fd(),
                generation: guard.generation,
            },
            None => Maker::Guard,
        };
        let started = mitosis_restore::start(plan, guard.control.as_fd(), maker, fds, page);
        drop(uffd_rx);
        if let Some(added) = added {
            added?.done()?;
        }
        placed?;
        let started = started.map_err(|error| self.not_started(id, error))?;
        group.map_or(Ok(()), |group| group.enter_separate(started.pid))?;
        let child = self.enter(recipe, (id, None), &mut held, &started, shares)?;
        Ok((id, child))
    }

    /// Writes a process that runs down, and takes it into the table. Its guard goes along with it, or
    /// with the `main` one of its tree.
    pub(crate) fn enter(
        &self,
        recipe: &Recipe,
        (id, main): (u64, Option<u64>),
        held: &mut Held,
        started: &Started,
        shares: Vec<Share>,
    ) -> Result<ForkedChild, NodeError> {
        let guard = held.guard()?;
        // Both fail only for a child that has ended already, which the pager will tell.
        let pid = Pid::from_raw(started.pid);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let (start_us, phases) = self.times(started);
        let start = Start {
            id,
            pid: started.pid,
            start_ticks: start_ticks(started.pid).unwrap_or(0),
            seed: self.seed.clone(),
            via: self.via().name().to_owned(),
            transport: recipe.paging.transport.to_owned(),
            transport_why: self.why(recipe),
            netns: guard.netns_path(),
            generation: mitosis_sandbox::generation_text(guard.generation),
            start_us,
            phases,
            started_unix_ms: millis(SystemTime::now()),
            log: self.node.store.log_path(main.unwrap_or(id)),
            // What OpenSSL or CPython may still call stays in its children.
            resident: recipe.plan.hooks.is_empty().then_some(started.resident),
            groups: guard.group.as_ref().map_or_else(Vec::new, mitosis_sandbox::Group::paths),
            main,
            functions: recipe.descriptor.hooks.functions.clone(),
        };
        self.node.note("write a child down", self.node.store.put_child(&start));
        let child = forked(&start);
        // The guard's control socket is the pager's alone from here on: its end is a message.
        let guard = if main.is_none() { held.0.take() } else { None };
        let guarded = guard.map(|guard| Guarded { pidfd: guard.pidfd });
        self.node.children.add(start, pidfd, guarded, shares);
        if let Some(end) = self.node.children.early(id) {
            self.node.child_ended(id, end);
        }
        Ok(child)
    }

    /// The log of a child, unless it writes to the caller's.
    pub(crate) fn log(&self, id: u64) -> Result<Option<File>, NodeError> {
        match self.stdio {
            Stdio::Log => Ok(Some(self.node.store.create_log(id)?)),
            Stdio::Caller(_) => Ok(None),
        }
    }

    /// Why its pages come as they do.
    fn why(&self, recipe: &Recipe) -> String {
        match &self.not_copied {
            Some(why) => format!("read from the shadow, which cannot be copied: {why}"),
            None => recipe.paging.why.clone(),
        }
    }

    fn via(&self) -> Via {
        match &self.template {
            Some(template) => template.via,
            None if self.request.via == Via::Shadow => Via::Shadow,
            None => Via::Direct,
        }
    }

    /// Hands a process to the pager, with the pages that it puts in place itself. One of a tree goes
    /// with the root's id, its number, and how many there are.
    pub(crate) fn page(
        &self,
        recipe: &Recipe,
        (id, of): (u64, Option<(u64, u32, u32)>),
        guard: &Guard,
        uffd_rx: &OwnedFd,
        (placed, placed_bytes): (Vec<u64>, u64),
    ) -> Result<Asked<'_>, NodeError> {
        let paging = &recipe.paging;
        let template = self.template.as_ref();
        let shape = template.map(|_| recipe.shape(self.node, &self.pager)).transpose()?;
        let told = shape.is_some();
        let add = AddChild {
            child: ChildId(id),
            seed: self.seed.clone(),
            areas: if told { Vec::new() } else { paging.areas.clone() },
            index: if told { PageIndex::default() } else { paging.index.clone() },
            owners: if told { Vec::new() } else { paging.owners.clone() },
            placed,
            placed_bytes,
            held: template.map_or(0, |template| template.held),
            shape,
            main: of.filter(|(root, ..)| *root != id).map(|(root, ..)| ChildId(root)),
            member: of.map_or((0, 1), |(_, number, count)| (number, count)),
            eager: self.request.paging == mitosis_proto::Paging::Eager,
            independent: self.request.independent,
        };
        let fds = ChildFds {
            uffd_rx: uffd_rx.as_fd(),
            guard: guard.control.as_fd(),
            guard_pidfd: guard.pidfd.as_fd(),
            local: paging.local.iter().map(|shadow| shadow.mem.as_fd()).collect(),
        };
        Ok(self.pager.client.add_child(add, &fds)?)
    }

    /// Ends a child that was never complete. Its guard's words went to whoever read them first, us
    /// or the pager.
    pub(crate) fn not_started(&self, id: u64, error: mitosis_restore::RestoreError) -> NodeError {
        let said = match &error {
            mitosis_restore::RestoreError::Silent(_) => self.guard_said(id),
            _ => None,
        };
        // Fails for one that the pager saw end.
        let _ = self.pager.client.end(ChildId(id), "it could not be built");
        match said {
            Some(reason) => NodeError::step(Phase::Sandbox, "child", reason),
            None => error.into(),
        }
    }

    /// Waits until the hooks of a child are done; gives the microseconds that it took.
    fn await_hooks(&self, id: u64, child: &ForkedChild) -> Result<u64, NodeError> {
        let mut us = 0;
        let pids = std::iter::once(&child.pid).chain(&child.tree);
        let recipes = std::iter::once(&self.recipe).chain(&self.members);
        for (recipe, pid) in recipes.zip(pids) {
            us += match mitosis_restore::await_hooks(&recipe.plan, *pid)? {
                Some(us) => us,
                None => self.hooks_crashed(id).map(|()| 0)?,
            };
        }
        Ok(us)
    }

    /// Whether a child that ended before it was seen to go on crashed in its hooks. One that went on
    /// and ended by itself at once is none of our business.
    fn hooks_crashed(&self, id: u64) -> Result<(), NodeError> {
        for _ in 0..20 {
            let stats = self.pager.client.stats()?;
            let child = stats.into_iter().find(|one| one.child == ChildId(id));
            if let Some(status) = child.and_then(|child| child.exit) {
                return match status & 0x7f {
                    0 => Ok(()),
                    signal => {
                        let cause = format!("signal {signal} ended it there, or right afterwards");
                        Err(NodeError::step(Phase::Build, "hook of the child", cause))
                    }
                };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// What the pager heard of a guard that could not make the child.
    fn guard_said(&self, id: u64) -> Option<String> {
        for _ in 0..20 {
            let stats = self.pager.client.stats().ok()?;
            let child = stats.into_iter().find(|one| one.child == ChildId(id))?;
            if let Some(reason) = child.reason {
                return Some(reason).filter(|reason| reason.contains("guard could"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// From the request to the first instruction; the phases add up to it.
    fn times(&self, started: &mitosis_restore::Started) -> (u64, Vec<PhaseTime>) {
        let since = monotonic_ns().saturating_sub(started.first_instruction_ns) / 1000;
        let start_us = (self.arrived.elapsed().as_micros() as u64).saturating_sub(since);
        let build = started.phases.iter().find(|(phase, _)| *phase == Phase::Build);
        let build = build.map_or(0, |(_, us)| *us);
        let before = self.fetch_us + self.plan_us + build;
        let parts = [
            (Phase::Fetch, self.fetch_us),
            (Phase::Plan, self.plan_us),
            (Phase::Sandbox, start_us.saturating_sub(before)),
            (Phase::Build, build),
        ];
        (start_us, parts.into_iter().map(|(phase, us)| PhaseTime { phase, us }).collect())
    }

    /// The descriptors that the plan asks for, in its order, and the shares in sockets among them.
    /// What is between the processes of its tree is `of_tree`'s to give.
    pub(crate) fn provide(
        &self,
        recipe: &Recipe,
        log: Option<&File>,
        table: &OwnedFd,
        mut of_tree: impl FnMut(&Provided) -> Option<OwnedFd>,
    ) -> Result<(Vec<OwnedFd>, Vec<Share>), NodeError> {
        let mut shares = Vec::new();
        let mut fds = Vec::with_capacity(recipe.plan.provided.len());
        for wanted in &recipe.plan.provided {
            let object = || format!("{wanted:?}");
            let failed = |e| NodeError::step(Phase::Build, object(), e);
            fds.push(match wanted {
                Provided::Stdio(stream) => self.stdio(*stream, log).map_err(failed)?,
                Provided::Member(_) | Provided::Terminal(_) => of_tree(wanted)
                    .ok_or_else(|| NodeError::step(Phase::Build, object(), "not in its tree"))?,
                Provided::Listener { key, fd, spec } => {
                    let listeners = &self.node.listeners;
                    let siblings = self.node.children.pids_of_seed(&self.seed);
                    let share = listeners.share(&self.seed, *key, *fd, spec, &siblings)?;
                    let copy = share.as_fd().try_clone_to_owned().map_err(failed)?;
                    shares.push(share);
                    copy
                }
                Provided::TimeNamespace => {
                    let gone = || NodeError::step(Phase::Sandbox, "time namespace", "gone");
                    let space = recipe.space.as_ref().ok_or_else(gone)?;
                    space.namespace.as_fd().try_clone_to_owned().map_err(failed)?
                }
                other => {
                    let (descriptor, set) = (&recipe.descriptor, &self.working_set);
                    recipe::provide_memory(self.node, descriptor, set, other, table)?
                        .ok_or_else(|| NodeError::step(Phase::Build, object(), "unknown"))?
                }
            });
        }
        Ok((fds, shares))
    }

    fn stdio(&self, stream: u32, log: Option<&File>) -> std::io::Result<OwnedFd> {
        match (self.stdio, log) {
            (Stdio::Caller(fds), _) => fds[stream.min(2) as usize].try_clone(),
            (Stdio::Log, Some(log)) if stream > 0 => Ok(log.try_clone()?.into()),
            (Stdio::Log, _) => Ok(File::open("/dev/null")?.into()),
        }
    }
}

fn forked(start: &Start) -> ForkedChild {
    ForkedChild {
        pid: start.pid,
        seed: start.seed.clone(),
        tree: Vec::new(),
        start_us: start.start_us,
        hooks_us: 0,
        via: start.via.clone(),
        transport: start.transport.clone(),
        transport_why: start.transport_why.clone(),
        netns: start.netns.clone(),
        generation: start.generation.clone(),
        phases: start.phases.clone(),
    }
}
