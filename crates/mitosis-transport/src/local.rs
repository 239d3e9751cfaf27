//! Reads of this very node's own seeds: from a shadow's `/proc/PID/mem`, or a spool.

use crate::{
    Handle, PageSource, ReadError, ReadRequest, SeedState, SourceError, SourceEvent, wire,
};
use mitosis_descriptor::{Secret, SeedId};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

/// Pages read at a time, into one reused buffer.
const CHUNK_PAGES: u32 = 64;

#[derive(Debug)]
struct Local {
    file: Option<File>,
    seed: SeedId,
    state: SeedState,
}

/// A source over files in which page `n` of a seed lies at offset `n * 4096`.
///
/// A shadow is read with `pread` on `/proc/PID/mem`: `process_vm_readv` would pin its pages and so
/// undo their sharing.
#[derive(Debug, Default)]
pub struct LocalSource {
    seeds: HashMap<Handle, Local>,
    queue: VecDeque<(ReadRequest, u32)>,
    buffer: Vec<u8>,
    pinged: bool,
}

impl LocalSource {
    /// A source without seeds.
    pub fn new() -> LocalSource {
        LocalSource::default()
    }

    /// Opens a seed on a file, instead of [`PageSource::open`], which cannot bring one.
    pub fn open_file(&mut self, handle: Handle, seed: SeedId, file: File) {
        self.seeds.insert(handle, Local { file: Some(file), seed, state: SeedState::Alive });
    }

    /// Reads a seed from another file from now on; whether it is open here.
    ///
    /// # Errors
    /// If descriptors run out.
    pub fn replace(&mut self, seed: SeedId, file: &File) -> std::io::Result<bool> {
        let mut found = false;
        for local in self.seeds.values_mut().filter(|local| local.seed == seed) {
            local.file = Some(file.try_clone()?);
            found = true;
        }
        Ok(found)
    }

    /// Notes a change of a seed's state; the handles it is open under.
    pub fn set_state(&mut self, seed: SeedId, state: SeedState) -> Vec<Handle> {
        let mut handles = Vec::new();
        for (handle, local) in self.seeds.iter_mut().filter(|(_, local)| local.seed == seed) {
            local.state = state;
            handles.push(*handle);
        }
        handles
    }
}

fn read(
    local: Option<&Local>,
    read: &ReadRequest,
    done: u32,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let local = local.ok_or(ReadError::Refused)?;
    match local.state {
        SeedState::Alive | SeedState::Expiring => {}
        SeedState::Revoked => return Err(ReadError::Revoked),
        SeedState::Lost => return Err(ReadError::Lost("its memory is gone".into())),
    }
    let file = local.file.as_ref().ok_or(ReadError::Refused)?;
    let mut offset = (read.source.0 + u64::from(done)) << 12;
    let mut at = 0;
    while at < out.len() {
        match file.read_at(&mut out[at..], offset) {
            // The memory of a process that is gone reads as an empty file.
            Ok(0) => return Err(ReadError::Lost("its shadow is gone".into())),
            Ok(got) => {
                at += got;
                offset += got as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ReadError::Failed(format!("address {offset:#x}: {e}"))),
        }
    }
    Ok(())
}

impl PageSource for LocalSource {
    /// Only remembers the seed; see [`LocalSource::open_file`].
    fn open(&mut self, handle: Handle, seed: SeedId, _secret: &Secret) {
        let none = Local { file: None, seed, state: SeedState::Alive };
        self.seeds.entry(handle).or_insert(none);
    }

    fn close(&mut self, handle: Handle) {
        self.seeds.remove(&handle);
        self.queue.retain(|(read, _)| read.handle != handle);
    }

    fn submit(&mut self, reads: &[ReadRequest]) {
        self.queue.extend(reads.iter().map(|read| (*read, 0)));
    }

    fn ping(&mut self) {
        self.pinged = true;
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn poll(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError> {
        self.buffer.resize(CHUNK_PAGES as usize * wire::PAGE, 0);
        if std::mem::take(&mut self.pinged) {
            sink(SourceEvent::Pong);
            for (handle, local) in self.seeds.iter().filter(|(_, l)| l.state != SeedState::Alive) {
                sink(SourceEvent::State { handle: *handle, state: local.state });
            }
        }
        let mut given = 0;
        while let Some((request, done)) = self.queue.pop_front() {
            let pages = CHUNK_PAGES.min(request.count - done);
            let out = &mut self.buffer[..pages as usize * wire::PAGE];
            match read(self.seeds.get(&request.handle), &request, done, out) {
                Ok(()) => sink(SourceEvent::Pages { tag: request.tag, first: done, bytes: out }),
                Err(error) => {
                    sink(SourceEvent::Failed { tag: request.tag, error });
                    continue;
                }
            }
            given += out.len();
            if done + pages < request.count {
                self.queue.push_front((request, done + pages));
            }
            if given >= budget {
                break;
            }
        }
        Ok(!self.queue.is_empty())
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wants_write(&self) -> bool {
        false
    }
}
