//! Reads by RDMA where the owner has registered the pages, and over TCP where not.
//!
//! All seeds of an owner's node share one queue pair. A read goes in parts, one after the other: each is
//! one READ into registered memory or one request on the TCP connection. A completion error ends the queue
//! pair and never becomes data: what it was to bring, of whichever seed, is asked for over TCP, where the
//! owner says what became of the seed; a new queue pair is made a little later. So that the end of one seed
//! is no error for the others, the owner tells it first, and what is on the way is let land.

mod link;

use super::reading::{Link, Mode, RETRY, Reading};
use crate::wire::{self, Header, Kind, RdmaAsk};
use crate::{Handle, PageSource, ReadRequest, SourceError, SourceEvent, TcpSource};
use mitosis_descriptor::{Secret, SeedId};
use mitosis_rdma_sys::{Completion, Completions, Device, Landing, RdmaError, Read, Slot};
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Pages of registered landing memory: 4 MiB.
const LANDING: usize = 1024;
/// Most pages of one READ.
const PART: u32 = 256;

/// A read not yet complete.
struct Flight {
    read: ReadRequest,
    /// Pages before the present part.
    base: u32,
    /// Pages of the present part.
    part: u32,
    /// Pages of the present part given out.
    given: u32,
    /// Not by RDMA any more: it failed once.
    tcp: bool,
}

/// What the device does for a source.
struct Verbs {
    device: Device,
    completions: Completions,
    landing: Landing,
}

impl Verbs {
    fn new(device: &Device) -> Result<Verbs, RdmaError> {
        let landing = Landing::new(device, LANDING)?;
        // One queue pair at a time; a broken one is gone before the next is made.
        Ok(Verbs { completions: Completions::new(device, 1)?, device: device.clone(), landing })
    }
}

/// A READ that is posted, or will be: of which seed, and for which read; `None` for the question whether
/// the owner's memory is there.
type Posted = (Handle, Option<u64>);

/// A connection to the node of an owner, with RDMA beside it.
pub struct RdmaSource {
    tcp: TcpSource,
    verbs: Verbs,
    link: Link,
    seeds: HashMap<Handle, Reading>,
    flights: HashMap<u64, Flight>,
    /// Parts that wait for room, in order.
    waiting: VecDeque<u64>,
    /// READs to post at the next flush.
    batch: Vec<Read>,
    /// Those, and those on their way, by their names.
    posted: HashMap<u64, Posted>,
    /// The last name given.
    last: u64,
    notes: Vec<(Handle, String)>,
    /// Changes of what can be read by RDMA.
    reach: Vec<(Handle, u64, Duration)>,
    epoll: OwnedFd,
    writing: bool,
}

/// Makes connections over one device, which is opened at the first of them: `NAME[:PORT[:GID]]`, or
/// the first one that is active.
pub fn connector(
    wanted: Option<String>,
) -> impl Fn(SocketAddr) -> Result<Box<dyn PageSource>, SourceError> + Send + Sync {
    let device: Mutex<Option<Device>> = Mutex::new(None);
    move |address| {
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        let device = match &mut *device {
            Some(device) => device,
            none => none.insert(Device::open(wanted.as_deref()).map_err(failed)?),
        };
        Ok(Box::new(RdmaSource::connect(address, device)?) as Box<dyn PageSource>)
    }
}

impl RdmaSource {
    /// Starts to connect, as [`TcpSource::connect`] does.
    ///
    /// # Errors
    /// If there is no way to begin, or the device refuses.
    pub fn connect(address: SocketAddr, device: &Device) -> Result<RdmaSource, SourceError> {
        let tcp = TcpSource::connect(address)?;
        let verbs = Verbs::new(device).map_err(|e| SourceError::Rdma(e.to_string()))?;
        let failed = |e: Errno| SourceError::io("epoll", e);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let (data, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        epoll::add(&epoll, verbs.completions.as_fd(), data, flags).map_err(failed)?;
        if let Some(fd) = tcp.ready_fd() {
            epoll::add(&epoll, fd, data, flags).map_err(failed)?;
        }
        Ok(RdmaSource {
            tcp,
            verbs,
            link: Link::Idle,
            seeds: HashMap::new(),
            flights: HashMap::new(),
            waiting: VecDeque::new(),
            batch: Vec::new(),
            posted: HashMap::new(),
            last: 0,
            notes: Vec::new(),
            reach: Vec::new(),
            epoll,
            writing: false,
        })
    }

    fn ask(&mut self, handle: Handle, ask: &RdmaAsk) {
        let header = Header { a: handle.0, ..Header::new(Kind::Rdma) };
        // A question is far smaller than the limit.
        if let Ok(frame) = wire::control(header, ask) {
            self.tcp.queue(&frame);
        }
    }

    /// Asks over TCP for the present parts of reads.
    fn over_tcp(&mut self, mut tags: Vec<u64>) {
        tags.sort_unstable();
        self.waiting.retain(|tag| tags.binary_search(tag).is_err());
        for tag in tags {
            if let Some(flight) = self.flights.get_mut(&tag) {
                flight.tcp = true;
                self.start(tag);
            }
        }
    }

    /// Starts the next part of a read.
    fn start(&mut self, tag: u64) {
        let Some(flight) = self.flights.get_mut(&tag) else { return };
        let ReadRequest { handle, source, count, .. } = flight.read;
        let page = source.0 + u64::from(flight.base);
        let left = count - flight.base;
        let seed = self.seeds.get_mut(&handle).filter(|seed| seed.mode == Mode::On);
        let (part, way) = match (&self.link, seed) {
            (Link::Up(..), Some(seed)) if !flight.tcp => {
                let (part, way) = seed.regions.part(page, left);
                seed.missed |= way.is_none();
                (part, way)
            }
            _ => (left, None),
        };
        (flight.part, flight.given) = (part, 0);
        let Some(way) = way else {
            flight.tcp = true;
            let source = mitosis_descriptor::Vpn(page);
            self.tcp.submit(&[ReadRequest { tag, handle, source, count: part }]);
            return;
        };
        flight.part = part.min(PART);
        let pages = flight.part;
        // One is kept for the question whether the owner is there.
        if !self.enqueue((handle, Some(tag)), way, pages, wire::PAGE as u32 * pages, 1) {
            self.waiting.push_back(tag);
        }
    }

    /// Queues a READ, if there is room for it and for `spare` others.
    fn enqueue(
        &mut self,
        posted: Posted,
        (address, rkey): (u64, u32),
        pages: u32,
        len: u32,
        spare: usize,
    ) -> bool {
        let Link::Up(queue, _) = &self.link else { return false };
        if queue.room() <= self.batch.len() + spare {
            return false;
        }
        let Some(slot) = self.verbs.landing.slot(pages as usize) else { return false };
        self.last += 1;
        self.batch.push(Read { id: self.last, address, rkey, len, slot });
        self.posted.insert(self.last, posted);
        if let Some(seed) = self.seeds.get_mut(&posted.0) {
            seed.flying += 1;
        }
        true
    }

    /// Rings the doorbell once.
    fn post(&mut self) {
        let reads = std::mem::take(&mut self.batch);
        let Link::Up(queue, _) = &mut self.link else { return };
        if !reads.is_empty()
            && let Err(error) = queue.post(reads)
        {
            self.unlinked(&error.to_string(), RETRY);
        }
    }

    /// Gives out what has landed.
    fn landed(&mut self, sink: &mut dyn FnMut(SourceEvent<'_>)) -> Result<usize, SourceError> {
        let mut done = Vec::new();
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        self.verbs.completions.poll(&mut done).map_err(failed)?;
        let mut given = 0;
        for completion in done {
            given += self.completed(&completion, sink);
        }
        for tag in std::mem::take(&mut self.waiting) {
            self.start(tag);
        }
        Ok(given)
    }

    fn completed(&mut self, done: &Completion, sink: &mut dyn FnMut(SourceEvent<'_>)) -> usize {
        // Else of a queue pair that is gone.
        let Link::Up(queue, _) = &mut self.link else { return 0 };
        let Some((id, slot)) = queue.complete(done) else { return 0 };
        if let Some(why) = &done.failed {
            self.unlinked(&format!("RDMA READ: {why}"), RETRY);
            return 0;
        }
        let Some((handle, tag)) = self.posted.remove(&id) else { return 0 };
        if let Some(seed) = self.seeds.get_mut(&handle) {
            seed.flying -= 1;
        }
        let given = match tag {
            Some(tag) => self.give(tag, &slot, sink),
            None => {
                sink(SourceEvent::Pong);
                0
            }
        };
        self.settle(handle);
        given
    }

    fn give(&mut self, tag: u64, slot: &Slot, sink: &mut dyn FnMut(SourceEvent<'_>)) -> usize {
        let Some(flight) = self.flights.get_mut(&tag) else { return 0 };
        let Some(bytes) = slot.bytes().get(..flight.part as usize * wire::PAGE) else { return 0 };
        sink(SourceEvent::Direct { tag, pages: flight.part });
        sink(SourceEvent::Pages { tag, first: flight.base, bytes });
        flight.base += flight.part;
        if flight.base == flight.read.count {
            self.flights.remove(&tag);
        } else {
            self.start(tag);
        }
        bytes.len()
    }

    /// Takes what TCP has brought; its pages are counted from the beginning of their part.
    fn poll_tcp(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError> {
        let (flights, mut next, mut wrong) = (&mut self.flights, Vec::new(), None);
        let more = self.tcp.poll(budget, &mut |event| match event {
            SourceEvent::Pages { tag, first, bytes } => {
                let Some(flight) = flights.get_mut(&tag) else { return };
                let count = (bytes.len() / wire::PAGE) as u32;
                // It was asked for these and no others: those of a READ on its way are not to come twice.
                if !flight.tcp || first != flight.given || count > flight.part - flight.given {
                    wrong = Some(tag);
                    return;
                }
                sink(SourceEvent::Pages { tag, first: flight.base + first, bytes });
                flight.given += count;
                if flight.given >= flight.part {
                    flight.base += flight.part;
                    // The next part may be registered.
                    flight.tcp = false;
                    next.push(tag);
                }
            }
            SourceEvent::Failed { tag, error } => {
                flights.remove(&tag);
                sink(SourceEvent::Failed { tag, error });
            }
            other => sink(other),
        })?;
        if let Some(tag) = wrong {
            return Err(SourceError::Protocol(format!(
                "pages of read {tag} that were not asked for"
            )));
        }
        for tag in next {
            let Some(flight) = self.flights.get(&tag) else { continue };
            if flight.base >= flight.read.count {
                self.flights.remove(&tag);
            } else {
                self.start(tag);
            }
        }
        for (handle, said) in self.tcp.take_rdma() {
            self.said(Handle(handle), said)?;
        }
        Ok(more)
    }

    /// Watches for room in the socket when something waits for it.
    fn watch(&mut self) -> Result<(), SourceError> {
        let wanted = self.tcp.wants_write();
        let Some(fd) = self.tcp.ready_fd().filter(|_| wanted != self.writing) else {
            return Ok(());
        };
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, wanted);
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(0), flags)
            .map_err(|e| SourceError::io("epoll", e))?;
        self.writing = wanted;
        Ok(())
    }
}

impl PageSource for RdmaSource {
    fn open(&mut self, handle: Handle, seed: SeedId, secret: &Secret) {
        self.tcp.open(handle, seed, secret);
        self.seeds.insert(handle, Reading::new());
        match self.link {
            Link::Idle => self.connect_link(),
            _ => self.regions(handle),
        }
    }

    /// The owner closes the windows: not before what is on its way has landed.
    fn close(&mut self, handle: Handle) {
        self.take_back(handle);
        self.flights.retain(|_, flight| flight.read.handle != handle);
        if let Some(seed) = self.seeds.get_mut(&handle) {
            seed.mode = Mode::Closing;
            self.settle(handle);
        }
    }

    fn submit(&mut self, reads: &[ReadRequest]) {
        for read in reads {
            let flight = Flight { read: *read, base: 0, part: 0, given: 0, tcp: false };
            self.flights.insert(read.tag, flight);
            self.start(read.tag);
        }
    }

    fn learn(&mut self, handle: Handle, pages: &[u64]) {
        self.tcp.learn(handle, pages);
    }

    fn ping(&mut self) {
        self.tcp.ping();
        self.tend();
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.post();
        self.tcp.flush()?;
        self.watch()
    }

    fn poll(
        &mut self,
        budget: usize,
        sink: &mut dyn FnMut(SourceEvent<'_>),
    ) -> Result<bool, SourceError> {
        let given = self.landed(sink)?;
        let more = self.poll_tcp(budget.saturating_sub(given).max(1), sink)?;
        for (handle, pages, linked) in std::mem::take(&mut self.reach) {
            sink(SourceEvent::Reach { handle, pages, linked });
        }
        for (handle, why) in std::mem::take(&mut self.notes) {
            sink(SourceEvent::Fell { handle, why });
        }
        self.flush()?;
        Ok(more)
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    /// Never: what waits for room in the socket is this source's own business.
    fn wants_write(&self) -> bool {
        false
    }
}
