//! Threads that stand in the vdso when they are stopped.
//!
//! Its code goes with its kernel. A child on another one has that code's functions, but nobody can
//! go on in the middle of them there. Most come out by themselves when they are let go on for a moment
//! (see `stop.rs`); what is left is led out, an instruction at a time, while all others stand still.

use crate::CaptureError;
use crate::stop::StoppedProcess;
use std::time::Instant;

/// The longest way out: reading a clock takes less than a hundred. After so many, two milliseconds,
/// the thread stays where it is, and a fork on another kernel is refused.
const STEPS_MAX: usize = 512;

impl StoppedProcess {
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
