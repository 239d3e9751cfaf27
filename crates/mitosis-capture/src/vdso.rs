//! Threads that stand in the vdso when they are stopped.
//!
//! Its code goes with its kernel. A child on another one has that code's functions, but nobody can
//! go on in the middle of them there. Most come out by themselves when they are let go on for a moment;
//! what is left is led out, an instruction at a time, while all others stand still.

use crate::CaptureError;
use crate::stop::StoppedProcess;
use mitosis_sys::ptrace::{Running, Stopped};
use std::time::{Duration, Instant};

/// How often threads are let go on.
const LET_GO_MAX: usize = 8;
/// For how long.
const LET_GO: Duration = Duration::from_micros(20);

/// The longest way out: reading a clock takes less than a hundred. After so many, two milliseconds,
/// the thread stays where it is, and a fork on another kernel is refused.
const STEPS_MAX: usize = 512;

impl StoppedProcess {
    /// Lets those threads go on that stand in the vdso, and stops them once more: whoever reads a clock
    /// is done with it in a fraction of the time that leading it out takes. To be called while nothing has
    /// been asked of any thread.
    pub(crate) fn let_out_of_vdso(
        &mut self,
        (start, end): (u64, u64),
        deadline: Instant,
    ) -> Result<(), CaptureError> {
        let inside =
            |thread: &Stopped| thread.regs().is_ok_and(|regs| (start..end).contains(&regs.rip));
        for _ in 0..LET_GO_MAX {
            let (inside, outside): (Vec<_>, _) = self.threads.drain(..).partition(inside);
            self.threads = outside;
            if inside.is_empty() {
                break;
            }
            // What has ended meanwhile, or cannot be seen, is found out by the scan.
            let running: Vec<Running> = inside.into_iter().filter_map(|t| t.run().ok()).collect();
            std::thread::sleep(LET_GO);
            let told = running.into_iter().filter(|thread| thread.interrupt().is_ok());
            self.stopping(told.collect(), deadline)?;
            self.stop_rest(deadline, |_| true)?;
        }
        Ok(())
    }

    /// Leads every thread out of the vdso. All signals are blocked in them.
    pub(crate) fn leave_vdso(
        &mut self,
        (start, end): (u64, u64),
        deadline: Instant,
    ) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("registers", self.pid);
        let inside = |rip: u64| (start..end).contains(&rip);
        for n in 0..self.threads.len() {
            if !inside(self.taken.threads[n].regs.rip) {
                continue;
            }
            for _ in 0..STEPS_MAX {
                self.threads[n].step(deadline).map_err(&fail)?;
                if !inside(self.threads[n].regs().map_err(&fail)?.rip) {
                    break;
                }
            }
            self.retake(n).map_err(&fail)?;
        }
        Ok(())
    }
}
