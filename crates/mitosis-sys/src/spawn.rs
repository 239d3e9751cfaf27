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
    /// Namespaces to be made.
    namespaces: libc::c_int,
    /// Top of the stack of the process that executes.
    stack: *mut c_void,
    /// Out: its pid, or the negative errno of its clone.
    made: i32,
}

impl Order {
    fn new(elf: BorrowedFd<'_>, control: BorrowedFd<'_>, name: &CStr) -> Order {
        Order {
            elf: elf.as_raw_fd(),
            control: control.as_raw_fd(),
            pager: -1,
            name: name.as_ptr(),
            environment: c"".as_ptr(),
            namespaces: 0,
            stack: std::ptr::null_mut(),
            made: 0,
        }
    }
}

/// For each of the two processes.
const STACK_BYTES: usize = 32 << 10;
/// Where the program waits for its execution: just above what it keeps.
const ELF_FD: RawFd = 5;

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
    let own_net = if network == Network::Own { libc::CLONE_NEWNET } else { 0 };
    let namespaces =
        libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let order = Order {
        pager: pager.as_raw_fd(),
        environment: environment.as_ptr(),
        namespaces: namespaces | own_net,
        ..Order::new(elf, control, c"mitosis-guard")
    };
    spawn(order, "guard")
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
    spawn(Order::new(elf, control, c"mitosis-template"), "template")
}

/// Two processes, one after the other. The first has a copy of all of this process's descriptors and
/// leaves those that are wanted. The second, a child of this process too (`CLONE_PARENT`), is the one that
/// executes: its table is as large as what it inherits, where the first one's is as large as this
/// process's, for life: 64 KiB for each child of a node that has thousands.
fn spawn(mut order: Order, what: &'static str) -> Result<(i32, OwnedFd), SysError> {
    let mut stack = vec![0u64; 2 * STACK_BYTES / 8];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends this thread until the child has exited, and the child until its own
    // has executed or exited, so `order` and `stack` outlive their use; both only make system calls.
    // Each stack grows down from the end of its half of `stack`, which is 16-byte aligned by
    // construction of its length.
    let first = unsafe {
        let mut top = |bytes: usize| {
            let end = stack.as_mut_ptr().cast::<u8>().add(bytes).cast::<c_void>();
            end.map_addr(|a| a & !15)
        };
        order.stack = top(STACK_BYTES);
        let order = std::ptr::from_mut(&mut order).cast();
        libc::clone(arrange, top(2 * STACK_BYTES), flags, order)
    };
    drop(stack);
    if first < 0 {
        return Err(SysError::last("clone", what));
    }
    reap(first);
    if order.made <= 0 {
        return Err(SysError::io("clone", what, std::io::Error::from_raw_os_error(-order.made)));
    }
    // Nobody has reaped it: the pid is its.
    // SAFETY: no pointers; the descriptor is ours alone.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, order.made, 0);
        if pidfd < 0 {
            let error = SysError::last("pidfd_open", what);
            libc::kill(order.made, libc::SIGKILL);
            reap(order.made);
            return Err(error);
        }
        Ok((order.made, OwnedFd::from_raw_fd(pidfd as RawFd)))
    }
}

/// Waits for the end of a child that was just made here.
fn reap(pid: i32) {
    // SAFETY: no status is asked for. EINTR: a signal of this process.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
        && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
    {}
}

/// In the first process; memory is shared with the suspended parent.
extern "C" fn arrange(order: *mut c_void) -> i32 {
    // SAFETY: only system calls on values of `order`, which the suspended parent keeps alive. The
    // fd table is this process's own copy.
    unsafe {
        let order = &mut *order.cast::<Order>();
        let elf = libc::fcntl(order.elf, libc::F_DUPFD_CLOEXEC, 10);
        let control = libc::fcntl(order.control, libc::F_DUPFD, 10);
        // Closed again below when there is none: a number above 4 that is not kept.
        let source = if order.pager < 0 { order.control } else { order.pager };
        let pager = libc::fcntl(source, libc::F_DUPFD, 10);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        order.made = -*libc::__errno_location();
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
        libc::dup3(elf, ELF_FD, libc::O_CLOEXEC);
        if order.pager < 0 {
            libc::close(4);
        }
        libc::syscall(libc::SYS_close_range, ELF_FD + 1, u32::MAX, 0);
        let flags = libc::CLONE_VM
            | libc::CLONE_VFORK
            | libc::CLONE_PARENT
            | libc::SIGCHLD
            | order.namespaces;
        let stack = order.stack;
        let made = libc::clone(run, stack, flags, std::ptr::from_mut(order).cast());
        order.made = if made < 0 { -*libc::__errno_location() } else { made };
    }
    0
}

/// In the second, before exec; memory is shared with the suspended others.
extern "C" fn run(order: *mut c_void) -> i32 {
    // SAFETY: only system calls on values of `order`, which the suspended parents keep alive. Signal
    // dispositions are this process's own copies.
    unsafe {
        let order = &*order.cast::<Order>();
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
            ELF_FD,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    1
}
