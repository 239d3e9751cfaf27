//! Where the parent can be made to enter the kernel, and when it must not.

use crate::CaptureError;
use crate::stop::StoppedProcess;
use mitosis_sys::{SysError, procfs};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// wait4(2).
pub(crate) const WAIT4: u64 = 61;
/// `__WALL | WNOHANG`
pub(crate) const WALL_WNOHANG: u64 = 0x4000_0001;
/// The instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The parent's memory and a `syscall` instruction in its vdso.
pub(crate) struct Gadget {
    pub mem: File,
    pub address: u64,
    /// The vdso: first byte and one past the last.
    pub vdso: (u64, u64),
}

impl Gadget {
    pub(crate) fn find(pid: i32) -> Result<Gadget, CaptureError> {
        let fail = CaptureError::sys("inspect", pid);
        let path = format!("/proc/{pid}/mem");
        let mem = OpenOptions::new().read(true).write(true).open(&path);
        let mem = mem.map_err(|e| fail(SysError::io("open", path, e)))?;
        let ranges = procfs::ranges(pid).map_err(&fail)?;
        let vdso = ranges
            .iter()
            .find(|m| m.name == "[vdso]")
            .ok_or_else(|| CaptureError::Refused { pid, why: "has no vdso".into() })?;
        let mut code = vec![0u8; (vdso.end - vdso.start) as usize];
        mem.read_exact_at(&mut code, vdso.start)
            .map_err(|e| fail(SysError::io("read", "vdso", e)))?;
        let at = code.windows(SYSCALL.len()).position(|w| w == SYSCALL).ok_or_else(|| {
            CaptureError::Refused { pid, why: "has a vdso without a system call in it".into() }
        })?;
        Ok(Gadget { mem, address: vdso.start + at as u64, vdso: (vdso.start, vdso.end) })
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), SysError> {
        let failed = |e| SysError::io("write", "parent's memory", e);
        self.mem.write_all_at(bytes, at).map_err(failed)
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), SysError> {
        let failed = |e| SysError::io("read", "parent's memory", e);
        self.mem.read_exact_at(bytes, at).map_err(failed)
    }
}

pub(crate) fn check(call: &'static str, result: i64) -> Result<(), CaptureError> {
    if (-4095..0).contains(&result) {
        let source = std::io::Error::from_raw_os_error(-result as i32);
        let hint = match -result {
            11 => " (the parent's pids limit, RLIMIT_NPROC or the machine's pid_max is reached)",
            12 => " (the machine, or the parent's memory cgroup, is out of memory)",
            _ => "",
        };
        return Err(CaptureError::Fork { call, source, hint });
    }
    Ok(())
}

/// What was looked at before the stop may have been replaced since (execve(2)): then the memory
/// behind `gadget.mem` is no more, and nothing can be read from it.
pub(crate) fn refuse_replaced(pid: i32, gadget: &Gadget) -> Result<(), CaptureError> {
    let mut code = [0u8; SYSCALL.len()];
    match gadget.mem.read_exact_at(&mut code, gadget.address) {
        Ok(()) if code == SYSCALL => Ok(()),
        _ => {
            let why = "has just replaced its program (execve): try again".into();
            Err(CaptureError::Refused { pid, why })
        }
    }
}

/// An injected call inside an rseq critical section would let it go on as if nothing had been.
pub(crate) fn refuse_critical_section(
    process: &StoppedProcess,
    gadget: &Gadget,
) -> Result<(), CaptureError> {
    for thread in &process.taken.threads {
        let (area, len, _) = thread.rseq;
        if len == 0 {
            continue;
        }
        let word = |at: u64| -> u64 {
            let mut bytes = [0u8; 8];
            let read = gadget.mem.read_exact_at(&mut bytes, at);
            read.map_or(0, |()| u64::from_le_bytes(bytes))
        };
        let descriptor = word(area + 8);
        if descriptor == 0 {
            continue;
        }
        let (start, length) = (word(descriptor + 8), word(descriptor + 16));
        if (start..start.saturating_add(length)).contains(&thread.regs.rip) {
            let why = "is inside an rseq critical section: try again".into();
            return Err(CaptureError::Refused { pid: process.pid, why });
        }
    }
    Ok(())
}
