//! Making a seed of a running process.

use crate::error::NodeError;
use crate::habits::Places;
use crate::memory::{Memory, Place, Shadow};
use crate::node::Node;
use crate::pager::Pager;
use crate::seed::{Course, Seed};
use crate::store::SeedRecord;
use crate::{millis, remote, spool};
use mitosis_capture::{CaptureError, Captured, Inherited, InheritedPages, Member, Options, Seeded};
use mitosis_descriptor::{
    Backing, Descriptor, MEMBERS_MAX, Owner, Phase, Reference, Secret, SeedId, encode,
};
use mitosis_pager::ChildId;
use mitosis_proto::{Bound, PhaseTime, PrepareRequest, Prepared};
use mitosis_transport::SeedState;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Of a file without a path: more would make every fork of the seed as much bigger.
const CONTENT_BYTES_USUAL: u64 = 16 << 20;

/// How long others may take that prepare the same parent.
const TURN: Duration = Duration::from_secs(10);

/// What the pager knows of a parent that is itself a child of this node.
struct FromPager<'a> {
    pager: &'a Pager,
    child: Option<ChildId>,
    asked: &'a Mutex<Vec<ChildId>>,
}

impl Inherited for FromPager<'_> {
    fn snapshot(&mut self) -> Result<Option<InheritedPages>, String> {
        let Some(child) = self.child else { return Ok(None) };
        // One after the other: it serves no more connections than so many, and does one thing at a time.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.pager.client.snapshot(child, true).map_err(|e| e.to_string())?;
        asked.push(child);
        drop(asked);
        Ok(Some(InheritedPages { owners: snapshot.owners, index: snapshot.index }))
    }
}

/// Kills the shadow unless the seed it belongs to was made.
struct Unfinished<'a> {
    node: &'a Node,
    shadow: Option<Arc<Shadow>>,
    seed: SeedId,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(shadow) = self.shadow.take() {
            self.node.drop_shadow(&shadow);
            self.node.store.drop_seed(self.seed);
        }
    }
}

/// Makes a seed. `arrived` is when the request came.
pub(crate) fn prepare(
    node: &Arc<Node>,
    request: PrepareRequest,
    arrived: Instant,
) -> Result<Prepared, NodeError> {
    refuse(&request)?;
    let pager = node.pager.get()?;
    let options = |pid: i32| {
        let start = node.children.id_of(pid).and_then(|id| node.children.start_of(id));
        let (resident, functions) =
            start.map_or((None, Vec::new()), |start| (start.resident, start.functions));
        Options {
            node: node.config.name.clone(),
            stop_timeout: node.config.stop_timeout,
            resident,
            functions,
            privileged: request.privileged,
            content_max: request.content_max.unwrap_or(CONTENT_BYTES_USUAL),
        }
    };
    let turn = node.preparing.take(request.pid, TURN);
    let turn = turn.ok_or_else(|| {
        let cause = format!("still being prepared by others after {} s", TURN.as_secs());
        NodeError::control(format!("pid {}", request.pid), cause)
    })?;
    let asked = Mutex::new(Vec::new());
    let from_pager = |pid: i32| {
        let child = node.children.id_of(pid).map(ChildId);
        FromPager { pager: &pager, child, asked: &asked }
    };
    let captured = remote::fetched_first(node, &pager, request.pid, || {
        let captured = match request.tree {
            false => alone(node, request.pid, &options(request.pid), &mut from_pager(request.pid)),
            true => {
                let inherited =
                    |pid: i32| -> Box<dyn Inherited + Send> { Box::new(from_pager(pid)) };
                mitosis_capture::prepare_tree(request.pid, &options, MEMBERS_MAX, &inherited)
            }
        };
        let children = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        // Also when the capture failed: the next fork of the child is no shadow.
        let told = children.into_iter().try_for_each(|child| pager.client.shadow_taken(child));
        match (captured, told) {
            (Ok(captured), Err(e)) => {
                captured.end();
                Err(CaptureError::Inherited(e.to_string()))
            }
            (captured, _) => captured,
        }
    })?;
    drop(turn);
    let (seeds, mut prepared) = enlist_all(node, &pager, captured?, &request)?;
    for seed in &seeds {
        if seed.bound() == Bound::Bound {
            move_away(node, Arc::clone(seed));
        }
    }
    let seed = &seeds[0];
    prepared.prepare_us = arrived.elapsed().as_micros() as u64;
    let measured: u64 = prepared.phases.iter().map(|time| time.us).sum();
    let us = prepared.prepare_us.saturating_sub(measured);
    prepared.phases.push(PhaseTime { phase: Phase::Control, us });
    node.log.info(format_args!(
        "seed {} of pid {}: {} pages, frozen {} us of {} us",
        seed.id, request.pid, prepared.pages_total, prepared.freeze_us, prepared.prepare_us
    ));
    Ok(prepared)
}

/// A process without its tree.
fn alone(
    node: &Node,
    pid: i32,
    options: &Options,
    inherited: &mut (dyn Inherited + Send),
) -> Result<Captured, CaptureError> {
    let dontfork = node.parents.has_dontfork(pid);
    let seeded = mitosis_capture::prepare_again(pid, options, dontfork, inherited)?;
    node.parents.prepared(pid, seeded.dontfork);
    let members = vec![Member { pid, parent: None, seeded }];
    Ok(Captured { members, zombies: Vec::new() })
}

/// Makes a seed of each process, and of the root one that holds the images of the others.
fn enlist_all(
    node: &Arc<Node>,
    pager: &Pager,
    captured: Captured,
    request: &PrepareRequest,
) -> Result<(Vec<Arc<Seed>>, Prepared), NodeError> {
    let root = SeedId(random()?);
    let Captured { members, zombies } = captured;
    let mut made = Made { node, seeds: Vec::new() };
    let (mut images, mut figures) = (Vec::new(), Vec::new());
    let mut rest = Rest(members);
    // The root last, since it is to hold what the others are by then.
    loop {
        let id = SeedId(random()?);
        let Some(Member { pid, parent, mut seeded }) = rest.0.pop() else { break };
        let (id, tree) = match parent {
            Some(_) => (id, Some(root)),
            None => {
                let tree = &mut seeded.descriptor.rare.tree;
                tree.members = std::mem::take(&mut images);
                tree.members.reverse();
                tree.zombies.clone_from(&zombies);
                (root, None)
            }
        };
        let (seed, prepared) = enlist(node, pager, seeded, request, Kin { pid, id, tree })?;
        if let Some(parent) = parent {
            let image = seed.descriptor.to_vec();
            images.push(mitosis_descriptor::Member { parent: parent as u32, image });
        }
        made.seeds.push(seed);
        figures.push(prepared);
    }
    let mut total = figures.pop().ok_or_else(|| NodeError::control("seed", "no process"))?;
    for one in figures {
        total.freeze_us = total.freeze_us.max(one.freeze_us);
        total.pages_total += one.pages_total;
        total.threads += one.threads;
        total.processes += 1;
    }
    let mut seeds = std::mem::take(&mut made.seeds);
    seeds.reverse();
    Ok((seeds, total))
}

/// Processes of a tree that are no seeds yet: their shadows end.
struct Rest(Vec<Member>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.iter().for_each(|member| member.seeded.shadow.end());
    }
}

/// Seeds of a tree that is not complete: none of them stays.
struct Made<'a> {
    node: &'a Node,
    seeds: Vec<Arc<Seed>>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for seed in &self.seeds {
            self.node.seeds.remove(seed.id);
            self.node.end_seed(seed, SeedState::Revoked, "its tree could not be made a seed");
        }
    }
}

/// Which process of a tree a seed is of.
struct Kin {
    pid: i32,
    id: SeedId,
    /// The root's seed, if it is another one.
    tree: Option<SeedId>,
}

fn refuse(request: &PrepareRequest) -> Result<(), NodeError> {
    if request.pid <= 0 {
        return Err(NodeError::Usage(format!("pid {}: not a process", request.pid)));
    }
    let bad_name = |name: &String| name.len() > 128 || name.chars().any(char::is_control);
    if request.name.as_ref().is_some_and(bad_name) {
        return Err(NodeError::Usage("--name: more than 128 bytes, or control characters".into()));
    }
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|e| NodeError::control("random bytes", e))?;
    }
    Ok(bytes)
}

/// Gives the seed its name and capability, hashes its files, writes it down, opens it to others.
fn enlist(
    node: &Arc<Node>,
    pager: &Pager,
    seeded: Seeded,
    request: &PrepareRequest,
    kin: Kin,
) -> Result<(Arc<Seed>, Prepared), NodeError> {
    let Kin { pid, id, tree } = kin;
    let Seeded { mut descriptor, shadow, bound, mut files, freeze_us, phases, .. } = seeded;
    let home = node.children.id_of(pid).map(|id| node.children.main_of(id));
    let shadow =
        Shadow { pid: shadow.pid, pidfd: shadow.pidfd, mem: shadow.mem, visit: Mutex::default() };
    let shadow = Arc::new(shadow);
    let secret = Secret(random()?);
    let mut unfinished = Unfinished { node, shadow: Some(Arc::clone(&shadow)), seed: id };
    pager.client.track_shadow(shadow.pid.unsigned_abs(), shadow.pidfd.as_fd())?;
    if let (true, Some(home)) = (bound, home) {
        // Our guard is its init: it stays as long as a seed needs it.
        pager.client.keep(ChildId(home), true)?;
    }
    let bound = if bound && home.is_none() { Bound::Bound } else { Bound::Free };
    let address = node.address.clone();
    let mine = Owner { address: address.clone(), seed: id, secret };
    match descriptor.owners.first_mut() {
        Some(first) => *first = mine,
        None => descriptor.owners.push(mine),
    }
    reopen(shadow.pid, &descriptor, &mut files);
    identify(node, &mut descriptor, &files);
    let bytes: Arc<[u8]> = encode(&descriptor)?.into();
    let created = SystemTime::now();
    let expires = request.ttl_ms.map(|ttl| created + Duration::from_millis(ttl));
    let reference = Reference { address, seed: id, secret }.reveal();
    let record = SeedRecord {
        seed: id.to_string(),
        reference: reference.clone(),
        name: request.name.clone(),
        parent_pid: pid,
        tree: tree.map(|root| root.to_string()),
        created_unix_ms: millis(created),
        expires_unix_ms: expires.map(millis),
        shadow: Some((shadow.pid, start_ticks(shadow.pid)?)),
        spool: None,
        home,
        bound: bound == Bound::Bound,
    };
    node.store.put_seed(&record, &bytes)?;
    let prepared = Prepared {
        reference,
        seed: record.seed,
        name: request.name.clone(),
        freeze_us,
        prepare_us: 0,
        descriptor_bytes: bytes.len() as u64,
        pages_total: descriptor.pages.pages(),
        threads: descriptor.threads.len() as u64,
        processes: 1,
        bound,
        phases: phases.into_iter().map(|(phase, us)| PhaseTime { phase, us }).collect(),
    };
    let seed = Arc::new(Seed {
        id,
        secret,
        name: request.name.clone(),
        parent_pid: pid,
        tree,
        created,
        expires,
        descriptor: bytes,
        pages_total: prepared.pages_total,
        memory: Memory::new(&descriptor, files, Place::Shadow(shadow)),
        home,
        places: Places::of(&descriptor),
        course: Course::new(bound),
    });
    if !node.seeds.add(Arc::clone(&seed)) {
        return Err(NodeError::control("seed", "this node has too many; remove some"));
    }
    unfinished.shadow = None;
    Ok((seed, prepared))
}

/// Field 22 of `/proc/PID/stat`.
pub(crate) fn start_ticks(pid: i32) -> Result<u64, NodeError> {
    let fields =
        mitosis_sys::procfs::stat(pid).map_err(|e| NodeError::control(format!("pid {pid}"), e))?;
    Ok(mitosis_sys::procfs::stat_field(&fields, 22))
}

/// Opens, through the shadow, mapped files that their path does not lead to any more.
pub(crate) fn reopen(shadow: i32, descriptor: &Descriptor, files: &mut Vec<Option<File>>) {
    files.resize_with(descriptor.files.len(), || None);
    for vma in &descriptor.vmas {
        let Backing::File { file, .. } = vma.backing else { continue };
        if let Some(slot @ None) = files.get_mut(file as usize) {
            let path = format!("/proc/{shadow}/map_files/{:x}-{:x}", vma.start, vma.end);
            *slot = File::open(path).ok();
        }
    }
}

/// Says which bytes the mapped files have, so that children can use their own node's. The parent
/// runs again already.
fn identify(node: &Node, descriptor: &mut Descriptor, files: &[Option<File>]) {
    for (mapped, file) in descriptor.files.iter_mut().zip(files) {
        let Some(file) = file else { continue };
        match node.hashes.of_file(file) {
            Ok(hash) => mapped.hash = Some(hash),
            // Unknown is always right: the pages come from here then.
            Err(e) => node.log.debug(format_args!("hash of {}: {e}", mapped.path)),
        }
    }
}

/// Copies the pages out of a foreign pid namespace, in the background.
pub(crate) fn move_away(node: &Arc<Node>, seed: Arc<Seed>) {
    seed.set_bound(Bound::Moving);
    let theirs = Arc::clone(node);
    let moved = Arc::clone(&seed);
    let mover = std::thread::Builder::new().name("spool".into()).spawn(move || {
        let node = theirs;
        let run = node.config.run_path("spool");
        let go_on = || moved.state() == SeedState::Alive || moved.state() == SeedState::Expiring;
        match spool::copy(&moved.memory, &run, moved.id, go_on) {
            Ok((file, path)) => finish_move(&node, &moved, file, path),
            Err(cause) => {
                moved.set_bound(Bound::Bound);
                node.log.warn(format_args!("seed {} stays bound: {cause}", moved.id));
            }
        }
    });
    if let Err(e) = mover {
        seed.set_bound(Bound::Bound);
        node.log.warn(format_args!("seed {} stays bound: {e}", seed.id));
    }
}

fn finish_move(node: &Node, seed: &Seed, file: Arc<File>, path: Option<std::path::PathBuf>) {
    let before = seed.memory.replace(Place::Spool(file));
    match before {
        Place::Shadow(shadow) => {
            seed.set_bound(Bound::Free);
            if let Some(record) = node.store.seed(seed.id) {
                let record = SeedRecord { shadow: None, spool: path, bound: false, ..record };
                if let Err(e) = node.store.update_seed(&record) {
                    node.log.warn(format_args!("seed {}: {e}", seed.id));
                }
            }
            node.drop_shadow(&shadow);
            node.log.info(format_args!("seed {} is free of its parent's pid namespace", seed.id));
        }
        // It ended meanwhile, and stays ended.
        ended => {
            seed.memory.replace(ended);
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}
