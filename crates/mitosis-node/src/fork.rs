//! Starting children of a seed.

use crate::children::{Guarded, Start};
use crate::error::NodeError;
use crate::listeners::Listener;
use crate::node::Node;
use crate::pager::Pager;
use crate::paging::{self, Paging};
use crate::prepare::start_ticks;
use crate::time::{Reading, Space};
use crate::working_set::{Rest, WorkingSet};
use crate::{millis, monotonic_ns};
use mitosis_descriptor::{Descriptor, Limits, PAGE_SIZE, Phase, Reference, decode};
use mitosis_pager::{AddChild, Asked, ChildFds, ChildId};
use mitosis_proto::{ForkRequest, Forked, ForkedChild, Net, PhaseTime, Transport, Via};
use mitosis_restore::{Provided, RestorePlan, StartFds};
use mitosis_sandbox::{Guard, Network};
use mitosis_sys::clock::Clocks;
use mitosis_transport::Want;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long the seed's node may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
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
struct Batch<'a> {
    node: &'a Arc<Node>,
    pager: Arc<Pager>,
    request: &'a ForkRequest,
    stdio: &'a Stdio,
    seed: String,
    descriptor: Descriptor,
    plan: RestorePlan,
    paging: Paging,
    working_set: WorkingSet<'a>,
    space: Option<Arc<Space>>,
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
    let batch = batch(node, request, stdio, &reference, arrived)?;
    let mut started: Vec<(u64, ForkedChild)> = Vec::new();
    for _ in 0..request.count {
        match batch.start_one() {
            Ok(child) => started.push(child),
            Err(error) => return Err(give_up(node, &started, error)),
        }
    }
    // Only now: the children run them at the same time.
    for at in 0..started.len() {
        let (id, child) = &mut started[at];
        match batch.await_hooks(*id, child.pid) {
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
    match request.via {
        Via::Auto | Via::Direct => {}
        Via::Shadow | Via::Template => {
            let via = request.via.name();
            return Err(NodeError::step(Phase::Plan, format!("--via {via}"), "not available yet"));
        }
    }
    let bad = |name: &String| {
        name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || name.chars().any(char::is_control)
    };
    if request.hostname.as_ref().is_some_and(bad) {
        return Err(NodeError::Usage("--hostname: want 1 to 64 bytes".into()));
    }
    Ok(())
}

/// One round trip: capability check, descriptor, what the clocks show meanwhile, and behind it what
/// this node lacks of the working set.
fn fetch(
    node: &Node,
    reference: &Reference,
    want: Want,
) -> Result<(Descriptor, Reading, Option<Rest>), NodeError> {
    let limits = Limits::default();
    let asked = Clocks::now();
    if reference.address == node.address {
        let refused = |_| mitosis_transport::ForkError::Refused { address: node.address.clone() };
        let seed = node.seeds.forkable(reference.seed, &reference.secret).map_err(refused)?;
        let reading = Reading { asked, owner: asked, answered: asked };
        let descriptor = decode(&seed.descriptor, &limits)?;
        return Ok((descriptor, reading, (want.want > 0).then_some(Rest::Local(seed, want))));
    }
    let Reference { address, seed, secret } = reference;
    let fetched = node.nodes.fork(address, *seed, secret, want, FETCH_TIMEOUT)?;
    let answered = Clocks::now();
    let owner = Clocks { monotonic: fetched.clocks.monotonic, boottime: fetched.clocks.boottime };
    let descriptor = decode(&fetched.descriptor, &limits)?;
    Ok((descriptor, Reading { asked, owner, answered }, fetched.incoming.map(Rest::Remote)))
}

/// Whether pages may come in bulk from the seed's node. Not where they are to be read one-sidedly.
fn in_bulk(node: &Node, reference: &Reference, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => reference.address != node.address,
        Transport::Auto | Transport::Local => node.seeds.rdma().is_err(),
        Transport::Rdma => false,
    }
}

fn batch<'a>(
    node: &'a Arc<Node>,
    request: &'a ForkRequest,
    stdio: &'a Stdio,
    reference: &Reference,
    arrived: Instant,
) -> Result<Batch<'a>, NodeError> {
    let pager = node.pager.get()?;
    let key = (reference.address.clone(), reference.seed);
    let (working_set, want) = match in_bulk(node, reference, request.transport) {
        true => {
            let kept = WorkingSet::kept(&node.nodes, &node.working_sets, key);
            let want = kept.want();
            (kept, want)
        }
        false => (WorkingSet::none(&node.nodes, &node.working_sets, key), Want::default()),
    };
    let (descriptor, reading, rest) = fetch(node, reference, want)?;
    rest.map_or(Ok(()), |rest| working_set.follows(rest))?;
    let fetched = arrived.elapsed();
    let (time, space) = node.times.of(&reading, &descriptor.clocks)?;
    let (nodes, facts) = (&node.nodes, &node.facts);
    let vdso = node.vdsos.of(nodes, reference, &descriptor, facts, FETCH_TIMEOUT)?;
    let wanted = mitosis_restore::Request {
        // Pid 1 of a child's namespace is its guard.
        new_pid: request.new_pid || descriptor.process.pid == 1,
        hostname: request.hostname.clone(),
        own_net: request.net == Net::Own,
        working_set: working_set.len(),
        time,
        no_hooks: request.hooks == mitosis_proto::Hooks::None,
        vdso,
    };
    let plan = mitosis_restore::plan(&descriptor, &node.facts, &wanted, &node.hashes)?;
    let paging = paging::paging(node, request.transport, &descriptor, &plan)?;
    let plan_us = (arrived.elapsed() - fetched).as_micros() as u64;
    Ok(Batch {
        node,
        pager,
        request,
        stdio,
        seed: reference.seed.to_string(),
        descriptor,
        plan,
        paging,
        working_set,
        space,
        arrived,
        fetch_us: fetched.as_micros() as u64,
        plan_us,
    })
}

/// A guard that is ended with all that it guards unless the child was handed over.
struct Held(Option<Guard>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            guard.end();
        }
    }
}

impl Held {
    fn guard(&self) -> Result<&Guard, NodeError> {
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
        let started = self.build(id, network);
        if started.is_err() {
            let _ = std::fs::remove_file(self.node.store.log_path(id));
        }
        started
    }

    fn build(&self, id: u64, network: Network) -> Result<(u64, ForkedChild), NodeError> {
        let mut held = Held(Some(self.pager.pool.take(network)?));
        let pair = || {
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| NodeError::step(Phase::Sandbox, "socketpair", e))
        };
        let (uffd_rx, uffd_tx) = pair()?;
        let (table_rx, table_tx) = pair()?;
        let (provided, shares) = self.provide(id, &table_rx)?;
        drop(table_rx);
        let fds = StartFds { pager: uffd_tx, provided, cgroup: None };
        let guard = held.guard()?;
        let netns = guard.netns_path();
        let generation = mitosis_sandbox::generation_text(guard.generation);
        // The pager gets its books while the child is built; a touch of the child's, in one of the
        // stub's last system calls, waits for it.
        let mut added = None;
        let mut placed = Ok(());
        let page = || {
            placed = self.place(&table_tx, |pages, bytes| {
                added = Some(self.page(id, guard, &uffd_rx, pages, bytes));
            });
            placed.is_ok()
        };
        let started = mitosis_restore::start(&self.plan, guard.control.as_fd(), fds, page);
        drop(uffd_rx);
        if let Some(added) = added {
            added?.done()?;
        }
        placed?;
        let started = started.map_err(|error| self.not_started(id, error))?;
        // Both fail only for a child that has ended already, which the pager will tell.
        let pid = Pid::from_raw(started.pid);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let (start_us, phases) = self.times(&started);
        let start = Start {
            id,
            pid: started.pid,
            start_ticks: start_ticks(started.pid).unwrap_or(0),
            seed: self.seed.clone(),
            via: Via::Direct.name().to_owned(),
            transport: self.paging.transport.to_owned(),
            transport_why: self.paging.why.clone(),
            netns,
            generation,
            start_us,
            phases,
            started_unix_ms: millis(SystemTime::now()),
            log: self.node.store.log_path(id),
            // What OpenSSL or CPython may still call stays in its children.
            resident: self.plan.hooks.is_empty().then_some(started.resident),
            functions: self.descriptor.hooks.functions.clone(),
        };
        self.node.note("write a child down", self.node.store.put_child(&start));
        let child = forked(&start);
        // The guard's control socket is the pager's alone from here on: its end is a message.
        let guarded = held.0.take().map(|guard| Guarded { pidfd: guard.pidfd });
        self.node.children.add(start, pidfd, guarded, shares);
        Ok((id, child))
    }

    /// Lets the child put the working set in place once all of it is here. Then `announce` is told
    /// which pages that are, and how many bytes were fetched for them: not earlier, for the pager
    /// would only take the processor from what the child waits for.
    fn place(
        &self,
        child: &OwnedFd,
        announce: impl FnOnce(Vec<u64>, u64),
    ) -> Result<(), NodeError> {
        let (parts, coming) = self.working_set.list()?;
        let placement = self.plan.placement(&parts);
        let bytes = coming.as_ref().map_or(0, |coming| coming.pages() as u64 * PAGE_SIZE);
        let come = coming.map(|coming| coming.receive()).transpose()?;
        if self.working_set.len() > 0 {
            let failed = |e| NodeError::step(Phase::Build, "the table of the working set", e);
            rustix::net::send(child, &placement.table, SendFlags::NOSIGNAL).map_err(failed)?;
        }
        announce(placement.pages, bytes);
        come.map_or(Ok(()), |come| come.keep())
    }

    /// Hands the child to the pager, with the pages that it puts in place itself.
    fn page(
        &self,
        id: u64,
        guard: &Guard,
        uffd_rx: &OwnedFd,
        placed: Vec<u64>,
        placed_bytes: u64,
    ) -> Result<Asked<'_>, NodeError> {
        let add = AddChild {
            child: ChildId(id),
            seed: self.seed.clone(),
            areas: self.paging.areas.clone(),
            index: self.paging.index.clone(),
            owners: self.paging.owners.clone(),
            placed,
            placed_bytes,
            eager: self.request.paging == mitosis_proto::Paging::Eager,
            independent: self.request.independent,
        };
        let fds = ChildFds {
            uffd_rx: uffd_rx.as_fd(),
            guard: guard.control.as_fd(),
            guard_pidfd: guard.pidfd.as_fd(),
            local: self.paging.local.iter().map(|shadow| shadow.mem.as_fd()).collect(),
        };
        Ok(self.pager.client.add_child(add, &fds)?)
    }

    /// Ends a child that was never complete. Its guard's words went to whoever read them first, us
    /// or the pager.
    fn not_started(&self, id: u64, error: mitosis_restore::RestoreError) -> NodeError {
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
    fn await_hooks(&self, id: u64, pid: i32) -> Result<u64, NodeError> {
        match mitosis_restore::await_hooks(&self.plan, pid)? {
            Some(us) => Ok(us),
            None => self.hooks_crashed(id).map(|()| 0),
        }
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
    fn provide(
        &self,
        id: u64,
        table: &OwnedFd,
    ) -> Result<(Vec<OwnedFd>, Vec<Arc<Listener>>), NodeError> {
        let log = match self.stdio {
            Stdio::Log => Some(self.node.store.create_log(id)?),
            Stdio::Caller(_) => None,
        };
        let mut shares = Vec::new();
        let mut fds = Vec::with_capacity(self.plan.provided.len());
        for wanted in &self.plan.provided {
            let object = || format!("{wanted:?}");
            let failed = |e| NodeError::step(Phase::Build, object(), e);
            fds.push(match wanted {
                Provided::Stdio(stream) => self.stdio(*stream, log.as_ref()).map_err(failed)?,
                Provided::Listener { key, fd, spec } => {
                    let listeners = &self.node.listeners;
                    let siblings = self.node.children.pids_of_seed(&self.seed);
                    let share = listeners.share(&self.seed, *key, *fd, spec, &siblings)?;
                    let copy = share.as_fd().try_clone_to_owned().map_err(failed)?;
                    shares.push(share);
                    copy
                }
                Provided::MappedFile(path) => self.mapped_file(path)?,
                Provided::WorkingSet(number) => self.working_set.file(*number).map_err(failed)?,
                Provided::PlaceTable => table.try_clone().map_err(failed)?,
                Provided::Executable(path) => File::open(path)
                    .map_err(|e| NodeError::step(Phase::Build, path.as_str(), e))?
                    .into(),
                Provided::TimeNamespace => {
                    let gone = || NodeError::step(Phase::Sandbox, "time namespace", "gone");
                    let space = self.space.as_ref().ok_or_else(gone)?;
                    space.namespace.as_fd().try_clone_to_owned().map_err(failed)?
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

    /// Opens a file that was proven to be the parent's, and proves it again: the path may lead to
    /// another one by now.
    fn mapped_file(&self, path: &str) -> Result<OwnedFd, NodeError> {
        let failed = |cause: String| NodeError::step(Phase::Build, path, cause);
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let mut wanted = self.descriptor.files.iter().filter(|file| file.path == path);
        if !wanted.any(|wanted| self.node.hashes.proven_open(&file, wanted)) {
            return Err(failed("changed while the child was being made".into()));
        }
        Ok(file.into())
    }
}

fn forked(start: &Start) -> ForkedChild {
    ForkedChild {
        pid: start.pid,
        seed: start.seed.clone(),
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
