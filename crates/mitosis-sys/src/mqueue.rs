//! POSIX message queues (mq_overview(7)), by descriptors of them.

use crate::SysError;
use std::os::fd::{AsRawFd, OwnedFd};

/// `struct mq_attr` (linux/mqueue.h).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// `O_NONBLOCK` of the descriptor.
    pub flags: i64,
    /// Messages that fit.
    pub messages_max: i64,
    /// Bytes of the longest message.
    pub bytes_max: i64,
    /// Messages that wait.
    pub messages: i64,
    reserved: [i64; 4],
}

/// What a queue is like.
///
/// # Errors
/// EBADF when it is none.
pub fn attributes(queue: &OwnedFd) -> Result<Attributes, SysError> {
    let mut out = Attributes::default();
    let (fd, none) = (queue.as_raw_fd(), std::ptr::null::<Attributes>());
    // SAFETY: writes one mq_attr.
    if unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd, none, &raw mut out) } < 0 {
        return Err(SysError::last("mq_getattr", fd));
    }
    Ok(out)
}

/// Takes the oldest of the messages with the highest priority; `None` when nothing waits. The
/// descriptor must not block.
///
/// # Errors
/// EBADF when it is not open for reading.
pub fn receive(queue: &OwnedFd, room: &mut [u8]) -> Result<Option<(u32, usize)>, SysError> {
    let (fd, mut priority) = (queue.as_raw_fd(), 0u32);
    let (at, len, none) = (room.as_mut_ptr(), room.len(), std::ptr::null::<libc::timespec>());
    // SAFETY: writes at most `len` bytes to `room`, and one priority.
    let got =
        unsafe { libc::syscall(libc::SYS_mq_timedreceive, fd, at, len, &raw mut priority, none) };
    match got {
        got if got >= 0 => Ok(Some((priority, got as usize))),
        _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) => Ok(None),
        _ => Err(SysError::last("mq_receive", fd)),
    }
}

/// Puts a message into a queue.
///
/// # Errors
/// EAGAIN when it is full.
pub fn send(queue: &OwnedFd, priority: u32, text: &[u8]) -> Result<(), SysError> {
    let (fd, none) = (queue.as_raw_fd(), std::ptr::null::<libc::timespec>());
    // SAFETY: reads `text`.
    let done = unsafe {
        libc::syscall(libc::SYS_mq_timedsend, fd, text.as_ptr(), text.len(), priority, none)
    };
    if done < 0 { Err(SysError::last("mq_send", fd)) } else { Ok(()) }
}
