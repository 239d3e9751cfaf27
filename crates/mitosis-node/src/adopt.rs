//! What an earlier daemon of this node left behind, taken over: a restart costs no child.

use crate::children::{End, Start};
use crate::habits::Places;
use crate::memory::{Memory, Place, Shadow};
use crate::node::Node;
use crate::pager::Pager;
use crate::prepare::{move_away, reopen, start_ticks};
use crate::seed::{Course, Seed};
use crate::store::SeedRecord;
use mitosis_descriptor::{Limits, Reference, decode};
use mitosis_pager::{ChildId, ChildState};
use mitosis_proto::Bound;
use mitosis_transport::SeedState;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// A pidfd of the process that had this start time, if it is still that one.
fn pidfd(pid: i32, ticks: u64) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Asked after the open: from here on the descriptor means this process and no other.
    (start_ticks(pid).ok()? == ticks).then_some(fd)
}

/// Takes over seeds whose pages are still there; drops the others.
pub(crate) fn seeds(node: &Arc<Node>, pager: &Pager) {
    for record in node.store.seeds() {
        let Ok(reference) = record.reference.parse::<Reference>() else {
            node.log.error(format_args!("seed {} of an earlier run has no reference", record.seed));
            continue;
        };
        match seed(&record, &reference, node) {
            Ok(seed) => {
                if let Place::Shadow(shadow) = seed.memory.place() {
                    let pid = shadow.pid.unsigned_abs();
                    let told = pager.client.track_shadow(pid, shadow.pidfd.as_fd());
                    node.note("tell the pager of a shadow", told);
                }
                let seed = Arc::new(seed);
                node.seeds.add(Arc::clone(&seed));
                if record.bound {
                    move_away(node, seed);
                }
            }
            Err(cause) => {
                node.log.warn(format_args!("seed {} of an earlier run: {cause}", record.seed));
                node.store.drop_seed(reference.seed);
            }
        }
    }
    whole_trees(node);
}

fn seed(record: &SeedRecord, reference: &Reference, node: &Node) -> Result<Seed, String> {
    let bytes = node.store.descriptor(&record.seed).map_err(|e| e.to_string())?;
    // One of several processes of a tree is no root itself.
    let limits = Limits::default();
    let members_max = if record.tree.is_some() { 0 } else { limits.members_max };
    let descriptor =
        decode(&bytes, &Limits { members_max, ..limits }).map_err(|e| e.to_string())?;
    if reference.address != node.address {
        return Err(format!("it is at {}, this node at {}", reference.address, node.address));
    }
    let mut files = Vec::new();
    let place = match (record.shadow, &record.spool) {
        (Some((pid, ticks)), _) => {
            let pidfd = pidfd(pid, ticks).ok_or("its shadow is gone")?;
            let mem = File::open(format!("/proc/{pid}/mem")).map_err(|e| e.to_string())?;
            reopen(pid, &descriptor, &mut files);
            Place::Shadow(Arc::new(Shadow { pid, pidfd, mem, visit: Mutex::default() }))
        }
        (None, Some(path)) => {
            let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
            files.extend(descriptor.files.iter().map(|file| same_file(node, file)));
            Place::Spool(Arc::new(file))
        }
        (None, None) => return Err("its pages were in the memory of the daemon that ended".into()),
    };
    let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let seed = Seed {
        id: reference.seed,
        secret: reference.secret,
        name: record.name.clone(),
        parent_pid: record.parent_pid,
        tree: record.tree.as_ref().and_then(|root| root.parse().ok()),
        created: at(record.created_unix_ms),
        expires: record.expires_unix_ms.map(at),
        pages_total: descriptor.pages.pages(),
        memory: Memory::new(&descriptor, files, place),
        places: Places::of(&descriptor),
        descriptor: bytes.into(),
        home: record.home,
        course: Course::new(if record.bound { Bound::Bound } else { Bound::Free }),
    };
    seed.adopted();
    Ok(seed)
}

/// Trees of which a process is missing are no trees any more.
fn whole_trees(node: &Node) {
    for seed in node.seeds.all() {
        let root = seed.tree.map_or(Some(Arc::clone(&seed)), |root| node.seeds.get(root));
        let whole = root.is_some_and(|root| {
            let image = decode(&root.descriptor, &Limits::default());
            let members = image.map_or(0, |image| image.rare.tree.members.len());
            node.seeds.kin(&root).len() == members
        });
        if !whole {
            node.seeds.remove(seed.id);
            node.end_seed(&seed, SeedState::Revoked, "a process of its tree is gone");
        }
    }
}

/// The file at the path, if it is still the one that was mapped.
fn same_file(node: &Node, mapped: &mitosis_descriptor::MappedFile) -> Option<File> {
    let file = File::open(&mapped.path).ok()?;
    let hash = node.hashes.of_file(&file).ok()?;
    (mapped.hash == Some(hash)).then_some(file)
}

/// Takes over the children that the pager still has.
pub(crate) fn children(node: &Node, pager: &Pager) {
    let mut known: HashMap<u64, Start> =
        node.store.children().into_iter().map(|start| (start.id, start)).collect();
    let stats = match pager.client.stats() {
        Ok(stats) => stats,
        Err(error) => {
            node.log.error(format_args!("children of an earlier run: {error}"));
            return;
        }
    };
    for one in &stats {
        let ChildId(id) = one.child;
        match known.remove(&id) {
            Some(start) => {
                let running = one.state == ChildState::Running;
                let pidfd = pidfd(start.pid, start.start_ticks).filter(|_| running);
                node.children.add(start, pidfd, None, Vec::new());
                match (running, one.exit) {
                    (false, status) => {
                        node.children.ended(id, End { status, reason: one.reason.clone() });
                    }
                    // Its namespace is kept for a seed.
                    (true, status @ Some(_)) => {
                        drop(node.children.exited(id, End { status, reason: None }));
                    }
                    (true, None) => {}
                }
            }
            // The earlier daemon was killed while it started that child: nobody waits for it.
            None if one.state == ChildState::Running => {
                let ended = pager.client.end(one.child, "its daemon was killed while starting it");
                node.note("end a child that nobody knows", ended);
            }
            None => {}
        }
    }
    node.children.update(stats);
    for start in known.into_values() {
        node.store.drop_child(&start);
    }
}
