//! What the control daemon and the pager say to each other.

use mitosis_descriptor::{Owner, PageIndex, SeedId, Vpn};
use mitosis_transport::SeedState;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, ToSocketAddrs};

/// Version of this protocol; a daemon speaks only to a pager of the same version.
pub const VERSION: u32 = 9;

/// Names a child; chosen by the daemon, below 2^56, never reused while the pager lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChildId(pub u64);

/// A page-aligned range that the child's stub registered with its userfaultfd. A page of an area
/// that is in no run of the index is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// First page.
    pub start: Vpn,
    /// Number of pages.
    pub count: u64,
    /// Grows downwards when touched below (`MAP_GROWSDOWN`).
    pub grows_down: bool,
    /// Reads as zero in a process forked from the child (`MADV_WIPEONFORK`).
    pub wipe_on_fork: bool,
}

impl Area {
    /// One past the last page.
    pub fn end(&self) -> Vpn {
        Vpn(self.start.0 + self.count)
    }
}

/// An owner of pages and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSource {
    /// The owner, as the descriptor names it.
    pub owner: Owner,
    /// Where its node listens. Needed unless the owner is local.
    pub address: Option<SocketAddr>,
    /// This very node owns the pages: index, among [`AddChild`]'s local descriptors, of a file in
    /// which page `n` of the seed lies at offset `n * 4096` (`/proc/PID/mem` of the shadow, or a
    /// spool).
    pub local: Option<u32>,
    /// Read by RDMA what the owner has registered, the rest over TCP.
    pub rdma: bool,
}

impl OwnerSource {
    /// An owner that is read over TCP, or by RDMA with [`OwnerSource::rdma`]. Resolves its address, which may block on the resolver.
    ///
    /// # Errors
    /// If the address does not resolve.
    pub fn remote(owner: Owner) -> std::io::Result<OwnerSource> {
        let address = owner.address.to_socket_addrs()?.next();
        let address = address.ok_or_else(|| {
            let text = format!("{}: no address", owner.address);
            std::io::Error::new(std::io::ErrorKind::NotFound, text)
        })?;
        Ok(OwnerSource { owner, address: Some(address), local: None, rdma: false })
    }

    /// An owner that lives on this node, read through the `index`-th local descriptor.
    pub fn local(owner: Owner, index: u32) -> OwnerSource {
        OwnerSource { owner, address: None, local: Some(index), rdma: false }
    }
}

/// A child to serve. Goes with its descriptors, see [`crate::PagerClient::add_child`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddChild {
    /// The child.
    pub child: ChildId,
    /// Its seed, for people.
    pub seed: String,
    /// What the stub registers.
    pub areas: Vec<Area>,
    /// Pages that must be fetched; each lies in an area.
    pub index: PageIndex,
    /// Owners, in the order of the index's owner numbers.
    pub owners: Vec<OwnerSource>,
    /// Pages of the index that the child puts in place itself before its userfaultfd arrives.
    pub placed: Vec<u64>,
    /// Bytes that were fetched for that.
    pub placed_bytes: u64,
    /// Pages that were remote when the seed was new and are in no index here: the template has them.
    pub held: u64,
    /// What it lacks was told before, see [`Request::AddShape`]: then areas, index and owners here are
    /// empty.
    pub shape: Option<u64>,
    /// Of a process of a tree that is not its root: the root. They have one guard, and what that says
    /// is about the root.
    pub main: Option<ChildId>,
    /// Which of how many processes with that guard it is.
    pub member: (u32, u32),
    /// Fetch everything at once (`--paging eager`).
    pub eager: bool,
    /// Fill the rest in the background (`--independent`).
    pub independent: bool,
}

/// A request of the daemon; each is answered by one [`Reply`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First request on each connection.
    Hello {
        /// [`VERSION`] of the daemon.
        version: u32,
        /// The daemon's pid, for people.
        daemon: u32,
    },
    /// Turns the connection into one that only carries [`Event`]s.
    Subscribe,
    /// Serve a child. Descriptors: the socket on which its userfaultfd will arrive, the guard's
    /// control socket, the guard's pidfd, then the local page files.
    AddChild(AddChild),
    /// What children will lack that are all made in one way: told once for all of them.
    AddShape {
        /// Names it in [`AddChild`]; never reused while the pager lives.
        shape: u64,
        /// See [`AddChild`].
        areas: Vec<Area>,
        /// See [`AddChild`].
        index: PageIndex,
        /// See [`AddChild`].
        owners: Vec<OwnerSource>,
    },
    /// No more children will have it. Those that have it go on.
    DropShape {
        /// Its name; an unknown one is no error.
        shape: u64,
    },
    /// Nodes to which connections stand whether or not a child needs them; in place of those named
    /// before.
    Peers {
        /// Where they listen.
        addresses: Vec<SocketAddr>,
    },
    /// What of a child is still remote; answered with [`Reply::Snapshot`].
    Snapshot {
        /// The child; its main process is stopped.
        child: ChildId,
        /// The next fork of the main process is the shadow of a new seed, see
        /// [`Request::ShadowTaken`].
        shadow_follows: bool,
    },
    /// The shadow announced by [`Request::Snapshot`] exists: its missing pages are not fetched,
    /// and it does not count as a dependent. Without this the fork is served like any other.
    ShadowTaken {
        /// The child that was prepared.
        child: ChildId,
    },
    /// Fill the rest of a child in the background.
    MakeIndependent {
        /// The child.
        child: ChildId,
    },
    /// Kill a child, its whole namespace.
    End {
        /// The child.
        child: ChildId,
        /// Recorded as the reason of its end.
        reason: String,
    },
    /// Keep the namespace when the main process exits (the pages are served meanwhile).
    Keep {
        /// The child.
        child: ChildId,
        /// Keep or no longer.
        keep: bool,
    },
    /// State of the children known.
    Stats {
        /// Ended ones too. Their books are closed, and went with [`Event::Ended`].
        ended: bool,
    },
    /// Forget ended children.
    Forget {
        /// Their ids; unknown ones are no error.
        children: Vec<ChildId>,
    },
    /// A shadow to be killed if the pager outlives the daemon by the linger. Descriptor: its pidfd.
    TrackShadow {
        /// Its pid, as the name for [`Request::UntrackShadow`].
        pid: u32,
    },
    /// The shadow ended or is no longer the pager's business.
    UntrackShadow {
        /// Its pid.
        pid: u32,
    },
    /// A seed of this very node changed its state: what a ping tells of remote seeds.
    SeedState {
        /// The seed.
        seed: SeedId,
        /// Its new state.
        state: SeedState,
    },
    /// The pages of a seed of this node have moved: read them from the file that goes with this.
    ReplaceLocal {
        /// The seed.
        seed: SeedId,
    },
    /// Forget the pages that are kept for siblings: memory is short.
    DropCache,
    /// Kill all children and exit.
    Shutdown,
}

/// An answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Request::Hello`].
    Hello {
        /// [`VERSION`] of the pager.
        version: u32,
        /// The pager's pid.
        pid: u32,
    },
    /// Answer to [`Request::Snapshot`].
    Snapshot(Snapshot),
    /// Answer to [`Request::Stats`].
    Stats(Vec<ChildStats>),
    /// The request failed; for people.
    Failed(String),
}

/// What of a child was still remote at one moment.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The areas still registered.
    pub areas: Vec<Area>,
    /// Pages not yet in the child, those in flight included.
    pub index: PageIndex,
    /// Owners, in the order of the index's owner numbers.
    pub owners: Vec<Owner>,
}

/// Whether a child lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildState {
    /// It runs (or is about to).
    Running,
    /// It ended, and everything in its namespace.
    Ended,
}

/// What the pager knows of a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChildStats {
    /// The child.
    pub child: ChildId,
    /// Its seed.
    pub seed: String,
    /// Whether it lives.
    pub state: ChildState,
    /// Wait status of its main process, as `waitpid(2)` gives it, once that exited by itself.
    pub exit: Option<i32>,
    /// Why it was killed, if it was.
    pub reason: Option<String>,
    /// Pages that were remote at the start.
    pub pages_total: u64,
    /// Pages fetched because they were touched.
    pub pages_fetched: u64,
    /// Pages fetched before they were touched.
    pub pages_prefetched: u64,
    /// Page faults that reached the pager.
    pub faults: u64,
    /// Bytes of pages fetched.
    pub bytes_fetched: u64,
    /// Pages of zeros placed on demand.
    pub zero_pages: u64,
    /// Pages still remote, in the child and the processes it forked.
    pub pages_left: u64,
    /// No page is remote any more.
    pub independent: bool,
    /// `rdma`, `tcp`, `local` or `mixed`, as chosen; see `pages_rdma` for what came how.
    pub transport: String,
    /// Pages fetched by one-sided RDMA reads; the others came over TCP or from local files.
    pub pages_rdma: u64,
    /// Pages that a sibling on this node had been sent before; they are no bytes fetched.
    pub pages_cached: u64,
    /// Of each 128 pages fetched ahead along the trail one is kept here instead of being placed: so many.
    pub pages_held: u64,
    /// So many of these were touched. The share of the others is that of what was fetched in vain.
    pub pages_held_touched: u64,
    /// Pages fetched because they lie around what the first child of a seed touched, and kept here: those of
    /// them that it used are among `pages_cached`.
    pub pages_around: u64,
    /// Pages of its owners that can be read by RDMA now, fetched ones included.
    pub rdma_reach: u64,
    /// Microseconds that making the queue pairs to its owners took.
    pub rdma_link_us: u64,
    /// Why pages last came over TCP although RDMA was chosen.
    pub rdma_note: Option<String>,
    /// `HOST:PORT/SEED` of each owner still needed.
    pub owners: Vec<String>,
    /// Microseconds from [`Request::AddChild`] to the arrival of the child's userfaultfd.
    pub uffd_us: Option<u64>,
    /// Microseconds from [`Request::AddChild`] to independence.
    pub independent_us: Option<u64>,
}

/// Something that happened without being asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The main process of a child exited (its namespace may be kept).
    Exited {
        /// The child.
        child: ChildId,
        /// Wait status, as `waitpid(2)` gives it.
        status: i32,
    },
    /// A child and everything in its namespace ended.
    Ended {
        /// Its books, closed.
        stats: Box<ChildStats>,
    },
    /// A child needs no owner any more.
    Independent {
        /// The child.
        child: ChildId,
    },
}
