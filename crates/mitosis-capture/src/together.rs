//! What makes several captured processes a tree: who leads which session, and what they share.

use crate::meeting::Look;
use crate::tree::{Captured, Place};
use crate::{CaptureError, Member};
use mitosis_descriptor::{
    Backing, Descriptor, Gift, Kin, OpenObject, PageIndex, PageRun, Session, Vpn, Zombie, births,
};
use mitosis_state::tree::FileKey;
use mitosis_sys::kcmp;
use mitosis_sys::procfs::{self, Status};
use std::collections::HashSet;

/// Index among those that live of a place; one that lives.
pub(crate) fn living(places: &[Place], at: usize) -> usize {
    places[..at].iter().filter(|place| !place.zombie).count()
}

/// Gives each member its place in the tree.
///
/// # Errors
/// Refused: what a child's node could not make again.
pub(crate) fn join(
    captured: &mut Captured,
    places: &[Place],
    looks: &[Look],
) -> Result<(), CaptureError> {
    if places.len() < 2 {
        return Ok(());
    }
    apart(&captured.members)?;
    let sessions = sessions(places, looks)?;
    let (mut alive, mut zombies) = (Vec::new(), Vec::new());
    for ((place, look), session) in places.iter().zip(looks).zip(sessions) {
        match place.parent {
            Some(parent) if place.zombie => zombies.push(Zombie {
                parent: living(places, parent) as u32,
                pid: look.pid,
                session,
                status: look.status,
            }),
            _ => alive.push(session),
        }
    }
    captured.zombies = zombies;
    for (member, session) in captured.members.iter_mut().zip(alive) {
        let place = &mut member.seeded.descriptor.rare.tree.place;
        place.session = session;
        if let Some(share) = &member.seeded.share {
            place.terminal = share.terminal;
            place.gifts.clone_from(&share.gifts);
            place.temporary.clone_from(&share.temporary);
        }
    }
    system_v(&mut captured.members)?;
    memory(&mut captured.members)
}

/// Members are processes of one pid namespace and one user namespace, each with a memory and a table of its own.
fn apart(members: &[Member]) -> Result<(), CaptureError> {
    let depth = |pid: i32| Status::read(pid).map_or(0, |status| status.numbers("NSpid", 10).len());
    let root = &members[0];
    for member in members {
        let refused = |why: String| CaptureError::Refused { pid: member.pid, why };
        let Some(parent) = member.parent.map(|parent| &members[parent]) else { continue };
        // One that has ended meanwhile had them then.
        if depth(member.pid) != depth(root.pid) && depth(member.pid) != 0 && depth(root.pid) != 0 {
            return Err(refused("is in another pid namespace than the root of its tree".into()));
        }
        let users = |pid: i32| procfs::link(pid, "ns/user").ok();
        if let (Some(its), Some(roots)) = (users(member.pid), users(root.pid))
            && its != roots
        {
            return Err(refused("is in another user namespace than the root of its tree".into()));
        }
        if kcmp::shares_memory_or_files(parent.pid, member.pid).unwrap_or(false) {
            let why = format!("shares its memory or its table of open files with {}", parent.pid);
            return Err(refused(why));
        }
    }
    Ok(())
}

/// Groups and sessions as a child will have them: the root leads its own.
fn sessions(places: &[Place], looks: &[Look]) -> Result<Vec<Session>, CaptureError> {
    let root = looks[0];
    let of = |look: &Look| Session {
        session: if look.session == root.session { root.pid } else { look.session },
        group: if look.group == root.group { root.pid } else { look.group },
    };
    let sessions: Vec<Session> = looks.iter().map(of).collect();
    let kin = places.iter().zip(looks).zip(&sessions).map(|((place, look), session)| Kin {
        pid: look.pid,
        parent: place.parent.unwrap_or(0),
        session: *session,
        zombie: place.zombie,
    });
    let kin: Vec<Kin> = kin.collect();
    births(&kin).map_err(|(at, why)| CaptureError::Refused { pid: places[at].pid, why })?;
    Ok(sessions)
}

/// Shared memory is one member's to make: the others get it from there. Each part is filled by the
/// first member that maps it.
fn memory(members: &mut [Member]) -> Result<(), CaptureError> {
    let made = |member: &Member| member.seeded.share.as_ref().map(|share| share.made.clone());
    let made: Vec<_> = members.iter().map(|member| made(member).unwrap_or_default()).collect();
    for at in 1..members.len() {
        let Some(share) = members[at].seeded.share.take() else { continue };
        let mut from = Vec::new();
        for (object, key) in members[at].seeded.shared_files.iter().enumerate() {
            let Some(&maker) = share.memory_from.get(key) else { continue };
            from.push((object as u32, maker));
        }
        for &(object, maker) in &from {
            let key = members[at].seeded.shared_files[object as usize].clone();
            if made[maker as usize].contains(&key) {
                have_made(members, maker as usize, (at, object as usize), &key)?;
            }
            let theirs = index_of(&members[maker as usize], &key)?;
            let earlier = members[..at].iter().flat_map(|member| {
                let own = index_of(member, &key).ok();
                own.map(|own| mappings(&member.seeded.descriptor, own)).unwrap_or_default()
            });
            let filled: Vec<(u64, u64, u64)> = earlier.collect();
            leave_out(&mut members[at].seeded.descriptor, object, &filled)?;
            let place = &mut members[maker as usize].seeded.descriptor.rare.tree.place;
            place.memory_to.push(Gift { fd: theirs, to: at as u32 });
        }
        members[at].seeded.descriptor.rare.tree.place.memory_from = from;
    }
    // The order in which a member takes what it gets: by its own numbers. Each list was written for
    // one receiver after the other, in that order.
    Ok(())
}

/// Lets a member that has an object open, but does not map it, make it as those that map it would.
fn have_made(
    members: &mut [Member],
    maker: usize,
    (mapper, object): (usize, usize),
    key: &FileKey,
) -> Result<(), CaptureError> {
    if index_of(&members[maker], key).is_ok() {
        return Ok(());
    }
    let image = &members[mapper].seeded.descriptor;
    let (made, open) = (image.shared.get(object).cloned(), &image.rare.open_objects);
    let file = open.iter().find(|open| open.object as usize == object).map(|open| open.file);
    let (made, file) = made.zip(file).ok_or_else(|| newer(members[mapper].pid))?;
    let theirs = &mut members[maker].seeded;
    let object = theirs.descriptor.shared.len() as u32;
    theirs.descriptor.shared.push(made);
    theirs.descriptor.rare.open_objects.push(OpenObject { object, file });
    theirs.shared_files.push(key.clone());
    Ok(())
}

fn index_of(member: &Member, key: &FileKey) -> Result<u32, CaptureError> {
    let at = member.seeded.shared_files.iter().position(|own| own == key);
    at.map(|at| at as u32).ok_or_else(|| newer(member.pid))
}

fn newer(pid: i32) -> CaptureError {
    let why = "has shared memory that is newer than the first look at it: try again";
    CaptureError::Refused { pid, why: why.into() }
}

/// Where a member maps an object: first byte, one past the last, and offset in the object.
fn mappings(image: &Descriptor, object: u32) -> Vec<(u64, u64, u64)> {
    let of = |vma: &mitosis_descriptor::Vma| match vma.backing {
        Backing::Shared { object: own, offset } if own == object => {
            Some((vma.start, vma.end, offset))
        }
        _ => None,
    };
    image.vmas.iter().filter_map(of).collect()
}

/// Takes those pages of an object out of the index of a member that others, which map it like this,
/// fill.
fn leave_out(
    image: &mut Descriptor,
    object: u32,
    filled: &[(u64, u64, u64)],
) -> Result<(), CaptureError> {
    let mut left = Vec::new();
    for (start, end, offset) in mappings(image, object) {
        for &(from, to, at) in filled {
            let (first, last) = (offset.max(at), (offset + (end - start)).min(at + (to - from)));
            if first < last {
                left.push((start + (first - offset), start + (last - offset)));
            }
        }
    }
    left.sort_unstable();
    let mut runs: Vec<PageRun> = Vec::new();
    let mut next = 0;
    for run in image.pages.runs() {
        let (mut at, end) = (run.start, run.end());
        while let Some(&(from, to)) = left.get(next).filter(|(from, _)| *from < end.addr()) {
            let (from, to) = (Vpn::of(from), Vpn::of(to));
            runs.extend((at < from).then(|| run.clip(at, from)));
            at = at.max(to.min(end));
            if to > end {
                break;
            }
            next += 1;
        }
        runs.extend((at < end).then(|| run.clip(at, end)));
    }
    image.pages = PageIndex::from_sorted(runs)
        .map_err(|run| CaptureError::Internal(format!("page runs out of order at {run:?}")))?;
    Ok(())
}

/// System V objects belong to the namespace that all processes of a child have in common: the first
/// member that has one makes it.
fn system_v(members: &mut [Member]) -> Result<(), CaptureError> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/ipc")).ok();
    let root = namespace(members[0].pid);
    let (mut semaphores, mut queues) = (HashSet::new(), HashSet::new());
    for member in members {
        let pid = member.pid;
        let ipc = &mut member.seeded.descriptor.rare.ipc;
        if *ipc == mitosis_descriptor::Ipc::default() {
            continue;
        }
        let own = namespace(pid);
        // One that has ended meanwhile had its objects then.
        if own != root && own.is_some() && root.is_some() {
            let why = "has System V objects in another IPC namespace than the root of its tree";
            return Err(CaptureError::Refused { pid, why: why.into() });
        }
        ipc.semaphores.retain(|set| semaphores.insert(set.ipc.id));
        ipc.queues.retain(|queue| queues.insert(queue.ipc.id));
    }
    Ok(())
}
