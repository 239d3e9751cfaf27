//! Makes a shadow register its own memory with a device: only a process itself can (ib_umem_get takes
//! the memory of the caller).
//!
//! It is started here by a tracer that sets its registers, and needs nobody to end well: should the
//! tracer die, the shadow waits for the file no longer than [`PATIENCE`], closes what it has opened, and
//! sleeps as before.

use crate::abi::{Calls, calls_stage};
use crate::capture::sleep;
use crate::sys::{self, IoVec, MsgHdr, syscall};

const AF_UNIX: u64 = 1;
const SEQPACKET_CLOEXEC: u64 = 5 | 0o2_000_000;
const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
const POLLIN: u16 = 1;
/// Milliseconds.
const PATIENCE: u64 = 5000;
/// SOL_SOCKET and SCM_RIGHTS, as they lie in a control message.
const RIGHTS: u64 = 1 << 32 | 1;
const ETIMEDOUT: i64 = -110;
const EBADF: i64 = -9;

/// rdi: the [`Calls`]; rsp: a stack. Does not return.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym calls);
}

unsafe extern "C" fn calls(order: *mut Calls) -> ! {
    // SAFETY: the tracer passes its own region, which stays mapped.
    let order = unsafe { &mut *order };
    let sockets = order.sockets.as_mut_ptr();
    let made = syscall!(sys::SOCKETPAIR, AF_UNIX, SEQPACKET_CLOEXEC, 0, sockets);
    if made < 0 {
        order.failed = made;
    } else {
        // SAFETY: a field of the order; the tracer looks at it from outside.
        unsafe { (&raw mut order.stage).write_volatile(calls_stage::WAITING) };
        let [theirs, ours] = order.sockets;
        let file = receive(ours);
        // From now on the tracer holds the only other end, and sees this one's closing.
        syscall!(sys::CLOSE, theirs);
        if file < 0 {
            order.failed = file;
        } else {
            make(order, file);
            syscall!(sys::CLOSE, file);
        }
        // SAFETY: as above.
        unsafe { (&raw mut order.stage).write_volatile(calls_stage::DONE) };
        syscall!(sys::CLOSE, ours);
    }
    sleep()
}

fn make(order: &Calls, file: i64) {
    let results = order.results as *mut i64;
    let mut index = 0;
    while index < order.count {
        let argument = order.arguments + index * order.size;
        let result = syscall!(sys::IOCTL, file, order.request, argument);
        // SAFETY: the tracer made room for `count` results.
        unsafe { results.add(index as usize).write_volatile(result) };
        index += 1;
    }
}

/// The file that comes with the next message; or a negative errno.
fn receive(socket: i32) -> i64 {
    #[repr(C)]
    struct Poll {
        fd: i32,
        events: u16,
        revents: u16,
    }
    let mut poll = Poll { fd: socket, events: POLLIN, revents: 0 };
    let ready = syscall!(sys::POLL, &raw mut poll, 1, PATIENCE);
    if ready <= 0 {
        return if ready == 0 { ETIMEDOUT } else { ready };
    }
    let mut byte = 0u8;
    let mut control = [0u64; 3];
    let mut part = IoVec { base: &raw mut byte as u64, len: 1 };
    let mut message = MsgHdr {
        name: 0,
        namelen: 0,
        iov: &raw mut part as u64,
        iovlen: 1,
        control: control.as_mut_ptr() as u64,
        controllen: size_of::<[u64; 3]>() as u64,
        flags: 0,
    };
    let got = syscall!(sys::RECVMSG, socket, &raw mut message, MSG_CMSG_CLOEXEC);
    if got < 0 {
        return got;
    }
    // Length, level and type, then the number.
    if got == 1 && control[1] == RIGHTS { i64::from(control[2] as i32) } else { EBADF }
}
