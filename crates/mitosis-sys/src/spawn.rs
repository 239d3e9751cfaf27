//! Starting the guest: as a guard, pid 1 of namespaces of its own, or as a template (clone(2),
//! execveat(2)).

use crate::SysError;
use std::ffi::{CStr, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Namespaces a guard gets besides pid, mount, UTS and IPC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Network {
    /// The node's own network namespace.
    Node,
    /// A new one.
    Own,
}

struct Order {
    elf: RawFd,
    control: RawFd,
    /// -1 for none.
    pager: RawFd,
    name: *const libc::c_char,
    environment: *const libc::c_char,
}

const STACK_BYTES: usize = 32 << 10;

/// Starts the program in `elf` with `control` as fd 3 and `pager` as fd 4, as pid 1 of new pid,
/// mount, UTS and IPC namespaces, with that environment. Nothing else is inherited. Returns its pid and
/// pidfd.
///
/// # Errors
/// What clone(2) says (EPERM without CAP_SYS_ADMIN, ENOSPC over a namespace limit), or
/// [`SysError::Unexpected`] when the program could not be executed.
pub fn spawn_guard(
    elf: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
    pager: BorrowedFd<'_>,
    network: Network,
    environment: &CStr,
) -> Result<(i32, OwnedFd), SysError> {
    let order = Order {
        elf: elf.as_raw_fd(),
        control: control.as_raw_fd(),
        pager: pager.as_raw_fd(),
        name: c"mitosis-guard".as_ptr(),
        environment: environment.as_ptr(),
    };
    let own_net = if network == Network::Own { libc::CLONE_NEWNET } else { 0 };
    let namespaces =
        libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    spawn(&order, namespaces | own_net, "guard")
}

/// Starts the program in `elf` with `control` as fd 3, to become a template, in this process's
/// namespaces. Nothing else is inherited. Returns its pid and pidfd.
///
/// # Errors
/// What clone(2) says.
pub fn spawn_template(
    elf: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
) -> Result<(i32, OwnedFd), SysError> {
    let order = Order {
        elf: elf.as_raw_fd(),
        control: control.as_raw_fd(),
        pager: -1,
        name: c"mitosis-template".as_ptr(),
        environment: c"".as_ptr(),
    };
    spawn(&order, 0, "template")
}

fn spawn(
    order: &Order,
    namespaces: libc::c_int,
    what: &'static str,
) -> Result<(i32, OwnedFd), SysError> {
    let mut stack = vec![0u64; STACK_BYTES / 8];
    let mut pidfd: RawFd = -1;
    let flags = namespaces | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends this thread until the child has executed or exited, so `order`
    // and `stack` outlive its use of them; the child only makes system calls. The stack grows
    // down from the end of `stack`, which is 16-byte aligned by construction of its length.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        let top = top.map_addr(|a| a & !15);
        let order = std::ptr::from_ref(order).cast_mut().cast();
        libc::clone(run, top, flags, order, &raw mut pidfd)
    };
    drop(stack);
    if pid < 0 {
        return Err(SysError::last("clone", what));
    }
    // SAFETY: CLONE_PIDFD stored a descriptor that is ours alone.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// In the child, before exec; memory is shared with the suspended parent.
extern "C" fn run(order: *mut c_void) -> i32 {
    // SAFETY: only system calls on values of `order`, which the suspended parent keeps alive. The
    // fd table and signal dispositions are this process's own copies.
    unsafe {
        let order = &*order.cast::<Order>();
        let elf = libc::fcntl(order.elf, libc::F_DUPFD_CLOEXEC, 10);
        let control = libc::fcntl(order.control, libc::F_DUPFD, 10);
        // Closed again below when there is none: a number above 4 that is not kept.
        let source = if order.pager < 0 { order.control } else { order.pager };
        let pager = libc::fcntl(source, libc::F_DUPFD, 10);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        if elf < 0 || control < 0 || pager < 0 || null < 0 {
            return 1;
        }
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        libc::dup2(control, 3);
        if order.pager >= 0 {
            libc::dup2(pager, 4);
        }
        libc::syscall(libc::SYS_close_range, if order.pager < 0 { 4 } else { 5 }, elf - 1, 0);
        libc::syscall(libc::SYS_close_range, elf + 1, u32::MAX, 0);
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // Ignored signals would stay ignored across exec.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let argv = [order.name, std::ptr::null()];
        let envp = [order.environment, std::ptr::null()];
        libc::syscall(
            libc::SYS_execveat,
            elf,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    1
}
