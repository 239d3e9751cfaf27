//! Performing the plans of all processes of a tree: one message to the guard, one to each process, and
//! none goes on before all can.

use crate::start::{
    BUILD_TIMEOUT, Building, STATUS_STARTED, StartFds, Started, Steward, failed, operation_error,
    order, pair, receive, send, status_pair,
};
use crate::{RestoreError, RestorePlan};
use mitosis_descriptor::{Descriptor, Phase, Session, Tree, births};
pub use mitosis_stub::abi::TREE_ENTRY;
use mitosis_stub::abi::{
    TREE_ADOPTS, TREE_BEFORE, TREE_LEADS_GROUP, TREE_LEADS_SESSION, TREE_LEAVES, TREE_TEMPORARY,
    TREE_ZOMBIE, guard_message,
};
use mitosis_sys::clock::Clocks;
use rustix::net::SendFlags;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// A process of a tree: what it becomes, and what it gets.
#[derive(Debug)]
pub struct Process<'a> {
    /// Its plan, made with [`crate::Request::tree`].
    pub plan: &'a RestorePlan,
    /// Its descriptors.
    pub fds: StartFds,
}

/// File systems that all processes of a tree have, mounted nowhere yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mounts<'a> {
    /// Pseudo-terminals, for `/dev/pts`.
    pub terminals: Option<BorrowedFd<'a>>,
    /// Memory that has names, for `/dev/shm`.
    pub memory: Option<BorrowedFd<'a>>,
}

/// Who makes the root.
#[derive(Clone, Copy, Debug)]
pub enum Maker<'a> {
    /// Its guard.
    Guard,
    /// Another process for it, which has the second for its own pid meanwhile: see [`spare_pid`].
    Steward(Steward<'a>, i32),
}

/// Makes all processes of a tree under the guard behind `control`, and lets them go when all can go
/// on: see [`start`]. `table` says who is born of whom; the parts are those that live, in their own
/// order; `meanwhile` sees the root. `mounts` are file systems of theirs.
///
/// # Errors
/// [`RestoreError`], with the operation that failed; then none has gone on.
pub fn start_tree(
    parts: Vec<Process<'_>>,
    table: &[u8],
    mounts: Mounts<'_>,
    (control, maker): (BorrowedFd<'_>, Maker<'_>),
    meanwhile: impl FnOnce(&Building<'_>) -> bool,
) -> Result<Vec<Started>, RestoreError> {
    let begun = Instant::now();
    let file = crate::plan::sealed_file("mitosis-tree", table)?;
    let (mut statuses, mut orders, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in &parts {
        let (status, child) = status_pair()?;
        let (order, taken) = pair("process of a tree")?;
        statuses.push((status, child));
        orders.push(order);
        theirs.push(taken);
    }
    let count = (table.len() / TREE_ENTRY) as u64;
    let with = u64::from(mounts.terminals.is_some()) | u64::from(mounts.memory.is_some()) << 1;
    let mut attached = vec![file.as_fd()];
    attached.extend(theirs.iter().map(AsFd::as_fd));
    attached.extend(mounts.terminals);
    attached.extend(mounts.memory);
    match maker {
        Maker::Guard => {
            let head = [u64::from(guard_message::FORK_TREE) | count << 32, with];
            send(control, &head, &attached).map_err(failed("sendmsg", "guard"))?;
        }
        Maker::Steward(steward, pid) => {
            let head = [u64::from(guard_message::MAKE_TREE) | count << 32, with];
            attached.extend(statuses.first().map(|(_, child)| child.as_fd()));
            let root = table.first_chunk().copied().map_or(0, u32::from_le_bytes);
            make_root(steward, (root, pid), control, head, &attached)?;
        }
    }
    drop(attached);
    drop(theirs);
    let mut plans = Vec::with_capacity(parts.len());
    for ((part, (_, child)), orders) in parts.into_iter().zip(&statuses).zip(&orders) {
        let image = part.plan.image_file()?;
        let mut attached = vec![image.as_fd(), child.as_fd(), part.fds.pager.as_fd()];
        attached.extend(part.fds.provided.iter().map(AsFd::as_fd));
        let head = [u64::from(guard_message::FORK), 0];
        let order = order(part.plan, attached.len(), None);
        send(orders.as_fd(), &[&head[..], &order[..]].concat(), &attached)
            .map_err(failed("sendmsg", "process of a tree"))?;
        plans.push(part.plan);
    }
    drop(orders);
    let deadline = begun + BUILD_TIMEOUT;
    let root = statuses.first().map_or(control, |(status, _)| status.as_fd());
    if !meanwhile(&Building { status: root, control: Some(control), deadline }) {
        return Err(RestoreError::Silent("given up".into()));
    }
    let statuses: Vec<OwnedFd> = statuses.into_iter().map(|(status, _)| status).collect();
    let mut started = Vec::with_capacity(plans.len());
    for (plan, status) in plans.iter().zip(&statuses) {
        let (pid, words) = receive(status, Some(control), deadline)?;
        if words[0] & 0xffff_ffff != STATUS_STARTED {
            return Err(operation_error(plan, &words));
        }
        let build = words[7].saturating_sub(words[3]) / 1000;
        let phases = vec![(Phase::Build, build)];
        started.push(Started { pid, first_instruction_ns: 0, phases, resident: plan.resident });
    }
    let now = Clocks::now().monotonic as u64;
    for (one, status) in started.iter_mut().zip(&statuses) {
        one.first_instruction_ns = now;
        rustix::net::send(status, b"g", SendFlags::NOSIGNAL)
            .map_err(failed("send", "process of a tree"))?;
    }
    Ok(started)
}

/// Has the root made, whose pid the guard is told first, with what it keeps for the tree.
fn make_root(
    Steward { orders, guard, generation }: Steward<'_>,
    (root, maker): (u32, i32),
    control: BorrowedFd<'_>,
    head: [u64; 2],
    attached: &[BorrowedFd<'_>],
) -> Result<(), RestoreError> {
    let (kept, queue) = pair("guard")?;
    let hold = [u64::from(guard_message::HOLD_MAIN) | u64::from(root) << 32, 0];
    send(control, &hold, &[kept.as_fd()]).map_err(failed("sendmsg", "guard"))?;
    let order = [0, 0, 0, 0, 0, attached.len() as u64, 0, generation, maker as u64];
    let attached = [attached, &[guard, queue.as_fd()]].concat();
    send(orders, &[&head[..], &order[..]].concat(), &attached)
        .map_err(failed("sendmsg", "process that makes a tree"))
}

/// A pid that nothing of a tree has, nor any that [`mitosis_descriptor::spare_pids`] gives first: for who
/// makes the root, whose session may stay under that number.
pub fn spare_pid(root: &Descriptor, members: &[&Descriptor], table: &[u8]) -> i32 {
    let taken = ids(root, members);
    let word = |entry: &[u8], at: usize| {
        entry.get(at..at + 4).and_then(|four| Some(i32::from_le_bytes(four.try_into().ok()?)))
    };
    // The pid and the group of a `TreeEntry`.
    let named = |pid: &i32| {
        table.chunks(TREE_ENTRY).any(|entry| [0, 4].map(|at| word(entry, at)).contains(&Some(*pid)))
    };
    (2..).find(|pid| !taken.contains(pid) && !named(pid)).unwrap_or(0)
}

/// All ids that processes and threads of a tree have.
pub fn ids(root: &Descriptor, members: &[&Descriptor]) -> HashSet<i32> {
    let living = std::iter::once(root).chain(members.iter().copied());
    let threads = living.flat_map(|one| one.threads.iter().map(|thread| thread.tid));
    threads.chain(root.rare.tree.zombies.iter().map(|zombie| zombie.pid)).collect()
}

/// Who is born of whom, for the guard that makes them. The pid of a root that is pid 1, which a guard is
/// already, is another one.
///
/// # Errors
/// A tree that cannot be made: see [`births`].
pub fn table(root: &Descriptor, members: &[&Descriptor]) -> Result<Vec<u8>, RestoreError> {
    let living: Vec<&Descriptor> = std::iter::once(root).chain(members.iter().copied()).collect();
    let tree = &root.rare.tree;
    let mut kin = tree.kin(living.iter().copied());
    let (taken, led) = (ids(root, members), Tree::leaders(&kin));
    let old = root.process.pid;
    let free = |id: &i32| !taken.contains(id) && !led.contains(id);
    let new = if old == 1 { (2..).find(free).unwrap_or(0) } else { old };
    for one in &mut kin {
        let Session { group, session } = &mut one.session;
        for id in [&mut one.pid, group, session] {
            *id = if *id == old { new } else { *id };
        }
    }
    let births = births(&kin).map_err(|(at, why)| {
        RestoreError::Incompatible(format!("process {} of the tree {why}", kin[at].pid))
    })?;
    let mut bytes = Vec::with_capacity(births.len() * TREE_ENTRY);
    for birth in births {
        let ended = birth.kin.and_then(|at| tree.zombies.get(at.checked_sub(living.len())?));
        let image = birth.kin.and_then(|at| living.get(at));
        let flags = [
            (birth.leads_session, TREE_LEADS_SESSION),
            (birth.leads_group, TREE_LEADS_GROUP),
            (birth.leaves, TREE_LEAVES),
            (birth.before, TREE_BEFORE),
            (ended.is_some(), TREE_ZOMBIE),
            (birth.kin.is_none(), TREE_TEMPORARY),
            (birth.adopts, TREE_ADOPTS),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum::<u32>();
        let terminal = image.and_then(|image| image.rare.tree.place.terminal);
        // The order of `TreeEntry`.
        let words = [
            birth.pid as u32,
            birth.group as u32,
            birth.parent as u32,
            birth.heir as u32,
            flags,
            ended.map_or(0, |zombie| zombie.status),
            birth.kin.unwrap_or(0) as u32,
            terminal.map_or(0, |terminal| terminal.index + 1),
        ];
        for word in words {
            bytes.extend(word.to_le_bytes());
        }
    }
    Ok(bytes)
}
