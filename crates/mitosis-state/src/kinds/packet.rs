//! Packet sockets (packet(7)): protocol, interface, options, filter. A child's hears what arrives where
//! the child is, at the interface of that name; where there is none, it hears nothing. What waits in one is
//! lost, and whether an interface was made promiscuous for it the kernel does not tell.

use super::{Capture, Files, Kind, NONBLOCK, SLOT, decode, encode, inode_of, unasked};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List, op};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_stub::abi::{OP_IGNORE, OP_LOAD, OP_STORE32};
use mitosis_sys::sockopt as raw;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 36, name: "packet", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    /// SOCK_RAW (3) or SOCK_DGRAM (2).
    kind: u32,
    /// In the order of the network.
    protocol: u16,
    /// Name of the interface, empty for all.
    interface: Vec<u8>,
    options: Vec<SocketOption>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    if sockopt::socket_domain(&socket).map_err(what)? != AddressFamily::PACKET {
        return Ok(None);
    }
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    if kind != SocketType::RAW && kind != SocketType::DGRAM {
        return Err(group.refused("a packet socket of the obsolete type"));
    }
    let fail = |source| StateError::Sys { fd: group.first(), source };
    let (protocol, index) = raw::packet_name(&socket).map_err(fail)?;
    let interface = match index {
        0 => Vec::new(),
        // One that is gone is nowhere else either.
        index => raw::interface_name(&socket, index).map_or(vec![b'?'], |name| name.to_vec()),
    };
    let options = options::changed(&socket, AddressFamily::PACKET, kind).map_err(what)?;
    encode(KIND.number, &Body { kind: kind.as_raw(), protocol, interface, options }).map(Some)
}

const IOCTL: u16 = 16;
const SOCKET: u16 = 41;
const BIND: u16 = 49;
const AF_PACKET: u64 = 17;
const SIOCGIFINDEX: u64 = 0x8933;
/// IFNAMSIZ.
const NAME_BYTES: usize = 16;
/// Of no interface.
const NO_INDEX: u32 = i32::MAX as u32;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let me = u64::from(fd);
    let kind = u64::from(body.kind) | u64::from(file.flags & NONBLOCK);
    // Without a protocol it hears nothing yet.
    files.make(file, SOCKET, &[AF_PACKET, kind, 0], "files: socket", Detail::Fd(fd));
    files.set_options(file, &body.options);
    if body.protocol == 0 && body.interface.is_empty() {
        return Ok(());
    }
    // struct sockaddr_ll: family, protocol, index of the interface, and what bind(2) does not read.
    let address = files.program.words(&[AF_PACKET | u64::from(body.protocol) << 16, 0, 0]);
    let mut bind = op(BIND, 0, &[me, address, 20]);
    if !body.interface.is_empty() {
        // struct ifreq: the name, and room for the answer; what it is where none comes.
        let mut request = body.interface.clone();
        request.resize(NAME_BYTES, 0);
        request.extend(NO_INDEX.to_le_bytes());
        request.resize(40, 0);
        let request = files.program.data(&request);
        let find = op(IOCTL, OP_IGNORE, &[me, SIOCGIFINDEX, request]);
        let mut push = |op, what| files.program.push(List::Build, op, what, Detail::Fd(fd));
        push(find, "files: SIOCGIFINDEX");
        let mut load = op(0, OP_LOAD, &[request + NAME_BYTES as u64]);
        load.save = SLOT;
        push(load, "files: the index of the interface");
        let mut store = op(0, OP_STORE32, &[address + 4]);
        store.slot = SLOT;
        push(store, "files: write the index");
        bind.flags |= OP_IGNORE;
    }
    files.program.push(List::Build, bind, "files: bind", Detail::Fd(fd));
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let name = String::from_utf8_lossy(&body.interface);
    let name = name.trim_end_matches('\0');
    Ok(format!("protocol {:#06x}, interface {name:?}", u16::from_be(body.protocol)))
}
