//! Files of `/proc`: of the process itself they become the child's own, those of the machine are the
//! child's node's. Another process is not there: to a child it has ended. So too the files by which the
//! process names its own namespaces (`/proc/self/ns`).

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::procfs::{self, Status};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 31, name: "proc", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    whose: Whose,
    path: String,
    pos: u64,
}

#[derive(Serialize, Deserialize)]
enum Whose {
    /// The leading thread's, or the machine's.
    Here,
    /// Of the thread with this id, below whose directory the path begins.
    Thread(i32),
    /// Another process's, or a thread's that has ended; a directory or not.
    Ended(bool),
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if let Some(path) = namespace(context, group)? {
        return encode(KIND.number, &Body { whose: Whose::Here, path, pos: 0 }).map(Some);
    }
    let Some(rest) = group.link.strip_prefix("/proc/") else { return Ok(None) };
    let (rest, ended) = match rest.strip_suffix(" (deleted)") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (first, below) = rest.split_once('/').unwrap_or((rest, ""));
    let (whose, path) = match first.parse::<i32>() {
        Ok(pid) if ended || context.inner_pid() != Some(pid) => {
            (Whose::Ended(is_directory(context, group)), rest.into())
        }
        Ok(pid) => below_own(context, group, pid, below),
        Err(_) => (Whose::Here, group.link.clone()),
    };
    encode(KIND.number, &Body { whose, path, pos: group.pos }).map(Some)
}

/// The same file, whatever the pid is. Only the leading thread is there when files are opened.
fn below_own(context: &Capture<'_>, group: &Group, pid: i32, below: &str) -> (Whose, String) {
    let Some(of_thread) = below.strip_prefix("task/") else {
        let path =
            if below.is_empty() { "/proc/self".into() } else { format!("/proc/self/{below}") };
        return (Whose::Here, path);
    };
    let (thread, rest) = of_thread.split_once('/').unwrap_or((of_thread, ""));
    match thread.parse::<i32>() {
        Ok(tid) if tid == pid => (Whose::Here, format!("/proc/thread-self/{rest}")),
        Ok(tid) if has_thread(context, tid) => (Whose::Thread(tid), rest.into()),
        _ => (Whose::Ended(is_directory(context, group)), below.into()),
    }
}

fn is_directory(context: &Capture<'_>, group: &Group) -> bool {
    let stat = rustix::fs::stat(format!("/proc/{}/fd/{}", context.pid, group.first()));
    stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn has_thread(context: &Capture<'_>, tid: i32) -> bool {
    let threads = procfs::threads(context.pid).unwrap_or_default();
    threads.into_iter().any(|thread| inner_tid(context.pid, thread) == Some(tid))
}

/// Id of a thread in its own pid namespace.
pub(super) fn inner_tid(pid: i32, tid: i32) -> Option<i32> {
    Status::of_thread(pid, tid).ok()?.inner_id()
}

/// How the kernel calls the kinds of namespace, and how `/proc/PID/ns` does.
const NAMESPACES: [(&str, &[&str]); 8] = [
    ("cgroup", &["cgroup"]),
    ("ipc", &["ipc"]),
    ("mnt", &["mnt"]),
    ("net", &["net"]),
    ("pid", &["pid", "pid_for_children"]),
    ("time", &["time", "time_for_children"]),
    ("user", &["user"]),
    ("uts", &["uts"]),
];

/// The path of a namespace of the process's own; refused for another one.
fn namespace(context: &Capture<'_>, group: &Group) -> Result<Option<String>, StateError> {
    let Some((kind, _)) = group.link.split_once(":[") else { return Ok(None) };
    let Some((_, names)) = NAMESPACES.iter().find(|(name, _)| *name == kind) else {
        return Ok(None);
    };
    let own = |name: &&&str| {
        let link = procfs::link(context.pid, &format!("ns/{name}"));
        link.is_ok_and(|link| link == group.link)
    };
    match names.iter().find(own) {
        Some(name) => Ok(Some(format!("/proc/self/ns/{name}"))),
        None => Err(group.refused(format!("the namespace {}, which is not its own", group.link))),
    }
}

const OPENAT: u16 = 257;
const LSEEK: u16 = 8;
const AT_FDCWD: u64 = -100i64 as u64;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC are about the moment of opening only; O_NOFOLLOW would not
/// let `/proc/self` be followed.
const OPENING_ONLY: u32 = 0o100 | 0o200 | 0o400 | 0o1000 | 0o400_000;

/// O_DIRECTORY.
const DIRECTORY: u32 = 0o200_000;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let flags = u64::from(file.flags & !OPENING_ONLY);
    match body.whose {
        Whose::Here => {
            if let Some(parts) = files.own_users.then(|| of_users(&body.path)).flatten() {
                plan_of_users(file, files, flags, parts, body.pos);
                return Ok(());
            }
        }
        Whose::Ended(directory) => {
            plan_ended(file, files, flags, directory);
            return Ok(());
        }
        Whose::Thread(tid) => {
            files.same_ids(file, "a /proc file")?;
            // Its place until then, and by which it is found: /proc may be outside of the root then.
            let tasks = files.program.string("/proc/self/task");
            let args = [AT_FDCWD, tasks, u64::from(DIRECTORY), 0];
            files.make(file, OPENAT, &args, "files: open the threads", Detail::Fd(fd));
            let path = files.program.string(&format!("{tid}/{}", body.path));
            let args = [u64::from(fd), path, flags, 0];
            files.make_late(file, OPENAT, &args, "files: open of a thread");
            return Ok(());
        }
    }
    let path = files.program.string(&body.path);
    let args = [AT_FDCWD, path, flags, 0];
    let label = Detail::Text(format!("{} for fd {fd}", body.path));
    files.make(file, OPENAT, &args, "files: open", label);
    if body.pos != 0 {
        let args = [u64::from(fd), body.pos, 0];
        files.program.call(List::Build, LSEEK, &args, "files: lseek", Detail::Fd(fd));
    }
    Ok(())
}

/// What tells of the user namespace of the process that opens it: its directory, and its name below that.
fn of_users(path: &str) -> Option<(&str, &str)> {
    const NAMES: [&str; 5] = ["ns/user", "uid_map", "gid_map", "projid_map", "setgroups"];
    let parts = NAMES.iter().find_map(|name| Some((path.strip_suffix(name)?, *name)));
    let parts = parts.map(|(directory, name)| (directory.trim_end_matches('/'), name));
    parts.filter(|(directory, _)| ["/proc/self", "/proc/thread-self"].contains(directory))
}

/// Opened when the process is in that namespace. Until then its directory has its place, for `/proc` may be
/// outside of the root by then.
fn plan_of_users(
    file: &OpenFile,
    files: &mut Files<'_>,
    flags: u64,
    (directory, name): (&str, &str),
    pos: u64,
) {
    let fd = file.fds[0].0;
    let directory = files.program.string(directory);
    let args = [AT_FDCWD, directory, u64::from(DIRECTORY), 0];
    files.make(file, OPENAT, &args, "files: open the process", Detail::Fd(fd));
    let path = files.program.string(name);
    let args = [u64::from(fd), path, flags, 0];
    files.make_late(file, OPENAT, &args, "files: open of its user namespace");
    if pos != 0 {
        let args = [u64::from(fd), pos, 0];
        files.program.call(List::Finish, LSEEK, &args, "files: lseek", Detail::Fd(fd));
    }
}

/// A file of a process that has ended: whatever is asked of it, the answer is ESRCH. Most can be opened
/// only while it lives; this one can be written, too.
fn plan_ended(file: &OpenFile, files: &mut Files<'_>, flags: u64, directory: bool) {
    let pid = files.spare_pid;
    files.program.make_ended(pid);
    let name = if directory { "" } else { "/comm" };
    let path = files.program.string(&format!("/proc/{pid}{name}"));
    let label = Detail::Fd(file.fds[0].0);
    files.make(file, OPENAT, &[AT_FDCWD, path, flags, 0], "files: open of an ended process", label);
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(match body.whose {
        Whose::Here => format!("{} at {}", body.path, body.pos),
        Whose::Thread(tid) => format!("{} of thread {tid}", body.path),
        Whose::Ended(_) => format!("{} of another process", body.path),
    })
}
