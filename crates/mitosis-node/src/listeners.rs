//! Listening sockets that the children of one seed on this node share, as after fork(2).
//!
//! The daemon binds a socket when the first child asks for it; each child holds a share. With the
//! last share the socket closes and the path of a unix socket goes, if it is still ours. What any
//! other process holds is never taken over: the bind fails, and the fork with it.

use crate::error::NodeError;
use mitosis_descriptor::Phase;
use mitosis_state::ListenSpec;
use mitosis_state::net::Address;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A share in a socket; dropping the last one closes it.
#[derive(Debug)]
pub(crate) struct Share {
    listener: Option<Arc<Listener>>,
    address: Address,
    table: Arc<Mutex<Table>>,
}

impl AsFd for Share {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            Some(listener) => listener.socket.as_fd(),
            // Only `drop` takes it.
            None => unreachable!("a share without a socket"),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Under the lock: who finds that there is no share any more finds the address free.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.listener.take().and_then(Arc::into_inner);
        if last.is_some() {
            drop(last);
            table.closed.insert(self.address.clone(), Instant::now());
        }
    }
}

/// One socket.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    /// Path of a unix socket, with the device and inode it had when it was made.
    path: Option<(PathBuf, u64, u64)>,
}

impl Listener {
    fn new(socket: OwnedFd, spec: &ListenSpec) -> Listener {
        let path = match &spec.address {
            Address::Path(path) => std::fs::symlink_metadata(path)
                .ok()
                .map(|meta| (PathBuf::from(path), meta.dev(), meta.ino())),
            _ => None,
        };
        Listener { socket, path }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, dev, ino)) = &self.path else { return };
        let same = std::fs::symlink_metadata(path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (*dev, *ino));
        if same {
            let _ = std::fs::remove_file(path);
        }
    }
}

type Key = (String, u64);

#[derive(Debug, Default)]
struct Table {
    open: HashMap<Key, Weak<Listener>>,
    /// Addresses of those that were closed lately. The next socket there may be another seed's.
    closed: HashMap<Address, Instant>,
}

/// How long the address of a socket that this daemon has closed may stay taken: a process that it is
/// starting has a copy of all its descriptors until it executes its program.
const CLOSING: Duration = Duration::from_millis(500);
/// How long to wait before the next look.
const PAUSE: Duration = Duration::from_millis(1);

/// All of them, by seed and key.
#[derive(Default)]
pub(crate) struct Listeners {
    table: Arc<Mutex<Table>>,
}

impl Listeners {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share of the socket `key` of `seed`; made if there is none. `siblings` says which children the
    /// seed has: after a restart of the daemon they are the only ones that still hold it.
    ///
    /// # Errors
    /// The address is held by another process, or cannot be had here; names `fd`.
    pub fn share(
        &self,
        seed: &str,
        key: u64,
        fd: u32,
        spec: &ListenSpec,
        siblings: impl Fn() -> Vec<i32>,
    ) -> Result<Share, NodeError> {
        let name = (seed.to_owned(), key);
        loop {
            // Binding does not block, so the table may stay locked: two forks must not both bind.
            let mut table = self.table();
            table.open.retain(|_, listener| listener.strong_count() > 0);
            table.closed.retain(|_, at| at.elapsed() < CLOSING);
            if let Some(listener) = table.open.get(&name).and_then(Weak::upgrade) {
                return Ok(self.a_share(listener, spec));
            }
            let sibling = || siblings().into_iter().find_map(|pid| from_sibling(pid, fd, spec));
            let socket = match spec.listen() {
                Ok(socket) => socket,
                Err(cause) => match sibling() {
                    Some(socket) => socket,
                    None if table.closed.contains_key(&spec.address) => {
                        drop(table);
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                    None => {
                        let object = format!("listener of fd {fd}");
                        return Err(NodeError::step(Phase::Build, object, cause));
                    }
                },
            };
            let listener = Arc::new(Listener::new(socket, spec));
            table.open.insert(name, Arc::downgrade(&listener));
            return Ok(self.a_share(listener, spec));
        }
    }

    fn a_share(&self, listener: Arc<Listener>, spec: &ListenSpec) -> Share {
        let address = spec.address.clone();
        Share { listener: Some(listener), address, table: Arc::clone(&self.table) }
    }
}

/// The socket that a child of the same seed has under the same number, if it is still that one.
fn from_sibling(pid: i32, fd: u32, spec: &ListenSpec) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let socket = pidfd_getfd(&pidfd, i32::try_from(fd).ok()?, PidfdGetfdFlags::empty()).ok()?;
    let found = ListenSpec::of(&socket, spec.nonblocking).ok()??;
    (found.address == spec.address && found.kind == spec.kind).then_some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: Address) -> ListenSpec {
        ListenSpec { address, kind: 1, backlog: 16, nonblocking: false, options: Vec::new() }
    }

    #[test]
    fn children_share_and_the_last_one_closes() {
        let path = std::env::temp_dir().join(format!("mitosis-listen-{}", std::process::id()));
        let spec = spec(Address::Path(path.to_str().unwrap().to_owned()));
        let listeners = Listeners::default();
        let one = listeners.share("s", 1, 3, &spec, Vec::new).unwrap();
        let two = listeners.share("s", 1, 3, &spec, Vec::new).unwrap();
        assert!(Arc::ptr_eq(one.listener.as_ref().unwrap(), two.listener.as_ref().unwrap()));
        let other_seed = listeners.share("t", 1, 3, &spec, Vec::new).unwrap_err();
        assert!(other_seed.to_string().contains("fd 3"), "{other_seed}");
        drop(one);
        assert!(path.exists());
        drop(two);
        assert!(!path.exists());
    }

    /// A copy of the socket, such as a process has that is being started, delays the next one only.
    #[test]
    fn an_address_that_is_being_closed_is_waited_for() {
        let path = std::env::temp_dir().join(format!("mitosis-slow-{}", std::process::id()));
        let abstract_name = Address::Abstract(path.to_str().unwrap().as_bytes().to_vec());
        let spec = spec(abstract_name);
        let listeners = Listeners::default();
        let share = listeners.share("s", 1, 3, &spec, Vec::new).unwrap();
        let copy = share.as_fd().try_clone_to_owned().unwrap();
        drop(share);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(20 * PAUSE);
                drop(copy);
            });
            drop(listeners.share("t", 1, 3, &spec, Vec::new).unwrap());
        });
    }

    /// The last share goes while somebody asks for the next one.
    #[test]
    fn an_address_is_free_once_its_last_share_is_gone() {
        let path = std::env::temp_dir().join(format!("mitosis-again-{}", std::process::id()));
        let spec = spec(Address::Path(path.to_str().unwrap().to_owned()));
        let listeners = Listeners::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        drop(listeners.share("s", 1, 3, &spec, Vec::new).unwrap());
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_is_not_unlinked() {
        let path = std::env::temp_dir().join(format!("mitosis-foreign-{}", std::process::id()));
        let spec = spec(Address::Path(path.to_str().unwrap().to_owned()));
        let listeners = Listeners::default();
        let share = listeners.share("s", 1, 3, &spec, Vec::new).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(share);
        let left = path.exists();
        assert!(listeners.share("s", 1, 3, &spec, Vec::new).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(left);
    }
}
