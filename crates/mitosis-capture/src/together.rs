//! What makes several captured processes a tree: who leads which session, and what they share.

use crate::tree::{Captured, Look, Place};
use crate::{CaptureError, Member};
use mitosis_descriptor::{Backing, Descriptor, Gift, PageIndex, PageRun, Session, Vpn, Zombie};
use mitosis_state::tree::FileKey;
use mitosis_sys::kcmp;
use mitosis_sys::procfs::Status;
use std::collections::HashMap;

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
            place.gifts.clone_from(&share.gifts);
            place.temporary.clone_from(&share.temporary);
        }
    }
    memory(&mut captured.members)
}

/// Members are processes of one pid namespace, each with a memory and a table of its own.
fn apart(members: &[Member]) -> Result<(), CaptureError> {
    let depth = |pid: i32| Status::read(pid).map_or(0, |status| status.numbers("NSpid", 10).len());
    let root = &members[0];
    for member in members {
        let refused = |why: String| CaptureError::Refused { pid: member.pid, why };
        let rare = &member.seeded.descriptor.rare;
        if rare.ipc != mitosis_descriptor::Ipc::default() {
            return Err(refused("has System V objects and is one of several in a tree".into()));
        }
        let Some(parent) = member.parent.map(|parent| &members[parent]) else { continue };
        // One that has ended meanwhile had them then.
        if depth(member.pid) != depth(root.pid) && depth(member.pid) != 0 && depth(root.pid) != 0 {
            return Err(refused("is in another pid namespace than the root of its tree".into()));
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
    let by_pid: HashMap<i32, usize> = looks.iter().enumerate().map(|(at, l)| (l.pid, at)).collect();
    let of = |look: &Look| Session {
        session: if look.session == root.session { root.pid } else { look.session },
        group: if look.group == root.group { root.pid } else { look.group },
    };
    let sessions: Vec<Session> = looks.iter().map(of).collect();
    for (at, session) in sessions.iter().enumerate() {
        let refused = |why: String| CaptureError::Refused { pid: places[at].pid, why };
        let Some(parent) = places[at].parent else { continue };
        let leads = session.session == looks[at].pid;
        let inherited = session.session == sessions[parent].session;
        // Born before its parent began a session of its own.
        let before = inherited_by(&sessions, places, looks, parent) == Some(session.session);
        if !leads && !inherited && !before {
            let why = format!("is in session {}, which is none of its tree's", session.session);
            return Err(refused(why));
        }
        let leader = by_pid.get(&session.group).map(|leader| &sessions[*leader]);
        if leader.is_none_or(|leader| leader.session != session.session) {
            let why = format!(
                "is in process group {}, whose leader is none of its session in the tree",
                session.group
            );
            return Err(refused(why));
        }
    }
    Ok(sessions)
}

/// The session that a process had when it was born, if it has begun one of its own since.
fn inherited_by(sessions: &[Session], places: &[Place], looks: &[Look], at: usize) -> Option<i32> {
    let leads = sessions[at].session == looks[at].pid;
    let parent = places[at].parent.filter(|_| leads)?;
    Some(sessions[parent].session)
}

/// Shared memory is one member's to make and to fill: the others get it from there.
fn memory(members: &mut [Member]) -> Result<(), CaptureError> {
    for at in 1..members.len() {
        let Some(share) = members[at].seeded.share.take() else { continue };
        let mut from = Vec::new();
        for (object, key) in members[at].seeded.shared_files.iter().enumerate() {
            let Some(&maker) = share.memory_from.get(key) else { continue };
            from.push((object as u32, maker));
        }
        for &(object, maker) in &from {
            let key = members[at].seeded.shared_files[object as usize].clone();
            let theirs = index_of(&members[maker as usize], &key)?;
            let covered = mappings(&members[maker as usize].seeded.descriptor, theirs);
            let (pid, image) = (members[at].pid, &mut members[at].seeded.descriptor);
            leave_out(pid, image, object, &covered)?;
            let place = &mut members[maker as usize].seeded.descriptor.rare.tree.place;
            place.memory_to.push(Gift { fd: theirs, to: at as u32 });
        }
        members[at].seeded.descriptor.rare.tree.place.memory_from = from;
    }
    // The order in which a member takes what it gets: by its own numbers. Each list was written for
    // one receiver after the other, in that order.
    Ok(())
}

fn index_of(member: &Member, key: &FileKey) -> Result<u32, CaptureError> {
    let at = member.seeded.shared_files.iter().position(|own| own == key);
    at.map(|at| at as u32).ok_or_else(|| {
        let why = "has shared memory that is newer than the first look at it: try again";
        CaptureError::Refused { pid: member.pid, why: why.into() }
    })
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

/// Takes the pages of an object out of the index of a member that does not fill it.
fn leave_out(
    pid: i32,
    image: &mut Descriptor,
    object: u32,
    covered: &[(u64, u64, u64)],
) -> Result<(), CaptureError> {
    let vmas = mappings(image, object);
    for &(start, end, offset) in &vmas {
        for run in image.pages.within(Vpn::of(start), Vpn::of(end)) {
            let from = offset + (run.start.addr() - start);
            let to = offset + (run.end().addr() - start);
            let inside = |(start, end, offset): &(u64, u64, u64)| {
                *offset <= from && to <= offset + (end - start)
            };
            if !covered.iter().any(inside) {
                let why =
                    "maps parts of shared memory that the first of its tree that has it does not";
                return Err(CaptureError::Refused { pid, why: why.into() });
            }
        }
    }
    let within = |run: &PageRun| {
        vmas.iter().any(|(start, end, _)| *start <= run.start.addr() && run.start.addr() < *end)
    };
    // No run reaches over the end of a mapping into another one's: they are cut first.
    let mut runs = Vec::new();
    for run in image.pages.runs() {
        let mut rest = *run;
        while rest.count > 0 {
            let inside = within(&rest);
            let border = |at: u64| at > rest.start.addr() && at < rest.end().addr();
            let borders = vmas.iter().flat_map(|(start, end, _)| [*start, *end]);
            let cut = borders.filter(|at| border(*at)).min().unwrap_or(rest.end().addr());
            let piece = rest.clip(rest.start, Vpn::of(cut));
            if !inside {
                runs.push(piece);
            }
            rest = rest.clip(Vpn::of(cut), rest.end());
        }
    }
    image.pages = PageIndex::from_sorted(runs)
        .map_err(|run| CaptureError::Internal(format!("page runs out of order at {run:?}")))?;
    Ok(())
}
