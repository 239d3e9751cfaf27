//! Answers that are pages.

use super::{End, Session};
use crate::wire::{self, Header, Kind};
use crate::{KeptPages, OpenSeed, ReadError, SeedState};
use mitosis_descriptor::Vpn;
use rustix::fs::sendfile;
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Write};
use std::sync::Arc;

/// Pages read and sent at a time: large enough to amortise the calls, small enough for the cache.
pub(super) const CHUNK_PAGES: u32 = 32;
/// Pages of a working set sent between two looks at the seed's state.
const IMAGE_PAGES: usize = 256;

impl Session {
    /// Pages one by one, in their order.
    pub(super) fn gather(&mut self, header: Header, body: &[u8]) -> Result<(), End> {
        let wire::Pages { pages } = wire::body(Kind::Gather, body)?;
        if !(1..=wire::GATHER_PAGES_MAX).contains(&pages.len()) {
            return Err(End::Peer);
        }
        match self.handles.get(&header.a) {
            Some(Some(seed)) => {
                let seed = Arc::clone(seed);
                self.single(header.tag, &*seed, &pages)
            }
            _ => self.fail(header.tag, &ReadError::Refused),
        }
    }

    /// Sends pages one by one: what is kept in memory from there, the rest as it is read.
    pub(super) fn single(
        &mut self,
        tag: u64,
        seed: &dyn OpenSeed,
        pages: &[u64],
    ) -> Result<(), End> {
        let mut done = 0;
        for part in pages.chunks(wire::GATHERED) {
            let sent = match seed.kept(part) {
                Some(kept) => self.kept(tag, done, seed, &kept)?,
                None => self.read_single(tag, done, seed, part)?,
            };
            // It has been said why.
            if !sent {
                return Ok(());
            }
            done += part.len() as u32;
        }
        Ok(())
    }

    /// Pages that are read one by one, from the `done`-th of their read on; whether they were sent.
    fn read_single(
        &mut self,
        tag: u64,
        mut done: u32,
        seed: &dyn OpenSeed,
        pages: &[u64],
    ) -> Result<bool, End> {
        for chunk in pages.chunks(CHUNK_PAGES as usize) {
            let at = self.output.used;
            let count = chunk.len() as u32;
            let length = count * wire::PAGE as u32;
            let head = Header { length, kind: Kind::Data, tag, a: done, b: count, c: 0 };
            self.output.push(&head.encode());
            let mut read = || {
                usable(seed.state())?;
                for run in chunk.chunk_by(|a, b| a + 1 == *b) {
                    let out = self.output.room(run.len() * wire::PAGE);
                    seed.read(Vpn(run[0]), run.len() as u32, out)?;
                }
                usable(seed.state())
            };
            if let Err(error) = read() {
                self.output.used = at;
                self.fail(tag, &error)?;
                return Ok(false);
            }
            done += count;
            self.send()?;
        }
        Ok(true)
    }

    /// The same of pages that are in memory, which are sent from where they are.
    fn kept(
        &mut self,
        tag: u64,
        done: u32,
        seed: &dyn OpenSeed,
        kept: &[KeptPages],
    ) -> Result<bool, End> {
        if let Err(error) = usable(seed.state()) {
            self.fail(tag, &error)?;
            return Ok(false);
        }
        let length = kept.iter().map(|part| part.bytes().len() as u32).sum();
        let count = length / wire::PAGE as u32;
        let head = Header { length, kind: Kind::Data, tag, a: done, b: count, c: 0 };
        self.output.push(&head.encode());
        let parts = std::iter::once(self.output.filled()).chain(kept.iter().map(KeptPages::bytes));
        let mut parts: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
        let mut left = &mut parts[..];
        while !left.is_empty() {
            match self.stream.write_vectored(left) {
                Ok(0) => return Err(End::Peer),
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.output.used = 0;
        Ok(true)
    }

    /// Sends pages of a file, which hold what was announced.
    fn send_file(&mut self, file: &File, first: u64, count: u64) -> Result<(), End> {
        let (mut at, end) = (first * wire::PAGE as u64, (first + count) * wire::PAGE as u64);
        while at < end {
            let left = (end - at) as usize;
            match sendfile(&self.stream, file, Some(&mut at), left) {
                // A file that is too short: nothing may follow what was announced.
                Ok(0) => return Err(End::Peer),
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return Err(End::Peer),
            }
        }
        Ok(())
    }

    /// Sends the beginning of a working set from a file in memory, which costs no copy on this side.
    pub(super) fn image(
        &mut self,
        tag: u64,
        seed: &dyn OpenSeed,
        pages: &[u64],
        file: &File,
    ) -> Result<(), End> {
        let head = Header { tag, ..Header::new(Kind::WorkingSet) };
        self.output.push(&wire::control(head, &wire::Pages { pages: pages.to_vec() })?);
        let mut done = 0;
        for chunk in pages.chunks(IMAGE_PAGES) {
            if let Err(error) = usable(seed.state()) {
                return self.fail(tag, &error);
            }
            let count = chunk.len() as u32;
            let length = count * wire::PAGE as u32;
            let head = Header { length, kind: Kind::Data, tag, a: done, b: count, c: 0 };
            self.output.push(&head.encode());
            self.send_before()?;
            self.send_file(file, u64::from(done), u64::from(count))?;
            done += count;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, header: Header) -> Result<(), End> {
        let seed = match self.handles.get(&header.a) {
            Some(Some(seed)) => Arc::clone(seed),
            _ => return self.fail(header.tag, &ReadError::Refused),
        };
        self.links.missed(header.a, header.c, header.b);
        let mut done = 0;
        while done < header.b {
            let count = CHUNK_PAGES.min(header.b - done);
            let bytes = count as usize * wire::PAGE;
            let head = Header {
                length: bytes as u32,
                kind: Kind::Data,
                tag: header.tag,
                a: done,
                b: count,
                c: 0,
            };
            let at = self.output.used;
            self.output.push(&head.encode());
            let out = self.output.room(bytes);
            if let Err(error) = checked_read(&*seed, Vpn(header.c + u64::from(done)), count, out) {
                self.output.used = at;
                return self.fail(header.tag, &error);
            }
            done += count;
            if self.output.used >= CHUNK_PAGES as usize * wire::PAGE {
                self.send()?;
            }
        }
        Ok(())
    }
}

/// A read, between two looks at the state: what was revoked meanwhile is not sent.
fn checked_read(
    seed: &dyn OpenSeed,
    source: Vpn,
    count: u32,
    out: &mut [u8],
) -> Result<(), ReadError> {
    usable(seed.state())?;
    seed.read(source, count, out)?;
    usable(seed.state())
}

fn usable(state: SeedState) -> Result<(), ReadError> {
    match state {
        SeedState::Alive | SeedState::Expiring => Ok(()),
        SeedState::Revoked => Err(ReadError::Revoked),
        SeedState::Lost => Err(ReadError::Lost("its memory is gone".into())),
    }
}
