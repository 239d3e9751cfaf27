//! One child of a request: from a guard of the pool to a process that runs and is written down.

use super::{Batch, Held, Stdio};
use crate::children::{Guarded, Start};
use crate::error::NodeError;
use crate::fill::{Arrival, fill};
use crate::listeners::Share;
use crate::prepare::start_ticks;
use crate::recipe::{Recipe, pair};
use crate::{millis, monotonic_ns};
use mitosis_descriptor::{IdRange, PageIndex, Phase, UserNamespace};
use mitosis_pager::{AddChild, Asked, ChildFds, ChildId};
use mitosis_proto::{ForkedChild, Net, PhaseTime, Via};
use mitosis_restore::{Building, Maker, StartFds, Started, Steward};
use mitosis_sandbox::{Blank, Guard, Network, Users};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

impl Batch<'_> {
    pub(super) fn start_one(&self) -> Result<(u64, ForkedChild), NodeError> {
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
        let mut held = Held(Some(self.guard(network)?));
        let steward = self.steward()?;
        let (uffd_rx, uffd_tx) = pair()?;
        let log = self.log(id)?;
        let recipe = &self.recipe;
        // A copy of a template has its pages, and waits for no word.
        let (filled, word) = match &self.template {
            Some(_) => (None, None),
            None => pair().map(|(filled, word)| (Some(filled), Some(word)))?,
        };
        let guard = held.guard()?;
        let streams = (log.as_ref(), filled.as_ref());
        let (provided, shares) = self.provide(recipe, streams, guard, |_| None)?;
        drop(filled);
        // A guard's child is born where the guard is.
        let elsewhere = self.template.is_some() || steward.is_some();
        let group = guard.group.as_ref().filter(|_| elsewhere);
        let cgroup = group.map(mitosis_sandbox::Group::unified).transpose()?.flatten();
        let fds = StartFds { pager: uffd_tx, provided, cgroup };
        // The pager gets its books while the child is built; a touch of the child's, in one of the
        // stub's last system calls, waits for it.
        let mut added = None;
        let mut placed = Ok(());
        let page = |building: &Building<'_>| {
            let mut announce = |pages, bytes| {
                added = Some(self.page(recipe, (id, None), guard, &uffd_rx, (pages, bytes)));
            };
            match &word {
                None => announce(Vec::new(), 0),
                Some(word) => {
                    let ends = (Arrival::Pagers(&uffd_rx), word);
                    placed = fill(&self.working_set, plan, ends, building, announce);
                }
            }
            placed.is_ok()
        };
        let (pidfd, generation) = (guard.pidfd.as_fd(), guard.generation);
        let maker = match (&self.template, &steward) {
            (Some(template), _) => {
                Maker::Template { orders: template.orders.as_fd(), guard: pidfd, generation }
            }
            (None, Some(steward)) => Maker::Steward(Steward {
                orders: steward.control.as_fd(),
                guard: pidfd,
                generation,
            }),
            (None, None) => Maker::Guard,
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

    /// One of the pool, or one in a user namespace as the parent's.
    pub(crate) fn guard(&self, network: Network) -> Result<Guard, NodeError> {
        let pool = &self.pager.pool;
        Ok(match &self.recipe.descriptor.rare.user_namespace {
            None => pool.take(network)?,
            Some(space) => pool.make_below(network, &users(space))?,
        })
    }

    /// Who makes a child that neither its guard nor a template makes.
    pub(crate) fn steward(&self) -> Result<Option<Blank>, NodeError> {
        let below = mitosis_restore::is_below(&self.recipe.descriptor);
        let wanted = below && self.template.is_none();
        Ok(wanted.then(|| Blank::start(self.node.templates.image())).transpose()?)
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
        let guarded = guard.map(|guard| Guarded { pidfd: guard.pidfd, _number: guard.number });
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
}

fn users(space: &UserNamespace) -> Users {
    let lines = |ranges: &[IdRange]| -> String {
        let line =
            |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
        ranges.iter().map(line).collect()
    };
    let (uids, gids) = (lines(&space.uids), lines(&space.gids));
    Users { uids, gids, setgroups: space.setgroups }
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
