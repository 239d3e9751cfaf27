//! Sockets: addresses that can be sent, listeners that can be made anew, and who is whose peer.

use crate::options::{self, SocketOption};
use mitosis_sys::SysError;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketAddrV4, SocketAddrV6, SocketFlags,
    SocketType, sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// An address a socket listens at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// IPv4 and port.
    V4([u8; 4], u16),
    /// IPv6, port, scope.
    V6([u8; 16], u16, u32),
    /// A path in the file system.
    Path(String),
    /// An abstract name.
    Abstract(Vec<u8>),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::V4(ip, port) => write!(f, "{}:{port}", std::net::Ipv4Addr::from(*ip)),
            Address::V6(ip, port, _) => write!(f, "[{}]:{port}", std::net::Ipv6Addr::from(*ip)),
            Address::Path(path) => f.write_str(path),
            Address::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

/// Everything needed to make a listening socket again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenSpec {
    /// Where.
    pub address: Address,
    /// SOCK_STREAM (1) or SOCK_SEQPACKET (5).
    pub kind: u32,
    /// Length of the accept queue; 0 for a socket that is bound only.
    pub backlog: u32,
    /// O_NONBLOCK.
    pub nonblocking: bool,
    /// What the program has set.
    pub options: Vec<SocketOption>,
}

impl ListenSpec {
    /// Reads the state of a listening socket; `None` if it does not listen.
    ///
    /// # Errors
    /// getsockopt(2), getsockname(2); an address family that is not known, by name.
    pub fn of(socket: &OwnedFd, nonblocking: bool) -> Result<Option<ListenSpec>, String> {
        let text = |e: rustix::io::Errno| e.to_string();
        if !sockopt::socket_acceptconn(socket).map_err(text)? {
            return Ok(None);
        }
        let address = address_of(rustix::net::getsockname(socket).map_err(text)?)?;
        let kind = sockopt::socket_type(socket).map_err(text)?;
        let family = sockopt::socket_domain(socket).map_err(text)?;
        Ok(Some(ListenSpec {
            address,
            kind: kind.as_raw(),
            // The kernel tells the true length to nobody but sock_diag; a longer queue is harmless.
            backlog: 4096,
            nonblocking,
            options: options::changed(socket, family, kind).map_err(text)?,
        }))
    }

    /// Makes the socket: in the calling process's network namespace and file system.
    ///
    /// # Errors
    /// bind(2) (EADDRINUSE when any other process holds the address) and the like.
    pub fn listen(&self) -> Result<OwnedFd, SysError> {
        let fail = |call| move |e: rustix::io::Errno| SysError::io(call, &self.address, e);
        let family = match self.address {
            Address::V4(..) => AddressFamily::INET,
            Address::V6(..) => AddressFamily::INET6,
            Address::Path(_) | Address::Abstract(_) => AddressFamily::UNIX,
        };
        let flags = if self.nonblocking {
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
        } else {
            SocketFlags::CLOEXEC
        };
        let kind = SocketType::from_raw(self.kind);
        let socket = rustix::net::socket_with(family, kind, flags, None).map_err(fail("socket"))?;
        for option in &self.options {
            options::set(&socket, option)?;
        }
        // Always: a port in TIME_WAIT is not held by anybody.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(fail("SO_REUSEADDR"))?;
        self.bind(&socket).map_err(fail("bind"))?;
        if self.backlog > 0 {
            rustix::net::listen(&socket, self.backlog as i32).map_err(fail("listen"))?;
        }
        let wanted = options::is_on(&self.options, options::REUSEADDR);
        sockopt::set_socket_reuseaddr(&socket, wanted).map_err(fail("SO_REUSEADDR"))?;
        Ok(socket)
    }

    fn bind(&self, socket: &OwnedFd) -> Result<(), rustix::io::Errno> {
        match &self.address {
            Address::V4(ip, port) => {
                rustix::net::bind(socket, &SocketAddrV4::new((*ip).into(), *port))
            }
            Address::V6(ip, port, scope) => {
                rustix::net::bind(socket, &SocketAddrV6::new((*ip).into(), *port, 0, *scope))
            }
            Address::Path(path) => rustix::net::bind(socket, &SocketAddrUnix::new(path.as_str())?),
            Address::Abstract(name) => {
                rustix::net::bind(socket, &SocketAddrUnix::new_abstract_name(name)?)
            }
        }
    }
}

pub(crate) fn address_of(any: SocketAddrAny) -> Result<Address, String> {
    if let Ok(v4) = SocketAddrV4::try_from(any.clone()) {
        return Ok(Address::V4(v4.ip().octets(), v4.port()));
    }
    if let Ok(v6) = SocketAddrV6::try_from(any.clone()) {
        return Ok(Address::V6(v6.ip().octets(), v6.port(), v6.scope_id()));
    }
    let family = any.address_family();
    let unix = SocketAddrUnix::try_from(any)
        .map_err(|_| format!("a socket of address family {}", family.as_raw()))?;
    if let Some(path) = unix.path() {
        return Ok(Address::Path(path.to_string_lossy().into_owned()));
    }
    match unix.abstract_name() {
        Some(name) => Ok(Address::Abstract(name.to_vec())),
        None => Err("a unix socket without a name".into()),
    }
}

/// A raw `struct sockaddr`, for a socket made inside the child.
pub(crate) fn raw_address(address: &Address) -> Vec<u8> {
    let mut raw = Vec::with_capacity(28);
    match address {
        Address::V4(ip, port) => {
            raw.extend([2, 0]);
            raw.extend(port.to_be_bytes());
            raw.extend(ip);
            raw.extend([0; 8]);
        }
        Address::V6(ip, port, scope) => {
            raw.extend([10, 0]);
            raw.extend(port.to_be_bytes());
            raw.extend([0; 4]);
            raw.extend(ip);
            raw.extend(scope.to_le_bytes());
        }
        Address::Path(path) => {
            raw.extend([1, 0]);
            raw.extend(path.as_bytes());
            raw.push(0);
        }
        Address::Abstract(name) => {
            raw.extend([1, 0, 0]);
            raw.extend(name);
        }
    }
    raw
}

/// A socket that asks about sockets (sock_diag(7)) in the network namespace of a process.
///
/// # Errors
/// The namespace cannot be entered.
pub(crate) fn diag_socket(pid: i32) -> Result<OwnedFd, rustix::io::Errno> {
    let open = || {
        rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::SOCK_DIAG),
        )
    };
    let name = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    if name("self") == name(&pid.to_string()) {
        return open();
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // A thread of its own, which ends there: this one stays where it is.
    let inside = || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind)?;
        open()
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or(Err(rustix::io::Errno::IO))
}

/// Whether the kernel tells the peers of unix sockets: that is a module (`unix_diag`), which it loads
/// when it is first asked, if it can.
pub fn knows_unix_peers() -> bool {
    let ask = || {
        let own = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        let inode = rustix::fs::fstat(&own)?.st_ino;
        unix_peer(&diag_socket(std::process::id() as i32)?, inode as u32)
    };
    ask() != Err(rustix::io::Errno::NOENT)
}

/// Inode of the peer of the unix socket with inode `inode` (sock_diag(7)); `None` when it has
/// none; asked of a [`diag_socket`] of its network namespace.
///
/// # Errors
/// What the kernel answers; ENOENT when the socket is in another network namespace.
pub(crate) fn unix_peer(socket: &OwnedFd, inode: u32) -> Result<Option<u32>, rustix::io::Errno> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const UDIAG_SHOW_PEER: u32 = 4;
    const UNIX_DIAG_PEER: u16 = 2;
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_le_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_le_bytes());
    request.extend(NLM_F_REQUEST.to_le_bytes());
    request.extend([0; 8]);
    request.extend([1, 0, 0, 0]); // AF_UNIX
    request.extend(u32::MAX.to_le_bytes()); // all states
    request.extend(inode.to_le_bytes());
    request.extend(UDIAG_SHOW_PEER.to_le_bytes());
    request.extend([0xff; 8]); // no cookie
    let to = rustix::net::netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket, &request, rustix::net::SendFlags::empty(), &to)?;
    let mut reply = [0u8; 1024];
    let (got, _) =
        rustix::net::recv(socket.as_fd(), &mut reply[..], rustix::net::RecvFlags::empty())?;
    let reply = &reply[..got];
    let half = |at: usize| reply.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let word = |at: usize| {
        reply.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    const NLMSG_ERROR: u16 = 2;
    if half(4) == NLMSG_ERROR {
        return Err(rustix::io::Errno::from_raw_os_error(-(word(16) as i32)));
    }
    let mut at = 32; // nlmsghdr and unix_diag_msg
    while at + 4 <= got {
        if half(at + 2) == UNIX_DIAG_PEER {
            return Ok(Some(word(at + 4)).filter(|&peer| peer != 0));
        }
        at += usize::from(half(at)).max(4).next_multiple_of(4);
    }
    Ok(None)
}
