//! Fetching descriptors: the daemon's blocking side of the protocol.

mod stream;

pub(crate) use stream::{body, connect, header};

use crate::rdma::{FetchedBy, Fetcher, ReadBy};
use crate::wire::{self, Header, Kind, OwnerClocks, WireError};
use crate::{ForkError, Lease, SourceError};
use mitosis_descriptor::{Secret, SeedId};
use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stream::{exchange, ping, take_list, take_pages, unexpected};

/// Most idle connections kept per node.
const IDLE_MAX: usize = 4;
/// How long the connection over which descriptors are read keeps its queue pair while none is.
const READER_IDLE: Duration = Duration::from_secs(60);
/// What each MiB of a descriptor, or of a working set, may take longer.
const MIB_TIMEOUT: Duration = Duration::from_secs(1);

/// What a child's node asks of a seed's working set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Pages of it, in the order in which it grew, that are here already.
    pub have: u32,
    /// Up to how many are wanted; 0 for none.
    pub want: u32,
}

impl Want {
    /// What that is of a working set given in the order in which it grew; ascending, as it is sent.
    pub fn part(&self, pages: Vec<u64>) -> Vec<u64> {
        let want = (self.want as usize).min(wire::WORKING_SET_MAX);
        let mut part: Vec<u64> = pages.into_iter().take(want).skip(self.have as usize).collect();
        part.sort_unstable();
        part
    }
}

/// The answer to [`ControlClient::fork`].
#[derive(Debug)]
pub struct Fetched {
    /// The encoded descriptor.
    pub descriptor: Vec<u8>,
    /// How it came.
    pub by: FetchedBy,
    /// What the clocks of the seed's node showed when it was sent.
    pub clocks: OwnerClocks,
    /// What was wanted of the working set, if anything: it is asked for when its list is.
    pub incoming: Option<Incoming>,
}

/// A control connection.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    fetcher: Option<Fetcher>,
}

/// Pages of a working set that is to be asked for, or on its way.
///
/// It is a request of its own, made when the child is being built: a descriptor must not wait behind
/// pages, nor its sender's processor be busy with them, and the child needs them only late.
#[derive(Debug)]
pub struct Incoming {
    connection: Connection,
    address: String,
    access: wire::Access,
    want: Want,
    deadline: Instant,
}

/// Fetches descriptors over persistent connections: one round trip each once connected. Can be
/// used from several threads at once.
#[derive(Debug, Default)]
pub struct ControlClient {
    idle: Mutex<HashMap<String, Vec<Connection>>>,
    /// Of each node the one connection with a queue pair, over which descriptors are read, and since when
    /// it is idle. `None`: somebody has it.
    readers: Mutex<HashMap<String, Option<(Connection, Instant)>>>,
}

/// The right to read a descriptor of a node, and the connection for that if there is one.
struct Turn<'a> {
    client: &'a ControlClient,
    address: &'a str,
    connection: Option<Connection>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut readers = self.client.readers();
        match self.connection.take() {
            Some(connection) => {
                readers.insert(self.address.to_owned(), Some((connection, Instant::now())));
            }
            None => drop(readers.remove(self.address)),
        }
    }
}

impl From<WireError> for SourceError {
    fn from(error: WireError) -> SourceError {
        SourceError::Protocol(error.to_string())
    }
}

impl ControlClient {
    /// A client without connections.
    pub fn new() -> ControlClient {
        ControlClient::default()
    }

    /// Fetches the encoded descriptor of a seed from the node at `address` (`HOST:PORT`), with what
    /// that node's clocks show meanwhile, and holds the connection for what is `wanted` of its working
    /// set. With `by` a descriptor is read by RDMA if nothing is.
    ///
    /// # Errors
    /// [`ForkError::Refused`] if that node refuses, [`ForkError::Unreachable`] if there is no
    /// answer within `timeout`, whatever the cause.
    pub fn fork(
        &self,
        address: &str,
        (seed, secret): (SeedId, &Secret),
        wanted: Want,
        by: Option<&ReadBy>,
        timeout: Duration,
    ) -> Result<Fetched, ForkError> {
        let deadline = Instant::now() + timeout;
        let access = wire::Access { seed, secret: *secret };
        let by = by.filter(|_| wanted.want == 0);
        let mut turn = by.and_then(|_| self.turn(address));
        let busy = by.is_some() && turn.is_none();
        let mut failed = busy.then(|| "another one is being read".to_owned());
        let by = by.filter(|_| turn.is_some());
        let inline = by.map_or(u32::MAX, |by| by.above);
        let mut ask = wire::ForkAsk { access: access.clone(), inline };
        let unreachable = |cause| ForkError::Unreachable { address: address.to_owned(), cause };
        let reader = turn.as_mut().and_then(|turn| turn.connection.take());
        let ready = reader.or_else(|| self.pooled(address));
        let (mut connection, mut head) =
            self.ask_over(ready, address, Kind::Fork, &ask, deadline)?;
        if let (Kind::DescriptorAt, Some(by)) = (head.kind, by) {
            let asked = Instant::now();
            match connection.read(&head, by, deadline) {
                Ok((descriptor, linked)) => {
                    self.give_back(turn, connection, address);
                    let by = FetchedBy::Read { linked, took: asked.elapsed() };
                    let clocks = OwnerClocks::of(&head);
                    return Ok(Fetched { descriptor, by, clocks, incoming: None });
                }
                Err(error) => failed = Some(error.to_string()),
            }
            // What came of that is not known: a new connection, and no second attempt.
            ask.inline = u32::MAX;
            let stream = connect(address, deadline).map_err(unreachable)?;
            head = exchange(&stream, Header::new(Kind::Fork), &ask, true, deadline)
                .map_err(unreachable)?;
            connection = Connection { stream, fetcher: None };
        }
        // A large one, with what files held, takes its time over a slow link.
        let deadline = deadline + MIB_TIMEOUT * (head.length >> 20);
        let answer = match head.kind {
            Kind::Refused => None,
            Kind::Descriptor => {
                let bytes = body(&connection.stream, head.length as usize, deadline);
                Some((bytes.map_err(unreachable)?, OwnerClocks::of(&head)))
            }
            other => return Err(unreachable(unexpected(other))),
        };
        let Some((descriptor, clocks)) = answer else {
            self.give_back(turn, connection, address);
            return Err(ForkError::Refused { address: address.to_owned() });
        };
        let incoming = if wanted.want == 0 {
            self.give_back(turn, connection, address);
            None
        } else {
            let address = address.to_owned();
            Some(Incoming { connection, address, access, want: wanted, deadline })
        };
        let by = failed.map_or(FetchedBy::Answer, FetchedBy::Again);
        Ok(Fetched { descriptor, by, clocks, incoming })
    }

    /// Asks the node at `address` for the right to start children of a seed for a while.
    ///
    /// # Errors
    /// As [`ControlClient::fork`].
    pub fn lease(
        &self,
        address: &str,
        seed: SeedId,
        secret: &Secret,
        timeout: Duration,
    ) -> Result<Lease, ForkError> {
        let deadline = Instant::now() + timeout;
        let access = wire::Access { seed, secret: *secret };
        let (connection, head) = self.ask(address, Kind::Lease, &access, deadline)?;
        match head.kind {
            Kind::Leased => {
                self.keep(address, connection);
                let time = Duration::from_millis(head.a.into());
                Ok(Lease { time, working_set: head.b })
            }
            Kind::Refused => {
                self.keep(address, connection);
                Err(ForkError::Refused { address: address.to_owned() })
            }
            other => {
                let cause = unexpected(other);
                Err(ForkError::Unreachable { address: address.to_owned(), cause })
            }
        }
    }

    /// Asks, and waits for the head of the answer.
    fn ask<T: serde::Serialize>(
        &self,
        address: &str,
        kind: Kind,
        ask: &T,
        deadline: Instant,
    ) -> Result<(Connection, Header), ForkError> {
        self.ask_over(self.pooled(address), address, kind, ask, deadline)
    }

    /// The same, over a connection that there may be.
    fn ask_over<T: serde::Serialize>(
        &self,
        ready: Option<Connection>,
        address: &str,
        kind: Kind,
        ask: &T,
        deadline: Instant,
    ) -> Result<(Connection, Header), ForkError> {
        let unreachable = |cause| ForkError::Unreachable { address: address.to_owned(), cause };
        // One that was kept may have been closed by the other side meanwhile: only then is a second
        // attempt made, over a new connection.
        if let Some(connection) = ready
            && let Ok(head) = exchange(&connection.stream, Header::new(kind), ask, false, deadline)
        {
            return Ok((connection, head));
        }
        let stream = connect(address, deadline).map_err(unreachable)?;
        let head =
            exchange(&stream, Header::new(kind), ask, true, deadline).map_err(unreachable)?;
        Ok((Connection { stream, fetcher: None }, head))
    }

    /// Asks for the pages, and waits until it is known which will come, ascending.
    ///
    /// # Errors
    /// As [`ControlClient::fork`].
    pub fn list(&self, incoming: &Incoming) -> Result<Vec<u64>, ForkError> {
        let Incoming { connection, address, access, want, deadline } = incoming;
        let unreachable = |cause| ForkError::Unreachable { address: address.clone(), cause };
        let stream = &connection.stream;
        let most = want.want.saturating_sub(want.have) as usize;
        let ask = Header { a: want.have, b: want.want, ..Header::new(Kind::Begin) };
        let head = exchange(stream, ask, access, false, *deadline).map_err(unreachable)?;
        if head.kind == Kind::Refused {
            return Err(ForkError::Refused { address: address.clone() });
        }
        take_list(stream, &head, most, *deadline).map_err(unreachable)
    }

    /// Receives the pages of the list into `pages`, which has room for just these; `progress` sees what
    /// has come so far, each time some have.
    ///
    /// # Errors
    /// [`ForkError::Unreachable`] with the cause, also if the owner could not read a page.
    pub fn receive(
        &self,
        incoming: Incoming,
        pages: &mut [u8],
        progress: impl FnMut(&[u8]),
    ) -> Result<(), ForkError> {
        let Incoming { connection, address, deadline, .. } = incoming;
        let deadline = deadline + MIB_TIMEOUT * (pages.len() >> 20) as u32;
        match take_pages(&connection.stream, pages, deadline, progress) {
            Ok(()) => {
                self.keep(&address, connection);
                Ok(())
            }
            Err(cause) => Err(ForkError::Unreachable { address, cause }),
        }
    }

    /// Fetches the image of the vdso that a seed's parent has.
    ///
    /// # Errors
    /// As [`ControlClient::fork`].
    pub fn vdso(
        &self,
        address: &str,
        seed: SeedId,
        secret: &Secret,
        timeout: Duration,
    ) -> Result<Vec<u8>, ForkError> {
        let deadline = Instant::now() + timeout;
        let access = wire::Access { seed, secret: *secret };
        let (connection, head) = self.ask(address, Kind::Vdso, &access, deadline)?;
        let unreachable = |cause| ForkError::Unreachable { address: address.to_owned(), cause };
        let image = match head.kind {
            Kind::Refused => None,
            Kind::VdsoImage => {
                let stream = &connection.stream;
                Some(body(stream, head.length as usize, deadline).map_err(unreachable)?)
            }
            other => return Err(unreachable(unexpected(other))),
        };
        self.keep(address, connection);
        image.ok_or_else(|| ForkError::Refused { address: address.to_owned() })
    }

    /// Makes sure that a connection to the node at `address` stands, so that the next request costs
    /// one round trip.
    ///
    /// # Errors
    /// [`SourceError`] if there is no answer within `timeout`.
    pub fn stand(&self, address: &str, timeout: Duration) -> Result<(), SourceError> {
        let deadline = Instant::now() + timeout;
        if let Some(connection) = self.pooled(address)
            && ping(&connection.stream, false, deadline).is_ok()
        {
            self.keep(address, connection);
            return Ok(());
        }
        let stream = connect(address, deadline)?;
        ping(&stream, true, deadline)?;
        self.keep(address, Connection { stream, fetcher: None });
        Ok(())
    }

    /// Asks the node at `address` whether it lets others read by RDMA: its device, or why not.
    ///
    /// # Errors
    /// [`SourceError`] if there is no answer within `timeout`.
    pub fn rdma_offer(
        &self,
        address: &str,
        timeout: Duration,
    ) -> Result<Result<String, String>, SourceError> {
        crate::rdma::ask(address, timeout)
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<String, Option<(Connection, Instant)>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to read a descriptor of the node at `address`, if nobody else does: one queue pair is
    /// enough for that.
    fn turn<'a>(&'a self, address: &'a str) -> Option<Turn<'a>> {
        let mut readers = self.readers();
        let connection = match readers.get_mut(address) {
            Some(None) => return None,
            Some(known) => known.take().map(|(connection, _)| connection),
            None => {
                readers.insert(address.to_owned(), None);
                None
            }
        };
        Some(Turn { client: self, address, connection })
    }

    /// Keeps a connection: one with a queue pair for the next descriptor.
    fn give_back(&self, turn: Option<Turn<'_>>, connection: Connection, address: &str) {
        match turn.filter(|_| connection.fetcher.is_some()) {
            Some(mut turn) => turn.connection = Some(connection),
            None => self.keep(address, connection),
        }
    }

    /// Ends queue pairs over which no descriptor was read for a minute. To be called now and then.
    pub fn tidy(&self) {
        let idle = |one: &Option<(Connection, Instant)>| {
            one.as_ref().is_some_and(|(_, since)| since.elapsed() > READER_IDLE)
        };
        let gone: Vec<_> = {
            let mut readers = self.readers();
            let old: Vec<String> =
                readers.iter().filter(|(_, one)| idle(one)).map(|(a, _)| a.clone()).collect();
            old.iter().filter_map(|address| readers.remove(address)).collect()
        };
        drop(gone);
    }

    fn pooled(&self, address: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(address)?.pop()
    }

    fn keep(&self, address: &str, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(address.to_owned()).or_default();
        if connections.len() < IDLE_MAX {
            connections.push(connection);
        }
    }
}

impl Connection {
    /// Reads the descriptor that an answer says where to find; also what making the queue pair took.
    fn read(
        &mut self,
        head: &Header,
        by: &ReadBy,
        deadline: Instant,
    ) -> Result<(Vec<u8>, Duration), SourceError> {
        let bytes = body(&self.stream, head.length as usize, deadline)?;
        let place: wire::RdmaPlace = wire::body(Kind::DescriptorAt, &bytes)?;
        let begun = Instant::now();
        let fetcher = match &mut self.fetcher {
            Some(fetcher) => fetcher,
            none => none.insert(Fetcher::new(&by.device)?),
        };
        let made = begun.elapsed();
        let (descriptor, linked) = fetcher.read(&self.stream, &place, deadline)?;
        Ok((descriptor, made + linked))
    }
}
