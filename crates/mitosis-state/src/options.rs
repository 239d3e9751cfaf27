//! Socket options: those that a program has set, to be set again.

use mitosis_sys::{SysError, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// One option with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*` or `IPPROTO_*`.
    pub level: u32,
    /// Number within the level.
    pub name: u32,
    /// As the kernel lays it out.
    pub value: Vec<u8>,
}

const SOCKET: u32 = 1;
const IP: u32 = 0;
const TCP: u32 = 6;
const UDP: u32 = 17;
const IPV6: u32 = 41;
const ICMPV6: u32 = 58;
const RAW: u32 = 255;
const PACKET: u32 = 263;
const NETLINK: u32 = 270;

/// SO_REUSEADDR.
pub const REUSEADDR: (u32, u32) = (SOCKET, 2);
/// IP_FREEBIND.
pub const FREEBIND: (u32, u32) = (IP, 15);
/// IPV6_FREEBIND, of raw sockets: others take [`FREEBIND`].
pub const FREEBIND_V6: (u32, u32) = (IPV6, 78);
/// SO_ATTACH_FILTER, of which the value here is the instructions.
pub const FILTER: (u32, u32) = (SOCKET, 26);
/// SO_LOCK_FILTER, which forbids to set that.
const LOCK_FILTER: (u32, u32) = (SOCKET, 44);
/// IPV6_V6ONLY: what a new socket has is the node's choice (sysctl), so it is always carried.
pub const V6ONLY: (u32, u32) = (IPV6, 26);

/// MULTICAST_TTL and MULTICAST_LOOP, MULTICAST_HOPS and MULTICAST_LOOP.
const MULTICAST: [(u32, u32); 4] = [(IP, 33), (IP, 34), (IPV6, 18), (IPV6, 19)];

/// What can be read and set again, in the order of setting: IP_TOS changes SO_PRIORITY.
const KNOWN: &[(u32, &[u32])] = &[
    // TOS, TTL, HDRINCL, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, TRANSPARENT,
    // RECVORIGDSTADDR, BIND_ADDRESS_NO_PORT, MULTICAST_TTL, MULTICAST_LOOP
    (IP, &[1, 2, 3, 8, 10, 11, 12, 13, 15, 19, 20, 24, 33, 34]),
    // UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, V6ONLY, HDRINCL,
    // RECVPKTINFO, RECVHOPLIMIT, RECVTCLASS, TCLASS
    (IPV6, &[16, 18, 19, 23, 25, 26, 36, 49, 51, 66, 67]),
    // REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, NO_CHECK, PRIORITY, LINGER, REUSEPORT,
    // PASSCRED, RCVLOWAT, RCVTIMEO, SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK,
    // RXQ_OVFL, PEEK_OFF
    (SOCKET, &[2, 5, 6, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 40, 42]),
    // NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP,
    // CONGESTION, USER_TIMEOUT, FASTOPEN
    (TCP, &[1, 3, 4, 5, 6, 7, 8, 9, 10, 13, 18, 23]),
    // SEGMENT, GRO
    (UDP, &[103, 104]),
    // ICMPV6_FILTER
    (ICMPV6, &[1]),
    // ICMP_FILTER, IPV6_CHECKSUM
    (RAW, &[1, 7]),
    // AUXDATA, ORIGDEV, VERSION, RESERVE, LOSS, VNET_HDR, TIMESTAMP, TX_HAS_OFF, QDISC_BYPASS,
    // IGNORE_OUTGOING
    (PACKET, &[8, 9, 10, 12, 14, 15, 17, 19, 20, 23]),
    // PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    (NETLINK, &[3, 4, 5, 8, 10, 11, 12]),
];

/// The options of a socket that a new one of its kind would not have.
///
/// # Errors
/// A new socket cannot be made to compare with.
pub fn changed(
    socket: &OwnedFd,
    family: AddressFamily,
    kind: SocketType,
) -> Result<Vec<SocketOption>, rustix::io::Errno> {
    changed_of(socket, family, kind, None)
}

/// As [`changed`], for a socket of a protocol that its family and type do not imply.
///
/// # Errors
/// As [`changed`].
pub fn changed_of(
    socket: &OwnedFd,
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<rustix::net::Protocol>,
) -> Result<Vec<SocketOption>, rustix::io::Errno> {
    let new = |protocol| rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
    // One for echoes is not allowed to everybody; it begins as one of UDP does.
    let fresh = new(protocol).or_else(|e| new(None).map_err(|_| e))?;
    let mut options = buffers(socket);
    for (level, names) in KNOWN {
        for name in *names {
            // What an accepted connection tells here comes from its first packet, and cannot be set.
            if kind == SocketType::STREAM && MULTICAST.contains(&(*level, *name)) {
                continue;
            }
            // A raw one has its protocol for a port: it is too late for this. One of Multipath TCP has
            // it with IPv4 as well.
            let v6 = family == AddressFamily::INET6 && kind != SocketType::RAW;
            if !v6 && (*level, *name) == V6ONLY {
                continue;
            }
            // Not every kind of socket has every option.
            let Ok(value) = sockopt::get(socket, *level, *name) else { continue };
            let usual = sockopt::get(&fresh, *level, *name).is_ok_and(|usual| usual == value);
            if !usual || (*level, *name) == V6ONLY {
                options.push(SocketOption { level: *level, name: *name, value });
            }
        }
    }
    options.extend(filter(socket)?);
    Ok(options)
}

/// The socket's filter, and whether it is for good.
///
/// # Errors
/// EACCES for a program that the kernel does not show (SO_ATTACH_BPF).
fn filter(socket: &OwnedFd) -> Result<Vec<SocketOption>, rustix::io::Errno> {
    let hidden = |e: &SysError| e.is(rustix::io::Errno::ACCESS.raw_os_error());
    let program = match sockopt::filter(socket) {
        Err(e) if hidden(&e) => return Err(rustix::io::Errno::ACCESS),
        // Not every kind of socket can have one.
        other => other.unwrap_or_default(),
    };
    let option = |(level, name), value| SocketOption { level, name, value };
    if program.is_empty() {
        return Ok(Vec::new());
    }
    let (level, name) = LOCK_FILTER;
    let locked = sockopt::get(socket, level, name).is_ok_and(|value| value[0] != 0);
    let lock = locked.then(|| option(LOCK_FILTER, 1u32.to_le_bytes().to_vec()));
    Ok(std::iter::once(option(FILTER, program)).chain(lock).collect())
}

/// Sets an option of a socket of this process.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn set(socket: &OwnedFd, option: &SocketOption) -> Result<(), SysError> {
    if (option.level, option.name) == FILTER {
        return sockopt::set_filter(socket, &option.value);
    }
    sockopt::set(socket, option.level, option.name, &option.value)
}

/// Buffer sizes that the program has chosen: others follow the kernel's own rules.
fn buffers(socket: &OwnedFd) -> Vec<SocketOption> {
    const BUF_LOCK: u32 = 72;
    // (bit of SO_BUF_LOCK, SO_SNDBUF or SO_RCVBUF, SO_SNDBUFFORCE or SO_RCVBUFFORCE)
    const BOTH: [(u8, u32, u32); 2] = [(1, 7, 32), (2, 8, 33)];
    let chosen = sockopt::get(socket, SOCKET, BUF_LOCK).map_or(0, |value| value[0]);
    let size = |name| {
        let value: [u8; 4] = sockopt::get(socket, SOCKET, name).ok()?.try_into().ok()?;
        Some(u32::from_le_bytes(value))
    };
    let wanted = BOTH.iter().filter(|(bit, _, _)| chosen & bit != 0);
    wanted
        .filter_map(|&(_, name, force)| {
            // The kernel doubles what it is told.
            let value = (size(name)? / 2).to_le_bytes().to_vec();
            Some(SocketOption { level: SOCKET, name: force, value })
        })
        .collect()
}

/// The value of a switch among `options`; off unless it is there.
pub fn is_on(options: &[SocketOption], (level, name): (u32, u32)) -> bool {
    let option = options.iter().find(|o| (o.level, o.name) == (level, name));
    option.is_some_and(|option| option.value.iter().any(|byte| *byte != 0))
}
