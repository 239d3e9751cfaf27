//! What fcntl(2), ioctl(2) and open_by_handle_at(2) say of open files.

use crate::SysError;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Who is signalled when something happens to an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: u32,
    /// Thread, process or group, as the calling process numbers it; 0 for one that it cannot see.
    pub id: i32,
    /// `F_GETSIG`: 0 for `SIGIO`.
    pub signal: u32,
}

/// F_GETOWN_EX and F_GETSIG (fcntl(2)); `None` when nobody is to be told.
///
/// # Errors
/// What fcntl(2) says.
pub fn owner(file: impl AsFd) -> Result<Option<Owner>, SysError> {
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let fd = file.as_fd().as_raw_fd();
    let mut owner = [0i32; 2];
    // SAFETY: the kernel writes a `struct f_owner_ex`, two words.
    if unsafe { libc::fcntl(fd, F_GETOWN_EX, owner.as_mut_ptr()) } < 0 {
        return Err(SysError::last("F_GETOWN_EX", fd));
    }
    // SAFETY: no pointer is passed.
    let signal = unsafe { libc::fcntl(fd, F_GETSIG) };
    if signal < 0 {
        return Err(SysError::last("F_GETSIG", fd));
    }
    let [kind, id] = owner;
    let none = id == 0 && signal == 0;
    Ok((!none).then_some(Owner { kind: kind as u32, id, signal: signal as u32 }))
}

/// Opens a file by its handle, on the mount that `mount` lies on, so that its path can be read
/// (open_by_handle_at(2) with O_PATH; needs CAP_DAC_READ_SEARCH).
///
/// # Errors
/// ESTALE when there is no such file (any more).
pub fn by_handle(mount: impl AsFd, kind: i32, handle: &[u8]) -> Result<OwnedFd, SysError> {
    let mut bytes = Vec::with_capacity(8 + handle.len());
    bytes.extend((handle.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(handle);
    let fd = mount.as_fd().as_raw_fd();
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a `struct file_handle`: length, type and so many bytes.
    let opened = unsafe { libc::syscall(libc::SYS_open_by_handle_at, fd, bytes.as_ptr(), flags) };
    if opened < 0 {
        return Err(SysError::last("open_by_handle_at", fd));
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(opened as i32) })
}

/// An ioctl(2) that writes one `int`.
///
/// # Errors
/// What ioctl(2) says.
pub fn int_of(file: impl AsFd, request: u64) -> Result<i32, SysError> {
    let mut value = 0i32;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: callers name requests that write an int, as the type says.
    if unsafe { libc::ioctl(fd, request as libc::c_ulong, &raw mut value) } < 0 {
        return Err(SysError::last("ioctl", format!("{request:#x}")));
    }
    Ok(value)
}

/// Modes of a terminal: the kernel's `struct termios2` (asm-generic/termbits.h) as bytes.
///
/// # Errors
/// ENOTTY.
pub fn terminal_modes(file: impl AsFd) -> Result<[u8; 44], SysError> {
    const TCGETS2: libc::c_ulong = 0x802c_542a;
    let mut modes = [0u8; 44];
    // SAFETY: the kernel writes a `struct termios2`, which has 44 bytes: the request says so.
    if unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TCGETS2, modes.as_mut_ptr()) } < 0 {
        return Err(SysError::last("ioctl", "TCGETS2"));
    }
    Ok(modes)
}

/// Size of a terminal: `struct winsize` as bytes.
///
/// # Errors
/// ENOTTY.
pub fn terminal_size(file: impl AsFd) -> Result<[u8; 8], SysError> {
    let mut size = [0u8; 8];
    // SAFETY: the kernel writes a `struct winsize`, four 16-bit words.
    if unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) } < 0 {
        return Err(SysError::last("ioctl", "TIOCGWINSZ"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_tells_whom_it_signals() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(owner(&socket).expect("nobody"), None);
        let pid = std::process::id() as i32;
        // SAFETY: no pointer is passed.
        assert_eq!(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETOWN, pid) }, 0);
        let owner = owner(&socket).expect("ourselves");
        assert_eq!(owner, Some(Owner { kind: 1, id: pid, signal: 0 }));
    }
}
