//! What the kernel holds of a stopped thread: registers, signal mask, rseq, seccomp filters.

use super::{Stopped, ptrace};
use crate::SysError;

/// `struct user_regs_struct`.
pub type UserRegs = libc::user_regs_struct;

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const NT_X86_XSTATE: usize = 0x202;
/// Room for any XSAVE image ptrace may give (AMX included).
const XSTATE_BYTES_MAX: usize = 16 << 10;

impl Stopped {
    /// General registers.
    ///
    /// # Errors
    /// ESRCH when it was killed meanwhile.
    pub fn regs(&self) -> Result<UserRegs, SysError> {
        // SAFETY: all-zero is a valid user_regs_struct.
        let mut regs: UserRegs = unsafe { std::mem::zeroed() };
        // SAFETY: GETREGS writes one user_regs_struct.
        unsafe { ptrace(libc::PTRACE_GETREGS, self.tid, 0, &raw mut regs as usize) }
            .map_err(|e| self.error("PTRACE_GETREGS", e))?;
        Ok(regs)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// ESRCH when it was killed meanwhile.
    pub fn set_regs(&self, regs: &UserRegs) -> Result<(), SysError> {
        // SAFETY: SETREGS reads one user_regs_struct.
        unsafe {
            ptrace(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(regs) as usize)
                .map_err(|e| self.error("PTRACE_SETREGS", e))?;
        }
        Ok(())
    }

    /// The XSAVE image in its standard (not compacted) format.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn xstate(&self) -> Result<Vec<u8>, SysError> {
        let mut image = vec![0u8; XSTATE_BYTES_MAX];
        let mut iov =
            libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: XSTATE_BYTES_MAX };
        // SAFETY: the iovec describes `image`.
        unsafe { ptrace(libc::PTRACE_GETREGSET, self.tid, NT_X86_XSTATE, &raw mut iov as usize) }
            .map_err(|e| self.error("PTRACE_GETREGSET", e))?;
        image.truncate(iov.iov_len);
        Ok(image)
    }

    /// Blocked signals.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn sigmask(&self) -> Result<u64, SysError> {
        let mut mask = 0u64;
        // SAFETY: writes `addr` = 8 bytes.
        unsafe { ptrace(PTRACE_GETSIGMASK, self.tid, 8, &raw mut mask as usize) }
            .map_err(|e| self.error("PTRACE_GETSIGMASK", e))?;
        Ok(mask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn set_sigmask(&self, mask: u64) -> Result<(), SysError> {
        // SAFETY: reads `addr` = 8 bytes.
        unsafe { ptrace(PTRACE_SETSIGMASK, self.tid, 8, &raw const mask as usize) }
            .map_err(|e| self.error("PTRACE_SETSIGMASK", e))?;
        Ok(())
    }

    /// The registered rseq area: address, length, signature; zeros when there is none or the
    /// kernel cannot tell (before 5.13).
    pub fn rseq(&self) -> (u64, u32, u32) {
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut c = Configuration::default();
        let size = size_of::<Configuration>();
        // SAFETY: writes at most `addr` = size bytes.
        let r =
            unsafe { ptrace(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, size, &raw mut c as usize) };
        if r.is_ok() { (c.pointer, c.size, c.signature) } else { (0, 0, 0) }
    }

    /// Seccomp filters as 8-byte BPF instructions, the one installed first first: so the kernel counts them,
    /// though ptrace(2) has it the other way round.
    ///
    /// # Errors
    /// EACCES when the calling process is itself confined by seccomp.
    pub fn seccomp_filters(&self) -> Result<Vec<Vec<u64>>, SysError> {
        let mut filters = Vec::new();
        loop {
            let index = filters.len();
            // SAFETY: with a null pointer the kernel only says how long the filter is.
            let len = match unsafe { ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) } {
                Ok(len) => len as usize,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
                Err(e) => return Err(self.error("PTRACE_SECCOMP_GET_FILTER", e)),
            };
            let mut code = vec![0u64; len];
            // SAFETY: writes `len` instructions of 8 bytes.
            unsafe {
                ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, code.as_mut_ptr() as usize)
            }
            .map_err(|e| self.error("PTRACE_SECCOMP_GET_FILTER", e))?;
            filters.push(code);
        }
        Ok(filters)
    }
}

/// Head and length of a thread's robust futex list (get_robust_list(2)).
///
/// # Errors
/// EPERM, ESRCH.
pub fn robust_list(tid: i32) -> Result<(u64, u64), SysError> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer and one length.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if r < 0 { Err(SysError::last("get_robust_list", tid)) } else { Ok((head, len)) }
}
