//! UDP sockets, raw ones and those of other protocols over IP that send datagrams: local address, peer,
//! options. Datagrams that wait in one are lost, as datagrams may be.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, inode_of, unasked};
use crate::net::{self, Address};
use crate::options::{self, SocketOption};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::procfs;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 11, name: "udp", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    family: u16,
    /// SOCK_DGRAM (2) or SOCK_RAW (3).
    kind: u32,
    protocol: u32,
    /// `None` while it has no port.
    local: Option<Address>,
    peer: Option<Address>,
    options: Vec<SocketOption>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    let family = sockopt::socket_domain(&socket).map_err(what)?;
    let kind = sockopt::socket_type(&socket).map_err(what)?;
    let inet = family == AddressFamily::INET || family == AddressFamily::INET6;
    if !inet || (kind != SocketType::DGRAM && kind != SocketType::RAW) {
        return Ok(None);
    }
    let protocol = sockopt::socket_protocol(&socket).map_err(what)?;
    let address = |any| net::address_of(any).map_err(|what| group.refused(what));
    let local = address(rustix::net::getsockname(&socket).map_err(what)?)?;
    let has_port = !matches!(local, Address::V4(_, 0) | Address::V6(_, 0, _));
    let peer = match rustix::net::getpeername(&socket) {
        Ok(Some(peer)) => Some(address(peer)?),
        // Without a port the kernel says so of one that is connected, too.
        Ok(None) | Err(rustix::io::Errno::NOTCONN) => {
            inode_of(&group.link, "socket").and_then(|inode| peer_of(context.pid, inode))
        }
        Err(e) => return Err(what(e)),
    };
    let options = options::changed_of(&socket, family, kind, protocol).map_err(what)?;
    let local = has_port.then_some(local);
    let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
    let (family, kind) = (family.as_raw(), kind.as_raw());
    encode(KIND.number, &Body { family, kind, protocol, local, peer, options }).map(Some)
}

/// The peer of a raw socket or of one for echoes, which have no port.
fn peer_of(pid: i32, inode: u64) -> Option<Address> {
    const TABLES: [&str; 4] = ["net/raw", "net/icmp", "net/raw6", "net/icmp6"];
    let tables = TABLES.iter().filter_map(|name| procfs::text(pid, name).ok());
    tables.filter_map(|table| peer_in(&table, inode)).next()
}

/// In a table of `/proc/net`, `1: 0100007F:0001 0100007F:0000 01 ...`: the addresses are words of this
/// machine, in hexadecimal.
fn peer_in(table: &str, inode: u64) -> Option<Address> {
    const REMOTE: usize = 2;
    const INODE: usize = 9;
    let inode = inode.to_string();
    let of = |line: &&str| line.split_whitespace().nth(INODE) == Some(&inode);
    let line = table.lines().find(of)?;
    let address = line.split_whitespace().nth(REMOTE)?.split(':').next()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let words: Option<Vec<u32>> = (0..address.len()).step_by(8).map(word).collect();
    let bytes: Vec<u8> = words?.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    match bytes.len() {
        4 => Some(Address::V4(bytes.try_into().ok()?, 0)),
        16 => Some(Address::V6(bytes.try_into().ok()?, 0, 0)),
        _ => None,
    }
}

const SOCKET: u16 = 41;
const CONNECT: u16 = 42;
const BIND: u16 = 49;
const AF_INET6: u16 = 10;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const PROTOCOL_UDP: u32 = 17;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    if body.kind == SOCK_DGRAM && body.protocol != PROTOCOL_UDP && files.own_net {
        // Who may have a socket for echoes (icmp(7)) is said of each network namespace: nobody.
        files.write_to("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }
    let kind = u64::from(body.kind) | u64::from(file.flags & NONBLOCK);
    let args = [u64::from(body.family), kind, u64::from(body.protocol)];
    files.make(file, SOCKET, &args, "files: socket", Detail::Fd(fd));
    files.set_options(file, &body.options);
    // The address of another node's interface does not exist here.
    let raw_v6 = body.kind == SOCK_RAW && body.family == AF_INET6;
    let freebind = if raw_v6 { options::FREEBIND_V6 } else { options::FREEBIND };
    files.set_switch(file, freebind, true);
    let steps = [(BIND, "files: bind", &body.local), (CONNECT, "files: connect", &body.peer)];
    for (call, what, address) in steps {
        let Some(address) = address else { continue };
        let raw = net::raw_address(address);
        let at = files.program.data(&raw);
        let detail = Detail::Text(format!("{address} for fd {fd}"));
        let args = [u64::from(fd), at, raw.len() as u64];
        files.program.call(List::Build, call, &args, what, detail);
    }
    files.set_switch(file, freebind, options::is_on(&body.options, freebind));
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let name = |address: &Option<Address>| {
        address.as_ref().map_or_else(|| "nowhere".into(), Address::to_string)
    };
    let what = format!("type {}, protocol {}", body.kind, body.protocol);
    Ok(format!("{what}, at {}, connected to {}", name(&body.local), name(&body.peer)))
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn a_peer_without_a_port_is_found_in_the_kernels_table() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode ref pointer drops\n  1: 0100007F:0001 0200007F:0000 01 \
                     00000000:00000000 00:00000000 00000000     0        0 8123 2 0 0\n  2: \
                     00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 \
                     8124 2 0 0\n";
        let peer = super::peer_in(table, 8123);
        assert_eq!(peer, Some(Address::V4([127, 0, 0, 2], 0)));
        assert_eq!(super::peer_in(table, 8124), None);
        assert_eq!(super::peer_in(table, 8125), None);
    }
}
