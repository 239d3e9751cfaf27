//! Who is signalled when something happens to an open file (`F_SETOWN`, `F_SETSIG`, `O_ASYNC`):
//! no kind, but what any of them can have.

use super::{Capture, Files, SLOT, inode_of, proc};
use crate::program::{Detail, List, op};
use crate::{Group, StateError};
use mitosis_descriptor::{FileSignals, OpenFile};
use mitosis_stub::abi::OP_STORE32;
use mitosis_sys::{openfile, procfs};

/// `O_ASYNC`.
pub(super) const ASYNC: u32 = 0o20000;
const OWNER_TID: u32 = 0;
const OWNER_PID: u32 = 1;
/// No process has this id.
const NOBODY: i32 = 0;

/// Looked for where it is likely, since it costs a descriptor: at sockets, which tell of urgent
/// data without `O_ASYNC` too, and where that is set.
pub(super) fn capture(
    context: &Capture<'_>,
    group: &Group,
) -> Result<Option<FileSignals>, StateError> {
    let armed = group.flags & ASYNC != 0;
    if !armed && inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let file = context.duplicate(group)?;
    let fail = |source| StateError::Sys { fd: group.first(), source };
    let Some(owner) = openfile::owner(&file).map_err(fail)? else { return Ok(None) };
    let inner = |tid: i32| proc::inner_tid(context.pid, tid);
    let own = |id: i32| id == context.process;
    let own_group = |id: i32| {
        let stat = procfs::stat(context.pid).unwrap_or_default();
        own(id) && procfs::stat_field(&stat, 5) as i32 == id
    };
    let id = match owner.kind {
        OWNER_TID => inner(owner.id),
        OWNER_PID => Some(owner.id).filter(|id| own(*id)).and_then(inner),
        _ => Some(owner.id).filter(|id| own_group(*id)).and_then(inner),
    };
    let member = || context.inner_pid_of(owner.id).filter(|_| owner.kind == OWNER_PID);
    let other = if id.is_none() { member() } else { None };
    // Another process is not there: a child's tells nobody, as when that one has ended.
    let id = id.or(other).unwrap_or(NOBODY);
    let (kind, signal, other) = (owner.kind, owner.signal, other.is_some());
    Ok(Some(FileSignals { kind, id, signal, armed, other }))
}

const FCNTL: u16 = 72;
const GETPID: u16 = 39;
const F_SETFL: u64 = 4;
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

/// When the threads are there, for one of them may be meant.
pub(super) fn plan(file: &OpenFile, files: &mut Files<'_>) {
    let Some(signals) = file.signals else { return };
    let (list, fd) = (List::Finish, file.fds[0].0);
    let owner = u64::from(signals.kind) | u64::from(signals.id as u32) << 32;
    let at = files.program.words(&[owner]);
    let told = signals.id != NOBODY;
    if told && signals.kind != OWNER_TID && !signals.other {
        // Asked for: with `--new-pid` the plan does not know it.
        let mut ask = op(GETPID, 0, &[]);
        ask.save = SLOT;
        files.program.push(list, ask, "files: getpid", Detail::Fd(fd));
        let mut store = op(0, OP_STORE32, &[at + 4]);
        store.slot = SLOT;
        files.program.push(list, store, "files: write the owner", Detail::Fd(fd));
    }
    let mut call = |args: &[u64], what| {
        files.program.call(list, FCNTL, args, what, Detail::Fd(fd));
    };
    if told {
        call(&[u64::from(fd), F_SETOWN_EX, at], "files: F_SETOWN_EX");
    }
    call(&[u64::from(fd), F_SETSIG, u64::from(signals.signal)], "files: F_SETSIG");
    if signals.armed {
        call(&[u64::from(fd), F_SETFL, u64::from(file.flags)], "files: F_SETFL");
    }
}
