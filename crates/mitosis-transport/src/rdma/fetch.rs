//! Reading a descriptor: the child's node has shown the capability, and was told where it is.

use crate::SourceError;
use crate::client::{body, header};
use crate::wire::{self, Header, Kind, RdmaAsk, RdmaPlace, RdmaSaid};
use mitosis_rdma_sys::{Completions, Device, Landing, Queue, RdmaError, Read};
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

/// Reads descriptors beside one control connection, over the queue pair of that.
pub(crate) struct Fetcher {
    device: Device,
    completions: Completions,
    landing: Landing,
    queue: Option<Queue>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetcher({:?})", self.device)
    }
}

impl Fetcher {
    pub fn new(device: &Device) -> Result<Fetcher, SourceError> {
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let landing = Landing::new(device, LANDING).map_err(failed)?;
        let completions = Completions::new(device, 1).map_err(failed)?;
        Ok(Fetcher { device: device.clone(), completions, landing, queue: None })
    }

    /// Reads what is at `place`; makes the queue pair first where there is none. Gives the time that took
    /// too.
    ///
    /// # Errors
    /// [`SourceError`]; the fetcher is of no more use then.
    pub fn read(
        &mut self,
        stream: &TcpStream,
        place: &RdmaPlace,
        deadline: Instant,
    ) -> Result<(Vec<u8>, Duration), SourceError> {
        let length = place.length as usize;
        if length == 0 || length > wire::DESCRIPTOR_MAX {
            return Err(SourceError::Protocol(format!("a descriptor of {length} bytes")));
        }
        let begun = Instant::now();
        let (mut queue, place) = match self.queue.take().filter(|_| place.linked) {
            Some(queue) => (queue, *place),
            None => self.link(stream, place.length, deadline)?,
        };
        let took = begun.elapsed();
        let bytes = self.pull(&mut queue, &place, deadline)?;
        // The window may be closed.
        tell(stream, &RdmaAsk::Ended)?;
        self.queue = Some(queue);
        Ok((bytes, took))
    }

    /// The queue pair, and where the descriptor of the last answer is for it.
    fn link(
        &self,
        stream: &TcpStream,
        length: u32,
        deadline: Instant,
    ) -> Result<(Queue, RdmaPlace), SourceError> {
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let psn = RandomState::new().hash_one(deadline) as u32;
        let queue = Queue::new(&self.device, &self.completions, psn).map_err(failed)?;
        tell(stream, &RdmaAsk::Connect(queue.local().into()))?;
        match said(stream, deadline)? {
            RdmaSaid::Connected(end) => queue.connect(&end.into()).map_err(failed)?,
            other => return Err(refused(other)),
        }
        tell(stream, &RdmaAsk::Descriptor)?;
        match said(stream, deadline)? {
            RdmaSaid::Place(place) => Ok((queue, RdmaPlace { length, ..place })),
            other => Err(refused(other)),
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
                let address = place.address.wrapping_add(at as u64);
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

fn tell(stream: &TcpStream, ask: &RdmaAsk) -> Result<(), SourceError> {
    let head = Header { a: wire::DESCRIPTOR_HANDLE, ..Header::new(Kind::Rdma) };
    let mut writer = stream;
    writer.write_all(&wire::control(head, ask)?).map_err(|e| SourceError::io("send", e))
}

fn said(stream: &TcpStream, deadline: Instant) -> Result<RdmaSaid, SourceError> {
    let head = header(stream, deadline)?;
    if head.kind != Kind::RdmaAnswer {
        return Err(SourceError::Protocol(format!("unexpected frame {:?}", head.kind)));
    }
    let bytes = body(stream, head.length as usize, deadline)?;
    Ok(wire::body(Kind::RdmaAnswer, &bytes)?)
}

fn refused(said: RdmaSaid) -> SourceError {
    match said {
        RdmaSaid::No(why) | RdmaSaid::Unlinked(why) => SourceError::Rdma(why),
        other => SourceError::Protocol(format!("unexpected answer {other:?}")),
    }
}
