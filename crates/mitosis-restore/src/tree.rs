//! Performing the plans of all processes of a tree: one message to the guard, one to each process, and
//! none goes on before all can.

use crate::start::{
    BUILD_TIMEOUT, STATUS_STARTED, StartFds, Started, failed, operation_error, order, pair,
    receive, send, status_pair,
};
use crate::{RestoreError, RestorePlan};
use mitosis_descriptor::{Descriptor, Phase, Session};
use mitosis_stub::abi::{
    TREE_BEFORE, TREE_ENTRY, TREE_LEADS_GROUP, TREE_LEADS_SESSION, TREE_ZOMBIE, guard_message,
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

/// Makes all processes of a tree under the guard behind `control`, and lets them go when all can go
/// on: see [`start`]. `table` says who hangs below whom; the parts are those that live, in its order.
///
/// # Errors
/// [`RestoreError`], with the operation that failed; then none has gone on.
pub fn start_tree(
    parts: Vec<Process<'_>>,
    table: &[u8],
    control: BorrowedFd<'_>,
    meanwhile: impl FnOnce() -> bool,
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
    let head = [u64::from(guard_message::FORK_TREE) | count << 32, 0];
    let mut attached = vec![file.as_fd()];
    attached.extend(theirs.iter().map(AsFd::as_fd));
    send(control, &head, &attached).map_err(failed("sendmsg", "guard"))?;
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
    if !meanwhile() {
        return Err(RestoreError::Silent("given up".into()));
    }
    let statuses: Vec<OwnedFd> = statuses.into_iter().map(|(status, _)| status).collect();
    let mut started = Vec::with_capacity(plans.len());
    for (plan, status) in plans.iter().zip(&statuses) {
        let (pid, words) = receive(status, Some(control), begun + BUILD_TIMEOUT)?;
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

/// All ids that processes and threads of a tree have.
pub fn ids(root: &Descriptor, members: &[&Descriptor]) -> HashSet<i32> {
    let living = std::iter::once(root).chain(members.iter().copied());
    let threads = living.flat_map(|one| one.threads.iter().map(|thread| thread.tid));
    threads.chain(root.rare.tree.zombies.iter().map(|zombie| zombie.pid)).collect()
}

/// Who hangs below whom, for the guard that makes them: the root, the other members, the zombies.
/// The pid of a root that is pid 1, which a guard is already, is another one.
pub fn table(root: &Descriptor, members: &[&Descriptor]) -> Vec<u8> {
    let tree = &root.rare.tree;
    let living = std::iter::once(root).chain(members.iter().copied());
    let taken = ids(root, members);
    let old = root.process.pid;
    let new = if old == 1 { (2..).find(|id| !taken.contains(id)).unwrap_or(0) } else { old };
    let renamed = |id: i32| if id == old { new } else { id };
    let parents = std::iter::once(0).chain(tree.members.iter().map(|member| member.parent));
    let zombies = tree.zombies.iter();
    let all: Vec<(i32, u32, Session, Option<u32>)> = living
        .zip(parents)
        .map(|(one, parent)| (one.process.pid, parent, one.rare.tree.place.session, None))
        .chain(zombies.map(|z| (z.pid, z.parent, z.session, Some(z.status))))
        .collect();
    let mut bytes = Vec::with_capacity(all.len() * TREE_ENTRY);
    for (index, (pid, parent, session, status)) in all.iter().enumerate() {
        let leads_session = index == 0 || session.session == *pid;
        let leads_group = leads_session || session.group == *pid;
        let (above_pid, _, above, _) = &all[*parent as usize];
        // What its parent leads, it did not when this one was born.
        let above_leads = *parent == 0 || above.session == *above_pid;
        let before = index > 0 && !leads_session && above_leads && above.session != session.session;
        let flags = [
            (leads_session, TREE_LEADS_SESSION),
            (leads_group, TREE_LEADS_GROUP),
            (before, TREE_BEFORE),
            (status.is_some(), TREE_ZOMBIE),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum::<u32>();
        let group = if leads_group { 0 } else { renamed(session.group) };
        let words = [renamed(*pid) as u32, group as u32, *parent, flags, status.unwrap_or(0)];
        for word in words.into_iter().chain([index as u32]) {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}
