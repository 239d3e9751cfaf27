//! Putting the working set in place in a child that is being built.
//!
//! The child sends its userfaultfd to the pager as soon as its memory is registered, and goes on with its
//! files, signals and threads. Meanwhile the pages come into being through a duplicate of it, as fast as
//! they arrive; then the child, which waits for that, is told. The duplicate is closed before: a
//! template must not have a userfaultfd when it forks.

use crate::error::NodeError;
use crate::working_set::{Content, Part, WorkingSet};
use mitosis_descriptor::{PAGE_SIZE, Phase};
use mitosis_restore::{Building, RestorePlan, Run};
use mitosis_sys::uffd::{Stop, Uffd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg,
};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Pages read from a file at a time.
const CHUNK_PAGES: usize = 32;
/// How often a page is tried while the child changes its mappings.
const ATTEMPTS: usize = 10_000;

/// Where a child's userfaultfd comes from.
#[derive(Clone, Copy)]
pub(crate) enum Arrival<'a> {
    /// The pager will take it from there.
    Pagers(&'a OwnedFd),
    /// Nobody else will.
    Own(&'a OwnedFd),
}

/// Puts the working set in place in the child of `plan`, which is told on `word`. Then `announce` is told
/// which pages that are, and how many bytes were fetched for them: not earlier, for the pager would only
/// take the processor from what the child waits for. If the child ends meanwhile, that is no error here.
///
/// # Errors
/// Some pages cannot be had or not be put in place: the child must be ended.
pub(crate) fn fill(
    working_set: &WorkingSet<'_>,
    plan: &RestorePlan,
    (arrival, word): (Arrival<'_>, &OwnedFd),
    building: &Building<'_>,
    announce: impl FnOnce(Vec<u64>, u64),
) -> Result<(), NodeError> {
    let (here, coming) = working_set.take()?;
    let lists = here.iter().map(|part| &*part.pages);
    let placement = plan.placement(lists.chain(coming.as_ref().map(|coming| &*coming.pages)));
    let mut filler = Filler { arrival, building, uffd: Found::Not, runs: &placement.runs };
    for (number, part) in here.iter().enumerate() {
        filler.part(number, part)?;
    }
    let last = here.len();
    let bytes = coming.as_ref().map_or(0, |coming| coming.pages.len() as u64 * PAGE_SIZE);
    let mut filled = Ok(());
    let come = coming.map(|coming| {
        coming.receive(|so_far| {
            // What has come after all of it would wait has time.
            let all = so_far.len() as u64 == bytes;
            if filled.is_ok() {
                filled = filler.memory(last, so_far, all);
            }
        })
    });
    let come = come.transpose()?;
    filled?;
    drop(filler);
    if plan.filled {
        // Whether it is still there to hear it, its maker finds out.
        let _ = rustix::net::send(word, &[1], SendFlags::NOSIGNAL);
    }
    announce(placement.pages, bytes);
    if let Some(come) = come {
        come.keep();
    }
    Ok(())
}

/// A child's userfaultfd.
enum Found {
    Not,
    Is(Uffd),
    /// The child has ended.
    Never,
}

struct Filler<'a> {
    arrival: Arrival<'a>,
    building: &'a Building<'a>,
    uffd: Found,
    /// What is left to do.
    runs: &'a [Run],
}

impl Filler<'_> {
    /// Puts a part in place that is here.
    fn part(&mut self, number: usize, part: &Part) -> Result<(), NodeError> {
        match &part.content {
            Content::Memory(pages) => self.memory(number, pages, true),
            Content::File(file) => self.file(number, file),
        }
    }

    /// Puts in place what there is of a part, which begins with `pages`; `wait` is whether to wait for the
    /// child.
    fn memory(&mut self, number: usize, pages: &[u8], wait: bool) -> Result<(), NodeError> {
        let (due, more) = self.runs.split_at(due(self.runs, number, pages.len()));
        if due.is_empty() || !self.find(wait)? {
            return Ok(());
        }
        for run in due {
            self.copy(run.to, &pages[run.first * PAGE_SIZE as usize..bytes_to(run)])?;
        }
        self.runs = more;
        Ok(())
    }

    fn file(&mut self, number: usize, file: &File) -> Result<(), NodeError> {
        let mut buffer = vec![0; CHUNK_PAGES * PAGE_SIZE as usize];
        while let Some((run, more)) = self.runs.split_first() {
            if run.part != number || !self.find(true)? {
                break;
            }
            let end = bytes_to(run);
            let mut at = run.first * PAGE_SIZE as usize;
            let mut to = run.to;
            while at < end {
                let bytes = buffer.len().min(end - at);
                let failed = |e| NodeError::step(Phase::Fetch, "the working set", e);
                file.read_exact_at(&mut buffer[..bytes], at as u64).map_err(failed)?;
                self.copy(to, &buffer[..bytes])?;
                (at, to) = (at + bytes, to + bytes as u64);
            }
            self.runs = more;
        }
        Ok(())
    }

    /// Whether the child's userfaultfd is here.
    fn find(&mut self, wait: bool) -> Result<bool, NodeError> {
        if let Found::Not = self.uffd {
            let (Arrival::Pagers(socket) | Arrival::Own(socket)) = self.arrival;
            if wait && !self.building.sends(socket.as_fd()) {
                self.uffd = Found::Never;
            } else if let Some(fd) = self.receive().map_err(failed)? {
                self.uffd = Found::Is(Uffd::from_fd(fd).map_err(failed)?);
            }
        }
        Ok(!matches!(self.uffd, Found::Not))
    }

    fn receive(&self) -> io::Result<Option<OwnedFd>> {
        let (socket, flags) = match self.arrival {
            Arrival::Pagers(socket) => (socket, RecvFlags::PEEK),
            Arrival::Own(socket) => (socket, RecvFlags::empty()),
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut vector = [IoSliceMut::new(&mut byte)];
        let flags = flags | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(socket, &mut vector, &mut control, flags) {
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            got => got?,
        };
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match rights {
            Some(fd) if !got.flags.contains(ReturnFlags::CTRUNC) => Ok(Some(fd)),
            _ => Err(io::Error::other("no descriptor came")),
        }
    }

    fn copy(&mut self, to: u64, bytes: &[u8]) -> Result<(), NodeError> {
        let Found::Is(uffd) = &self.uffd else { return Ok(()) };
        let (mut at, mut attempts) = (0, 0);
        while at < bytes.len() {
            let placed = uffd.copy(to + at as u64, &bytes[at..], true);
            at += placed.bytes as usize;
            match placed.stop {
                None => {}
                // It came through another mapping of the same shared memory, with the same content.
                Some(Stop::Exists) => at += PAGE_SIZE as usize,
                Some(Stop::Again) if attempts < ATTEMPTS => {
                    attempts += 1;
                    std::thread::yield_now();
                }
                Some(Stop::Gone) => {
                    self.uffd = Found::Never;
                    return Ok(());
                }
                Some(stop) => {
                    let place = format!("the page at {:#x}", to + at as u64);
                    return Err(NodeError::step(Phase::Build, place, why(stop)));
                }
            }
        }
        Ok(())
    }
}

/// How many of the first runs are of a part, of which so many bytes are here, and lie in these.
fn due(runs: &[Run], part: usize, bytes: usize) -> usize {
    runs.iter().take_while(|run| run.part == part && bytes_to(run) <= bytes).count()
}

/// The first byte behind a run in its part.
fn bytes_to(run: &Run) -> usize {
    (run.first + run.count) * PAGE_SIZE as usize
}

fn failed(error: io::Error) -> NodeError {
    NodeError::step(Phase::Build, "the child's userfaultfd", error)
}

fn why(stop: Stop) -> String {
    match stop {
        Stop::NoMemory => "no memory, or the limit of its cgroup".into(),
        Stop::Unmapped => "its mapping is not registered".into(),
        Stop::Again => "its mappings do not come to rest".into(),
        Stop::Failed(errno) => errno.to_string(),
        Stop::Exists | Stop::Gone => format!("{stop:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_part_are_never_taken_for_anothers() {
        let run = |part, first, count| Run { part, first, count, to: 0x1000 };
        let runs = [run(1, 0, 2), run(1, 4, 1), run(2, 0, 1)];
        // Nothing of part 0 is placed: a child may have all of it from its node's files.
        assert_eq!(due(&runs, 0, 1 << 20), 0);
        assert_eq!(due(&runs, 1, 1 << 20), 2);
        assert_eq!(due(&runs, 1, 2 << 12), 1);
        assert_eq!(due(&runs, 1, (2 << 12) - 1), 0);
        assert_eq!(due(&runs[2..], 1, 1 << 20), 0);
    }
}
