//! Netlink sockets (netlink(7)): protocol, port, groups, options. What waits in one is lost, as
//! netlink's messages may be: it tells of the parent's machine.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, generic, inode_of, unasked};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::sockopt as raw;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, sockopt};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 33, name: "netlink", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    kind: u32,
    protocol: u32,
    port: u32,
    /// Groups 1 to 32, one bit each.
    groups: u32,
    /// Groups above.
    memberships: Vec<u32>,
    /// Groups of generic netlink: family and name. They have other numbers on another machine.
    generic: Vec<(String, String)>,
    options: Vec<SocketOption>,
}

/// NETLINK_LIST_MEMBERSHIPS: a bit for each group.
const LIST_MEMBERSHIPS: (u32, u32) = (270, 9);
/// Enough for 1024 groups.
const MEMBERSHIP_BYTES: usize = 128;
/// NETLINK_GENERIC numbers its groups as its families are loaded.
const GENERIC: u32 = 16;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    if sockopt::socket_domain(&socket).map_err(what)? != AddressFamily::NETLINK {
        return Ok(None);
    }
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    let protocol = sockopt::socket_protocol(&socket).map_err(what)?;
    let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
    let name = rustix::net::getsockname(&socket).map_err(what)?;
    let name = SocketAddrNetlink::try_from(name).map_err(what)?;
    let (level, list) = LIST_MEMBERSHIPS;
    let bits = raw::get_up_to(&socket, level, list, MEMBERSHIP_BYTES).unwrap_or_default();
    let joined = |number: &u32| {
        let bit = number - 1;
        bits.get(bit as usize / 8).is_some_and(|byte| byte & 1 << (bit % 8) != 0)
    };
    let memberships: Vec<u32> = (33..=8 * MEMBERSHIP_BYTES as u32).filter(joined).collect();
    let (mut groups, mut memberships, mut generic) = (name.groups(), memberships, Vec::new());
    if protocol == GENERIC && (groups != 0 || !memberships.is_empty()) {
        let low = (1..=32).filter(|number| groups & 1 << (number - 1) != 0);
        let numbers: Vec<u32> = low.chain(std::mem::take(&mut memberships)).collect();
        groups = 0;
        let known = generic::groups().map_err(what)?;
        let joined = known.into_iter().filter(|group| numbers.contains(&group.number));
        generic = joined.map(|group| (group.family, group.name)).collect();
    }
    let protocol_of = rustix::net::RawProtocol::new(protocol).map(rustix::net::Protocol::from_raw);
    let options = options::changed_of(&socket, AddressFamily::NETLINK, kind, protocol_of);
    let body = Body {
        kind: kind.as_raw(),
        protocol,
        port: name.pid(),
        groups,
        memberships,
        generic,
        options: options.map_err(what)?,
    };
    encode(KIND.number, &body).map(Some)
}

const SOCKET: u16 = 41;
const BIND: u16 = 49;
const AF_NETLINK: u64 = 16;
const ADD_MEMBERSHIP: (u32, u32) = (270, 1);

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let kind = u64::from(body.kind) | u64::from(file.flags & NONBLOCK);
    let args = [AF_NETLINK, kind, u64::from(body.protocol)];
    files.make(file, SOCKET, &args, "files: socket", Detail::Fd(fd));
    files.set_options(file, &body.options);
    if body.port != 0 || body.groups != 0 {
        let address = u64::from(body.port) << 32 | AF_NETLINK;
        let at = files.program.words(&[address, u64::from(body.groups)]);
        let detail = Detail::Text(format!("netlink port {} for fd {fd}", body.port));
        files.program.call(List::Build, BIND, &[u64::from(fd), at, 12], "files: bind", detail);
    }
    let (level, name) = ADD_MEMBERSHIP;
    let named = numbers(&body, files.generic);
    let joins = body.memberships.iter().chain(&named);
    let joins: Vec<SocketOption> = joins
        .map(|number| SocketOption { level, name, value: number.to_le_bytes().to_vec() })
        .collect();
    files.set_options(file, &joins);
    Ok(())
}

/// The numbers that the groups of generic netlink have here. Of a family that this machine lacks nobody
/// would say anything.
fn numbers(body: &Body, here: &[generic::NamedGroup]) -> Vec<u32> {
    let same = |group: &&generic::NamedGroup| {
        let mut names = body.generic.iter();
        names.any(|(family, name)| (family, name) == (&group.family, &group.name))
    };
    here.iter().filter(same).map(|group| group.number).collect()
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("protocol {}, port {}, groups {:#x}", body.protocol, body.port, body.groups))
}
