//! One-sided reads as the pager sees them.

use crate::{ReadError, SeedState, SourceError};
use mitosis_descriptor::{Secret, SeedId, Vpn};
use std::os::fd::BorrowedFd;

/// Names a seed opened at a source. Chosen by the caller, unique per source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// One read of consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Returned with each completion. Unique among the reads in flight at one source.
    pub tag: u64,
    /// The seed to read from.
    pub handle: Handle,
    /// First page in the seed's address space.
    pub source: Vpn,
    /// Number of pages, from 1 to [`crate::wire::READ_PAGES_MAX`].
    pub count: u32,
}

/// What a source reports.
#[derive(Debug)]
pub enum SourceEvent<'a> {
    /// Pages of a read have arrived. A read is answered in one or several of these, whose ranges
    /// do not overlap; so placing can overlap receiving.
    Pages {
        /// The read.
        tag: u64,
        /// Index, within the read, of the first page in `bytes`.
        first: u32,
        /// Whole pages.
        bytes: &'a [u8],
    },
    /// The pages reported next in this call, so many of this read, were read by RDMA: no thread of
    /// the owner's was needed.
    Direct {
        /// The read.
        tag: u64,
        /// Pages.
        pages: u32,
    },
    /// How many pages of a seed can be read by RDMA now.
    Reach {
        /// The seed's handle.
        handle: Handle,
        /// Pages.
        pages: u64,
        /// What it took to make the queue pair; zero where there is none.
        linked: std::time::Duration,
    },
    /// Pages of a seed come over TCP instead of RDMA from now on, or for a while.
    Fell {
        /// The seed's handle.
        handle: Handle,
        /// Why; the status of the verb that failed, if one did.
        why: String,
    },
    /// A read failed; nothing more will come for its tag.
    Failed {
        /// The read.
        tag: u64,
        /// Why.
        error: ReadError,
    },
    /// Opening a seed was refused.
    Refused {
        /// The seed's handle.
        handle: Handle,
    },
    /// What earlier children of a seed touched, in order. Comes at most once per open.
    Trail {
        /// The seed's handle.
        handle: Handle,
        /// Whether a child has told; else it is what the parent has written.
        told: bool,
        /// Pages of the seed's address space.
        pages: Vec<u64>,
    },
    /// An answer to [`PageSource::ping`]: all opened seeds not reported otherwise are alive.
    Pong,
    /// An opened seed is no longer [`SeedState::Alive`]. Repeated with every ping.
    State {
        /// The seed's handle.
        handle: Handle,
        /// Its state.
        state: SeedState,
    },
}

/// A place to read pages from. Nothing here blocks: requests are queued, [`flush`] starts them,
/// [`poll`] reports what has completed. A source that returned an error is dead; drop it.
///
/// [`flush`]: PageSource::flush
/// [`poll`]: PageSource::poll
pub trait PageSource {
    /// Opens a seed under a handle. Reads may follow at once, without waiting for an answer.
    fn open(&mut self, handle: Handle, seed: SeedId, secret: &Secret);

    /// What is read over this one is not waited for: the owner may let others go first. Called before
    /// anything is opened.
    fn defer(&mut self) {}

    /// Closes a seed; reads of it still in flight may or may not be answered.
    fn close(&mut self, handle: Handle);

    /// Queues a batch of reads.
    fn submit(&mut self, reads: &[ReadRequest]);

    /// Queues a read of single pages, at most [`crate::wire::GATHER_PAGES_MAX`], answered in their
    /// order. Whether this source has such reads.
    fn gather(&mut self, _tag: u64, _handle: Handle, _pages: &[u64]) -> bool {
        false
    }

    /// Tells the owner what a child touched, in order. Only a hint: sources may ignore it.
    fn learn(&mut self, _handle: Handle, _pages: &[u64]) {}

    /// Asks whether the owner is there and how the opened seeds are.
    fn ping(&mut self);

    /// Starts everything queued.
    ///
    /// # Errors
    /// [`SourceError`] if the source is dead.
    fn flush(&mut self) -> Result<(), SourceError>;

    /// Reports completions until none is left or `budget` bytes of pages were given out.
    /// Returns whether more may be waiting.
    ///
    /// # Errors
    /// [`SourceError`] if the source is dead.
    fn poll(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError>;

    /// The descriptor whose readiness calls for [`PageSource::poll`], if there is one; without
    /// one, completions are ready right after [`PageSource::flush`].
    fn ready_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether [`PageSource::flush`] left something behind and wants the descriptor writable.
    fn wants_write(&self) -> bool;
}
