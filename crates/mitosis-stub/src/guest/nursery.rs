//! Where guards come from: a process of the node that has been executed once, and of which each guard is a
//! copy. To execute one for each child would cost as much as half of its namespaces.
//!
//! It has nothing of any child: three times /dev/null, the socket on which its orders come, the pager's
//! pidfd, and for the moment of a copy the control socket and the number of the guard. An order is written over the
//! one before, so a guard finds its own in its memory and no other. Guards are not its children but its
//! parent's, the node's.

use crate::abi::*;
use crate::guard::{self, Control, exit};
use crate::restore::CloneArgs;
use crate::settle;
use crate::sys::{self, syscall};
use core::mem::MaybeUninit;

/// NEWPID | NEWNS | NEWUTS | NEWIPC
const NAMESPACES: u64 = 0x2000_0000 | 0x2_0000 | 0x400_0000 | 0x800_0000;
const NEWNET: u64 = 0x4000_0000;
const NEWUSER: u64 = 0x1000_0000;
const PARENT: u64 = 0x8000;

/// The life of a nursery. `name` is the last thing on the old stack, if that has been left.
pub extern "C" fn live(vdso: u64, name: u64) -> ! {
    if name != 0 {
        settle::leave(name);
    }
    let mut order = MaybeUninit::<NurseryOrder>::uninit();
    let mut control = MaybeUninit::<Control>::uninit();
    let (to, len) = (order.as_mut_ptr() as u64, size_of::<NurseryOrder>());
    loop {
        let received = guard::receive(GUARD_CONTROL_FD, to, len as u64, &mut control);
        // SAFETY: plain integers, all of them received, and as many descriptors as are used.
        let (order, control) = unsafe { (&*order.as_ptr(), &*control.as_ptr()) };
        match received {
            Some((n, 1)) if n == len => make(vdso, order, control.fds[0], -1),
            Some((n, 2)) if n == len => make(vdso, order, control.fds[0], control.fds[1]),
            // Nobody is left who could give orders.
            None => exit(0),
            Some(_) => exit(3),
        }
    }
}

/// `number`: -1 for none.
fn make(vdso: u64, order: &NurseryOrder, control: i32, number: i32) {
    let network = if order.own_net == 1 { NEWNET } else { 0 };
    let user = if order.own_user == 1 { NEWUSER } else { 0 };
    // With PARENT the signal at its end is that of this process's own.
    let args = CloneArgs {
        flags: NAMESPACES | network | user | PARENT, pidfd: 0, child_tid: 0, parent_tid: 0, exit_signal: 0,
        stack: 0, stack_size: 0, tls: 0, set_tid: 0, set_tid_size: 0, cgroup: 0,
    };
    let pid = syscall!(sys::CLONE3, &raw const args, size_of::<CloneArgs>());
    if pid == 0 {
        // Over the socket of the orders.
        syscall!(sys::DUP3, control, GUARD_CONTROL_FD, 0x80000);
        syscall!(sys::CLOSE, control);
        if user != 0 {
            settle::close_to_inspection();
        }
        guard::live(vdso, order.generation, network != 0, (number, order.whole == 1));
    }
    syscall!(sys::WRITE, GUARD_CONTROL_FD, &raw const pid, 8);
    syscall!(sys::CLOSE, control);
    if number >= 0 {
        syscall!(sys::CLOSE, number);
    }
}
