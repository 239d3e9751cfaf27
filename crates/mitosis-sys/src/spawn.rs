//! Starting the guest: as a nursery, of which guards are copies, or as a template (clone(2), execveat(2)).

use crate::SysError;
use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

struct Order {
    elf: RawFd,
    control: RawFd,
    /// -1 for none.
    pager: RawFd,
    null: RawFd,
    name: *const libc::c_char,
}

/// Descriptors of this process under low numbers, made early and kept: what a new guest inherits is the
/// part of the table up to the highest of them, however many descriptors this process has by then.
#[derive(Debug)]
pub struct Lane {
    elf: OwnedFd,
    pager: Option<OwnedFd>,
    null: OwnedFd,
    /// Where the control socket of the next guest goes: a number that is this lane's.
    control: OwnedFd,
}

impl Lane {
    /// One lane starts one guest at a time, of the program in `elf`. Guards watch the `pager`, a template
    /// none.
    ///
    /// # Errors
    /// open(2), dup(2).
    pub fn new(elf: BorrowedFd<'_>, pager: Option<BorrowedFd<'_>>) -> Result<Lane, SysError> {
        let failed = |what| move |e| SysError::io("open", what, e);
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = OwnedFd::from(null.map_err(failed("/dev/null"))?);
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("lane of guards"));
        let (elf, pager) = (copy(elf)?, pager.map(copy).transpose()?);
        Ok(Lane { elf, pager, control: copy(null.as_fd())?, null })
    }

    /// Starts the program with `control` as fd 3, on which it takes orders to make guards, and the pager as
    /// fd 4, in this process's namespaces. Nothing else is inherited. Returns its pid and pidfd.
    ///
    /// # Errors
    /// What clone(2) says.
    pub fn nursery(&mut self, control: OwnedFd) -> Result<(i32, OwnedFd), SysError> {
        self.spawn(control, c"mitosis-guard", "nursery of guards")
    }

    /// Starts the program with `control` as fd 3, to become a template, in this process's namespaces.
    /// Nothing else is inherited. Returns its pid and pidfd.
    ///
    /// # Errors
    /// What clone(2) says.
    pub fn template(&mut self, control: OwnedFd) -> Result<(i32, OwnedFd), SysError> {
        self.spawn(control, c"mitosis-template", "template")
    }

    fn spawn(
        &mut self,
        control: OwnedFd,
        name: &CStr,
        what: &'static str,
    ) -> Result<(i32, OwnedFd), SysError> {
        // SAFETY: the target is this lane's own; whatever it was is closed.
        let moved =
            unsafe { libc::dup3(control.as_raw_fd(), self.control.as_raw_fd(), libc::O_CLOEXEC) };
        drop(control);
        if moved < 0 {
            return Err(SysError::last("dup3", what));
        }
        let mut order = Order {
            elf: self.elf.as_raw_fd(),
            control: moved,
            pager: self.pager.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            null: self.null.as_raw_fd(),
            name: name.as_ptr(),
        };
        let made = clone_and_run(&mut order, what);
        // The guest's end is the guest's alone.
        // SAFETY: as above.
        unsafe { libc::dup3(order.null, moved, libc::O_CLOEXEC) };
        made
    }
}

/// Bytes of stack of a process until it executes.
const STACK_BYTES: usize = 32 << 10;
/// Where the program waits for its execution: just above what it keeps.
const ELF_FD: RawFd = 5;

fn clone_and_run(order: &mut Order, what: &'static str) -> Result<(i32, OwnedFd), SysError> {
    let mut stack = vec![0u64; STACK_BYTES / 8];
    let mut pidfd: RawFd = -1;
    // The table of descriptors is shared until the process has one of its own, with the lower part of
    // it: a copy of all of it takes longer the more children there are, and would be as large for life.
    let flags =
        libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends this thread until the child has executed or exited, so `order` and
    // `stack` outlive their use; the child only makes system calls. The stack grows down from the end of
    // `stack`, aligned to 16 bytes.
    let made = unsafe {
        let end = stack.as_mut_ptr().cast::<u8>().add(STACK_BYTES).cast::<c_void>();
        let top = end.map_addr(|a| a & !15);
        libc::clone(run, top, flags, std::ptr::from_mut(order).cast(), &raw mut pidfd)
    };
    drop(stack);
    if made < 0 {
        return Err(SysError::last("clone", what));
    }
    // SAFETY: the kernel made the descriptor for this call.
    Ok((made, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// In the new process, before exec; memory is shared with the suspended parent.
extern "C" fn run(order: *mut c_void) -> i32 {
    // SAFETY: only system calls on values of `order`, which the suspended parent keeps alive. Signal
    // dispositions are this process's own copies, and so is the table of descriptors once it is its own:
    // nothing is done to it before.
    unsafe {
        let order = &*order.cast::<Order>();
        let highest = order.elf.max(order.control).max(order.pager).max(order.null);
        let first = (highest + 1).max(ELF_FD + 1) as u32;
        const CLOSE_RANGE_UNSHARE: u32 = 2;
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_UNSHARE) != 0 {
            return 1;
        }
        // Out of the way of the places, and then into them.
        let elf = libc::fcntl(order.elf, libc::F_DUPFD_CLOEXEC, 10);
        let control = libc::fcntl(order.control, libc::F_DUPFD, 10);
        let null = libc::fcntl(order.null, libc::F_DUPFD, 10);
        let pager = if order.pager < 0 { -1 } else { libc::fcntl(order.pager, libc::F_DUPFD, 10) };
        if elf < 0 || control < 0 || null < 0 || (pager < 0) != (order.pager < 0) {
            return 1;
        }
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        libc::dup2(control, 3);
        if pager < 0 {
            libc::close(4);
        } else {
            libc::dup2(pager, 4);
        }
        libc::dup3(elf, ELF_FD, libc::O_CLOEXEC);
        libc::syscall(libc::SYS_close_range, ELF_FD + 1, u32::MAX, 0);
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // Ignored signals would stay ignored across exec.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let argv = [order.name, std::ptr::null()];
        let envp = [std::ptr::null::<libc::c_char>()];
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
