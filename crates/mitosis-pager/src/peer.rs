//! The nodes that own pages: two connections each, shared by all children. Over one goes what somebody
//! waits for, over the other what is fetched ahead, so that nobody waits behind that.
//!
//! A peer outlives its connection. What was opened and what is in flight is known here and in the
//! table of reads, so a broken connection is replaced and everything is asked again, until the page
//! timeout says that the owner is lost.

use crate::message::ChildId;
use crate::trail::Trail;
use mitosis_descriptor::{Owner, Secret, SeedId};
use mitosis_transport::{Handle, PageSource, ReadRequest, SourceError};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// The same for a peer that nobody needs now.
const RETRY_STANDING: Duration = Duration::from_secs(5);
/// How long a connection without open seeds is kept for the next child.
const IDLE: Duration = Duration::from_secs(60);
/// How often a connection that only stands is used, so that it stays.
const KEEP: Duration = Duration::from_secs(60);

/// Makes a connection to a node that owns pages. A seam for other transports and for tests.
pub type Connect =
    Arc<dyn Fn(SocketAddr) -> Result<Box<dyn PageSource>, SourceError> + Send + Sync>;

/// A seed open at a peer.
#[derive(Debug)]
pub struct Open {
    /// The seed.
    pub seed: SeedId,
    secret: Secret,
    /// Children that need it.
    pub users: BTreeSet<ChildId>,
    /// What its children touched before.
    pub trail: Trail,
    /// A child has told what it touched; else what the trail lacks says nothing.
    pub told: bool,
    /// The child of this node that was the first of all to tell.
    pub teller: Option<ChildId>,
    /// Pages of it that can be read by RDMA now.
    pub reach: u64,
    /// What making the queue pair for that took.
    pub linked: Duration,
}

/// A node that owns pages.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is read by RDMA.
    pub rdma: bool,
    /// Whether this is the connection for what is fetched ahead.
    pub ahead: bool,
    /// Its connection is kept while no child needs it, too.
    pub standing: bool,
    /// The connection, if there is one.
    pub source: Option<Box<dyn PageSource>>,
    /// What epoll watches: the descriptor, and whether for writing too.
    pub watched: Option<(RawFd, bool)>,
    /// Seeds open here.
    pub handles: HashMap<Handle, Open>,
    next_handle: u32,
    /// When the peer was last heard of, or first needed.
    pub heard: Instant,
    connected: Instant,
    pinged: Instant,
    retry_at: Option<Instant>,
    /// Why the connection was last lost.
    pub trouble: Option<String>,
    /// Something is queued and wants a flush.
    pub dirty: bool,
    /// Requests not yet given to the connection, which may be busy giving out pages.
    outbox: Vec<Out>,
}

/// A question for pages.
#[derive(Debug)]
pub enum Ask {
    /// Consecutive ones.
    Run(ReadRequest),
    /// Single ones.
    Pages {
        /// Comes back with them.
        tag: u64,
        /// The seed.
        handle: Handle,
        /// Which.
        pages: Arc<[u64]>,
    },
}

impl Ask {
    /// Its tag.
    pub fn tag(&self) -> u64 {
        match self {
            Ask::Run(read) => read.tag,
            Ask::Pages { tag, .. } => *tag,
        }
    }

    fn put(&self, source: &mut dyn PageSource) -> Result<(), SourceError> {
        match self {
            Ask::Run(read) => source.submit(&[*read]),
            Ask::Pages { tag, handle, pages } => {
                if !source.gather(*tag, *handle, pages) {
                    return Err(SourceError::Protocol("it reads no single pages".into()));
                }
            }
        }
        Ok(())
    }
}

/// A request to a peer.
enum Out {
    Open(Handle),
    Close(Handle),
    Read(Ask),
    Learn(Handle, Vec<u64>),
}

impl Peer {
    /// A peer without a connection; the first flush makes one.
    pub fn new(address: SocketAddr, rdma: bool, ahead: bool, now: Instant) -> Peer {
        Peer {
            address,
            rdma,
            ahead,
            standing: false,
            source: None,
            watched: None,
            handles: HashMap::new(),
            next_handle: 0,
            heard: now,
            connected: now,
            pinged: now,
            retry_at: Some(now),
            trouble: None,
            dirty: true,
            outbox: Vec::new(),
        }
    }

    /// Opens a seed for a child, or joins those who have it open.
    pub fn open(&mut self, owner: &Owner, child: ChildId, now: Instant) -> Handle {
        let same = |open: &Open| open.seed == owner.seed && open.secret == owner.secret;
        if let Some((handle, open)) = self.handles.iter_mut().find(|(_, open)| same(open)) {
            open.users.insert(child);
            return *handle;
        }
        if self.handles.is_empty() {
            // Nobody listened to it meanwhile, so its silence means nothing.
            self.heard = now;
            self.pinged = now;
            if self.source.is_none() {
                self.retry_at = Some(now);
            }
        }
        let handle = loop {
            self.next_handle = self.next_handle.wrapping_add(1);
            let handle = Handle(self.next_handle);
            if !self.handles.contains_key(&handle) {
                break handle;
            }
        };
        let users = BTreeSet::from([child]);
        let (seed, secret) = (owner.seed, owner.secret);
        self.handles.insert(
            handle,
            Open {
                seed,
                secret,
                users,
                trail: Trail::default(),
                told: false,
                teller: None,
                reach: 0,
                linked: Duration::ZERO,
            },
        );
        self.queue(Out::Open(handle));
        handle
    }

    /// A child needs a seed no more; the last one closes it.
    pub fn release(&mut self, handle: Handle, child: ChildId) {
        let Some(open) = self.handles.get_mut(&handle) else { return };
        open.users.remove(&child);
        if open.users.is_empty() {
            self.handles.remove(&handle);
            self.queue(Out::Close(handle));
        }
    }

    /// Without a connection nothing is queued: a new one begins with everything that is needed.
    fn queue(&mut self, out: Out) {
        self.dirty = true;
        if self.watched.is_some() || self.source.is_some() {
            self.outbox.push(out);
        }
    }

    /// All children that need this peer.
    pub fn users(&self) -> BTreeSet<ChildId> {
        self.handles.values().flat_map(|open| open.users.iter().copied()).collect()
    }

    /// Queues a read; without a connection it is asked when there is one.
    pub fn submit(&mut self, ask: Ask) {
        self.queue(Out::Read(ask));
    }

    /// Whether single pages can be asked for.
    pub fn gathers(&self) -> bool {
        !self.rdma
    }

    /// A child touched pages that are in no trail yet: kept here and told to the owner.
    pub fn learn(&mut self, handle: Handle, child: ChildId, pages: Vec<u64>, room: usize) {
        let Some(open) = self.handles.get_mut(&handle) else { return };
        open.trail.extend(&pages, room);
        if !std::mem::replace(&mut open.told, true) {
            open.teller = Some(child);
        }
        self.queue(Out::Learn(handle, pages));
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// If the connection is dead.
    pub fn flush(&mut self) -> Result<(), SourceError> {
        self.dirty = false;
        let Some(source) = &mut self.source else { return Ok(()) };
        for out in self.outbox.drain(..) {
            match out {
                Out::Open(handle) => {
                    if let Some(open) = self.handles.get(&handle) {
                        source.open(handle, open.seed, &open.secret);
                    }
                }
                Out::Close(handle) => source.close(handle),
                Out::Read(ask) => ask.put(&mut **source)?,
                Out::Learn(handle, pages) => source.learn(handle, &pages),
            }
        }
        source.flush()
    }

    /// The connection is lost.
    pub fn broken(&mut self, error: &SourceError, now: Instant) {
        self.source = None;
        self.watched = None;
        self.outbox.clear();
        self.handles.values_mut().for_each(|open| open.reach = 0);
        self.trouble = Some(error.to_string());
        // A connection that had lived is replaced at once; one that never came up, after a pause.
        let lived = now.duration_since(self.connected) > RETRY;
        self.retry_at = Some(match (self.handles.is_empty(), lived) {
            (true, _) => now + RETRY_STANDING,
            (false, true) => now,
            (false, false) => now + RETRY,
        });
    }

    /// Whether it is time to connect: while somebody needs the peer, or if its connection stands.
    pub fn wants_connection(&self, now: Instant) -> bool {
        self.source.is_none()
            && (self.standing || !self.handles.is_empty())
            && self.retry_at.is_some_and(|at| at <= now)
    }

    /// Connects, opens all seeds and asks for `reads` again.
    pub fn connect(&mut self, connect: &Connect, reads: &[Ask], now: Instant) {
        self.connected = now;
        self.pinged = now;
        match connect(self.address) {
            Ok(mut source) => {
                if self.ahead {
                    source.defer();
                }
                for (handle, open) in &self.handles {
                    source.open(*handle, open.seed, &open.secret);
                }
                for ask in reads {
                    if let Err(error) = ask.put(&mut *source) {
                        self.broken(&error, now);
                        return;
                    }
                }
                source.ping();
                self.outbox.clear();
                self.source = Some(source);
                self.retry_at = None;
                self.dirty = true;
            }
            Err(error) => self.broken(&error, now),
        }
    }

    /// Asks for a sign of life when it is due.
    pub fn ping(&mut self, interval: Duration, now: Instant) {
        let interval = match (self.handles.is_empty(), self.standing) {
            (false, _) => interval,
            (true, true) => KEEP,
            (true, false) => return,
        };
        if now.duration_since(self.pinged) < interval {
            return;
        }
        if let Some(source) = &mut self.source {
            self.pinged = now;
            source.ping();
            self.dirty = true;
        }
    }

    /// A connection that says nothing for half the page timeout is given up, so that a new one can
    /// be tried in the other half.
    pub fn stuck(&self, page_timeout: Duration, now: Instant) -> bool {
        let since = self.heard.max(self.connected);
        !self.handles.is_empty()
            && self.source.is_some()
            && now.duration_since(since) > page_timeout / 2
    }

    /// Not heard of for the page timeout, though somebody needs it: why its children must die.
    pub fn lost(&self, page_timeout: Duration, now: Instant) -> Option<String> {
        if self.handles.is_empty() || now.duration_since(self.heard) <= page_timeout {
            return None;
        }
        let trouble = self.trouble.as_deref().unwrap_or("no answer");
        let ms = page_timeout.as_millis();
        Some(format!("page source {} lost: {trouble}; not back within {ms} ms", self.address))
    }

    /// Nobody needs it, and has not for long.
    pub fn idle(&self, now: Instant) -> bool {
        self.handles.is_empty() && !self.standing && now.duration_since(self.heard) > IDLE
    }
}
