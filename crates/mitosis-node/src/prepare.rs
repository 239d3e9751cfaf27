//! Making a seed of a running process.

use crate::error::NodeError;
use crate::habits::Places;
use crate::memory::{Memory, Place, Shadow};
use crate::node::Node;
use crate::pager::Pager;
use crate::registry::{Seed, SeedParts};
use crate::store::SeedRecord;
use crate::{millis, spool};
use mitosis_capture::{CaptureError, Inherited, InheritedPages, Options, Seeded};
use mitosis_descriptor::{Backing, Descriptor, Owner, Phase, Reference, Secret, SeedId, encode};
use mitosis_pager::ChildId;
use mitosis_proto::{Bound, PhaseTime, PrepareRequest, Prepared};
use mitosis_transport::SeedState;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Of a file without a path: more would make every fork of the seed as much bigger.
const CONTENT_BYTES_USUAL: u64 = 16 << 20;

/// How long others may take that prepare the same parent.
const TURN: Duration = Duration::from_secs(10);

/// Processes of a tree. What several have in common (pipes, open file descriptions, shared memory)
/// cannot be restored yet: such a tree is refused rather than torn apart.
const TREE_MEMBERS: usize = 1;

/// What the pager knows of a parent that is itself a child of this node.
struct FromPager<'a> {
    pager: &'a Pager,
    child: Option<ChildId>,
    asked: &'a AtomicBool,
}

impl Inherited for FromPager<'_> {
    fn snapshot(&mut self) -> Result<Option<InheritedPages>, String> {
        let Some(child) = self.child else { return Ok(None) };
        let snapshot = self.pager.client.snapshot(child, true).map_err(|e| e.to_string())?;
        self.asked.store(true, Ordering::Relaxed);
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
    let home = node.children.id_of(request.pid);
    let start = home.and_then(|id| node.children.start_of(id));
    let (resident, functions) =
        start.map_or((None, Vec::new()), |start| (start.resident, start.functions));
    let stop_timeout = node.config.stop_timeout;
    let options = Options {
        node: node.config.name.clone(),
        stop_timeout,
        resident,
        functions,
        privileged: request.privileged,
        content_max: request.content_max.unwrap_or(CONTENT_BYTES_USUAL),
    };
    let turn = node.preparing.take(request.pid, TURN);
    let turn = turn.ok_or_else(|| {
        let cause = format!("still being prepared by others after {} s", TURN.as_secs());
        NodeError::control(format!("pid {}", request.pid), cause)
    })?;
    let asked = AtomicBool::new(false);
    let from_pager = |pid: i32| {
        let child = home.filter(|_| pid == request.pid).map(ChildId);
        FromPager { pager: &pager, child, asked: &asked }
    };
    let captured = match request.tree {
        false => {
            let dontfork = node.parents.has_dontfork(request.pid);
            let mut inherited = from_pager(request.pid);
            mitosis_capture::prepare_again(request.pid, &options, dontfork, &mut inherited)
        }
        true => alone(request.pid, &options, &|pid| Box::new(from_pager(pid))),
    };
    if let Some(child) = home.filter(|_| asked.load(Ordering::Relaxed)) {
        // Also when the capture failed: the next fork of the child is no shadow.
        pager.client.shadow_taken(ChildId(child))?;
    }
    drop(turn);
    let seeded = captured?;
    node.parents.prepared(request.pid, seeded.dontfork);
    let (seed, mut prepared) = enlist(node, &pager, seeded, &request, home)?;
    if seed.bound() == Bound::Bound {
        move_away(node, Arc::clone(&seed));
    }
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

/// A tree of one process, which is a seed like any other.
fn alone(
    pid: i32,
    options: &Options,
    inherited: &mitosis_capture::InheritedOf<'_>,
) -> Result<Seeded, CaptureError> {
    let mut members = mitosis_capture::prepare_tree(pid, options, TREE_MEMBERS, inherited)?;
    let root = members.pop().map(|member| member.seeded);
    root.ok_or_else(|| CaptureError::Internal("a tree without a root".into()))
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
    home: Option<u64>,
) -> Result<(Arc<Seed>, Prepared), NodeError> {
    let Seeded { mut descriptor, shadow, bound, mut files, freeze_us, phases, .. } = seeded;
    let shadow = Shadow { pid: shadow.pid, pidfd: shadow.pidfd, mem: shadow.mem };
    let shadow = Arc::new(shadow);
    let (id, secret) = (SeedId(random()?), Secret(random()?));
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
        parent_pid: request.pid,
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
        bound,
        phases: phases.into_iter().map(|(phase, us)| PhaseTime { phase, us }).collect(),
    };
    let seed = Arc::new(Seed::new(SeedParts {
        id,
        secret,
        name: request.name.clone(),
        parent_pid: request.pid,
        created,
        expires,
        descriptor: bytes,
        pages_total: prepared.pages_total,
        memory: Memory::new(&descriptor, files, Place::Shadow(shadow)),
        home,
        bound,
        places: Places::of(&descriptor),
    }));
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
