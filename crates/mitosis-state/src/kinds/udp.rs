//! UDP sockets: local address, peer, options. Datagrams that wait in one are lost, as datagrams may
//! be.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, inet_socket};
use crate::net::{self, Address};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use rustix::net::SocketType;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 11, name: "udp", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    family: u16,
    /// `None` while it has no port.
    local: Option<Address>,
    peer: Option<Address>,
    options: Vec<SocketOption>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let (kind, protocol) = (SocketType::DGRAM, rustix::net::ipproto::UDP);
    let Some((socket, family)) = inet_socket(context, group, kind, protocol)? else {
        return Ok(None);
    };
    let what = |e: rustix::io::Errno| group.refused(format!("a socket: {e}"));
    let address = |any| net::address_of(any).map_err(|what| group.refused(what));
    let local = address(rustix::net::getsockname(&socket).map_err(what)?)?;
    let has_port = !matches!(local, Address::V4(_, 0) | Address::V6(_, 0, _));
    let peer = match rustix::net::getpeername(&socket) {
        Ok(Some(peer)) => Some(address(peer)?),
        Ok(None) | Err(rustix::io::Errno::NOTCONN) => None,
        Err(e) => return Err(what(e)),
    };
    let options = options::changed(&socket, family, kind).map_err(what)?;
    let local = has_port.then_some(local);
    encode(KIND.number, &Body { family: family.as_raw(), local, peer, options }).map(Some)
}

const SOCKET: u16 = 41;
const CONNECT: u16 = 42;
const BIND: u16 = 49;
const SOCK_DGRAM: u64 = 2;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let args = [u64::from(body.family), SOCK_DGRAM | u64::from(file.flags & NONBLOCK), 0];
    files.make(file, SOCKET, &args, "files: socket", Detail::Fd(fd));
    files.set_options(file, &body.options);
    // The address of another node's interface does not exist here.
    files.set_switch(file, options::FREEBIND, true);
    let steps = [(BIND, "files: bind", &body.local), (CONNECT, "files: connect", &body.peer)];
    for (call, what, address) in steps {
        let Some(address) = address else { continue };
        let raw = net::raw_address(address);
        let at = files.program.data(&raw);
        let detail = Detail::Text(format!("{address} for fd {fd}"));
        let args = [u64::from(fd), at, raw.len() as u64];
        files.program.call(List::Build, call, &args, what, detail);
    }
    let wanted = options::is_on(&body.options, options::FREEBIND);
    files.set_switch(file, options::FREEBIND, wanted);
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let name = |address: &Option<Address>| {
        address.as_ref().map_or_else(|| "nowhere".into(), Address::to_string)
    };
    Ok(format!("at {}, connected to {}", name(&body.local), name(&body.peer)))
}
