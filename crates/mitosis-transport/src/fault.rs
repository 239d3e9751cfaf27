//! A source that fails on purpose, for tests of what must survive it.

use crate::{Handle, PageSource, ReadError, ReadRequest, SourceError, SourceEvent};
use mitosis_descriptor::{Secret, SeedId};
use std::os::fd::BorrowedFd;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reads with `tag % every == 0` are swallowed.
    Drop {
        /// Which reads.
        every: u64,
    },
    /// Reads with `tag % every == 0` fail.
    Error {
        /// Which reads.
        every: u64,
        /// How.
        error: ReadError,
    },
    /// The connection is cut once so many reads were submitted and some pages have come: one that
    /// brings nothing, however many reads are asked for again, would never let anybody get on.
    CutAfter(u64),
    /// Nothing is given out in the first so many polls.
    Delay(u32),
    /// Each completion loses its last page, and the read ends with it.
    Truncate,
    /// Pings are swallowed.
    Mute,
}

/// Wraps a source and makes it fail.
pub struct FaultySource<S> {
    inner: S,
    fault: Fault,
    submitted: u64,
    brought: bool,
    polls: u32,
}

impl<S: PageSource> FaultySource<S> {
    /// Wraps a source.
    pub fn new(inner: S, fault: Fault) -> FaultySource<S> {
        FaultySource { inner, fault, submitted: 0, brought: false, polls: 0 }
    }

    fn cut(&self) -> bool {
        matches!(self.fault, Fault::CutAfter(reads) if self.brought && self.submitted >= reads)
    }
}

impl<S: PageSource> PageSource for FaultySource<S> {
    fn open(&mut self, handle: Handle, seed: SeedId, secret: &Secret) {
        self.inner.open(handle, seed, secret);
    }

    fn close(&mut self, handle: Handle) {
        self.inner.close(handle);
    }

    fn submit(&mut self, reads: &[ReadRequest]) {
        self.submitted += reads.len() as u64;
        let kept: Vec<ReadRequest> = match self.fault {
            Fault::Drop { every } => {
                reads.iter().filter(|read| read.tag % every != 0).copied().collect()
            }
            _ => reads.to_vec(),
        };
        self.inner.submit(&kept);
    }

    fn gather(&mut self, tag: u64, handle: Handle, pages: &[u64]) -> bool {
        self.submitted += 1;
        match self.fault {
            Fault::Drop { every } if tag % every == 0 => true,
            _ => self.inner.gather(tag, handle, pages),
        }
    }

    fn ping(&mut self) {
        if self.fault != Fault::Mute {
            self.inner.ping();
        }
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        if self.cut() {
            return Err(SourceError::Closed);
        }
        self.inner.flush()
    }

    fn poll(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError> {
        if self.cut() {
            return Err(SourceError::Closed);
        }
        self.polls = self.polls.saturating_add(1);
        if matches!(self.fault, Fault::Delay(polls) if self.polls <= polls) {
            return Ok(true);
        }
        let fault = self.fault.clone();
        let brought = &mut self.brought;
        self.inner.poll(budget, &mut |event| match (event, &fault) {
            (SourceEvent::Pages { tag, .. }, Fault::Error { every, error }) if tag % every == 0 => {
                sink(SourceEvent::Failed { tag, error: error.clone() });
            }
            (SourceEvent::Pages { tag, first, bytes }, Fault::Truncate) => {
                let kept = bytes.len().saturating_sub(crate::wire::PAGE);
                sink(SourceEvent::Pages { tag, first, bytes: &bytes[..kept] });
            }
            (event, _) => {
                *brought |= matches!(event, SourceEvent::Pages { .. });
                sink(event);
            }
        })
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.ready_fd()
    }

    fn wants_write(&self) -> bool {
        self.inner.wants_write()
    }
}
