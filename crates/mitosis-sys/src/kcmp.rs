//! Whether two processes, or two descriptors, have one and the same thing of the kernel's (kcmp(2)):
//! what `/proc` shows of them may be equal without that.

use crate::SysError;
use std::cmp::Ordering;

/// An order of open file descriptions, by a descriptor of each: pid and number (kcmp(2), KCMP_FILE).
/// It means nothing but that equal is the same; it is there so that one among many is found quickly.
///
/// # Errors
/// EPERM, ESRCH, EBADF, ENOSYS.
pub fn order(a: (i32, u32), b: (i32, u32)) -> Result<Ordering, SysError> {
    // SAFETY: plain integers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, 0, a.1, b.1) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        r if r < 0 => Err(SysError::last("kcmp", a.0)),
        r => Err(SysError::Unexpected(format!("kcmp of files says {r}"))),
    }
}

/// Whether descriptors of two processes, pid and number of each, name one open file description.
///
/// # Errors
/// As [`order`].
pub fn same_file_of(a: (i32, u32), b: (i32, u32)) -> Result<bool, SysError> {
    Ok(order(a, b)? == Ordering::Equal)
}

/// Whether two processes have one memory, or one table of open files (`CLONE_VM`, `CLONE_FILES`).
///
/// # Errors
/// EPERM, ESRCH.
pub fn shares_memory_or_files(a: i32, b: i32) -> Result<bool, SysError> {
    const KCMP_FILES: i32 = 2;
    Ok(shares_memory(a, b)? || same(a, b, KCMP_FILES)?)
}

/// Whether two processes have one memory (`CLONE_VM`).
///
/// # Errors
/// EPERM, ESRCH.
pub fn shares_memory(a: i32, b: i32) -> Result<bool, SysError> {
    const KCMP_VM: i32 = 1;
    same(a, b, KCMP_VM)
}

fn same(a: i32, b: i32, kind: i32) -> Result<bool, SysError> {
    // SAFETY: plain integers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, 0, 0) } {
        r if r < 0 => Err(SysError::last("kcmp", a)),
        r => Ok(r == 0),
    }
}

/// A registration of an epoll instance, as kcmp(2) wants it named (`struct kcmp_epoll_slot`).
#[repr(C)]
struct EpollSlot {
    epoll: u32,
    target: u32,
    nth: u32,
}

/// Whether the `nth` registration of descriptor `target` in the epoll instance `epoll` is of the
/// file that `candidate` names (kcmp(2), KCMP_EPOLL_TFD, Linux 4.13); both are of a process. The number
/// may have been closed and given to another file meanwhile, while a duplicate keeps the registration
/// alive.
///
/// # Errors
/// EPERM, ESRCH; ENOENT if there is no such registration.
pub fn watches_file(
    (pid, epoll): (i32, u32),
    (target, nth): (u32, u32),
    (holder, candidate): (i32, u32),
) -> Result<bool, SysError> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = EpollSlot { epoll, target, nth };
    let at = &raw const slot;
    // SAFETY: the kernel reads one slot, which lives until the call returns.
    let r = unsafe { libc::syscall(libc::SYS_kcmp, holder, pid, KCMP_EPOLL_TFD, candidate, at) };
    if r < 0 { Err(SysError::last("kcmp", format!("{pid}: epoll {epoll}"))) } else { Ok(r == 0) }
}
