//! One seed as it is read over a queue pair that it shares with others.

use super::Regions;
use mitosis_rdma_sys::Queue;
use std::time::{Duration, Instant};

use crate::Handle;

/// Pings (a quarter of a second each) until a broken queue pair is made again.
pub(super) const RETRY: u32 = 4;
/// The same where the owner, or the device, made none.
pub(super) const RETRY_REFUSED: u32 = 40;

/// The queue pair that all seeds of one owner's node share.
pub(super) enum Link {
    /// Nobody has needed it yet.
    Idle,
    /// Asked for, for this seed, then.
    Asked(Queue, Handle, Instant),
    /// Connected; making it took so long.
    Up(Queue, Duration),
    /// Broken; made again after so many pings.
    Down(u32),
}

/// What becomes of a seed's reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// What is registered is read by RDMA.
    On,
    /// Nothing is posted for it any more, for good; when nothing is on its way any more, the owner is told.
    Ending,
    /// Nothing is read of it by RDMA, for good.
    Off,
    /// It is closed, and the owner is told when nothing is on its way any more.
    Closing,
}

/// A seed that is open at the owner.
pub(super) struct Reading {
    pub mode: Mode,
    pub regions: Regions,
    /// What was to be registered is.
    pub complete: bool,
    /// Pages were wanted that are not registered: the owner may register them for that.
    pub missed: bool,
    /// READs of it that are posted, or will be at the next flush.
    pub flying: usize,
}

/// What is due when nothing of a seed is on its way any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Nothing,
    /// To tell the owner that its windows may be closed.
    Ended,
    /// To close it.
    Close,
}

impl Reading {
    pub fn new() -> Reading {
        Reading {
            mode: Mode::On,
            regions: Regions::default(),
            complete: false,
            missed: false,
            flying: 0,
        }
    }

    /// Its queue pair is gone, and with it the windows and what was on the way.
    pub fn unlinked(&mut self) {
        self.regions = Regions::default();
        (self.complete, self.missed, self.flying) = (false, false, 0);
    }

    /// What is due now; said once.
    pub fn due(&mut self) -> Due {
        match self.mode {
            Mode::Ending if self.flying == 0 => {
                self.mode = Mode::Off;
                Due::Ended
            }
            Mode::Closing if self.flying == 0 => Due::Close,
            _ => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_when_nothing_is_on_its_way_and_once() {
        let mut seed = Reading::new();
        assert_eq!(seed.due(), Due::Nothing);
        (seed.mode, seed.flying) = (Mode::Ending, 2);
        assert_eq!(seed.due(), Due::Nothing);
        seed.flying = 0;
        assert_eq!((seed.due(), seed.due()), (Due::Ended, Due::Nothing));
        // Closed meanwhile: that says it, too.
        (seed.mode, seed.flying) = (Mode::Closing, 1);
        assert_eq!(seed.due(), Due::Nothing);
        seed.unlinked();
        assert_eq!(seed.due(), Due::Close);
    }
}
