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
            // Fewer than asked for are not all: the kernel breaks off after one where a signal waits for this
            // thread, the tracer, as a metronome's tick does.
            if got == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&some[..got as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Running;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    const COUNT: i32 = 100;

    extern "C" fn nothing(_signal: libc::c_int) {}

    /// A process for which so many signals wait. Ended by its parent.
    fn with_signals() -> i32 {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written; the child calls only what is async-signal-safe.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGUSR2 + 30);
                libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
                for _ in 0..COUNT {
                    libc::sigqueue(libc::getpid(), libc::SIGUSR2 + 30, value);
                }
                libc::write(ends[1], b"x".as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            }
            let mut byte = 0u8;
            assert_eq!(libc::read(ends[0], (&raw mut byte).cast(), 1), 1);
            libc::close(ends[0]);
            libc::close(ends[1]);
            pid
        }
    }

    #[test]
    fn a_signal_for_the_tracer_does_not_cut_the_list_short() {
        // SAFETY: a handler that does nothing, for a signal that this process has no other use for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        }
        let (pid, done) = (with_signals(), AtomicBool::new(false));
        // SAFETY: plain integers.
        let (me, tracer) = unsafe { (libc::getpid(), libc::gettid()) };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: plain integers; the thread lives as long as this scope.
                    unsafe { libc::syscall(libc::SYS_tgkill, me, tracer, libc::SIGUSR1) };
                }
            });
            let found = || {
                let running = Running::seize(pid)?;
                running.interrupt()?;
                let stopped = running.wait_stopped(Instant::now() + Duration::from_secs(20))?;
                (0..2000)
                    .map(|_| Ok(stopped.pending(true)?.len()))
                    .collect::<Result<Vec<_>, crate::SysError>>()
            };
            let found = found();
            done.store(true, Ordering::Relaxed);
            // SAFETY: a child of this process, which is waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            let short =
                found.expect("pending").iter().filter(|&&len| len != COUNT as usize).count();
            assert_eq!(short, 0, "of 2000 lists");
        });
    }
}
