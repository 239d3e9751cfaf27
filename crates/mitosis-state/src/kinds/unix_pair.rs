//! Connected unix stream sockets whose two ends are both the parent's (socketpair(2)), with what
//! is queued in them.

use super::{Capture, Files, Kind, decode, encode, inode_of, read_all_peeked};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// The kind.
pub const KIND: Kind = Kind { number: 7, name: "socketpair", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    inode: u64,
    peer: u64,
    kind: u32,
    /// Queued for reading at this end.
    queued: Vec<u8>,
}

/// More than this cannot be queued with the default buffer sizes.
const QUEUE_BYTES_MAX: usize = 1 << 20;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some(inode) = inode_of(&group.link, "socket") else { return Ok(None) };
    let socket = context.duplicate(group)?;
    let what = |e: rustix::io::Errno| group.refused(format!("a socket: {e}"));
    let domain = sockopt::socket_domain(&socket).map_err(what)?;
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    if domain != AddressFamily::UNIX {
        let name = describe_inet(domain, kind);
        return Err(group.refused(name));
    }
    let peer = context.unix_peer(inode).map_err(what)?;
    let inside =
        |peer: u64| context.groups.iter().any(|g| inode_of(&g.link, "socket") == Some(peer));
    let Some(peer) = peer.filter(|&peer| inside(peer)) else {
        return Err(group.refused("a unix socket whose other end is not in this process"));
    };
    let waiting = rustix::io::ioctl_fionread(&socket).map_err(what)?;
    if waiting > 0 && kind != SocketType::STREAM {
        return Err(group.refused("a unix datagram or seqpacket socket with messages in it"));
    }
    let queued = if waiting > 0 {
        read_all_peeked(socket.as_fd(), QUEUE_BYTES_MAX).map_err(what)?
    } else {
        Vec::new()
    };
    encode(KIND.number, &Body { inode, peer, kind: kind.as_raw(), queued }).map(Some)
}

fn describe_inet(domain: AddressFamily, kind: SocketType) -> String {
    match (domain, kind) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => {
            "a TCP connection, or an unbound TCP socket".into()
        }
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => "a UDP socket".into(),
        (AddressFamily::NETLINK, _) => "a netlink socket".into(),
        (AddressFamily::PACKET, _) => "a packet socket".into(),
        (other, _) => format!("a socket of address family {}", other.as_raw()),
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
    files.done.extend([body.inode, body.peer]);
    let mut other = None;
    for candidate in files.all.iter().filter(|f| f.kind == KIND.number) {
        let theirs: Body = decode(candidate)?;
        if theirs.inode == body.peer {
            other = Some((candidate.clone(), theirs));
        }
    }
    let Some((peer, peer_body)) = other else {
        let reason = format!("socket {} has no peer in the descriptor", body.inode);
        return Err(StateError::Malformed { kind: KIND.number, reason });
    };
    let fresh = files.lowest(2);
    let place = files.program.words(&[0]);
    let label = Detail::Fd(file.fds[0].0);
    let args = [1, u64::from(body.kind), 0, place];
    files.program.call(List::Build, SOCKETPAIR, &args, "files: socketpair", label);
    files.park(&fresh);
    let (mine, theirs) = (u64::from(files.high), u64::from(files.high) + 1);
    // What one end has queued was written by the other.
    for (writer, queued) in [(theirs, &body.queued), (mine, &peer_body.queued)] {
        if !queued.is_empty() {
            let data = files.program.data(queued);
            let args = [writer, data, queued.len() as u64];
            let label = Detail::Fd(file.fds[0].0);
            let len = queued.len() as u64;
            files.program.call_expect(List::Build, WRITE, &args, len, "files: fill socket", label);
        }
    }
    for (end, flags) in [(mine, file.flags), (theirs, peer.flags)] {
        let args = [end, F_SETFL, u64::from(flags)];
        let label = Detail::Fd(file.fds[0].0);
        files.program.call(List::Build, FCNTL, &args, "files: F_SETFL", label);
    }
    files.spread(file, 0);
    files.spread(&peer, 1);
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("{} with {}, {} bytes queued", body.inode, body.peer, body.queued.len()))
}
