//! Signals that wait for a stopped thread or its process.

use super::{Stopped, ptrace};
use crate::SysError;

const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;

impl Stopped {
    /// Signals that wait: for this thread alone, or for its process. Each as `siginfo_t`, the oldest
    /// first. They stay where they are.
    ///
    /// # Errors
    /// As [`Stopped::regs`].
    pub fn pending(&self, process: bool) -> Result<Vec<[u8; 128]>, SysError> {
        #[repr(C)]
        struct Arguments {
            offset: u64,
            flags: u32,
            count: i32,
        }
        let flags = if process { PTRACE_PEEKSIGINFO_SHARED } else { 0 };
        let mut all: Vec<[u8; 128]> = Vec::new();
        loop {
            let mut some = [[0u8; 128]; 8];
            let wanted = Arguments { offset: all.len() as u64, flags, count: some.len() as i32 };
            let (from, to) = (&raw const wanted as usize, some.as_mut_ptr() as usize);
            // SAFETY: reads `Arguments` and writes at most `count` siginfos of 128 bytes.
            let got = unsafe { ptrace(PTRACE_PEEKSIGINFO, self.tid, from, to) }
                .map_err(|e| self.error("PTRACE_PEEKSIGINFO", e))?;
            all.extend_from_slice(&some[..got as usize]);
            if (got as usize) < some.len() {
                return Ok(all);
            }
        }
    }
}
