//! System calls without libc.

use core::arch::asm;

pub const POLL: u64 = 7;
pub const MMAP: u64 = 9;
pub const MPROTECT: u64 = 10;
pub const MUNMAP: u64 = 11;
pub const SIGACTION: u64 = 13;
pub const PREAD: u64 = 17;
pub const MREMAP: u64 = 25;
pub const SOCKETPAIR: u64 = 53;
pub const GETITIMER: u64 = 36;
pub const TIMER_GETTIME: u64 = 224;
pub const RECVMSG: u64 = 47;
pub const CLONE: u64 = 56;
pub const WAIT4: u64 = 61;
pub const KILL: u64 = 62;
pub const WAITID: u64 = 247;
pub const BRK: u64 = 12;
pub const GETPID: u64 = 39;
pub const SETPGID: u64 = 109;
pub const SETSID: u64 = 112;
pub const SIGSUSPEND: u64 = 130;
pub const SIGALTSTACK: u64 = 131;
pub const MOUNT: u64 = 165;
pub const PRCTL: u64 = 157;
pub const ARCH_PRCTL: u64 = 158;
pub const GET_MEMPOLICY: u64 = 239;
pub const FUTEX: u64 = 202;
pub const CLOCK_GETTIME: u64 = 228;
pub const EXIT_GROUP: u64 = 231;
pub const DUP3: u64 = 292;
pub const CLONE3: u64 = 435;
pub const SETNS: u64 = 308;
pub const SCHED_YIELD: u64 = 24;
pub const GETPPID: u64 = 110;
pub const MADVISE: u64 = 28;
pub const SIGPROCMASK: u64 = 14;
pub const SIGNALFD4: u64 = 289;
pub const READ: u64 = 0;
pub const CLOSE_RANGE: u64 = 436;
pub const CLOSE: u64 = 3;
pub const IOCTL: u64 = 16;
pub const SOCKET: u64 = 41;
pub const WRITE: u64 = 1;
pub const CAPSET: u64 = 126;
pub const NANOSLEEP: u64 = 35;
pub const GETRANDOM: u64 = 318;
pub const OPENAT: u64 = 257;
pub const FCHMOD: u64 = 91;
pub const UMOUNT2: u64 = 166;
pub const OPEN_TREE: u64 = 428;
pub const MOVE_MOUNT: u64 = 429;
pub const MOUNT_SETATTR: u64 = 442;

/// Performs a system call.
///
/// # Safety
/// As safe as the call itself.
#[inline(always)]
pub unsafe fn call(nr: u64, a: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: the kernel clobbers rcx and r11 only; memory effects are the caller's business.
    unsafe {
        asm!("syscall", inlateout("rax") nr as i64 => ret, in("rdi") a[0], in("rsi") a[1],
             in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

macro_rules! syscall {
    ($nr:expr $(, $arg:expr)*) => {{
        let given = [$($arg as u64),*];
        let mut args = [0u64; 6];
        let mut i = 0;
        while i < given.len() { args[i] = given[i]; i += 1; }
        // SAFETY: each use passes arguments that the call may act on (see the use).
        unsafe { crate::sys::call($nr, args) }
    }};
    (bare $nr:expr) => {{
        // SAFETY: a call without arguments that has no effect on memory.
        unsafe { crate::sys::call($nr, [0; 6]) }
    }};
}
pub(crate) use syscall;

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let mut ts = [0u64; 2];
    syscall!(CLOCK_GETTIME, 1, ts.as_mut_ptr());
    ts[0].wrapping_mul(1_000_000_000).wrapping_add(ts[1])
}

#[repr(C)]
pub struct IoVec {
    pub base: u64,
    pub len: u64,
}

#[repr(C)]
pub struct MsgHdr {
    pub name: u64,
    pub namelen: u64,
    pub iov: u64,
    pub iovlen: u64,
    pub control: u64,
    pub controllen: u64,
    pub flags: u64,
}
