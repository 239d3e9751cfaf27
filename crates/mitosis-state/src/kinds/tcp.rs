//! Established TCP connections: the parent keeps its own; the child sees a reset at once, since the
//! other end can speak to one of them only.
//!
//! The child makes a connection over loopback and has its other end reset it.

use super::{Capture, Files, Kind, decode, encode, inet_socket};
use crate::net;
use crate::options::{self, SocketOption};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 13, name: "tcp", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    v6: bool,
    peer: String,
    options: Vec<SocketOption>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let (kind, protocol) = (SocketType::STREAM, rustix::net::ipproto::TCP);
    let Some((socket, family)) = inet_socket(context, group, kind, protocol)? else {
        return Ok(None);
    };
    let what = |e: rustix::io::Errno| group.refused(format!("a socket: {e}"));
    let Ok(Some(peer)) = rustix::net::getpeername(&socket) else { return Ok(None) };
    let peer = net::address_of(peer).map_err(|what| group.refused(what))?.to_string();
    let options = options::changed(&socket, family, kind).map_err(what)?;
    encode(KIND.number, &Body { v6: family == AddressFamily::INET6, peer, options }).map(Some)
}

const SOCKET: u16 = 41;
const CONNECT: u16 = 42;
const ACCEPT: u16 = 43;
const LISTEN: u16 = 50;
const GETSOCKNAME: u16 = 51;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const SOCK_STREAM: u64 = 1;
/// SO_LINGER with a time of zero: closing resets.
const LINGER: (u32, u32) = (1, 13);

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let fresh = files.lowest(3);
    let [listener, client, server] = fresh[..] else { return Ok(()) };
    let family = if body.v6 { 10 } else { 2 };
    files.call(SOCKET, &[family, SOCK_STREAM, 0], "files: socket", fd);
    files.call(SOCKET, &[family, SOCK_STREAM, 0], "files: socket", fd);
    // Not bound, it listens at a free port of every address; connecting to `any` is to loopback.
    files.call(LISTEN, &[u64::from(listener), 1], "files: listen", fd);
    let address = files.program.data(&[0; 28]);
    let len = files.program.data(&28u32.to_le_bytes());
    files.call(GETSOCKNAME, &[u64::from(listener), address, len], "files: getsockname", fd);
    let len = if body.v6 { 28 } else { 16 };
    files.call(CONNECT, &[u64::from(client), address, len], "files: connect", fd);
    files.call(ACCEPT, &[u64::from(listener), 0, 0], "files: accept", fd);
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

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("connected to {}: reset", body.peer))
}
