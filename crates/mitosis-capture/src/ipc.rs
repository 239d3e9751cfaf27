//! System V objects: the segments that are attached, and the semaphores and message queues that the
//! process uses.
//!
//! Nothing ties semaphores and queues to a process but that it was the last to use them. In an IPC
//! namespace that is not this node's (a container's, a child's) all belong to whoever is in it.

use crate::CaptureError;
use crate::shared::{Kept, SYSV};
use mitosis_descriptor::{Ipc, IpcObject, MessageQueue, Segment, Semaphores};
use mitosis_sys::ipc::{self, Entry, Kind};
use mitosis_sys::{SysError, procfs};

/// `SHM_DEST` and `SHM_LOCKED` of linux/shm.h.
const REMOVED: u32 = 0o1000;
const LOCKED: u32 = 0o2000;

/// As they were while the process stood still.
pub(crate) struct Objects {
    segments: Vec<Entry>,
    semaphores: Vec<Semaphores>,
    queues: Vec<MessageQueue>,
}

/// Whether the process may have such objects.
pub(crate) fn any(pid: i32) -> Result<bool, CaptureError> {
    let fail = CaptureError::sys("inspect", pid);
    let ranges = procfs::ranges(pid).map_err(&fail)?;
    if ranges.iter().any(|mapping| mapping.name.starts_with(SYSV)) {
        return Ok(true);
    }
    let all = !ipc::is_ours(pid).map_err(&fail)?;
    let look = || Ok(!sets(pid, all)?.is_empty() || !queues(pid, all)?.is_empty());
    ipc::within(pid, look).and_then(|seen| seen).map_err(&fail)
}

/// Takes them; the process stands still.
pub(crate) fn take(pid: i32) -> Result<Objects, CaptureError> {
    let look = |all: bool| -> Result<Objects, SysError> {
        let semaphores = sets(pid, all)?.into_iter().map(|set| {
            let values = ipc::semaphores(set.id, set.size)?;
            Ok(Semaphores { ipc: object(&set), values })
        });
        let queues = queues(pid, all)?.into_iter().map(|queue| {
            let (bytes_max, messages) = (ipc::queue_room(queue.id)?, ipc::messages(queue.id)?);
            Ok(MessageQueue { ipc: object(&queue), bytes_max, messages })
        });
        Ok(Objects {
            segments: ipc::list(Kind::Memory)?,
            semaphores: semaphores.collect::<Result<_, SysError>>()?,
            queues: queues.collect::<Result<_, SysError>>()?,
        })
    };
    let all = ipc::is_ours(pid).map(|ours| !ours);
    let taken = all.and_then(|all| ipc::within(pid, || look(all)).and_then(|taken| taken));
    taken.map_err(CaptureError::sys("inspect", pid))
}

/// Sets of semaphores that the process uses.
fn sets(pid: i32, all: bool) -> Result<Vec<Entry>, SysError> {
    let mut sets = ipc::list(Kind::Semaphores)?;
    // One that is gone meanwhile is nobody's.
    let uses = |set: &Entry| {
        (0..set.size).any(|n| ipc::semaphore_user(set.id, n).is_ok_and(|user| user == pid))
    };
    sets.retain(|set| all || uses(set));
    Ok(sets)
}

/// Message queues that the process uses.
fn queues(pid: i32, all: bool) -> Result<Vec<Entry>, SysError> {
    let mut queues = ipc::list(Kind::Messages)?;
    queues.retain(|queue| all || queue.pids.contains(&pid));
    Ok(queues)
}

fn object(entry: &Entry) -> IpcObject {
    let [uid, gid, cuid, cgid] = entry.ids;
    IpcObject { id: entry.id, key: entry.key, mode: entry.mode & 0o777, uid, gid, cuid, cgid }
}

/// All of it for a descriptor. A segment of another IPC namespace than the process is in has no id
/// that it could use: it is memory and no more.
pub(crate) fn describe(
    pid: i32,
    taken: Option<&Objects>,
    kept: Option<&Kept>,
) -> Result<Ipc, CaptureError> {
    let attached = kept.map_or(&[][..], |kept| &kept.segments);
    let Some(taken) = taken else {
        if attached.is_empty() {
            return Ok(Ipc::default());
        }
        let why = "has System V memory that is newer than the first look: try again".into();
        return Err(CaptureError::Refused { pid, why });
    };
    let size = |object: u32| kept.map_or(0, |kept| kept.objects[object as usize].size);
    let segment = |&(number, id): &(u32, i32)| {
        let entry = taken.segments.iter().find(|entry| entry.id == id)?;
        let same = entry.size == size(number);
        same.then(|| Segment {
            ipc: object(entry),
            object: number,
            size: entry.size,
            removed: entry.mode & REMOVED != 0,
            locked: entry.mode & LOCKED != 0,
        })
    };
    Ok(Ipc {
        segments: attached.iter().filter_map(segment).collect(),
        semaphores: taken.semaphores.clone(),
        queues: taken.queues.clone(),
    })
}
