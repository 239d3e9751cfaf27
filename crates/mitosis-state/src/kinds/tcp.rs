//! Established TCP connections, and those that are being made.
//!
//! Where the other end is elsewhere, the parent keeps its own; the child sees a reset at once, since
//! the other end can speak to one of them only. Where both ends are the process's, the child gets a
//! connection of its own with what was on it, over its loopback: at the same addresses where these
//! can be had, else at others.

use super::{Capture, Files, Kind, decode, encode, inode_of, unasked};
use crate::net::{self, Address};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::sockopt as raw;
use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// The kind.
pub const KIND: Kind = Kind { number: 13, name: "tcp", capture, plan, describe };

#[derive(Clone, Serialize, Deserialize)]
struct Body {
    v6: bool,
    peer: String,
    options: Vec<SocketOption>,
    own: Option<Own>,
}

/// Both ends are the process's.
#[derive(Clone, Serialize, Deserialize)]
struct Own {
    inode: u64,
    other: u64,
    local: Address,
    /// For reading at this end.
    queued: Vec<u8>,
    /// This end writes no more.
    shut: bool,
}

/// A connection of the parent.
pub struct Connection {
    inode: u64,
    local: Address,
    peer: Address,
}

/// What a connection of the process with itself may hold: more than loopback takes at once without
/// a reader would make the fork fail.
const QUEUE_BYTES_MAX: usize = 256 << 10;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some((socket, family)) = tcp_socket(context, group)? else {
        return Ok(None);
    };
    let what = |e| unasked(group, e);
    let info = Info::of(&socket, group)?;
    let peer = match rustix::net::getpeername(&socket) {
        Ok(Some(peer)) => Some(net::address_of(peer).map_err(|what| group.refused(what))?),
        _ if info.connecting() || info.dead() => None,
        _ => return Ok(None),
    };
    let own = match &peer {
        Some(peer) => own_connection(context, group, &socket, peer, &info)?,
        None => None,
    };
    let peer = peer.map_or_else(|| "nobody yet".into(), |peer| peer.to_string());
    let mut options = options::changed(&socket, family, SocketType::STREAM).map_err(what)?;
    // Cannot be set once there is an address, and does not matter any more.
    options.retain(|option| (option.level, option.name) != options::V6ONLY);
    let v6 = family == AddressFamily::INET6;
    encode(KIND.number, &Body { v6, peer, options, own }).map(Some)
}
/// The group's socket and its address family, when it is one of TCP. One of Multipath TCP counts as
/// that, which is what a child gets.
///
/// # Errors
/// Refused when the socket cannot be asked.
fn tcp_socket(
    context: &Capture<'_>,
    group: &Group,
) -> Result<Option<(OwnedFd, AddressFamily)>, StateError> {
    if inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    let family = sockopt::socket_domain(&socket).map_err(what)?;
    let inet = family == AddressFamily::INET || family == AddressFamily::INET6;
    let protocol = sockopt::socket_protocol(&socket).map_err(what)?;
    let its = protocol == Some(ipproto::TCP) || protocol == Some(ipproto::MPTCP);
    let same = sockopt::socket_type(&socket).map_err(what)? == SocketType::STREAM && its;
    Ok((inet && same).then_some((socket, family)))
}

/// What of `struct tcp_info` (linux/tcp.h) is asked.
struct Info {
    state: u8,
    received: u32,
    unsent: u32,
}

impl Info {
    fn of(socket: &OwnedFd, group: &Group) -> Result<Info, StateError> {
        const TCP: u32 = 6;
        const TCP_INFO: u32 = 11;
        /// Offset of `tcpi_segs_in`.
        const RECEIVED: usize = 140;
        /// Offset of `tcpi_notsent_bytes`.
        const UNSENT: usize = 144;
        let fail = |source| StateError::Sys { fd: group.first(), source };
        let bytes = raw::get_up_to(socket, TCP, TCP_INFO, UNSENT + 4).map_err(fail)?;
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_le_bytes)
        };
        let state = bytes.first().copied().unwrap_or(0);
        Ok(Info { state, received: word(RECEIVED), unsent: word(UNSENT) })
    }

    /// SYN_SENT or SYN_RECV (net/tcp_states.h).
    fn connecting(&self) -> bool {
        matches!(self.state, 2 | 3)
    }

    /// CLOSE, but not because it has yet to be connected: it was reset, and keeps its address.
    fn dead(&self) -> bool {
        self.state == 7 && self.received > 0
    }

    /// It has said that it writes no more: FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
    fn shut(&self) -> bool {
        matches!(self.state, 4 | 5 | 9 | 11)
    }
}

fn own_connection(
    context: &Capture<'_>,
    group: &Group,
    socket: &OwnedFd,
    peer: &Address,
    info: &Info,
) -> Result<Option<Own>, StateError> {
    let what = |e| unasked(group, e);
    let local = rustix::net::getsockname(socket).map_err(what)?;
    let local = net::address_of(local).map_err(|what| group.refused(what))?;
    // An end elsewhere on this machine has its address too, one on another machine has not.
    let same_host = match (&local, peer) {
        (Address::V4(a, _), Address::V4(b, _)) => a == b || (a[0], b[0]) == (127, 127),
        (Address::V6(a, ..), Address::V6(b, ..)) => a == b,
        _ => false,
    };
    if !same_host {
        return Ok(None);
    }
    let all = context.connections.get_or_init(|| connections(context));
    let other = all.iter().find(|c| c.local == *peer && c.peer == local);
    let Some(other) = other.map(|other| other.inode) else { return Ok(None) };
    let queued = if context.stopped { peek(socket, group)? } else { Vec::new() };
    if info.unsent > 0 || queued.len() > QUEUE_BYTES_MAX {
        return Err(group.refused("a TCP connection with itself with more than 256 KiB on it"));
    }
    let inode = inode_of(&group.link, "socket").unwrap_or(0);
    Ok(Some(Own { inode, other, local, queued, shut: info.shut() }))
}

/// All that there are: looked up once, where one could have its other end here.
fn connections(context: &Capture<'_>) -> Vec<Connection> {
    let one = |group: &Group| {
        let inode = inode_of(&group.link, "socket")?;
        let socket = context.duplicate(group).ok()?;
        let peer = net::address_of(rustix::net::getpeername(&socket).ok()??).ok()?;
        let local = net::address_of(rustix::net::getsockname(&socket).ok()?).ok()?;
        Some(Connection { inode, local, peer })
    };
    context.groups.iter().filter_map(one).collect()
}

/// What waits to be read, without taking it.
fn peek(socket: &OwnedFd, group: &Group) -> Result<Vec<u8>, StateError> {
    let mut bytes = vec![0u8; QUEUE_BYTES_MAX + 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut bytes[..], flags) {
        Ok((got, _)) => bytes.truncate(got),
        Err(rustix::io::Errno::AGAIN) => bytes.clear(),
        Err(e) => return Err(group.refused(format!("a socket: {e}"))),
    }
    Ok(bytes)
}

const WRITE: u16 = 1;
const SOCKET: u16 = 41;
const CONNECT: u16 = 42;
const ACCEPT: u16 = 43;
const SHUTDOWN: u16 = 48;
const BIND: u16 = 49;
const LISTEN: u16 = 50;
const GETSOCKNAME: u16 = 51;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const O_NONBLOCK: u64 = 0o4000;
const SHUT_WR: u64 = 1;
const SOCK_STREAM: u64 = 1;
/// SO_LINGER with a time of zero: closing resets.
const LINGER: (u32, u32) = (1, 13);

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    match &body.own {
        Some(own) => plan_own(file, files, &body, own),
        None => plan_reset(file, files, &body),
    }
}

/// A connection over loopback: numbers of listener, client and server.
fn connect(files: &mut Files<'_>, fd: u32, v6: bool, at: Option<(&Address, &Address)>) -> [u32; 3] {
    let fresh = files.lowest(3);
    let [listener, client, server] = [fresh[0], fresh[1], fresh[2]];
    let family = if v6 { 10 } else { 2 };
    files.call(SOCKET, &[family, SOCK_STREAM, 0], "files: socket", fd);
    files.call(SOCKET, &[family, SOCK_STREAM, 0], "files: socket", fd);
    if let Some((of_client, of_server)) = at {
        let (level, name) = options::REUSEADDR;
        let value = 1u32.to_le_bytes().to_vec();
        // Not to be in the way of a listener of the process at this port.
        files.set_options_at(listener, &[SocketOption { level, name, value }]);
        for (socket, address) in [(client, of_client), (listener, of_server)] {
            let raw = net::raw_address(address);
            let at = files.program.data(&raw);
            let args = [u64::from(socket), at, raw.len() as u64];
            // Where it cannot be had the kernel chooses another one.
            files.program.call_ignore(List::Build, BIND, &args, "files: bind, or elsewhere");
        }
    }
    // Not bound, it listens at a free port of every address; connecting to `any` is to loopback.
    files.call(LISTEN, &[u64::from(listener), 1], "files: listen", fd);
    let address = files.program.data(&[0; 28]);
    let len = files.program.data(&28u32.to_le_bytes());
    files.call(GETSOCKNAME, &[u64::from(listener), address, len], "files: getsockname", fd);
    let len = if v6 { 28 } else { 16 };
    files.call(CONNECT, &[u64::from(client), address, len], "files: connect", fd);
    files.call(ACCEPT, &[u64::from(listener), 0, 0], "files: accept", fd);
    [listener, client, server]
}

fn plan_reset(file: &OpenFile, files: &mut Files<'_>, body: &Body) -> Result<(), StateError> {
    let fd = file.fds[0].0;
    let [listener, client, server] = connect(files, fd, body.v6, None);
    let (level, name) = LINGER;
    let value = [1u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
    files.set_options_at(server, &[SocketOption { level, name, value }]);
    files.set_options_at(client, &body.options);
    files.close(server);
    files.close(listener);
    files.park(&[client]);
    let args = [u64::from(files.high), F_SETFL, u64::from(file.flags)];
    files.call(FCNTL, &args, "files: F_SETFL", fd);
    files.spread(file, 0);
    Ok(())
}

/// Which socket it is, if its other end is the process's.
pub(super) fn inode(file: &OpenFile) -> Result<Option<u64>, StateError> {
    decode::<Body>(file).map(|body| body.own.map(|own| own.inode))
}

/// Both ends at once, when the first is planned.
fn plan_own(
    file: &OpenFile,
    files: &mut Files<'_>,
    body: &Body,
    own: &Own,
) -> Result<(), StateError> {
    if !files.done.insert(own.inode) {
        return Ok(());
    }
    let mut other = None;
    for candidate in files.of_object(KIND.number, own.other) {
        let theirs: Body = decode(&candidate)?;
        other = theirs.own.clone().map(|its| (candidate, theirs, its));
    }
    let Some((peer, theirs, its)) = other.filter(|_| own.other != own.inode) else {
        let reason = format!("connection {} has no other end in the descriptor", own.inode);
        return Err(StateError::Malformed { kind: KIND.number, reason });
    };
    files.done.insert(its.inode);
    let fd = file.fds[0].0;
    let at = Some((&own.local, &its.local));
    let [listener, client, server] = connect(files, fd, body.v6, at);
    files.close(listener);
    files.park(&[client, server]);
    let (mine, other) = (u64::from(files.high), u64::from(files.high) + 1);
    files.set_options_at(files.high, &body.options);
    files.set_options_at(files.high + 1, &theirs.options);
    // What one end has to read was written by the other.
    for (writer, queued) in [(other, &own.queued), (mine, &its.queued)] {
        if queued.is_empty() {
            continue;
        }
        files.call(FCNTL, &[writer, F_SETFL, O_NONBLOCK], "files: F_SETFL", fd);
        let (data, len) = (files.program.data(queued), queued.len() as u64);
        let what = "files: fill connection";
        let args = [writer, data, len];
        files.program.call_expect(List::Build, WRITE, &args, len, what, Detail::Fd(fd));
    }
    for (end, shut, flags) in [(mine, own.shut, file.flags), (other, its.shut, peer.flags)] {
        if shut {
            files.call(SHUTDOWN, &[end, SHUT_WR], "files: shutdown", fd);
        }
        files.call(FCNTL, &[end, F_SETFL, u64::from(flags)], "files: F_SETFL", fd);
    }
    files.spread(file, 0);
    files.spread(&peer, 1);
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(match body.own {
        Some(own) => format!("with itself, {} bytes to read", own.queued.len()),
        None => format!("connected to {}: reset", body.peer),
    })
}
