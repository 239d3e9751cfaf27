//! The daemon's side of the control socket.

use crate::message::{
    AddChild, Area, ChildId, ChildStats, Event, OwnerSource, Reply, Request, Snapshot, VERSION,
};
use crate::{PagerError, packet};
use mitosis_descriptor::{PageIndex, SeedId};
use mitosis_transport::SeedState;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most idle connections kept.
const IDLE_MAX: usize = 4;

/// The descriptors that go with [`AddChild`].
#[derive(Debug)]
pub struct ChildFds<'a> {
    /// Socket on which the child's userfaultfd arrives, in one message with one descriptor.
    pub uffd_rx: BorrowedFd<'a>,
    /// The pager's end of the guard's control socket.
    pub guard: BorrowedFd<'a>,
    /// The guard's pidfd.
    pub guard_pidfd: BorrowedFd<'a>,
    /// Files with pages of this node's own seeds, see [`crate::OwnerSource::local`].
    pub local: Vec<BorrowedFd<'a>>,
}

/// Talks to a pager: one request, one reply, each within the timeout. Can be used from several
/// threads at once; keeps at least one connection open, which keeps the pager from lingering.
#[derive(Debug)]
pub struct PagerClient {
    path: PathBuf,
    timeout: Duration,
    pid: u32,
    idle: Mutex<Vec<OwnedFd>>,
}

/// The events of a pager, on a connection of their own. When the subscriber falls behind or the
/// pager ends, the connection ends; subscribe again and compare [`PagerClient::stats`].
#[derive(Debug)]
pub struct PagerEvents {
    socket: OwnedFd,
}

fn connect(path: &Path, timeout: Duration) -> Result<(OwnedFd, u32), PagerError> {
    let what = || format!("connect to {}", path.display());
    let address = SocketAddrUnix::new(path).map_err(|e| PagerError::system(what(), e))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| PagerError::system(what(), e))?;
    for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, side, Some(timeout))
            .map_err(|e| PagerError::system(what(), e))?;
    }
    // While its queue is full that waits, and a signal may come.
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))
        .map_err(|e| PagerError::system(what(), e))?;
    let hello = Request::Hello { version: VERSION, daemon: std::process::id() };
    match exchange(&socket, &hello, &[], timeout)? {
        Reply::Hello { version: VERSION, pid } => Ok((socket, pid)),
        Reply::Hello { version, .. } => {
            let text = format!("the pager speaks version {version}, this daemon {VERSION}");
            Err(PagerError::Protocol(text))
        }
        other => Err(unexpected(other)),
    }
}

fn exchange(
    socket: &OwnedFd,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<Reply, PagerError> {
    send(socket, request, fds)?;
    let (reply, _) = packet::expect(socket.as_fd(), timeout.as_millis() as u64)?;
    Ok(reply)
}

fn send(socket: &OwnedFd, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
    packet::send(socket.as_fd(), request, fds).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => PagerError::Gone,
        _ => PagerError::system("send to the pager", cause),
    })
}

fn unexpected(reply: Reply) -> PagerError {
    match reply {
        Reply::Failed(text) => PagerError::Failed(text),
        other => PagerError::Protocol(format!("unexpected answer {other:?}")),
    }
}

impl PagerClient {
    /// Connects to the pager at a socket path.
    ///
    /// # Errors
    /// If nothing listens there, or it is no pager of this version.
    pub fn connect(path: &Path, timeout: Duration) -> Result<PagerClient, PagerError> {
        let (socket, pid) = connect(path, timeout)?;
        let idle = Mutex::new(vec![socket]);
        Ok(PagerClient { path: path.to_owned(), timeout, pid, idle })
    }

    /// The pager's pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A connection that carries events from now on.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn subscribe(&self) -> Result<PagerEvents, PagerError> {
        let (socket, _) = connect(&self.path, self.timeout)?;
        match exchange(&socket, &Request::Subscribe, &[], self.timeout)? {
            Reply::Done => Ok(PagerEvents { socket }),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, PagerError> {
        self.begin(request, fds)?.reply()
    }

    fn begin(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Asked<'_>, PagerError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let socket = match idle {
            Some(socket) => socket,
            None => connect(&self.path, self.timeout)?.0,
        };
        send(&socket, request, fds)?;
        Ok(Asked { client: self, socket })
    }

    fn command(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
        self.begin(request, fds)?.done()
    }

    /// Hands a child to the pager. The pager connects to the owners at once; faults are served as
    /// soon as the child's userfaultfd has arrived on `uffd_rx`. The answer is there when the
    /// caller comes for it: the child can be built meanwhile.
    ///
    /// # Errors
    /// If the pager is gone. [`Asked::done`] tells whether it refused what contradicts itself
    /// (index outside areas, owner numbers out of range, an id in use).
    pub fn add_child(&self, child: AddChild, fds: &ChildFds<'_>) -> Result<Asked<'_>, PagerError> {
        let mut all = vec![fds.uffd_rx, fds.guard, fds.guard_pidfd];
        all.extend_from_slice(&fds.local);
        self.begin(&Request::AddChild(child), &all)
    }

    /// Tells once what many children will lack, see [`Request::AddShape`].
    ///
    /// # Errors
    /// If the pager is gone, or what it was told contradicts itself.
    pub fn add_shape(
        &self,
        shape: u64,
        areas: Vec<Area>,
        index: PageIndex,
        owners: Vec<OwnerSource>,
    ) -> Result<(), PagerError> {
        self.command(&Request::AddShape { shape, areas, index, owners }, &[])
    }

    /// Has it forget the pages that it keeps for siblings.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn drop_cache(&self) -> Result<(), PagerError> {
        self.command(&Request::DropCache, &[])
    }

    /// Names the nodes to which connections are to stand, see [`Request::Peers`].
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn peers(&self, addresses: Vec<SocketAddr>) -> Result<(), PagerError> {
        self.command(&Request::Peers { addresses }, &[])
    }

    /// Ends [`PagerClient::add_shape`]; an unknown one is no error.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn drop_shape(&self, shape: u64) -> Result<(), PagerError> {
        self.command(&Request::DropShape { shape }, &[])
    }

    /// What of a child is still remote, see [`Request::Snapshot`].
    ///
    /// # Errors
    /// If the child is not known or not running.
    pub fn snapshot(&self, child: ChildId, shadow_follows: bool) -> Result<Snapshot, PagerError> {
        match self.ask(&Request::Snapshot { child, shadow_follows }, &[])? {
            Reply::Snapshot(snapshot) => Ok(snapshot),
            other => Err(unexpected(other)),
        }
    }

    /// The shadow announced by [`PagerClient::snapshot`] exists, see [`Request::ShadowTaken`].
    ///
    /// # Errors
    /// If the child is not known.
    pub fn shadow_taken(&self, child: ChildId) -> Result<(), PagerError> {
        self.command(&Request::ShadowTaken { child }, &[])
    }

    /// Fills the rest of a child in the background; [`Event::Independent`] tells when done.
    ///
    /// # Errors
    /// If the child is not known.
    pub fn make_independent(&self, child: ChildId) -> Result<(), PagerError> {
        self.command(&Request::MakeIndependent { child }, &[])
    }

    /// Kills a child; [`Event::Ended`] tells when its namespace is empty.
    ///
    /// # Errors
    /// If the child is not known.
    pub fn end(&self, child: ChildId, reason: &str) -> Result<(), PagerError> {
        self.command(&Request::End { child, reason: reason.to_owned() }, &[])
    }

    /// Keeps a child's namespace when its main process exits, or no longer.
    ///
    /// # Errors
    /// If the child is not known.
    pub fn keep(&self, child: ChildId, keep: bool) -> Result<(), PagerError> {
        self.command(&Request::Keep { child, keep }, &[])
    }

    /// All children the pager knows, running and remembered ones.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn stats(&self) -> Result<Vec<ChildStats>, PagerError> {
        self.ask_stats(true)
    }

    /// Those that have not ended: what is remembered of the others does not change.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn stats_of_running(&self) -> Result<Vec<ChildStats>, PagerError> {
        self.ask_stats(false)
    }

    fn ask_stats(&self, ended: bool) -> Result<Vec<ChildStats>, PagerError> {
        match self.ask(&Request::Stats { ended }, &[])? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(other)),
        }
    }

    /// Forgets ended children.
    ///
    /// # Errors
    /// If one runs.
    pub fn forget(&self, children: Vec<ChildId>) -> Result<(), PagerError> {
        self.command(&Request::Forget { children }, &[])
    }

    /// A shadow to be killed when no daemon comes back within the linger.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn track_shadow(&self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), PagerError> {
        self.command(&Request::TrackShadow { pid }, &[pidfd])
    }

    /// Ends [`PagerClient::track_shadow`]; unknown pids are no error.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn untrack_shadow(&self, pid: u32) -> Result<(), PagerError> {
        self.command(&Request::UntrackShadow { pid }, &[])
    }

    /// Tells of a change of one of this node's own seeds.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn seed_state(&self, seed: SeedId, state: SeedState) -> Result<(), PagerError> {
        self.command(&Request::SeedState { seed, state }, &[])
    }

    /// Pages of one of this node's own seeds are in another file from now on.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn replace_local(&self, seed: SeedId, file: BorrowedFd<'_>) -> Result<(), PagerError> {
        self.command(&Request::ReplaceLocal { seed }, &[file])
    }

    /// Kills all children and ends the pager.
    ///
    /// # Errors
    /// If the pager is gone.
    pub fn shutdown(&self) -> Result<(), PagerError> {
        self.command(&Request::Shutdown, &[])
    }
}

/// A request whose answer has not been taken yet.
#[must_use]
#[derive(Debug)]
pub struct Asked<'a> {
    client: &'a PagerClient,
    socket: OwnedFd,
}

impl Asked<'_> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// If the pager is gone, or refuses.
    pub fn done(self) -> Result<(), PagerError> {
        match self.reply()? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// A connection that failed or timed out is dropped: a late reply must not meet a later
    /// request.
    fn reply(self) -> Result<Reply, PagerError> {
        let Asked { client, socket } = self;
        let (reply, _) = packet::expect(socket.as_fd(), client.timeout.as_millis() as u64)?;
        let mut idle = client.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(socket);
        }
        Ok(reply)
    }
}

impl PagerEvents {
    /// The next event; `Ok(None)` if none comes within the timeout.
    ///
    /// # Errors
    /// [`PagerError::Gone`] when the pager ended or gave this subscriber up.
    pub fn next(&self, timeout: Duration) -> Result<Option<Event>, PagerError> {
        let timeout = timeout.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(timeout))
            .map_err(|e| PagerError::system("set the timeout of the event socket", e))?;
        match packet::expect(self.socket.as_fd(), timeout.as_millis() as u64) {
            Ok((event, _)) => Ok(Some(event)),
            Err(PagerError::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The descriptor that becomes readable with an event, for callers that poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
