//! What the capture of an open file may look at: the parent, its descriptions and, asked once and only
//! if somebody wants to know, its connections and mappings.

use crate::kinds::epoll::Watch;
use crate::kinds::{inode_of, tcp};
use crate::{Group, StateError, net, scan::duplicate, tree};
use mitosis_sys::{procfs, userns};
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// Of pidfd_open(2), since Linux 6.9; it is O_EXCL.
pub(crate) const PIDFD_THREAD: u32 = 0o200;

/// What a kind's capture may look at.
pub struct Capture<'a> {
    /// The parent, as this node sees it; or, if its leading thread has ended, another one of its.
    pub pid: i32,
    /// The parent's own pid.
    pub process: i32,
    /// All its descriptions.
    pub groups: &'a [Group],
    /// It stands still: what is queued may be looked at in ways that a running one could notice.
    pub stopped: bool,
    /// Bytes of a file without a path that are taken along.
    pub content_max: u64,
    /// All members of its tree: pids as this node and as they themselves see them.
    pub members: &'a [(i32, i32)],
    /// In a tree: which parts of what it makes any member maps.
    pub(crate) mapped: Option<&'a tree::Ranges>,
    /// In a tree: what it registers in the epoll instances that it makes, by their numbers.
    pub(crate) watches: Option<&'a BTreeMap<u32, Vec<Watch>>>,
    pidfd: OwnedFd,
    diag: OnceCell<OwnedFd>,
    pub(crate) connections: OnceCell<Vec<tcp::Connection>>,
    shared: OnceCell<Vec<procfs::Mapping>>,
    sockets: OnceCell<HashSet<u64>>,
    readers: OnceCell<HashMap<&'a str, u32>>,
    other_users: OnceCell<bool>,
}

impl<'a> Capture<'a> {
    pub(crate) fn new(
        pid: i32,
        groups: &'a [Group],
        stopped: bool,
        content_max: u64,
    ) -> Result<Capture<'a>, StateError> {
        Ok(Capture {
            pid,
            process: process_of(pid)?,
            groups,
            stopped,
            content_max,
            members: &[],
            mapped: None,
            watches: None,
            pidfd: pidfd_of(pid)?,
            diag: OnceCell::new(),
            connections: OnceCell::new(),
            shared: OnceCell::new(),
            sockets: OnceCell::new(),
            readers: OnceCell::new(),
            other_users: OnceCell::new(),
        })
    }

    /// Whether a socket with this inode is among the descriptions.
    pub(crate) fn has_socket(&self, inode: u64) -> bool {
        let all = || {
            let inodes = self.groups.iter().filter_map(|group| inode_of(&group.link, "socket"));
            inodes.collect()
        };
        self.sockets.get_or_init(all).contains(&inode)
    }

    /// The lowest descriptor of the first description that can read what has this name, a pipe.
    pub(crate) fn first_reader(&self, link: &str) -> Option<u32> {
        const WRITE_ONLY: u32 = 1;
        let all = || {
            let mut all = HashMap::new();
            for group in self.groups.iter().filter(|group| group.flags & 3 != WRITE_ONLY) {
                all.entry(group.link.as_str()).or_insert(group.first());
            }
            all
        };
        self.readers.get_or_init(all).get(link).copied()
    }

    /// A duplicate of the description's lowest descriptor.
    ///
    /// # Errors
    /// pidfd_getfd(2).
    pub fn duplicate(&self, group: &Group) -> Result<OwnedFd, StateError> {
        match group.holder {
            None => duplicate(self.pidfd.as_fd(), group.first()),
            Some((pid, fd)) => duplicate(pidfd_of(pid)?.as_fd(), fd),
        }
    }

    /// The process that names the description, and its number there.
    pub fn place(&self, group: &Group) -> (i32, u32) {
        group.holder.unwrap_or((self.pid, group.first()))
    }

    /// Whether the process is in another user namespace than the node's daemon.
    pub(crate) fn other_users(&self) -> Result<bool, StateError> {
        if let Some(known) = self.other_users.get() {
            return Ok(*known);
        }
        let failed = |source| StateError::Sys { fd: u32::MAX, source };
        let other = userns::place(self.pid).map_err(failed)? != userns::Place::Here;
        Ok(*self.other_users.get_or_init(|| other))
    }

    /// `/proc/PID/fd/N` of the description.
    pub(crate) fn path(&self, group: &Group) -> String {
        let (pid, fd) = self.place(group);
        format!("/proc/{pid}/fd/{fd}")
    }

    /// Pid in its own pid namespace of another member of the tree.
    pub(crate) fn inner_pid_of(&self, pid: i32) -> Option<i32> {
        let other = |member: &&(i32, i32)| member.0 == pid && pid != self.pid;
        self.members.iter().find(other).map(|(_, inner)| *inner)
    }

    /// Whether it is one of several processes of a tree.
    pub(crate) fn in_tree(&self) -> bool {
        self.mapped.is_some()
    }

    /// The parent's pid in its own pid namespace.
    pub(crate) fn inner_pid(&self) -> Option<i32> {
        procfs::Status::read(self.process).ok()?.inner_id()
    }

    /// Mappings that are shared, of a file with this device and inode: what is mapped is fetched as
    /// memory.
    pub(crate) fn shared_mappings(&self, device: u64, inode: u64) -> Vec<(u64, u64)> {
        let key = tree::file_key(device, inode);
        if let Some(mapped) = self.mapped {
            return mapped.get(&key).cloned().unwrap_or_default();
        }
        let all = self.shared.get_or_init(|| {
            let mut all = procfs::ranges(self.pid).unwrap_or_default();
            all.retain(|mapping| mapping.perms[3] == b's');
            all
        });
        let same = all.iter().filter(|mapping| tree::mapping_key(mapping) == key);
        same.map(|mapping| (mapping.offset, mapping.offset + (mapping.end - mapping.start)))
            .collect()
    }

    /// The unix socket at the other end of the unix socket with this inode, by its inode.
    pub(crate) fn unix_peer(&self, inode: u64) -> Result<Option<u64>, Errno> {
        if self.diag.get().is_none() {
            let _ = self.diag.set(net::diag_socket(self.pid)?);
        }
        let diag = self.diag.get().ok_or(Errno::BADF)?;
        match net::unix_peer(diag, inode as u32) {
            // It says the same of a socket elsewhere and of unix sockets altogether.
            Err(Errno::NOENT) if !net::knows_unix_peers() => Err(Errno::PROTONOSUPPORT),
            peer => Ok(peer?.map(u64::from)),
        }
    }
}

/// The process of a thread.
fn process_of(tid: i32) -> Result<i32, StateError> {
    let status = procfs::Status::read(tid);
    let status = status.map_err(|source| StateError::Sys { fd: u32::MAX, source })?;
    Ok(status.number("Tgid", 10) as i32)
}

/// A pidfd of a process, or of a thread that speaks for one: takes Linux 6.9.
///
/// # Errors
/// [`StateError::Sys`].
pub fn pidfd_of(pid: i32) -> Result<OwnedFd, StateError> {
    let table = |e| StateError::Sys {
        fd: u32::MAX,
        source: mitosis_sys::SysError::io("pidfd_open", pid, e),
    };
    let process = rustix::process::Pid::from_raw(pid).ok_or_else(|| table(Errno::SRCH))?;
    let thread = PidfdFlags::from_bits_retain(PIDFD_THREAD);
    // A thread that leads none is told by EINVAL, since Linux 6.9 by ENOENT.
    rustix::process::pidfd_open(process, PidfdFlags::empty())
        .or_else(|e| match e {
            Errno::INVAL | Errno::NOENT => rustix::process::pidfd_open(process, thread),
            _ => Err(e),
        })
        .map_err(table)
}
