//! Children come, become independent, and end.

use crate::child::{Child, Shape, Via};
use crate::guard::{self, FromGuard};
use crate::map::PageMap;
use crate::message::{AddChild, Area, ChildId, Event, OwnerSource};
use crate::pager::{ID_BITS, Pager, Token, unwatch, watch};
use crate::peer::Peer;
use crate::space::{Role, Space};
use mitosis_descriptor::PageIndex;
use mitosis_sys::uffd::Uffd;
use mitosis_transport::Handle;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Signal;
use std::fs::File;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a userfaultfd is served on after the guard was told to drop its duplicate: closed by
/// both, the kernel lets its ranges go; closed here first, a touch there would hang.
const CLOSE_AFTER: Duration = Duration::from_secs(2);

/// Takes the one descriptor that a stub sends. `Ok(None)`: not yet.
fn receive_uffd(socket: BorrowedFd<'_>) -> Result<Option<Uffd>, String> {
    let mut byte = [0u8; 16];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
        Ok(got) => got,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(e) => return Err(format!("receiving the child's userfaultfd: {e}")),
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Uffd::from_fd(fd).map(Some).map_err(|e| format!("userfaultfd: {e}")),
        (None, _) if got.bytes == 0 => Err("the child ended before its memory was set up".into()),
        _ => Err("the child's stub sent something else than its userfaultfd".into()),
    }
}

/// What children lack, checked: areas in order, every page of the index in one of them, every owner
/// known.
pub(crate) fn shape(
    areas: &[Area],
    index: &PageIndex,
    owners: Vec<OwnerSource>,
) -> Result<Shape, String> {
    let end = |start: u64, count: u64| start.checked_add(count).filter(|end| *end <= 1 << 52);
    let mut last = 0;
    for area in areas {
        let end = end(area.start.0, area.count).filter(|_| area.count > 0);
        match end {
            Some(end) if area.start.0 >= last => last = end,
            _ => return Err(format!("area {:?} is empty or out of order", area.start)),
        }
    }
    let areas = crate::areas::Areas::new(areas);
    for run in index.runs() {
        if usize::from(run.owner) >= owners.len() {
            return Err(format!("run at page {:#x} names owner {}", run.start.0, run.owner));
        }
        if end(run.start.0, run.count.into()).is_none()
            || end(run.source.0, run.count.into()).is_none()
        {
            return Err(format!("run at page {:#x} is out of range", run.start.0));
        }
        let mut at = run.start.0;
        while let Some(piece) = areas.find(at).filter(|_| at < run.end().0) {
            at = piece.end;
        }
        if at < run.end().0 {
            return Err(format!("page {at:#x} is to be fetched but lies in no area"));
        }
    }
    for owner in &owners {
        if owner.local.is_none() && owner.address.is_none() {
            return Err(format!("owner {} cannot be reached", owner.owner.address));
        }
    }
    let map = Arc::new(PageMap::new(index, owners.len()));
    Ok(Shape { areas, map, owners })
}

fn validate(add: &AddChild, shape: &Shape, locals: usize) -> Result<(), String> {
    if add.child.0 >> ID_BITS != 0 {
        return Err(format!("child id {:#x} has more than {ID_BITS} bits", add.child.0));
    }
    if add.placed.iter().any(|page| *page >= 1 << 52) {
        return Err("a page put in place is out of range".into());
    }
    match shape.owners.iter().find(|o| o.local.is_some_and(|index| index as usize >= locals)) {
        Some(owner) => Err(format!("owner {} cannot be reached", owner.owner.address)),
        None => Ok(()),
    }
}

impl Pager {
    /// Takes a child over from the daemon.
    pub(crate) fn add_child(&mut self, add: AddChild, fds: Vec<OwnedFd>) -> Result<(), String> {
        let id = add.child;
        if self.children.contains_key(&id) {
            return Err(format!("child {} is known already", id.0));
        }
        let mut fds = fds.into_iter();
        let (Some(uffd_rx), Some(guard), Some(pidfd)) = (fds.next(), fds.next(), fds.next()) else {
            return Err("descriptors are missing".into());
        };
        let locals: Vec<File> = fds.map(File::from).collect();
        let shape = match add.shape {
            Some(known) => self.shapes.get(&known).cloned().ok_or("a shape that is not known")?,
            None => Arc::new(shape(&add.areas, &add.index, add.owners.clone())?),
        };
        validate(&add, &shape, locals.len())?;
        let child = Child::new(add, &shape, [uffd_rx, guard, pidfd], Instant::now());
        let watched = self.watch_child(&child).map_err(|e| format!("watching the child: {e}"));
        self.children.insert(id, child);
        let result = watched.and_then(|()| self.open_sources(id, &locals));
        if let Err(reason) = &result {
            self.kill(id, reason.clone());
        }
        result
    }

    /// Opens the owners of which pages are missing.
    fn open_sources(&mut self, id: ChildId, locals: &[File]) -> Result<(), String> {
        let Some(child) = self.children.get(&id) else { return Ok(()) };
        let Some((_, map)) = &child.waiting else { return Ok(()) };
        let owners = map.left().iter().zip(&child.sources);
        let needed: Vec<(usize, OwnerSource)> = owners
            .enumerate()
            .filter(|(_, (left, _))| **left > 0)
            .map(|(number, (_, source))| (number, source.owner.clone()))
            .collect();
        for (number, owner) in needed {
            let via = self.open_source(id, &owner, locals)?;
            if let Some(child) = self.children.get_mut(&id) {
                child.sources[number].via = Some(via);
            }
        }
        Ok(())
    }

    fn open_source(
        &mut self,
        id: ChildId,
        source: &OwnerSource,
        locals: &[File],
    ) -> Result<Via, String> {
        if let Some(index) = source.local {
            let file = locals.get(index as usize).ok_or("a local file is missing")?;
            let file = file.try_clone().map_err(|e| format!("local file: {e}"))?;
            let handle = self.local_handle();
            self.local.open_file(handle, source.owner.seed, file);
            self.local_users.insert(handle, id);
            return Ok(Via::Local(handle));
        }
        let address = source.address.ok_or("an owner has no address")?;
        let key = self.peer(address, source.rdma, false);
        let peer = self.peers.get_mut(&key).ok_or("a peer is missing")?;
        Ok(Via::Peer(key, peer.open(&source.owner, id, Instant::now())))
    }

    /// A handle that nobody uses, also after four thousand million of them.
    fn local_handle(&mut self) -> Handle {
        loop {
            self.next_local = self.next_local.wrapping_add(1);
            let handle = Handle(self.next_local);
            if !self.local_users.contains_key(&handle) {
                return handle;
            }
        }
    }

    fn watch_child(&self, child: &Child) -> Result<(), Errno> {
        let id = child.id.0;
        if let Some(socket) = &child.uffd_rx {
            watch(&self.epoll, socket.as_fd(), Token::Arrival(id))?;
        }
        if let Some(socket) = child.guard.as_ref().filter(|_| child.main.is_none()) {
            watch(&self.epoll, socket.as_fd(), Token::Guard(id))?;
        }
        match &child.guard_pidfd {
            Some(pidfd) => watch(&self.epoll, pidfd.as_fd(), Token::GuardPid(id)),
            None => Ok(()),
        }
    }

    /// Keeps connections to these nodes, and to others only while somebody needs them.
    pub(crate) fn stand(&mut self, addresses: &[SocketAddr]) {
        for peer in self.peers.values_mut() {
            peer.standing = false;
        }
        for address in addresses {
            for ahead in [false, true] {
                let id = self.peer(*address, false, ahead);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.standing = true;
                }
                self.connect(id);
            }
        }
    }

    fn peer(&mut self, address: SocketAddr, rdma: bool, ahead: bool) -> u64 {
        let same = |p: &Peer| p.address == address && p.rdma == rdma && p.ahead == ahead;
        if let Some((id, _)) = self.peers.iter().find(|(_, peer)| same(peer)) {
            return *id;
        }
        let id = self.id();
        self.peers.insert(id, Peer::new(address, rdma, ahead, Instant::now()));
        id
    }

    /// Opens an owner for what is fetched ahead of a child's touches; what is read by RDMA needs no
    /// second way.
    pub(crate) fn open_ahead(&mut self, id: ChildId, number: usize) {
        let source = self.children.get(&id).and_then(|child| child.sources.get(number));
        let Some(source) = source.filter(|source| source.ahead.is_none()) else { return };
        let owner = source.owner.clone();
        let Some(address) = owner.address.filter(|_| !owner.rdma) else { return };
        let key = self.peer(address, false, true);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let handle = peer.open(&owner.owner, id, Instant::now());
        if let Some(child) = self.children.get_mut(&id) {
            child.sources[number].ahead = Some(Via::Peer(key, handle));
        }
    }

    /// Lets go of the ways for what is fetched ahead, once nothing is on them any more.
    pub(crate) fn close_ahead(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id).filter(|child| child.ahead.is_empty()) else {
            return;
        };
        let ways: Vec<Via> = child.sources.iter_mut().filter_map(|s| s.ahead.take()).collect();
        for way in ways {
            if let Via::Peer(peer, handle) = way
                && let Some(peer) = self.peers.get_mut(&peer)
            {
                peer.release(handle, id);
            }
        }
    }

    /// The child's userfaultfd: from now on its touches can be answered.
    pub(crate) fn uffd_arrived(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let Some(socket) = &child.uffd_rx else { return };
        let received = receive_uffd(socket.as_fd());
        if matches!(received, Ok(None)) {
            return;
        }
        unwatch(&self.epoll, socket);
        child.uffd_rx = None;
        let uffd = match received {
            Ok(Some(uffd)) => uffd,
            Ok(None) => return,
            Err(reason) => {
                // A child of which nothing is registered has no userfaultfd to send.
                if child.waiting.take_if(|(areas, _)| areas.is_empty()).is_some() {
                    self.review.insert(id);
                } else {
                    self.kill(id, reason);
                }
                return;
            }
        };
        child.arrived(Instant::now());
        let Some((areas, map)) = child.waiting.take() else { return };
        let key = self.id();
        let mut space = Space::new(id, Role::Main, uffd, areas, map);
        space.tidy(0, u64::MAX);
        let watched = watch(&self.epoll, space.uffd.as_fd(), Token::Space(key));
        self.spaces.insert(key, space);
        if let Some(child) = self.children.get_mut(&id) {
            child.spaces.insert(key);
        }
        if let Err(e) = watched {
            self.kill(id, format!("watching the child's memory: {e}"));
        }
        // What it has touched meanwhile is waiting already.
        self.drain(key);
        self.review.insert(id);
    }

    /// The main address space of a child.
    pub(crate) fn main_space(&self, id: ChildId) -> Option<u64> {
        let child = self.children.get(&id)?;
        let main = |key: &&u64| self.spaces.get(key).is_some_and(|s| s.role == Role::Main);
        child.spaces.iter().find(main).copied()
    }

    /// Pages missing in a child and its forks.
    pub(crate) fn left(&self, child: &Child) -> u64 {
        let waiting = child.waiting.as_ref().map_or(0, |(_, map)| map.pages());
        let spaces = child.spaces.iter().filter_map(|key| self.spaces.get(key));
        let spaces = spaces.filter(|space| space.counts());
        waiting + spaces.map(|space| space.map.pages()).sum::<u64>()
    }

    /// Looks at children in which something has changed: fills on, lets owners go, and notices
    /// independence.
    pub(crate) fn review(&mut self) {
        for id in std::mem::take(&mut self.review) {
            self.fill(id);
            self.review_child(id);
        }
    }

    fn review_child(&mut self, id: ChildId) {
        let Some(child) = self.children.get(&id) else { return };
        if child.dying || child.ended.is_some() || child.waiting.is_some() {
            return;
        }
        let mut left = vec![0; child.sources.len()];
        let spaces = child.spaces.iter().filter_map(|key| self.spaces.get(key));
        for space in spaces.filter(|space| space.counts()) {
            for (sum, pages) in left.iter_mut().zip(space.map.left()) {
                *sum += pages;
            }
        }
        for (number, pages) in left.iter().enumerate() {
            if *pages == 0 {
                self.release(id, number);
            }
        }
        self.close_finished(id);
        let Some(child) = self.children.get_mut(&id) else { return };
        // One that has exited misses nothing either, which is not worth a word.
        let lives = child.exit.is_none() && !child.independent;
        if lives && left.iter().all(|pages| *pages == 0) {
            child.set_independent(Instant::now());
            self.events.push(Event::Independent { child: id });
        }
    }

    /// Forked processes that miss nothing need no service. The main address space stays served:
    /// its guard keeps a duplicate for good.
    fn close_finished(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        for key in child.spaces.clone() {
            let Some(space) = self.spaces.get_mut(&key) else { continue };
            let Role::Fork(slot) = space.role else { continue };
            if space.map.pages() == 0 && space.areas.is_empty() && space.closing.is_none() {
                space.closing = Some(Instant::now() + CLOSE_AFTER);
                space.role = Role::Fork(u32::MAX);
                if slot != u32::MAX {
                    child.release_slot(slot);
                }
            }
        }
    }

    fn release(&mut self, id: ChildId, number: usize) {
        let Some(child) = self.children.get_mut(&id) else { return };
        let Some(source) = child.sources.get_mut(number) else { return };
        let Some(via) = source.via.take() else { return };
        // Two owner numbers may share a way.
        if child.sources.iter().any(|other| other.via == Some(via)) {
            return;
        }
        match via {
            Via::Peer(peer, handle) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.release(handle, id);
                }
            }
            Via::Local(handle) => {
                self.local_users.remove(&handle);
                self.local_closes.push(handle);
            }
        }
    }

    fn release_all(&mut self, id: ChildId) {
        self.tell_learned(id);
        let count = self.children.get(&id).map_or(0, |child| child.sources.len());
        for number in 0..count {
            self.release(id, number);
        }
        if let Some(child) = self.children.get_mut(&id) {
            child.ahead.clear();
            child.ahead_pages = 0;
        }
        self.close_ahead(id);
    }

    /// An address space is gone: its process exited or executed another program.
    pub(crate) fn forget_space(&mut self, key: u64) {
        let Some(space) = self.spaces.remove(&key) else { return };
        unwatch(&self.epoll, &space.uffd);
        let Some(child) = self.children.get_mut(&space.child) else { return };
        child.spaces.remove(&key);
        if child.shadow == Some(key) {
            child.shadow = None;
        }
        match space.role {
            Role::Fork(slot) | Role::Shadow(slot) if slot != u32::MAX => child.release_slot(slot),
            _ => {}
        }
        self.review.insert(space.child);
    }

    /// Ends a child. Its userfaultfds stay open until everything in its namespace is dead.
    pub(crate) fn kill(&mut self, id: ChildId, reason: String) {
        let Some(child) = self.children.get_mut(&id) else { return };
        if child.dying || child.ended.is_some() {
            return;
        }
        child.dying = true;
        if let Some(main) = child.main {
            // The guard ends all processes of the tree, and the root's end is the one that is seen.
            self.kill(main, reason.clone());
        }
        let Some(child) = self.children.get_mut(&id) else { return };
        // A child that exited by itself was not killed, whatever is wrong with the rest.
        child.reason.get_or_insert(reason);
        // The guard is pid 1 of its namespace: the kernel kills all the others with it. It fails
        // only if the guard is dead already, which its pidfd tells.
        if let Some(guard) = &child.guard_pidfd {
            let _ = rustix::process::pidfd_send_signal(guard, Signal::KILL);
        }
        self.release_all(id);
    }

    /// A message, or the end, of a guard's control socket.
    pub(crate) fn guard_spoke(&mut self, id: ChildId) {
        loop {
            let Some(child) = self.children.get_mut(&id).filter(|child| child.main.is_none())
            else {
                return;
            };
            let Some(socket) = &child.guard else { return };
            match guard::receive(socket.as_fd()) {
                FromGuard::Nothing => return,
                FromGuard::ChildExited(status) => {
                    child.exit = Some(status);
                    self.events.push(Event::Exited { child: id, status });
                }
                FromGuard::ForkFailed(errno) => {
                    let cause = std::io::Error::from_raw_os_error(errno);
                    child.reason = Some(format!("its guard could not make the child: {cause}"));
                }
                FromGuard::Closed => {
                    unwatch(&self.epoll, socket);
                    child.guard = None;
                    if child.exit.is_none() && child.reason.is_none() {
                        self.kill(id, "guard died".to_owned());
                    }
                    return;
                }
            }
        }
    }

    /// The guard is dead, and with it all its namespace: only now may userfaultfds be closed.
    pub(crate) fn guard_ended(&mut self, id: ChildId) {
        // Its last words may still wait in the socket.
        self.guard_spoke(id);
        self.release_all(id);
        let Some(child) = self.children.get_mut(&id) else { return };
        if child.ended.is_some() {
            return;
        }
        child.dying = true;
        if child.exit.is_none() && child.reason.is_none() && child.main.is_none() {
            child.reason = Some("guard died".to_owned());
        }
        child.ended = Some(Instant::now());
        child.guard = None;
        child.uffd_rx = None;
        child.waiting = None;
        // Out of the epoll: a pidfd of the dead stays readable for ever, and the record of the
        // child outlives its use.
        if let Some(guard) = child.guard_pidfd.take() {
            let _ = rustix::event::epoll::delete(&self.epoll, &guard);
        }
        for key in std::mem::take(&mut child.spaces) {
            self.spaces.remove(&key);
        }
        let stats = self.children.get(&id).map(|child| Box::new(child.stats(0)));
        self.events.extend(stats.map(|stats| Event::Ended { stats }));
    }
}
