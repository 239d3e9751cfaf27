//! The kinds, one module each. The table below is the only list of them.

pub mod epoll;
pub mod eventfd;
pub mod generic;
pub mod gift;
pub mod inotify;
pub mod listener;
pub mod memfd;
pub mod mqueue;
pub mod netlink;
mod notice;
pub mod packet;
pub mod pidfd;
pub mod pipe;
pub mod proc;
pub mod regular;
mod rights;
pub mod signalfd;
pub mod socket;
pub mod stdio;
pub mod tcp;
pub mod terminal;
pub mod timerfd;
pub mod udp;
pub mod unix_pair;

pub use crate::files::Files;
pub use crate::look::Capture;

use crate::files::{F_DUPFD_CLOEXEC, SLOT};
use crate::{Group, StateError, tree};
use mitosis_descriptor::OpenFile;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;

/// Gives the body of a group's state.
type CaptureFn = fn(&Capture<'_>, &Group) -> Result<Option<Vec<u8>>, StateError>;

/// A kind of open file.
pub struct Kind {
    /// Stored in descriptors: never reused.
    pub number: u16,
    /// As in the docs.
    pub name: &'static str,
    /// `None` when the group is not of this kind.
    capture: CaptureFn,
    plan: fn(&OpenFile, &mut Files<'_>) -> Result<(), StateError>,
    describe: fn(&OpenFile) -> Result<String, StateError>,
}

/// In the order in which they are tried.
pub const KINDS: &[Kind] = &[
    stdio::KIND,
    proc::KIND,
    terminal::KIND,
    mqueue::KIND,
    memfd::KIND,
    pipe::KIND,
    regular::KIND,
    eventfd::KIND,
    epoll::KIND,
    listener::KIND,
    tcp::KIND,
    udp::KIND,
    netlink::KIND,
    packet::KIND,
    socket::KIND,
    unix_pair::KIND,
    timerfd::KIND,
    signalfd::KIND,
    pidfd::KIND,
    inotify::KIND,
    gift::KIND,
];

/// Captures every description. Queues are left out unless the parent is stopped. Of a file without a
/// path at most `content_max` bytes are taken along.
///
/// # Errors
/// [`StateError::Refused`] naming the first descriptor of a kind that cannot be carried.
pub fn capture(
    pid: i32,
    groups: &[Group],
    stopped: bool,
    content_max: u64,
) -> Result<Vec<OpenFile>, StateError> {
    let context = Capture::new(pid, groups, stopped, content_max)?;
    groups.iter().map(|group| capture_one(&context, group)).collect()
}

/// The same of a member of a process tree, all of which stands still: what it makes, and what it gets
/// from others.
///
/// # Errors
/// As [`capture`].
pub fn capture_member(
    pid: i32,
    share: &tree::Share,
    content_max: u64,
) -> Result<Vec<OpenFile>, StateError> {
    let mut context = Capture::new(pid, &share.groups, true, content_max)?;
    context.members = &share.members;
    context.mapped = Some(&share.mapped);
    context.watches = Some(&share.watches);
    let one = |(at, group): (usize, &Group)| match share.gets.get(&at) {
        Some(gift) => Ok(gift.clone()),
        None => capture_one(&context, group),
    };
    share.groups.iter().enumerate().map(one).collect()
}

fn capture_one(context: &Capture<'_>, group: &Group) -> Result<OpenFile, StateError> {
    for kind in KINDS {
        if let Some(body) = (kind.capture)(context, group)? {
            let fds = group.fds.iter().map(|fd| (fd.number, fd.cloexec)).collect();
            let signals = notice::capture(context, group)?;
            return Ok(OpenFile { kind: kind.number, flags: group.flags, fds, body, signals });
        }
    }
    Err(group.refused(format!("{} (a kind that is not carried)", group.link)))
}

/// Plans all files. What an epoll instance watches must exist before it is registered there.
///
/// # Errors
/// [`StateError::Malformed`], or a file that cannot be had on this node.
pub fn plan(files: &[OpenFile], context: &mut Files<'_>) -> Result<(), StateError> {
    // Who is signalled is said last, and by the number that the program knows.
    let quiet = |file: &OpenFile| OpenFile { flags: file.flags & !notice::ASYNC, ..file.clone() };
    let told = files;
    let files: Vec<OpenFile> = files.iter().map(quiet).collect();
    context.all = files.clone();
    context.objects_of = by_object(&files)?;
    // A connection may have the port of a listener: it must be there first.
    let first = |file: &&OpenFile| file.kind == tcp::KIND.number;
    let rest = files.iter().filter(|file| !first(file));
    for file in files.iter().filter(first).chain(rest) {
        (kind_of(file)?.plan)(file, context)?;
    }
    gift::exchange(&files, context)?;
    for file in files.iter().filter(|file| file.kind == epoll::KIND.number) {
        epoll::register(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == gift::KIND.number) {
        gift::register(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == inotify::KIND.number) {
        inotify::watch(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == socket::KIND.number) {
        socket::connect(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == unix_pair::KIND.number) {
        unix_pair::deliver(file, context)?;
    }
    gift::close_temporary(context);
    terminal::foreground(context);
    for file in told {
        notice::plan(file, context);
    }
    Ok(())
}

/// Places of the files that are made together: those of one pipe, or of one file without a path, and each
/// end of a socketpair or of a TCP connection, by kind and inode.
fn by_object(files: &[OpenFile]) -> Result<HashMap<(u16, u64), Vec<usize>>, StateError> {
    let mut all: HashMap<(u16, u64), Vec<usize>> = HashMap::new();
    for (at, file) in files.iter().enumerate() {
        let inode = match file.kind {
            kind if kind == pipe::KIND.number => Some(pipe::inode(file)?),
            kind if kind == unix_pair::KIND.number => Some(unix_pair::inode(file)?),
            kind if kind == memfd::KIND.number => Some(memfd::inode(file)?),
            kind if kind == tcp::KIND.number => tcp::inode(file)?,
            _ => None,
        };
        if let Some(inode) = inode {
            all.entry((file.kind, inode)).or_default().push(at);
        }
    }
    Ok(all)
}

/// The highest number that a file has in a child, or that is used in passing.
pub fn highest_number(file: &OpenFile) -> u32 {
    let passing = match file.kind {
        kind if kind == epoll::KIND.number => epoll::highest(file),
        kind if kind == gift::KIND.number => gift::highest(file),
        _ => 0,
    };
    file.fds.iter().map(|(number, _)| *number).max().unwrap_or(0).max(passing)
}

/// One line about a file, for people.
///
/// # Errors
/// [`StateError::Malformed`].
pub fn describe(file: &OpenFile) -> Result<String, StateError> {
    let kind = kind_of(file)?;
    let fds: Vec<String> = file.fds.iter().map(|(n, _)| n.to_string()).collect();
    Ok(format!("fd {}: {} {}", fds.join(","), kind.name, (kind.describe)(file)?))
}

fn kind_of(file: &OpenFile) -> Result<&'static Kind, StateError> {
    KINDS.iter().find(|kind| kind.number == file.kind).ok_or_else(|| StateError::Malformed {
        kind: file.kind,
        reason: "unknown kind (made by a newer version?)".into(),
    })
}

/// A socket that cannot be asked, by name where the reason has one.
fn unasked(group: &Group, error: rustix::io::Errno) -> StateError {
    match error {
        // Of SO_GET_FILTER, to whoever may do all else.
        rustix::io::Errno::ACCESS => group.refused("a socket with a bpf program (SO_ATTACH_BPF)"),
        error => group.refused(format!("a socket: {error}")),
    }
}

fn encode<T: Serialize>(kind: u16, body: &T) -> Result<Vec<u8>, StateError> {
    postcard::to_stdvec(body).map_err(|e| StateError::Malformed { kind, reason: e.to_string() })
}

fn decode<T: DeserializeOwned>(file: &OpenFile) -> Result<T, StateError> {
    postcard::from_bytes(&file.body)
        .map_err(|e| StateError::Malformed { kind: file.kind, reason: e.to_string() })
}

/// Whether any socket-like name `prefix:[inode]`; returns the inode.
pub(crate) fn inode_of(link: &str, prefix: &str) -> Option<u64> {
    link.strip_prefix(prefix)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// O_NONBLOCK.
const NONBLOCK: u32 = 0o4000;
