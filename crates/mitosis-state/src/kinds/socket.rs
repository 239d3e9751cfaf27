//! TCP and unix sockets that neither listen nor are connected: made, bound to their name, or not yet. So
//! too a unix socket that sends datagrams to another one of the process, which does not send back.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, inode_of, unasked};
use crate::net::{self, Address, ListenSpec};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, Provided, StateError};
use mitosis_descriptor::OpenFile;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// The kind.
pub const KIND: Kind = Kind { number: 32, name: "socket", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    inode: u64,
    family: u16,
    kind: u32,
    local: Option<Address>,
    /// Where its datagrams go.
    peer: Option<Address>,
    options: Vec<SocketOption>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some(inode) = inode_of(&group.link, "socket") else { return Ok(None) };
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    let family = sockopt::socket_domain(&socket).map_err(what)?;
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    let peer = match family {
        AddressFamily::UNIX if kind == SocketType::DGRAM => {
            own_receiver(context, &socket, inode).map_err(what)?
        }
        _ => None,
    };
    let local = match family {
        AddressFamily::UNIX if peer.is_some() => unix_name(&socket, group)?,
        AddressFamily::INET | AddressFamily::INET6 if is_tcp(&socket, kind) => {
            inet_name(&socket, group)?
        }
        AddressFamily::UNIX if rustix::net::getpeername(&socket).is_err() => {
            unix_name(&socket, group)?
        }
        _ => return Ok(None),
    };
    let options = options::changed(&socket, family, kind).map_err(what)?;
    let (family, kind) = (family.as_raw(), kind.as_raw());
    encode(KIND.number, &Body { inode, family, kind, local, peer, options }).map(Some)
}

/// The name of the process's own socket to which this one is connected, unless that is connected to
/// this one.
fn own_receiver(
    context: &Capture<'_>,
    socket: &OwnedFd,
    inode: u64,
) -> Result<Option<Address>, rustix::io::Errno> {
    let Ok(Some(name)) = rustix::net::getpeername(socket) else { return Ok(None) };
    // The ends of a pair have no name.
    let Ok(name) = net::address_of(name) else { return Ok(None) };
    let own = |inode: u64| context.has_socket(inode);
    match context.unix_peer(inode) {
        Ok(Some(peer)) if own(peer) && context.unix_peer(peer)? != Some(inode) => Ok(Some(name)),
        Ok(_) | Err(rustix::io::Errno::PROTONOSUPPORT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_tcp(socket: &OwnedFd, kind: SocketType) -> bool {
    let protocol = sockopt::socket_protocol(socket).unwrap_or_default();
    let either = [ipproto::TCP, ipproto::MPTCP].map(Some);
    kind == SocketType::STREAM && either.contains(&protocol)
}

fn inet_name(socket: &OwnedFd, group: &Group) -> Result<Option<Address>, StateError> {
    let name = rustix::net::getsockname(socket);
    let name = name.map_err(|e| group.refused(format!("a socket: {e}")))?;
    let name = net::address_of(name).map_err(|what| group.refused(what))?;
    let has_port = !matches!(name, Address::V4(_, 0) | Address::V6(_, 0, _));
    Ok(has_port.then_some(name))
}

/// What waits in an unconnected one came from others, and stays with the parent.
fn unix_name(socket: &OwnedFd, group: &Group) -> Result<Option<Address>, StateError> {
    let name = rustix::net::getsockname(socket);
    let name = name.map_err(|e| group.refused(format!("a socket: {e}")))?;
    let unnamed = SocketAddrUnix::try_from(name.clone()).is_ok_and(|name| name.is_unnamed());
    if unnamed {
        return Ok(None);
    }
    net::address_of(name).map(Some).map_err(|what| group.refused(what))
}

const SOCKET: u16 = 41;
const CONNECT: u16 = 42;
const BIND: u16 = 49;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let Some(address) = &body.local else {
        make(file, files, &body);
        return Ok(());
    };
    let shared = match address {
        Address::V4(..) | Address::V6(..) => false,
        Address::Path(_) => true,
        Address::Abstract(_) => !files.own_net,
    };
    if shared {
        let spec = ListenSpec {
            address: address.clone(),
            kind: body.kind,
            backlog: 0,
            nonblocking: file.flags & NONBLOCK != 0,
            options: body.options,
        };
        let from = files.provide(Provided::Listener { key: body.inode, fd, spec });
        for &(fd, cloexec) in &file.fds {
            files.dup(from, fd, cloexec);
        }
        return Ok(());
    }
    make(file, files, &body);
    let inet = !matches!(address, Address::Abstract(_));
    let both = [options::REUSEADDR, options::FREEBIND];
    let both = if inet { &both[..] } else { &[] };
    for &switch in both {
        files.set_switch(file, switch, true);
    }
    let raw = net::raw_address(address);
    let at = files.program.data(&raw);
    let detail = Detail::Text(format!("{address} for fd {fd}"));
    let args = [u64::from(fd), at, raw.len() as u64];
    files.program.call(List::Build, BIND, &args, "files: bind", detail);
    for &switch in both {
        files.set_switch(file, switch, options::is_on(&body.options, switch));
    }
    Ok(())
}

/// Connects it, when the other one is there.
pub(super) fn connect(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let Some(peer) = &body.peer else { return Ok(()) };
    let (fd, raw) = (file.fds[0].0, net::raw_address(peer));
    let at = files.program.data(&raw);
    let detail = Detail::Text(format!("{peer} for fd {fd}"));
    let args = [u64::from(fd), at, raw.len() as u64];
    files.program.call(List::Build, CONNECT, &args, "files: connect", detail);
    Ok(())
}

fn make(file: &OpenFile, files: &mut Files<'_>, body: &Body) {
    let kind = u64::from(body.kind) | u64::from(file.flags & NONBLOCK);
    let detail = Detail::Fd(file.fds[0].0);
    files.make(file, SOCKET, &[u64::from(body.family), kind, 0], "files: socket", detail);
    files.set_options(file, &body.options);
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let name = body.local.map_or_else(|| "nowhere".into(), |address| address.to_string());
    Ok(format!("family {}, bound to {name}", body.family))
}
