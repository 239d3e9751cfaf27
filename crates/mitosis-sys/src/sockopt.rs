//! Socket options as raw bytes (getsockopt(2), setsockopt(2)), for code that carries many of them
//! without knowing what each means.

use crate::SysError;
use std::os::fd::{AsFd, AsRawFd};

/// Longest value that is read: interface and congestion control names have 16 bytes.
const VALUE_BYTES_MAX: usize = 32;

/// The value of an option, as the kernel lays it out.
///
/// # Errors
/// ENOPROTOOPT or EOPNOTSUPP for an option that this socket does not have.
pub fn get(socket: impl AsFd, level: u32, name: u32) -> Result<Vec<u8>, SysError> {
    get_up_to(socket, level, name, VALUE_BYTES_MAX)
}

/// As [`get`], for values that are longer: at most `max` bytes of it.
///
/// # Errors
/// As [`get`].
pub fn get_up_to(
    socket: impl AsFd,
    level: u32,
    name: u32,
    max: usize,
) -> Result<Vec<u8>, SysError> {
    let mut value = vec![0u8; max];
    let mut len = max as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `value`, and the new length to `len`.
    let r = unsafe {
        libc::getsockopt(fd, level as i32, name as i32, value.as_mut_ptr().cast(), &raw mut len)
    };
    if r < 0 {
        return Err(SysError::last("getsockopt", format!("{level}/{name}")));
    }
    value.truncate((len as usize).min(max));
    Ok(value)
}

/// Sets an option to what [`get`] gave.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set(socket: impl AsFd, level: u32, name: u32, value: &[u8]) -> Result<(), SysError> {
    let fd = socket.as_fd().as_raw_fd();
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`.
    let r = unsafe { libc::setsockopt(fd, level as i32, name as i32, value.as_ptr().cast(), len) };
    if r < 0 { Err(SysError::last("setsockopt", format!("{level}/{name}"))) } else { Ok(()) }
}

/// Bytes of an instruction (`struct sock_filter`, linux/filter.h).
const INSTRUCTION_BYTES: usize = 8;
/// `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;

/// The classic filter of a socket (SO_ATTACH_FILTER, socket(7)): its instructions, none if it has none.
///
/// # Errors
/// EACCES for one that is no classic filter, which the kernel does not show.
pub fn filter(socket: impl AsFd) -> Result<Vec<u8>, SysError> {
    let fd = socket.as_fd().as_raw_fd();
    // SO_GET_FILTER has the number of SO_ATTACH_FILTER, and counts instructions.
    let ask = |at: *mut u8, count: usize| {
        let mut len = count as libc::socklen_t;
        let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        // SAFETY: the kernel writes at most `count` instructions, for which the caller has room, or
        // none at all where `count` is 0.
        let r = unsafe { libc::getsockopt(fd, level, name, at.cast(), &raw mut len) };
        if r < 0 { Err(SysError::last("getsockopt", "SO_GET_FILTER")) } else { Ok(len as usize) }
    };
    let count = ask(std::ptr::null_mut(), 0)?.min(INSTRUCTIONS_MAX);
    let mut program = vec![0u8; count * INSTRUCTION_BYTES];
    if count > 0 {
        let got = ask(program.as_mut_ptr(), count)?;
        program.truncate(got.min(count) * INSTRUCTION_BYTES);
    }
    Ok(program)
}

/// Gives a socket a filter, as [`filter`] told it.
///
/// # Errors
/// EINVAL for instructions that make no filter.
pub fn set_filter(socket: impl AsFd, program: &[u8]) -> Result<(), SysError> {
    let count = program.len() / INSTRUCTION_BYTES;
    let head = libc::sock_fprog { len: count as u16, filter: program.as_ptr().cast_mut().cast() };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (fd, at) = (socket.as_fd().as_raw_fd(), (&raw const head).cast());
    let name = libc::SO_ATTACH_FILTER;
    // SAFETY: the kernel reads `count` instructions, which `program` has, and no more than that.
    let r = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, at, len) };
    if r < 0 { Err(SysError::last("setsockopt", "SO_ATTACH_FILTER")) } else { Ok(()) }
}

/// What a packet socket is bound to (packet(7)): protocol, in the order of the network, and the index
/// of an interface, 0 for all.
///
/// # Errors
/// What getsockname(2) says.
pub fn packet_name(socket: impl AsFd) -> Result<(u16, i32), SysError> {
    // SAFETY: plain integers, for which zero is valid.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let (fd, at) = (socket.as_fd().as_raw_fd(), (&raw mut name).cast());
    // SAFETY: the kernel writes at most `len` bytes to `name`.
    if unsafe { libc::getsockname(fd, at, &raw mut len) } < 0 {
        return Err(SysError::last("getsockname", fd));
    }
    Ok((name.sll_protocol, name.sll_ifindex))
}

/// The name of an interface of the socket's network namespace.
///
/// # Errors
/// ENODEV when there is none with that index.
pub fn interface_name(socket: impl AsFd, index: i32) -> Result<[u8; 16], SysError> {
    // SAFETY: plain integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes one `struct ifreq`.
    if unsafe { libc::ioctl(fd, libc::SIOCGIFNAME, &raw mut request) } < 0 {
        return Err(SysError::last("ioctl", "SIOCGIFNAME"));
    }
    Ok(request.ifr_name.map(|letter| letter as u8))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_filter_can_be_read_and_set_again() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(super::filter(&socket).expect("none"), []);
        // BPF_RET | BPF_K: all of the packet.
        let all = [0x06, 0, 0, 0, 0xff, 0xff, 0, 0];
        super::set_filter(&socket, &all).expect("SO_ATTACH_FILTER");
        assert_eq!(super::filter(&socket).expect("SO_GET_FILTER"), all);
        let name = super::interface_name(&socket, 1).expect("the first interface");
        assert_eq!(&name[..3], b"lo\0");
    }

    #[test]
    fn what_was_set_can_be_read() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        super::set(&socket, 0, 2, &77u32.to_le_bytes()).expect("IP_TTL");
        assert_eq!(super::get(&socket, 0, 2).expect("IP_TTL"), 77u32.to_le_bytes());
        assert!(super::get(&socket, 6, 1).is_err(), "UDP has no TCP_NODELAY");
    }
}
