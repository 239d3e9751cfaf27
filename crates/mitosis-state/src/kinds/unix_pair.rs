//! Connected unix sockets (stream, datagram, seqpacket) whose two ends are both the parent's
//! (socketpair(2)), with what is queued in them.

use super::rights::{self, Message};
use super::{Capture, Files, Kind, decode, encode, inode_of, unasked};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::sockopt as raw;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketType, sockopt,
};
use serde::{Deserialize, Serialize};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// The kind.
pub const KIND: Kind = Kind { number: 7, name: "socketpair", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    inode: u64,
    /// Of the other end, or [`OUTSIDE`].
    peer: u64,
    kind: u32,
    /// Queued for reading at this end, one by one.
    queued: Vec<Message>,
    options: Vec<SocketOption>,
}

/// The other end is not the process's. No socket has this inode.
const OUTSIDE: u64 = 0;

/// More than this is not taken of one message, or at once of a stream.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// More than this is not taken of one queue: the default buffer holds 208 KiB.
const QUEUE_BYTES_MAX: usize = 16 << 20;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some(inode) = inode_of(&group.link, "socket") else { return Ok(None) };
    let socket = context.duplicate(group)?;
    let what = |e: rustix::io::Errno| {
        match e {
        rustix::io::Errno::PROTONOSUPPORT => group.refused(
            "a unix socket whose other end this machine's kernel does not tell (modprobe unix_diag)",
        ),
        e => unasked(group, e),
    }
    };
    let domain = sockopt::socket_domain(&socket).map_err(what)?;
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    if domain != AddressFamily::UNIX {
        let name = describe_family(domain);
        return Err(group.refused(name));
    }
    let peer = match context.unix_peer(inode) {
        // Made by a connect from another network namespace, so it lives there, as its peer does.
        Err(rustix::io::Errno::NOENT) if is_accepted(&socket) => None,
        peer => peer.map_err(what)?,
    };
    // The rule of pipes: an end outside stays with the parent, and is closed to the child.
    let peer = peer.filter(|&peer| context.has_socket(peer)).unwrap_or(OUTSIDE);
    if peer == OUTSIDE && rustix::net::getpeername(&socket).is_err() {
        return Err(group.refused("a unix socket that is not connected"));
    }
    if peer != OUTSIDE && context.unix_peer(peer).map_err(what)? != Some(inode) {
        return Err(group.refused("a unix socket whose other end is connected elsewhere"));
    }
    let options = options::changed(&socket, domain, kind).map_err(what)?;
    let stream = kind == SocketType::STREAM;
    let queued = if context.stopped { peek(context, &socket, stream, group)? } else { Vec::new() };
    if peer == OUTSIDE && queued.iter().any(|message| !message.passed.is_empty()) {
        let what = "a unix socket with descriptors queued in it by another process";
        return Err(group.refused(what));
    }
    encode(KIND.number, &Body { inode, peer, kind: kind.as_raw(), queued, options }).map(Some)
}

/// Whether it has the name of a listening socket: the ends of a pair have none.
fn is_accepted(socket: &OwnedFd) -> bool {
    let name = rustix::net::getsockname(socket).ok();
    let name = name.and_then(|name| SocketAddrUnix::try_from(name).ok());
    let path = |name: &SocketAddrUnix| name.path_bytes().is_some_and(|path| !path.is_empty());
    name.is_some_and(|name| path(&name) || name.abstract_name().is_some())
}

/// SO_PEEK_OFF: while it is not negative, each peek begins where the last one ended.
const PEEK_OFF: (u32, u32) = (1, 42);

/// What is queued, without taking it out.
fn peek(
    context: &Capture<'_>,
    socket: &OwnedFd,
    stream: bool,
    group: &Group,
) -> Result<Vec<Message>, StateError> {
    let (level, name) = PEEK_OFF;
    let fail = |source| StateError::Sys { fd: group.first(), source };
    let before = raw::get(socket, level, name).map_err(fail)?;
    raw::set(socket, level, name, &0i32.to_le_bytes()).map_err(fail)?;
    let queued = peek_all(context, socket, stream, group);
    raw::set(socket, level, name, &before).map_err(fail)?;
    queued
}

fn peek_all(
    context: &Capture<'_>,
    socket: &OwnedFd,
    stream: bool,
    group: &Group,
) -> Result<Vec<Message>, StateError> {
    let mut queued = Vec::new();
    let mut total = 0;
    let mut bytes = vec![0u8; MESSAGE_BYTES_MAX];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got = match rustix::net::recvmsg(socket, &mut iov, &mut control, flags) {
            Ok(got) => got,
            Err(rustix::io::Errno::AGAIN) => return Ok(queued),
            Err(e) => return Err(group.refused(format!("a socket: {e}"))),
        };
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        total += got.bytes;
        let cut = got.flags.contains(rustix::net::ReturnFlags::TRUNC);
        if cut || total > QUEUE_BYTES_MAX {
            return Err(group.refused("a unix socket with more than 16 MiB queued in it"));
        }
        if got.bytes == 0 && stream {
            return Ok(queued); // Its other end writes no more.
        }
        if got.bytes == 0 && has_ended(socket, total) {
            return Ok(queued);
        }
        if got.bytes == 0 {
            // SO_PEEK_OFF does not get past it.
            return Err(group.refused("a unix socket with an empty message queued in it"));
        }
        let passed = rights::capture(context, group, &fds)?;
        queued.push(Message { bytes: bytes[..got.bytes].to_vec(), passed });
    }
}

/// Whether nothing more can come to a seqpacket socket, of whose queue this much was seen. An empty
/// message before the end is read as the end is.
fn has_ended(socket: &OwnedFd, seen: usize) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ended = poll(&mut polled, Some(&now)).is_ok_and(|count| count == 1);
    ended && rustix::io::ioctl_fionread(socket).is_ok_and(|queued| queued == seen as u64)
}

fn describe_family(domain: AddressFamily) -> String {
    match domain {
        AddressFamily::INET | AddressFamily::INET6 => {
            "a socket of a protocol over IP with connections other than TCP".into()
        }
        other => format!("a socket of address family {}", other.as_raw()),
    }
}

const SOCKETPAIR: u16 = 53;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const WRITE: u16 = 1;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    if files.done.contains(&body.inode) {
        return Ok(());
    }
    files.done.insert(body.inode);
    let other = peer_of(&body, files)?;
    if let Some((_, theirs)) = &other {
        files.done.insert(theirs.inode);
    }
    let fresh = files.lowest(2);
    let place = files.program.words(&[0]);
    let label = Detail::Fd(file.fds[0].0);
    let args = [1, u64::from(body.kind), 0, place];
    files.program.call(List::Build, SOCKETPAIR, &args, "files: socketpair", label);
    files.park(&fresh);
    let (mine, theirs) = (u64::from(files.high), u64::from(files.high) + 1);
    // What one end has queued was written by the other.
    files.set_options_at(files.high, &body.options);
    fill(files, file, theirs, &body.queued);
    files.call(FCNTL, &[mine, F_SETFL, u64::from(file.flags)], "files: F_SETFL", file.fds[0].0);
    if let Some((peer, body)) = &other {
        files.set_options_at(files.high + 1, &body.options);
        fill(files, peer, mine, &body.queued);
        let args = [theirs, F_SETFL, u64::from(peer.flags)];
        files.call(FCNTL, &args, "files: F_SETFL", peer.fds[0].0);
    }
    files.spread(file, 0);
    match other {
        Some((peer, _)) => files.spread(&peer, 1),
        None => files.close(files.high + 1),
    }
    Ok(())
}

/// Which socket it is.
pub(super) fn inode(file: &OpenFile) -> Result<u64, StateError> {
    decode::<Body>(file).map(|body| body.inode)
}

/// The other end, unless it is outside.
fn peer_of(body: &Body, files: &Files<'_>) -> Result<Option<(OpenFile, Body)>, StateError> {
    if body.peer == OUTSIDE {
        return Ok(None);
    }
    if let Some(peer) = files.of_object(KIND.number, body.peer).into_iter().next() {
        let theirs = decode(&peer)?;
        return Ok(Some((peer, theirs)));
    }
    let reason = format!("socket {} has no peer in the descriptor", body.inode);
    Err(StateError::Malformed { kind: KIND.number, reason })
}

/// What one end has queued was written by the other.
fn fill(files: &mut Files<'_>, file: &OpenFile, writer: u64, queued: &[Message]) {
    if waits(queued) {
        return;
    }
    for message in queued {
        let data = files.program.data(&message.bytes);
        let len = message.bytes.len() as u64;
        let (list, label) = (List::Build, Detail::Fd(file.fds[0].0));
        let args = [writer, data, len];
        files.program.call_expect(list, WRITE, &args, len, "files: fill socket", label);
    }
}

/// Whether a queue names other files, so that these must be there first.
fn waits(queued: &[Message]) -> bool {
    queued.iter().any(|message| !message.passed.is_empty())
}

/// Fills a queue that names other files, once everything is there.
pub(super) fn deliver(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    if !waits(&body.queued) {
        return Ok(());
    }
    match peer_of(&body, files)? {
        Some((peer, _)) => rights::send(files, peer.fds[0].0, &body.queued),
        None => {
            let reason = format!("socket {} has descriptors from nowhere", body.inode);
            Err(StateError::Malformed { kind: KIND.number, reason })
        }
    }
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let queued: usize = body.queued.iter().map(|message| message.bytes.len()).sum();
    Ok(format!("{} with {}, {queued} bytes queued", body.inode, body.peer))
}
