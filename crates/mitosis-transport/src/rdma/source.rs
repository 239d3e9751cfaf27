//! Reads by RDMA where the owner has registered the pages, and over TCP where not.
//!
//! A read goes in parts, one after the other: each is one READ into registered memory or one request
//! on the TCP connection. A completion error ends the queue pair and never becomes data: what it was
//! to bring is asked for over TCP, where the owner says what became of the seed; a new queue pair is
//! tried a little later.

use super::Regions;
use crate::wire::{self, Header, Kind, RdmaAsk, RdmaSaid};
use crate::{Handle, PageSource, ReadRequest, SourceError, SourceEvent, TcpSource};
use mitosis_descriptor::{Secret, SeedId};
use mitosis_rdma_sys::{
    Completion, Completions, Device, Landing, Pd, Queue, RdmaError, Read, Slot,
};
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pages of registered landing memory: 4 MiB.
const LANDING: usize = 1024;
/// Most pages of one READ.
const PART: u32 = 256;
/// Pings (a quarter of a second each) until a broken link is tried again.
const RETRY: u32 = 4;
/// Name of the READ that only asks whether the owner's memory is there.
const ALIVE: u64 = u64::MAX;

/// The way to the pages of one seed.
enum Link {
    /// Asked for a queue pair, then.
    Asked(Queue, Instant),
    /// Connected.
    Up(Up),
    /// Broken; tried again after so many pings.
    Down(u32),
    /// None, for good.
    Off,
}

/// A connected queue pair.
struct Up {
    queue: Queue,
    regions: Regions,
    /// What was to be registered is.
    complete: bool,
    /// Pages were wanted that are not registered: the owner may register them for that.
    missed: bool,
    /// A READ is on its way that only asks whether the owner's memory is there.
    probing: bool,
    /// What it took to make it.
    took: Duration,
}

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

/// What the device does for all links of a source.
struct Verbs {
    pd: Pd,
    completions: Completions,
    landing: Landing,
}

impl Verbs {
    fn new(device: &Device) -> Result<Verbs, RdmaError> {
        let pd = device.pd()?;
        let landing = Landing::new(&pd, LANDING)?;
        Ok(Verbs { completions: Completions::new(device)?, pd, landing })
    }
}

/// A connection to the node of an owner, with RDMA beside it.
pub struct RdmaSource {
    tcp: TcpSource,
    verbs: Verbs,
    links: HashMap<Handle, Link>,
    flights: HashMap<u64, Flight>,
    /// Parts that wait for room, in order.
    waiting: VecDeque<u64>,
    /// READs to post at the next flush.
    batch: HashMap<Handle, Vec<Read>>,
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
            links: HashMap::new(),
            flights: HashMap::new(),
            waiting: VecDeque::new(),
            batch: HashMap::new(),
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

    /// Asks for the regions that are not known, if the owner was not asked already.
    fn regions(&mut self, handle: Handle) {
        let Some(Link::Up(up)) = self.links.get_mut(&handle) else { return };
        if let Some(from) = up.regions.ask() {
            self.ask(handle, &RdmaAsk::Regions { from });
        }
    }

    /// Asks for a queue pair.
    fn link(&mut self, handle: Handle) {
        let psn = RandomState::new().hash_one(handle.0) as u32;
        match Queue::new(&self.verbs.pd, &self.verbs.completions, psn) {
            Ok(queue) => {
                self.ask(handle, &RdmaAsk::Connect(queue.local().into()));
                self.links.insert(handle, Link::Asked(queue, Instant::now()));
            }
            Err(error) => self.off(handle, error.to_string()),
        }
    }

    fn off(&mut self, handle: Handle, why: String) {
        self.links.insert(handle, Link::Off);
        self.reach.push((handle, 0, Duration::ZERO));
        self.notes.push((handle, why));
    }

    /// The owner has answered.
    fn said(&mut self, handle: Handle, said: RdmaSaid) -> Result<(), SourceError> {
        match (said, self.links.remove(&handle)) {
            (RdmaSaid::Connected(end), Some(Link::Asked(queue, since))) => {
                match queue.connect(&end.into()) {
                    Ok(()) => {
                        let up = Up {
                            queue,
                            regions: Regions::default(),
                            complete: false,
                            missed: false,
                            probing: false,
                            took: since.elapsed(),
                        };
                        self.links.insert(handle, Link::Up(up));
                        self.regions(handle);
                    }
                    Err(error) => self.off(handle, error.to_string()),
                }
            }
            (RdmaSaid::Regions { regions: more, complete }, Some(Link::Up(mut up))) => {
                let any = !more.is_empty();
                if !up.regions.answer(more) {
                    return Err(SourceError::Protocol("RDMA regions that overlap".into()));
                }
                self.reach.push((handle, up.regions.pages(), up.took));
                up.complete = complete;
                self.links.insert(handle, Link::Up(up));
                if any && !complete {
                    self.regions(handle);
                }
            }
            (RdmaSaid::No(why), Some(_)) => {
                self.again(handle);
                self.off(handle, why);
            }
            // An answer to a question of before a link broke, or a handle was closed.
            (_, Some(link)) => drop(self.links.insert(handle, link)),
            (_, None) => {}
        }
        Ok(())
    }

    /// A link is broken: its queue pair ends, and what it was to bring is asked for over TCP.
    fn broken(&mut self, handle: Handle, why: String) {
        self.links.insert(handle, Link::Down(RETRY));
        self.reach.push((handle, 0, Duration::ZERO));
        self.batch.remove(&handle);
        self.notes.push((handle, why));
        self.again(handle);
    }

    /// Asks over TCP for all parts of a handle that are not on their way there.
    fn again(&mut self, handle: Handle) {
        let mine = self.flights.iter_mut().filter(|(_, f)| f.read.handle == handle && !f.tcp);
        let mut tags: Vec<u64> = Vec::new();
        for (tag, flight) in mine {
            flight.tcp = true;
            tags.push(*tag);
        }
        tags.sort_unstable();
        self.waiting.retain(|tag| !tags.contains(tag));
        for tag in tags {
            self.start(tag);
        }
    }

    /// Starts the next part of a read.
    fn start(&mut self, tag: u64) {
        let Some(flight) = self.flights.get_mut(&tag) else { return };
        let ReadRequest { handle, source, count, .. } = flight.read;
        let page = source.0 + u64::from(flight.base);
        let left = count - flight.base;
        let (part, way) = match self.links.get_mut(&handle) {
            Some(Link::Up(up)) if !flight.tcp => {
                let (part, way) = up.regions.part(page, left);
                up.missed |= way.is_none();
                (part, way)
            }
            _ => (left, None),
        };
        (flight.part, flight.given) = (part, 0);
        let Some((address, rkey)) = way else {
            flight.tcp = true;
            let source = mitosis_descriptor::Vpn(page);
            self.tcp.submit(&[ReadRequest { tag, handle, source, count: part }]);
            return;
        };
        flight.part = part.min(PART);
        let queued = self.batch.get(&handle).map_or(0, Vec::len);
        let room = match self.links.get(&handle) {
            // One is kept for the question whether the owner is there.
            Some(Link::Up(up)) => up.queue.room().saturating_sub(1) > queued,
            _ => false,
        };
        match self.verbs.landing.slot(flight.part as usize).filter(|_| room) {
            Some(slot) => {
                let len = flight.part * wire::PAGE as u32;
                let read = Read { id: tag, address, rkey, len, slot };
                self.batch.entry(handle).or_default().push(read);
            }
            None => self.waiting.push_back(tag),
        }
    }

    /// Rings the doorbell of each link once.
    fn post(&mut self) {
        for (handle, reads) in std::mem::take(&mut self.batch) {
            let Some(Link::Up(up)) = self.links.get_mut(&handle) else { continue };
            if let Err(error) = up.queue.post(reads) {
                self.broken(handle, error.to_string());
            }
        }
    }

    /// Gives out what has landed.
    fn landed(&mut self, sink: &mut dyn FnMut(SourceEvent<'_>)) -> Result<usize, SourceError> {
        let mut done = Vec::new();
        let failed = |e: RdmaError| SourceError::Rdma(e.to_string());
        self.verbs.completions.poll(&mut done).map_err(failed)?;
        let mut given = 0;
        for completion in done {
            given += self.completed(completion, sink);
        }
        for tag in std::mem::take(&mut self.waiting) {
            self.start(tag);
        }
        Ok(given)
    }

    fn completed(&mut self, done: Completion, sink: &mut dyn FnMut(SourceEvent<'_>)) -> usize {
        let mut found = None;
        for (handle, link) in &mut self.links {
            if let Link::Up(up) = link
                && let Some((tag, slot)) = up.queue.complete(&done)
            {
                found = Some((*handle, tag, slot));
                break;
            }
        }
        // Of a queue pair that is gone.
        let Some((handle, tag, slot)) = found else { return 0 };
        if let Some(why) = done.failed {
            self.broken(handle, format!("RDMA READ: {why}"));
            return 0;
        }
        if tag == ALIVE {
            if let Some(Link::Up(up)) = self.links.get_mut(&handle) {
                up.probing = false;
            }
            sink(SourceEvent::Pong);
            return 0;
        }
        self.give(tag, &slot, sink)
    }

    fn give(&mut self, tag: u64, slot: &Slot, sink: &mut dyn FnMut(SourceEvent<'_>)) -> usize {
        let Some(flight) = self.flights.get_mut(&tag) else { return 0 };
        let bytes = &slot.bytes()[..flight.part as usize * wire::PAGE];
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
        let (flights, mut next) = (&mut self.flights, Vec::new());
        let more = self.tcp.poll(budget, &mut |event| match event {
            SourceEvent::Pages { tag, first, bytes } => {
                let Some(flight) = flights.get_mut(&tag) else { return };
                sink(SourceEvent::Pages { tag, first: flight.base + first, bytes });
                flight.given += (bytes.len() / wire::PAGE) as u32;
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

    /// What is due with each ping: broken links again, further regions, a look at the owner's memory.
    fn tend(&mut self) {
        let handles: Vec<Handle> = self.links.keys().copied().collect();
        for handle in handles {
            let asks = match self.links.get_mut(&handle) {
                Some(Link::Down(0)) => {
                    self.link(handle);
                    continue;
                }
                Some(Link::Down(pings)) => {
                    *pings -= 1;
                    continue;
                }
                Some(Link::Up(up)) => {
                    let slot = self.verbs.landing.slot(1).filter(|_| up.queue.room() > 0);
                    let place = up.regions.any().filter(|_| up.complete && !up.probing);
                    if let (Some((address, rkey)), Some(slot)) = (place, slot) {
                        up.probing = true;
                        let read = Read { id: ALIVE, address, rkey, len: 8, slot };
                        self.batch.entry(handle).or_default().push(read);
                    }
                    !up.complete || std::mem::take(&mut up.missed)
                }
                _ => false,
            };
            if asks {
                self.regions(handle);
            }
        }
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
        self.link(handle);
    }

    fn close(&mut self, handle: Handle) {
        self.links.remove(&handle);
        self.batch.remove(&handle);
        self.flights.retain(|_, flight| flight.read.handle != handle);
        self.tcp.close(handle);
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
