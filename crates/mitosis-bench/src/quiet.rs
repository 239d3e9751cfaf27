//! Waiting for the machine to have nothing else to do: a figure taken beside somebody else's
//! compiler is a figure of that compiler.

use std::time::{Duration, Instant};

/// How long the processors are watched; the kernel counts idle time in steps of 10 ms.
const WATCH: Duration = Duration::from_millis(100);

/// Part of a processor's time that the rest of the machine may take.
const BUSY_MOST: f64 = 0.25;

/// Counts samples that could not wait any longer.
#[derive(Debug)]
pub struct Quiet {
    patience: Duration,
    taken: usize,
    busy: usize,
}

impl Quiet {
    /// All samples together wait for `patience` at most.
    pub fn new(patience: Duration) -> Self {
        Quiet { patience, taken: 0, busy: 0 }
    }

    /// Waits until all but `ours` processors have been idle for a moment.
    pub fn wait(&mut self, ours: usize) {
        self.taken += 1;
        loop {
            let start = Instant::now();
            let used = used_processors();
            if used.is_none_or(|used| used <= ours as f64 + BUSY_MOST) {
                return;
            }
            let left = self.patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                self.busy += 1;
                return;
            }
            self.patience = left;
        }
    }

    /// What to say about it, if there is anything.
    pub fn note(&self, part: &str) -> Option<String> {
        let (busy, taken) = (self.busy, self.taken);
        (busy > 0)
            .then(|| format!("{part}: {busy} of {taken} runs beside other work of the machine"))
    }
}

/// How many processors were in use during one watch; `None` where the kernel does not tell.
fn used_processors() -> Option<f64> {
    let before = times()?;
    let start = Instant::now();
    std::thread::sleep(WATCH);
    let spent = start.elapsed().as_secs_f64();
    let idle = (times()? - before) / spent;
    let all = std::thread::available_parallelism().ok()?.get() as f64;
    Some((all - idle).max(0.0))
}

/// Seconds that all processors together have been idle.
fn times() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_has_an_end_and_is_told() {
        let mut quiet = Quiet::new(Duration::ZERO);
        let all = std::thread::available_parallelism().expect("processors").get();
        quiet.wait(all);
        assert_eq!(quiet.note("x"), None);
        let mut never = Quiet { patience: Duration::ZERO, taken: 3, busy: 1 };
        assert_eq!(
            never.note("x").as_deref(),
            Some("x: 1 of 3 runs beside other work of the machine")
        );
        never.wait(0);
        assert_eq!(never.taken, 4);
    }
}
