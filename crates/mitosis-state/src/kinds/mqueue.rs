//! POSIX message queues: of each child's own, with what waited in them.
//!
//! Nobody can see what waits without taking it. So it is taken and put back, in its order, while the
//! process stands still. Where somebody could notice that, what waits is left to the parent: in a full
//! queue that others have too (a sender that waits would be let in), in one of which somebody is to be
//! told (mq_notify(3)), as he would be when it is put back. To be told is for the process alone that
//! asked, as after a fork.

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::{SysError, mqueue, procfs};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// The kind.
pub const KIND: Kind = Kind { number: 14, name: "mqueue", capture, plan, describe };

#[derive(Serialize, Deserialize, Clone)]
struct Body {
    /// Inode: descriptions of one queue stay descriptions of one queue.
    inode: u64,
    /// Without the slash.
    name: String,
    /// No name leads to it any more.
    unlinked: bool,
    mode: u32,
    owner: (u32, u32),
    messages_max: i64,
    bytes_max: i64,
    /// Priority and text, in the order in which they are received.
    messages: Vec<(u32, Vec<u8>)>,
}

/// `MQUEUE_MAGIC` of ipc/mqueue.c.
const MQUEUE_MAGIC: i64 = 0x1980_0202;

/// Whether it is one: it looks like a file, deleted or not, below the root directory; its file system
/// has no mount that a path could lead through.
pub(crate) fn is_queue(pid: i32, group: &Group) -> bool {
    let could_be = group.link.rfind('/') == Some(0);
    let file = format!("/proc/{pid}/fd/{}", group.first());
    could_be && rustix::fs::statfs(file).is_ok_and(|stat| stat.f_type == MQUEUE_MAGIC)
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if !is_queue(context.pid, group) {
        return Ok(None);
    }
    let fd = group.first();
    let io = |call| {
        move |e: rustix::io::Errno| StateError::Sys { fd, source: SysError::io(call, fd, e) }
    };
    let fail = |source| StateError::Sys { fd, source };
    // Opened anew: the parent's may be for one direction only, and it may block.
    let link = format!("/proc/{}/fd/{fd}", context.pid);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = rustix::fs::open(&link, flags, Mode::empty()).map_err(io("open"))?;
    let stat = rustix::fs::fstat(&queue).map_err(io("fstat"))?;
    let attributes = mqueue::attributes(&queue).map_err(fail)?;
    let what =
        |what: &str| group.refused(format!("the POSIX message queue {}, {what}", group.link));
    let listener = listener(&queue).map_err(io("read"))?;
    let mut messages = Vec::new();
    if context.stopped && attributes.messages > 0 && listener == 0 {
        let full = attributes.messages >= attributes.messages_max;
        if !full || !others_have((stat.st_dev, stat.st_ino), context.pid) {
            messages = look(&queue, &attributes).map_err(fail)?;
        }
    }
    let bytes: usize = messages.iter().map(|(_, text)| text.len()).sum();
    if bytes as u64 > context.content_max {
        return Err(what("with more in it than --content-max"));
    }
    let name = group.link.trim_start_matches('/');
    let body = Body {
        inode: stat.st_ino,
        name: name.strip_suffix(" (deleted)").unwrap_or(name).into(),
        unlinked: stat.st_nlink == 0,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        messages_max: attributes.messages_max,
        bytes_max: attributes.bytes_max,
        messages,
    };
    encode(KIND.number, &body).map(Some)
}

/// The process that is to be told of the next message, by our number, or 0.
fn listener(queue: &OwnedFd) -> rustix::io::Result<i32> {
    let mut text = [0u8; 128];
    let got = rustix::io::pread(queue, &mut text[..], 0)?;
    let text = String::from_utf8_lossy(&text[..got]).into_owned();
    let pid = text.split_whitespace().find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    Ok(pid.and_then(|pid| pid.parse().ok()).unwrap_or(0))
}

/// Takes all there is and puts it back.
fn look(queue: &OwnedFd, attributes: &mqueue::Attributes) -> Result<Vec<(u32, Vec<u8>)>, SysError> {
    let mut room = vec![0u8; attributes.bytes_max.max(1) as usize];
    let mut messages = Vec::new();
    let mut said = Ok(());
    for _ in 0..attributes.messages {
        match mqueue::receive(queue, &mut room) {
            Ok(Some((priority, len))) => messages.push((priority, room[..len].to_vec())),
            Ok(None) => break,
            Err(e) => {
                said = Err(e);
                break;
            }
        }
    }
    for (priority, text) in &messages {
        let put = mqueue::send(queue, *priority, text);
        said = said.and(put);
    }
    said.map(|()| messages)
}

/// Whether another process has the queue.
fn others_have(file: (u64, u64), pid: i32) -> bool {
    let Ok(all) = std::fs::read_dir("/proc") else { return true };
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id() as i32;
    pids.filter(|other| *other != pid && *other != own).any(|other| {
        let fds = procfs::descriptors(other).unwrap_or_default();
        fds.into_iter().any(|fd| {
            let stat = rustix::fs::stat(format!("/proc/{other}/fd/{fd}"));
            stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == file)
        })
    })
}

const FCHMOD: u16 = 91;
const FCHOWN: u16 = 93;
const MQ_OPEN: u16 = 240;
const MQ_UNLINK: u16 = 241;
const MQ_TIMEDSEND: u16 = 242;
const PRLIMIT64: u16 = 302;
const SETRESUID: u16 = 117;
const SETRESGID: u16 = 119;
const RLIMIT_MSGQUEUE: u64 = 12;
const CREATE: u64 = 0o302 | 0o4000; // O_RDWR, O_CREAT, O_EXCL, O_NONBLOCK
/// Access mode and O_NONBLOCK.
const KEPT_FLAGS: u32 = 0o4003;
/// `DFLT_MSGMAX` and `DFLT_MSGSIZEMAX` of linux/ipc_namespace.h: those of a new namespace.
const USUAL: (i64, i64) = (10, 8192);

fn plan(_: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    // All at once: one that was unlinked may have had the name of another.
    if !files.done.insert(u64::from(KIND.number) << 32) {
        return Ok(());
    }
    let mut queues: BTreeMap<(bool, u64), (Body, Vec<OpenFile>)> = BTreeMap::new();
    for file in files.all.iter().filter(|file| file.kind == KIND.number) {
        let body: Body = decode(file)?;
        let place = queues.entry((!body.unlinked, body.inode));
        place.or_insert_with(|| (body, Vec::new())).1.push(file.clone());
    }
    let most = |of: fn(&Body) -> i64| queues.values().map(|(body, _)| of(body)).max().unwrap_or(0);
    let bounds = (most(|body| body.messages_max), most(|body| body.bytes_max));
    if bounds.0 > USUAL.0 {
        files.write_to("/proc/sys/fs/mqueue/msg_max", &bounds.0.to_string());
    }
    if bounds.1 > USUAL.1 {
        files.write_to("/proc/sys/fs/mqueue/msgsize_max", &bounds.1.to_string());
    }
    // What all queues of a user take is counted together: the child's own bound is set at the end.
    let all = files.program.words(&[u64::MAX, u64::MAX]);
    let args = [0, RLIMIT_MSGQUEUE, all, 0];
    files.program.call_ignore(List::Build, PRLIMIT64, &args, "files: RLIMIT_MSGQUEUE");
    for (body, descriptions) in queues.values() {
        make(files, body, descriptions);
    }
    Ok(())
}

fn make(files: &mut Files<'_>, body: &Body, descriptions: &[OpenFile]) {
    let at = files.lowest(1)[0];
    let me = u64::from(at);
    let name = files.program.string(&body.name);
    let attributes = [0, body.messages_max as u64, body.bytes_max as u64, 0, 0, 0, 0, 0];
    let attributes = files.program.words(&attributes);
    let (args, list) = ([name, CREATE, 0o600, attributes], List::Build);
    let detail = || Detail::Text(body.name.clone());
    let (uid, gid) = body.owner;
    // In a file system that belongs to a user namespace only somebody who has an id there can make one.
    let owner = if files.own_users { [(SETRESGID, gid), (SETRESUID, uid)] } else { [(0, 0); 2] };
    for (nr, id) in owner.into_iter().filter(|(_, id)| *id != 0) {
        become_effective(files, nr, id);
    }
    files.program.call_expect(list, MQ_OPEN, &args, me, "files: mq_open", detail());
    for (nr, _) in owner.into_iter().rev().filter(|(_, id)| *id != 0) {
        become_effective(files, nr, 0);
    }
    for (priority, text) in &body.messages {
        let data = files.program.data(text);
        let args = [me, data, text.len() as u64, u64::from(*priority), 0];
        files.program.call(list, MQ_TIMEDSEND, &args, "files: mq_send", detail());
    }
    files.call(FCHMOD, &[me, u64::from(body.mode & 0o7777)], "files: fchmod", at);
    if (uid, gid) != (0, 0) {
        files.call(FCHOWN, &[me, u64::from(uid), u64::from(gid)], "files: fchown", at);
    }
    files.close(at);
    for file in descriptions {
        let flags = u64::from(file.flags & KEPT_FLAGS);
        let detail = Detail::Fd(file.fds[0].0);
        files.make(file, MQ_OPEN, &[name, flags, 0, 0], "files: mq_open for", detail);
    }
    if body.unlinked {
        files.program.call(list, MQ_UNLINK, &[name], "files: mq_unlink", detail());
    }
}

/// Has another id for a moment, with the rights that belong to it.
fn become_effective(files: &mut Files<'_>, nr: u16, id: u32) {
    const KEEP: u64 = u64::MAX;
    let args = [KEEP, u64::from(id), KEEP];
    files.program.call(List::Build, nr, &args, "files: be the owner", Detail::None);
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("{}, {} messages", body.name, body.messages.len()))
}
