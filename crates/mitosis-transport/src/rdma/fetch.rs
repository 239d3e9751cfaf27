//! Reading a descriptor: the child's node has shown the capability, and was told where it is.

use crate::SourceError;
use crate::client::{body, header};
use crate::wire::{self, Header, Kind, RdmaAsk, RdmaPlace, RdmaSaid};
use mitosis_descriptor::SeedId;
use mitosis_rdma_sys::{Completions, Device, Landing, Pd, Queue, RdmaError, Read};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Pages of landing memory, and so of one doorbell.
const LANDING: usize = 64;
/// Pages of one READ.
const PART: usize = 16;
/// Entries of the completion queue.
const ENTRIES: usize = 256;

/// How a descriptor came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FetchedBy {
    /// With the answer.
    Answer,
    /// By RDMA READ.
    Read {
        /// What making the queue pair took: next to nothing where there was one.
        linked: Duration,
        /// What all of it took after the answer.
        took: Duration,
    },
    /// With a second answer, after it could not be read.
    Again(String),
}

/// How to read descriptors by RDMA.
#[derive(Clone, Debug)]
pub struct ReadBy {
    /// Over this device.
    pub device: Device,
    /// Those of more bytes.
    pub above: u32,
}

/// Reads descriptors beside one control connection; has one queue pair, for the last seed.
pub(crate) struct Fetcher {
    pd: Pd,
    completions: Completions,
    landing: Landing,
    queue: Option<(SeedId, Queue)>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetcher({:?})", self.queue.as_ref().map(|(seed, _)| seed))
    }
}

impl Fetcher {
    pub fn new(device: &Device) -> Result<Fetcher, SourceError> {
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let pd = device.pd().map_err(failed)?;
        let landing = Landing::new(&pd, LANDING).map_err(failed)?;
        let completions = Completions::with(device, ENTRIES).map_err(failed)?;
        Ok(Fetcher { pd, completions, landing, queue: None })
    }

    /// Reads what is at `place`; makes a queue pair first where there is none. Gives the time that took
    /// too.
    ///
    /// # Errors
    /// [`SourceError`]; the fetcher is of no more use then.
    pub fn read(
        &mut self,
        stream: &TcpStream,
        seed: SeedId,
        place: &RdmaPlace,
        deadline: Instant,
    ) -> Result<(Vec<u8>, Duration), SourceError> {
        let length = place.length as usize;
        if length == 0 || length > wire::DESCRIPTOR_MAX {
            return Err(SourceError::Protocol(format!("a descriptor of {length} bytes")));
        }
        let begun = Instant::now();
        let known = self.queue.take().filter(|(known, _)| place.linked && *known == seed);
        let mut queue = match known {
            Some((_, queue)) => queue,
            None => self.link(stream, deadline)?,
        };
        let took = begun.elapsed();
        let bytes = self.pull(&mut queue, place, deadline)?;
        self.queue = Some((seed, queue));
        Ok((bytes, took))
    }

    /// A queue pair to the seed of the last answer.
    fn link(&self, stream: &TcpStream, deadline: Instant) -> Result<Queue, SourceError> {
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let psn = RandomState::new().hash_one(deadline) as u32;
        let queue = Queue::new(&self.pd, &self.completions, psn).map_err(failed)?;
        let ask = RdmaAsk::Connect(queue.local().into());
        let head = Header { a: wire::DESCRIPTOR_HANDLE, ..Header::new(Kind::Rdma) };
        let mut writer = stream;
        writer.write_all(&wire::control(head, &ask)?).map_err(|e| SourceError::io("send", e))?;
        let head = header(stream, deadline)?;
        if head.kind != Kind::RdmaAnswer {
            return Err(SourceError::Protocol(format!("unexpected frame {:?}", head.kind)));
        }
        let bytes = body(stream, head.length as usize, deadline)?;
        match wire::body(Kind::RdmaAnswer, &bytes)? {
            RdmaSaid::Connected(end) => {
                queue.connect(&end.into()).map_err(failed)?;
                Ok(queue)
            }
            RdmaSaid::No(why) => Err(SourceError::Rdma(why)),
            other => Err(SourceError::Protocol(format!("unexpected answer {other:?}"))),
        }
    }

    fn pull(
        &self,
        queue: &mut Queue,
        place: &RdmaPlace,
        deadline: Instant,
    ) -> Result<Vec<u8>, SourceError> {
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let length = place.length as usize;
        let mut out = vec![0; length];
        let mut at = 0;
        while at < length {
            let mut reads = Vec::new();
            while at < length && reads.len() < LANDING / PART {
                let len = (length - at).min(PART * wire::PAGE);
                let Some(slot) = self.landing.slot(PART) else { break };
                let address = place.address + at as u64;
                let rkey = place.rkey;
                reads.push(Read { id: at as u64, address, rkey, len: len as u32, slot });
                at += len;
            }
            let mut flying = reads.len();
            if flying == 0 {
                return Err(SourceError::Rdma("no room to land in".into()));
            }
            queue.post(reads).map_err(failed)?;
            while flying > 0 {
                flying -= self.landed(queue, &mut out, deadline)?;
            }
        }
        Ok(out)
    }

    /// Waits for completions; how many there were.
    fn landed(
        &self,
        queue: &mut Queue,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<usize, SourceError> {
        let mut done = Vec::new();
        self.completions.poll(&mut done).map_err(|e| SourceError::Rdma(e.to_string()))?;
        if done.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let fd = self.completions.as_fd();
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
                Ok(0) => return Err(SourceError::io("RDMA READ", std::io::ErrorKind::TimedOut)),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(SourceError::io("RDMA READ", e)),
            }
        }
        let mut landed = 0;
        for completion in done {
            // Of a queue pair that is gone.
            let Some((at, slot)) = queue.complete(&completion) else { continue };
            if let Some(why) = completion.failed {
                return Err(SourceError::Rdma(format!("RDMA READ: {why}")));
            }
            let at = at as usize;
            let end = out.len().min(at + PART * wire::PAGE);
            out[at..end].copy_from_slice(&slot.bytes()[..end - at]);
            landed += 1;
        }
        Ok(landed)
    }
}
