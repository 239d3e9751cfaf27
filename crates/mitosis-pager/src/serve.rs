//! The control socket: what daemons ask, and what they are told.

use crate::message::{ChildId, ChildStats, Event, Reply, Request, Snapshot, VERSION};
use crate::pager::{Pager, Token, watch};
use crate::space::Role;
use crate::{PagerError, packet};
use mitosis_transport::SeedState;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Most connections at once. Trees that are started at the same time have several each.
const CLIENTS_MAX: usize = 256;

/// A connection of a daemon.
pub(crate) struct Client {
    socket: OwnedFd,
    greeted: bool,
    subscribed: bool,
}

/// Makes the control socket. A stale one is replaced; one that answers is an error.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, PagerError> {
    let failed = |e: Errno| PagerError::system(format!("listen at {}", path.display()), e);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || {
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(failed)
    };
    let socket = make()?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            if rustix::net::connect(&make()?, &address).is_ok() {
                return Err(failed(Errno::ADDRINUSE));
            }
            rustix::fs::unlink(path).map_err(failed)?;
            rustix::net::bind(&socket, &address).map_err(failed)?;
        }
        other => other.map_err(failed)?,
    }
    // Nobody can connect before `listen`, so the mode is in force in time.
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600)).map_err(failed)?;
    rustix::net::listen(&socket, 64).map_err(failed)?;
    Ok(socket)
}

impl Pager {
    pub(crate) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Whatever fails here fails for the one who connects; it tries again.
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            let own = sockopt::socket_peercred(&socket)
                .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if !own || self.clients.len() >= CLIENTS_MAX {
                continue;
            }
            let id = self.id();
            if watch(&self.epoll, socket.as_fd(), Token::Client(id)).is_ok() {
                let client = Client { socket, greeted: false, subscribed: false };
                self.clients.insert(id, client);
            }
        }
    }

    pub(crate) fn client_ready(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (request, fds) = match packet::receive::<Request>(client.socket.as_fd()) {
            Ok(Some(found)) => found,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return,
            Ok(None) | Err(_) => {
                self.clients.remove(&id);
                return;
            }
        };
        let reply = match &request {
            Request::Hello { version: VERSION, daemon } => {
                client.greeted = true;
                if self.daemon != Some(*daemon) {
                    // Another one than before: nobody will name the shapes of that one any more.
                    self.daemon = Some(*daemon);
                    self.shapes.clear();
                }
                Reply::Hello { version: VERSION, pid: std::process::id() }
            }
            Request::Hello { .. } => Reply::Hello { version: VERSION, pid: std::process::id() },
            _ if !client.greeted => Reply::Failed("no hello".into()),
            Request::Subscribe => {
                client.subscribed = true;
                Reply::Done
            }
            _ => self.perform(request, fds).unwrap_or_else(Reply::Failed),
        };
        // A client that does not take its answer is gone, or of no use.
        let sent = self.clients.get(&id).map(|c| packet::send(c.socket.as_fd(), &reply, &[]));
        if !matches!(sent, Some(Ok(()))) {
            self.clients.remove(&id);
        }
    }

    fn perform(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> Result<Reply, String> {
        match request {
            Request::AddChild(add) => self.add_child(add, fds)?,
            Request::AddShape { shape, areas, index, owners } => {
                let made = crate::life::shape(&areas, &index, owners)?;
                self.shapes.insert(shape, Arc::new(made));
            }
            Request::DropShape { shape } => {
                self.shapes.remove(&shape);
            }
            Request::Peers { addresses } => self.stand(&addresses),
            Request::Snapshot { child, shadow_follows } => {
                return self.snapshot(child, shadow_follows).map(Reply::Snapshot);
            }
            Request::ShadowTaken { child } => self.shadow_taken(child)?,
            Request::MakeIndependent { child } => {
                self.running(child)?.fill = true;
                self.review.insert(child);
            }
            Request::End { child, reason } => {
                self.known(child)?;
                self.kill(child, reason);
            }
            Request::Keep { child, keep } => {
                self.running(child)?.tell_guard(crate::guard::ToGuard::Keep(keep));
            }
            Request::Stats { ended } => {
                let asked = self.children.values().filter(|child| ended || child.ended.is_none());
                let stats = asked.map(|child| {
                    let (rdma_reach, rdma_link_us) = self.reach(child);
                    ChildStats { rdma_reach, rdma_link_us, ..child.stats(self.left(child)) }
                });
                return Ok(Reply::Stats(stats.collect()));
            }
            Request::Forget { children } => {
                let runs = |id: &&ChildId| self.children.get(id).is_some_and(|c| c.ended.is_none());
                if let Some(child) = children.iter().find(runs) {
                    return Err(format!("child {} has not ended", child.0));
                }
                for child in children {
                    self.children.remove(&child);
                }
            }
            Request::TrackShadow { pid } => {
                let pidfd = fds.pop().ok_or("a descriptor is missing")?;
                self.shadows.insert(pid, pidfd);
            }
            Request::UntrackShadow { pid } => {
                self.shadows.remove(&pid);
            }
            Request::SeedState { seed, state } => self.local_seed_state(seed, state),
            Request::ReplaceLocal { seed } => {
                let file = File::from(fds.pop().ok_or("a descriptor is missing")?);
                self.local.replace(seed, &file).map_err(|e| format!("local file: {e}"))?;
            }
            Request::DropCache => self.cache.clear(),
            Request::Shutdown => self.shut_down("the node was stopped"),
            Request::Hello { .. } | Request::Subscribe => return Err("out of order".into()),
        }
        Ok(Reply::Done)
    }

    fn known(&mut self, id: ChildId) -> Result<&mut crate::child::Child, String> {
        self.children.get_mut(&id).ok_or_else(|| format!("child {} is not known", id.0))
    }

    fn running(&mut self, id: ChildId) -> Result<&mut crate::child::Child, String> {
        let child = self.known(id)?;
        if child.dying || child.ended.is_some() {
            return Err(format!("child {} has ended", id.0));
        }
        Ok(child)
    }

    fn local_seed_state(&mut self, seed: mitosis_descriptor::SeedId, state: SeedState) {
        let handles = self.local.set_state(seed, state);
        let users: BTreeSet<ChildId> =
            handles.iter().filter_map(|handle| self.local_users.get(handle)).copied().collect();
        self.seed_state(&users, state);
    }

    /// What is missing now: all events are read, and none can come while the child is stopped.
    fn snapshot(&mut self, id: ChildId, shadow_follows: bool) -> Result<Snapshot, String> {
        let owners = self.running(id)?.sources.iter().map(|s| s.owner.owner.clone()).collect();
        let Some(key) = self.main_space(id) else {
            if self.running(id)?.waiting.is_some() {
                return Err("the child's memory is not set up yet".into());
            }
            return Ok(Snapshot { owners, ..Snapshot::default() });
        };
        self.drain(key);
        if let Some(space) = self.spaces.get_mut(&key) {
            let outcome = space.confirm();
            self.outcome(key, outcome);
        }
        self.running(id)?.shadow_follows = shadow_follows;
        let Some(space) = self.spaces.get(&key) else {
            return Ok(Snapshot { owners, ..Snapshot::default() });
        };
        if !space.doubts.is_empty() {
            return Err("the child is changing its mappings; try again".into());
        }
        Ok(Snapshot { areas: space.areas.to_areas(), index: space.map.index(), owners })
    }

    /// The fork that followed the snapshot is a shadow.
    fn shadow_taken(&mut self, id: ChildId) -> Result<(), String> {
        if let Some(key) = self.main_space(id) {
            self.drain(key);
        }
        let child = self.running(id)?;
        child.shadow_follows = false;
        // Without missing pages there is no event of the fork, and nothing to do.
        let Some(key) = child.shadow.take() else { return Ok(()) };
        if let Some(space) = self.spaces.get_mut(&key) {
            if let Role::Fork(slot) = space.role {
                space.role = Role::Shadow(slot);
            }
        }
        self.review.insert(id);
        Ok(())
    }

    /// Kills all children and tracked shadows; the process ends when they are dead.
    pub(crate) fn shut_down(&mut self, reason: &str) {
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        for id in ids {
            self.kill(id, reason.to_owned());
        }
        self.shutdown.get_or_insert_with(Instant::now);
    }

    /// Tells subscribers what happened. One that does not keep up is cut off: it subscribes again
    /// and compares the books.
    pub(crate) fn publish(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let events: Vec<Event> = std::mem::take(&mut self.events);
        self.clients.retain(|_, client| {
            !client.subscribed
                || events.iter().all(|e| packet::send(client.socket.as_fd(), e, &[]).is_ok())
        });
        if !self.clients.is_empty() {
            self.last_client = Instant::now();
        }
    }
}
