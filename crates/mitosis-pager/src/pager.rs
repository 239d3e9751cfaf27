//! The process: one thread, one epoll, everything else hangs on it.

use crate::cache::Cache;
use crate::child::{Child, Shape, Via};
use crate::message::{ChildId, Event};
use crate::peer::{Ask, Peer};
use crate::serve::Client;
use crate::space::Space;
use crate::{PagerConfig, PagerError};
use mitosis_descriptor::Vpn;
use mitosis_sys::uffd::Holder;
use mitosis_transport::{Handle, LocalSource, ReadRequest};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ready descriptors taken at a time.
const READY: usize = 64;
/// How often deadlines are looked at while something is under way.
const TICK_BUSY: Duration = Duration::from_millis(25);
/// How often when nothing is.
const TICK_IDLE: Duration = Duration::from_millis(250);
/// How soon data that met a changing mapping is tried again.
const TICK_PARKED: Duration = Duration::from_micros(200);

/// How long the ends of killed children are waited for at the end. Beyond it their guards see this
/// process go, and do the rest.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What a descriptor in the epoll is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Client(u64),
    Space(u64),
    Peer(u64),
    Arrival(u64),
    Guard(u64),
    GuardPid(u64),
}

/// Bits of an id in an epoll token; the rest tells its kind.
pub(crate) const ID_BITS: u32 = 56;

impl Token {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Token::Listener => (0, 0),
            Token::Client(id) => (1, id),
            Token::Space(id) => (2, id),
            Token::Peer(id) => (3, id),
            Token::Arrival(id) => (4, id),
            Token::Guard(id) => (5, id),
            Token::GuardPid(id) => (6, id),
        };
        (kind << ID_BITS) | (id & ((1 << ID_BITS) - 1))
    }

    fn decode(value: u64) -> Option<Token> {
        let id = value & ((1 << ID_BITS) - 1);
        Some(match value >> ID_BITS {
            0 => Token::Listener,
            1 => Token::Client(id),
            2 => Token::Space(id),
            3 => Token::Peer(id),
            4 => Token::Arrival(id),
            5 => Token::Guard(id),
            6 => Token::GuardPid(id),
            _ => return None,
        })
    }
}

/// Why pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody touched one of them, or what comes before them.
    Touch,
    /// The trail says that somebody will.
    Ahead,
    /// It lies around what somebody touched: it is for the cache.
    Around,
    /// The child is to depend on nobody.
    Fill,
}

/// A read in flight.
#[derive(Debug)]
pub(crate) struct ReadInFlight {
    pub space: u64,
    pub child: ChildId,
    /// Index of the owner.
    pub owner: u16,
    pub via: Via,
    /// First page in the child of what is still to come.
    pub page: u64,
    /// The same at the owner.
    pub source: u64,
    /// The pages, here and at the owner, if they are single ones. Those of a read that was begun ahead
    /// ascend.
    pub list: Option<Arc<[u64]>>,
    /// Pages still to come.
    pub count: u32,
    /// Pages that have come since it was last asked for.
    pub next: u32,
    /// The page whose touch caused it.
    pub demand: Option<u64>,
    /// Why it was asked for.
    pub purpose: Purpose,
    /// When it was asked for, or last made progress.
    pub progress: Instant,
}

impl ReadInFlight {
    /// The pages that have not come, as runs in the child.
    pub fn left(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (lo, hi) = (self.page + u64::from(self.next), self.page + u64::from(self.count));
        let whole = self.list.is_none().then_some((lo, hi));
        let single = self.list.iter().flat_map(|list| &list[self.next as usize..]);
        whole.into_iter().chain(single.map(|page| (*page, page + 1)))
    }

    /// The request for what has not come, which counts from there.
    pub fn again(&mut self, tag: u64) -> Option<Ask> {
        let Via::Peer(_, handle) = self.via else { return None };
        let next = std::mem::take(&mut self.next);
        self.count -= next;
        if let Some(list) = &self.list {
            let pages: Arc<[u64]> = Arc::from(&list[next as usize..]);
            self.list = Some(Arc::clone(&pages));
            return Some(Ask::Pages { tag, handle, pages });
        }
        self.page += u64::from(next);
        self.source += u64::from(next);
        let (source, count) = (Vpn(self.source), self.count);
        Some(Ask::Run(ReadRequest { tag, handle, source, count }))
    }
}

/// Pages that came while the process was changing its mappings.
#[derive(Debug)]
pub(crate) struct Parked {
    pub space: u64,
    pub page: u64,
    pub tag: crate::map::Tag,
    pub bytes: Vec<u8>,
    pub demand: Option<u64>,
    pub since: Instant,
}

/// The pager.
pub(crate) struct Pager {
    pub config: PagerConfig,
    pub epoll: OwnedFd,
    pub listener: OwnedFd,
    pub clients: HashMap<u64, Client>,
    pub children: BTreeMap<ChildId, Child>,
    pub spaces: HashMap<u64, Space>,
    pub peers: HashMap<u64, Peer>,
    pub local: LocalSource,
    pub local_users: HashMap<Handle, ChildId>,
    pub local_waiting: bool,
    pub next_local: u32,
    pub local_reads: Vec<ReadRequest>,
    pub local_closes: Vec<Handle>,
    pub reads: HashMap<u64, ReadInFlight>,
    pub parked: Vec<Parked>,
    /// Pages that siblings of their children may have.
    pub cache: Cache,
    /// Touches to be answered: address space and page.
    pub faults: VecDeque<(u64, u64)>,
    /// Children whose missing pages may have run out, or whose fill may go on.
    pub review: BTreeSet<ChildId>,
    pub shadows: HashMap<u32, OwnedFd>,
    /// What children lack that are made in one way, by name.
    pub shapes: HashMap<u64, Arc<Shape>>,
    /// The daemon that told them.
    pub daemon: Option<u32>,
    pub events: Vec<Event>,
    pub next_id: u64,
    pub last_client: Instant,
    pub next_tick: Instant,
    pub next_sweep: Instant,
    /// Since when it is to end.
    pub shutdown: Option<Instant>,
    _holder: Option<Holder>,
}

impl Pager {
    pub(crate) fn new(config: PagerConfig) -> Result<Pager, PagerError> {
        let holder = if config.holder {
            Some(Holder::start().map_err(|e| PagerError::system("start the holder", e))?)
        } else {
            None
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| PagerError::system("epoll_create", e))?;
        let listener = crate::serve::listen(&config.socket)?;
        let now = Instant::now();
        let pager = Pager {
            config,
            epoll,
            listener,
            clients: HashMap::new(),
            children: BTreeMap::new(),
            spaces: HashMap::new(),
            peers: HashMap::new(),
            local: LocalSource::new(),
            local_users: HashMap::new(),
            local_waiting: false,
            next_local: 0,
            local_reads: Vec::new(),
            local_closes: Vec::new(),
            reads: HashMap::new(),
            parked: Vec::new(),
            cache: Cache::default(),
            faults: VecDeque::new(),
            review: BTreeSet::new(),
            shadows: HashMap::new(),
            shapes: HashMap::new(),
            daemon: None,
            events: Vec::new(),
            next_id: 1,
            last_client: now,
            next_tick: now,
            next_sweep: now,
            shutdown: None,
            _holder: holder,
        };
        watch(&pager.epoll, pager.listener.as_fd(), Token::Listener)
            .map_err(|e| PagerError::system("watch the control socket", e))?;
        Ok(pager)
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Serves until told to end, or left alone for the linger.
    pub(crate) fn run(&mut self) -> Result<(), PagerError> {
        let mut ready: Vec<Token> = Vec::with_capacity(READY);
        while !self.finished() {
            self.wait(&mut ready)?;
            // Touches first, and their requests on the way, before data is placed: the network
            // works while this thread copies.
            for token in &ready {
                if let Token::Space(id) = token {
                    self.drain(*id);
                }
            }
            self.answer_faults();
            self.flush();
            for token in &ready {
                self.ready(*token);
            }
            self.poll_local();
            self.retry_parked();
            self.answer_faults();
            self.review();
            self.tick();
            self.flush();
            self.publish();
        }
        self.publish();
        Ok(())
    }

    fn wait(&mut self, ready: &mut Vec<Token>) -> Result<(), PagerError> {
        let until = self.next_tick.saturating_duration_since(Instant::now());
        let timeout = if self.local_waiting || !self.faults.is_empty() {
            Duration::ZERO
        } else if !self.parked.is_empty() {
            TICK_PARKED
        } else {
            until
        };
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        ready.clear();
        let mut buffer = [MaybeUninit::uninit(); READY];
        match epoll::wait(&self.epoll, &mut buffer, Some(&timeout)) {
            Ok((events, _)) => {
                ready.extend(events.iter().filter_map(|event| Token::decode(event.data.u64())));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(e) => Err(PagerError::system("epoll_wait", e)),
        }
    }

    fn ready(&mut self, token: Token) {
        match token {
            Token::Space(_) => {}
            Token::Peer(id) => self.poll_peer(id),
            Token::Listener => self.accept(),
            Token::Client(id) => self.client_ready(id),
            Token::Arrival(id) => self.uffd_arrived(ChildId(id)),
            Token::Guard(id) => self.guard_spoke(ChildId(id)),
            Token::GuardPid(id) => self.guard_ended(ChildId(id)),
        }
    }

    /// How long until deadlines must be looked at again.
    pub(crate) fn pace(&self) -> Duration {
        let busy = !self.reads.is_empty()
            || self.children.values().any(|child| child.dying && child.ended.is_none())
            || self.spaces.values().any(|s| s.untidy || !s.doubts.is_empty())
            || self.peers.values().any(|p| !p.handles.is_empty());
        if busy { TICK_BUSY } else { TICK_IDLE }
    }

    fn finished(&self) -> bool {
        self.shutdown.is_some_and(|since| {
            since.elapsed() > SHUTDOWN || self.children.values().all(|c| c.ended.is_some())
        })
    }
}

/// Adds a descriptor to an epoll, for reading.
pub(crate) fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: Token) -> Result<(), Errno> {
    let data = epoll::EventData::new_u64(token.encode());
    epoll::add(epoll, fd, data, epoll::EventFlags::IN)
}

/// Takes a descriptor out of an epoll. Closing it is not enough: the daemon or a guard may hold a
/// duplicate, and then the epoll goes on to report it.
pub(crate) fn unwatch(epoll: &OwnedFd, fd: impl AsFd) {
    // It fails only for what is not in it.
    let _ = epoll::delete(epoll, fd);
}

/// As [`watch`], or changes what a descriptor is watched for.
pub(crate) fn watch_peer(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    id: u64,
    write: bool,
    known: bool,
) -> Result<(), Errno> {
    let data = epoll::EventData::new_u64(Token::Peer(id).encode());
    let mut flags = epoll::EventFlags::IN;
    flags.set(epoll::EventFlags::OUT, write);
    if known { epoll::modify(epoll, fd, data, flags) } else { epoll::add(epoll, fd, data, flags) }
}
