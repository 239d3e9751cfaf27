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

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_set_can_be_read() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        super::set(&socket, 0, 2, &77u32.to_le_bytes()).expect("IP_TTL");
        assert_eq!(super::get(&socket, 0, 2).expect("IP_TTL"), 77u32.to_le_bytes());
        assert!(super::get(&socket, 6, 1).is_err(), "UDP has no TCP_NODELAY");
    }
}
