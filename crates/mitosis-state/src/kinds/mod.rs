//! The kinds, one module each. The table below is the only list of them.

pub mod epoll;
pub mod eventfd;
pub mod generic;
pub mod gift;
pub mod inotify;
pub mod listener;
pub mod memfd;
pub mod mqueue;
pub mod netlink;
mod notice;
pub mod packet;
pub mod pidfd;
pub mod pipe;
pub mod proc;
pub mod regular;
mod rights;
pub mod signalfd;
pub mod socket;
pub mod stdio;
pub mod tcp;
pub mod terminal;
pub mod timerfd;
pub mod udp;
pub mod unix_pair;

use crate::options::{self, SocketOption};
use crate::program::{Detail, List, Program, op};
use crate::{Group, Provided, StateError, net, scan::duplicate, tree};
use mitosis_descriptor::OpenFile;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto, sockopt};
use rustix::process::PidfdFlags;
use serde::{Serialize, de::DeserializeOwned};
use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};

/// What a kind's capture may look at.
pub struct Capture<'a> {
    /// The parent, as this node sees it.
    pub pid: i32,
    /// All its descriptions.
    pub groups: &'a [Group],
    /// It stands still: what is queued may be looked at in ways that a running one could notice.
    pub stopped: bool,
    /// Bytes of a file without a path that are taken along.
    pub content_max: u64,
    /// All members of its tree: pids as this node and as they themselves see them.
    pub members: &'a [(i32, i32)],
    /// In a tree: which parts of what it makes any member maps.
    mapped: Option<&'a tree::Ranges>,
    /// In a tree: what it registers in the epoll instances that it makes, by their numbers.
    watches: Option<&'a std::collections::BTreeMap<u32, Vec<epoll::Watch>>>,
    pidfd: OwnedFd,
    diag: OnceCell<OwnedFd>,
    connections: OnceCell<Vec<tcp::Connection>>,
    shared: OnceCell<Vec<mitosis_sys::procfs::Mapping>>,
}

impl<'a> Capture<'a> {
    fn new(
        pid: i32,
        groups: &'a [Group],
        stopped: bool,
        content_max: u64,
    ) -> Result<Capture<'a>, StateError> {
        Ok(Capture {
            pid,
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
        })
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

    /// `/proc/PID/fd/N` of the description.
    fn path(&self, group: &Group) -> String {
        let (pid, fd) = self.place(group);
        format!("/proc/{pid}/fd/{fd}")
    }

    /// Pid in its own pid namespace of another member of the tree.
    fn inner_pid_of(&self, pid: i32) -> Option<i32> {
        let other = |member: &&(i32, i32)| member.0 == pid && pid != self.pid;
        self.members.iter().find(other).map(|(_, inner)| *inner)
    }

    /// Whether it is one of several processes of a tree.
    fn in_tree(&self) -> bool {
        self.mapped.is_some()
    }

    /// The parent's pid in its own pid namespace.
    fn inner_pid(&self) -> Option<i32> {
        let status = mitosis_sys::procfs::Status::read(self.pid).ok()?;
        status.numbers("NSpid", 10).last().map(|pid| *pid as i32)
    }

    /// Mappings that are shared, of a file with this device and inode: what is mapped is fetched as
    /// memory.
    fn shared_mappings(&self, device: u64, inode: u64) -> Vec<(u64, u64)> {
        let key = tree::file_key(device, inode);
        if let Some(mapped) = self.mapped {
            return mapped.get(&key).cloned().unwrap_or_default();
        }
        let all = self.shared.get_or_init(|| {
            let mut all = mitosis_sys::procfs::ranges(self.pid).unwrap_or_default();
            all.retain(|mapping| mapping.perms[3] == b's');
            all
        });
        let same = all.iter().filter(|mapping| tree::mapping_key(mapping) == key);
        same.map(|mapping| (mapping.offset, mapping.offset + (mapping.end - mapping.start)))
            .collect()
    }

    /// The unix socket at the other end of the unix socket with this inode, by its inode.
    fn unix_peer(&self, inode: u64) -> Result<Option<u64>, rustix::io::Errno> {
        if self.diag.get().is_none() {
            let _ = self.diag.set(net::diag_socket(self.pid)?);
        }
        let diag = self.diag.get().ok_or(rustix::io::Errno::BADF)?;
        match net::unix_peer(diag, inode as u32) {
            // It says the same of a socket elsewhere and of unix sockets altogether.
            Err(rustix::io::Errno::NOENT) if !net::knows_unix_peers() => {
                Err(rustix::io::Errno::PROTONOSUPPORT)
            }
            peer => Ok(peer?.map(u64::from)),
        }
    }
}

/// Gives the body of a group's state.
type CaptureFn = fn(&Capture<'_>, &Group) -> Result<Option<Vec<u8>>, StateError>;

/// A kind of open file.
pub struct Kind {
    /// Stored in descriptors: never reused.
    pub number: u16,
    /// As in the docs.
    pub name: &'static str,
    /// `None` when the group is not of this kind.
    capture: CaptureFn,
    plan: fn(&OpenFile, &mut Files<'_>) -> Result<(), StateError>,
    describe: fn(&OpenFile) -> Result<String, StateError>,
}

/// In the order in which they are tried.
pub const KINDS: &[Kind] = &[
    stdio::KIND,
    proc::KIND,
    terminal::KIND,
    mqueue::KIND,
    memfd::KIND,
    pipe::KIND,
    regular::KIND,
    eventfd::KIND,
    epoll::KIND,
    listener::KIND,
    tcp::KIND,
    udp::KIND,
    netlink::KIND,
    packet::KIND,
    socket::KIND,
    unix_pair::KIND,
    timerfd::KIND,
    signalfd::KIND,
    pidfd::KIND,
    inotify::KIND,
    gift::KIND,
];

/// Captures every description. Queues are left out unless the parent is stopped. Of a file without a
/// path at most `content_max` bytes are taken along.
///
/// # Errors
/// [`StateError::Refused`] naming the first descriptor of a kind that cannot be carried.
pub fn capture(
    pid: i32,
    groups: &[Group],
    stopped: bool,
    content_max: u64,
) -> Result<Vec<OpenFile>, StateError> {
    let context = Capture::new(pid, groups, stopped, content_max)?;
    groups.iter().map(|group| capture_one(&context, group)).collect()
}

/// The same of a member of a process tree, all of which stands still: what it makes, and what it gets
/// from others.
///
/// # Errors
/// As [`capture`].
pub fn capture_member(
    pid: i32,
    share: &tree::Share,
    content_max: u64,
) -> Result<Vec<OpenFile>, StateError> {
    let mut context = Capture::new(pid, &share.groups, true, content_max)?;
    context.members = &share.members;
    context.mapped = Some(&share.mapped);
    context.watches = Some(&share.watches);
    let one = |(at, group): (usize, &Group)| match share.gets.get(&at) {
        Some(gift) => Ok(gift.clone()),
        None => capture_one(&context, group),
    };
    share.groups.iter().enumerate().map(one).collect()
}

/// A pidfd of a process.
///
/// # Errors
/// [`StateError::Sys`].
pub(crate) fn pidfd_of(pid: i32) -> Result<OwnedFd, StateError> {
    let table = |e| StateError::Sys {
        fd: u32::MAX,
        source: mitosis_sys::SysError::io("pidfd_open", pid, e),
    };
    let process =
        rustix::process::Pid::from_raw(pid).ok_or_else(|| table(rustix::io::Errno::SRCH))?;
    rustix::process::pidfd_open(process, PidfdFlags::empty()).map_err(table)
}

fn capture_one(context: &Capture<'_>, group: &Group) -> Result<OpenFile, StateError> {
    for kind in KINDS {
        if let Some(body) = (kind.capture)(context, group)? {
            let fds = group.fds.iter().map(|fd| (fd.number, fd.cloexec)).collect();
            let signals = notice::capture(context, group)?;
            return Ok(OpenFile { kind: kind.number, flags: group.flags, fds, body, signals });
        }
    }
    Err(group.refused(format!("{} (a kind that is not carried)", group.link)))
}

/// Plans all files. What an epoll instance watches must exist before it is registered there.
///
/// # Errors
/// [`StateError::Malformed`], or a file that cannot be had on this node.
pub fn plan(files: &[OpenFile], context: &mut Files<'_>) -> Result<(), StateError> {
    // Who is signalled is said last, and by the number that the program knows.
    let quiet = |file: &OpenFile| OpenFile { flags: file.flags & !notice::ASYNC, ..file.clone() };
    let told = files;
    let files: Vec<OpenFile> = files.iter().map(quiet).collect();
    context.all = files.clone();
    // A connection may have the port of a listener: it must be there first.
    let first = |file: &&OpenFile| file.kind == tcp::KIND.number;
    let rest = files.iter().filter(|file| !first(file));
    for file in files.iter().filter(first).chain(rest) {
        (kind_of(file)?.plan)(file, context)?;
    }
    gift::exchange(&files, context)?;
    for file in files.iter().filter(|file| file.kind == epoll::KIND.number) {
        epoll::register(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == gift::KIND.number) {
        gift::register(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == inotify::KIND.number) {
        inotify::watch(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == socket::KIND.number) {
        socket::connect(file, context)?;
    }
    for file in files.iter().filter(|file| file.kind == unix_pair::KIND.number) {
        unix_pair::deliver(file, context)?;
    }
    gift::close_temporary(context);
    terminal::foreground(context);
    for file in told {
        notice::plan(file, context);
    }
    Ok(())
}

/// The highest number that a file has in a child, or that is used in passing.
pub fn highest_number(file: &OpenFile) -> u32 {
    let passing = match file.kind {
        kind if kind == epoll::KIND.number => epoll::highest(file),
        kind if kind == gift::KIND.number => gift::highest(file),
        _ => 0,
    };
    file.fds.iter().map(|(number, _)| *number).max().unwrap_or(0).max(passing)
}

/// One line about a file, for people.
///
/// # Errors
/// [`StateError::Malformed`].
pub fn describe(file: &OpenFile) -> Result<String, StateError> {
    let kind = kind_of(file)?;
    let fds: Vec<String> = file.fds.iter().map(|(n, _)| n.to_string()).collect();
    Ok(format!("fd {}: {} {}", fds.join(","), kind.name, (kind.describe)(file)?))
}

fn kind_of(file: &OpenFile) -> Result<&'static Kind, StateError> {
    KINDS.iter().find(|kind| kind.number == file.kind).ok_or_else(|| StateError::Malformed {
        kind: file.kind,
        reason: "unknown kind (made by a newer version?)".into(),
    })
}

/// The group's socket and its address family, when it is an internet socket of a type and protocol. One
/// of Multipath TCP is one of TCP, which is what a child gets.
///
/// # Errors
/// Refused when the socket cannot be asked.
fn inet_socket(
    context: &Capture<'_>,
    group: &Group,
    kind: SocketType,
    protocol: Protocol,
) -> Result<Option<(OwnedFd, AddressFamily)>, StateError> {
    if inode_of(&group.link, "socket").is_none() {
        return Ok(None);
    }
    let socket = context.duplicate(group)?;
    let what = |e| unasked(group, e);
    let family = sockopt::socket_domain(&socket).map_err(what)?;
    let inet = family == AddressFamily::INET || family == AddressFamily::INET6;
    let its = sockopt::socket_protocol(&socket).map_err(what)?;
    let multipath = protocol == ipproto::TCP && its == Some(ipproto::MPTCP);
    let same = sockopt::socket_type(&socket).map_err(what)? == kind
        && (its == Some(protocol) || multipath);
    Ok((inet && same).then_some((socket, family)))
}

/// A socket that cannot be asked, by name where the reason has one.
fn unasked(group: &Group, error: rustix::io::Errno) -> StateError {
    match error {
        // Of SO_GET_FILTER, to whoever may do all else.
        rustix::io::Errno::ACCESS => group.refused("a socket with a bpf program (SO_ATTACH_BPF)"),
        error => group.refused(format!("a socket: {error}")),
    }
}

fn encode<T: Serialize>(kind: u16, body: &T) -> Result<Vec<u8>, StateError> {
    postcard::to_stdvec(body).map_err(|e| StateError::Malformed { kind, reason: e.to_string() })
}

fn decode<T: DeserializeOwned>(file: &OpenFile) -> Result<T, StateError> {
    postcard::from_bytes(&file.body)
        .map_err(|e| StateError::Malformed { kind: file.kind, reason: e.to_string() })
}

const WRITE: u16 = 1;
const OPENAT: u16 = 257;
const AT_FDCWD: u64 = -100i64 as u64;
const O_WRONLY: u64 = 1;
const DUP3: u16 = 292;
const CLOSE: u16 = 3;
const FCNTL: u16 = 72;
const SETSOCKOPT: u16 = 54;
const F_SETFD: u64 = 2;
const F_DUPFD_CLOEXEC: u64 = 1030;
pub(crate) const O_CLOEXEC: u64 = 0o2_000_000;

/// Where kinds put their operations.
///
/// Descriptor numbers are predicted: at the start the child has none below `base`, and the kernel
/// always gives the lowest free number. Each new description is first moved out of the way, above
/// [`Files::high`], and then to every number it had in the parent.
pub struct Files<'a> {
    /// The program under construction.
    pub program: &'a mut Program,
    /// What the node supplies.
    pub provided: &'a mut Vec<Provided>,
    /// Number of the first provided descriptor.
    pub provided_base: u32,
    /// First of the numbers used to park new descriptions.
    pub high: u32,
    /// Whether the child has a network namespace of its own.
    pub own_net: bool,
    /// What the parent's clocks showed, where the child's continue them.
    pub clocks: Option<mitosis_descriptor::Clocks>,
    /// Descriptors in use below the provided ones.
    pub used: std::collections::BTreeSet<u32>,
    /// All files of the descriptor.
    pub all: Vec<OpenFile>,
    /// Shared memory that is mapped already and open as well: device and inode that it had on the
    /// parent's node, and the number at which it is open here for now.
    pub objects: std::collections::BTreeMap<(u64, u64), u32>,
    /// Groups of generic netlink that this node has.
    pub generic: &'a [generic::NamedGroup],
    /// What it has in common with other members of its tree.
    pub place: Option<&'a mitosis_descriptor::Place>,
    /// A pid that none of the child's threads has.
    pub spare_pid: i32,
    /// The child's pid and thread ids are others than its parent's.
    pub new_pid: bool,
    /// Descriptors of what is there only when the threads are: until then something else is.
    pub late: std::collections::BTreeSet<u32>,
    /// Kinds that come in pairs note here what has been done.
    pub done: std::collections::BTreeSet<u64>,
}

impl Files<'_> {
    /// The `n` lowest free numbers.
    pub fn lowest(&self, n: usize) -> Vec<u32> {
        (0..).filter(|fd| !self.used.contains(fd)).take(n).collect()
    }

    /// A system call that makes one descriptor, which then goes to the numbers of `file`.
    pub fn make(&mut self, file: &OpenFile, nr: u16, args: &[u64], what: &'static str, d: Detail) {
        let at = self.lowest(1)[0];
        self.program.call_expect(List::Build, nr, args, u64::from(at), what, d);
        self.park(&[at]);
        self.spread(file, 0);
    }

    /// A system call that makes one descriptor in place of what is at the numbers of `file`, when the
    /// threads are there.
    pub fn make_late(&mut self, file: &OpenFile, nr: u16, args: &[u64], what: &'static str) {
        let list = List::Finish;
        let mut make = op(nr, 0, args);
        make.save = SLOT;
        self.program.push(list, make, what, Detail::Fd(file.fds[0].0));
        for &(fd, cloexec) in &file.fds {
            let flags = if cloexec { O_CLOEXEC } else { 0 };
            let mut dup = op(DUP3, 1, &[0, u64::from(fd), flags]);
            dup.slot = SLOT;
            self.program.push(list, dup, "files: dup3 to", Detail::Fd(fd));
            self.late.insert(fd);
        }
        let mut close = op(CLOSE, 1, &[0]);
        close.slot = SLOT;
        self.program.push(list, close, "files: close", Detail::None);
    }

    /// What is about a thread has no other id to name it by.
    fn same_ids(&self, file: &OpenFile, what: &str) -> Result<(), StateError> {
        if !self.new_pid {
            return Ok(());
        }
        let what = format!("{what} of one of the parent's threads, whose id --new-pid changes");
        Err(StateError::Refused { fd: file.fds[0].0, what, hint: "" })
    }

    /// Moves fresh descriptors to `high`, `high + 1`, ...
    pub fn park(&mut self, fresh: &[u32]) {
        for &fd in fresh {
            let args = [u64::from(fd), F_DUPFD_CLOEXEC, u64::from(self.high)];
            self.program.call(List::Build, FCNTL, &args, "files: park", Detail::Fd(fd));
            self.close(fd);
        }
    }

    /// Gives the parked description `index` the numbers of `file`, and closes the parked one.
    pub fn spread(&mut self, file: &OpenFile, index: u32) {
        let parked = self.high + index;
        for &(fd, cloexec) in &file.fds {
            self.dup(parked, fd, cloexec);
        }
        self.close(parked);
    }

    /// Gives the description at the lowest free number `at` the numbers of `file`.
    pub fn settle(&mut self, file: &OpenFile, at: u32) {
        for &(fd, cloexec) in file.fds.iter().filter(|(fd, _)| *fd != at) {
            self.dup(at, fd, cloexec);
        }
        match file.fds.iter().find(|(fd, _)| *fd == at) {
            Some(&(fd, cloexec)) => {
                self.used.insert(fd);
                let args = [u64::from(fd), F_SETFD, u64::from(cloexec)];
                self.call(FCNTL, &args, "files: F_SETFD", fd);
            }
            None => self.close(at),
        }
    }

    /// dup3(2) to a number of the parent's.
    pub fn dup(&mut self, from: u32, fd: u32, cloexec: bool) {
        let flags = if cloexec { O_CLOEXEC } else { 0 };
        let args = [u64::from(from), u64::from(fd), flags];
        self.program.call(List::Build, DUP3, &args, "files: dup3 to", Detail::Fd(fd));
        self.used.insert(fd);
    }

    /// A system call of the plan's main list about descriptor `fd`.
    pub fn call(&mut self, nr: u16, args: &[u64], what: &'static str, fd: u32) {
        self.program.call(List::Build, nr, args, what, Detail::Fd(fd));
    }

    /// Sets the options of the socket of `file`, which is at its numbers already.
    pub fn set_options(&mut self, file: &OpenFile, options: &[SocketOption]) {
        self.set_options_at(file.fds[0].0, options);
    }

    /// Sets the options of the socket at `fd`.
    pub fn set_options_at(&mut self, fd: u32, options: &[SocketOption]) {
        for option in options {
            self.set_option(fd, option);
        }
    }

    /// Turns a switch among the options on or off.
    pub fn set_switch(&mut self, file: &OpenFile, (level, name): (u32, u32), on: bool) {
        let value = u32::from(on).to_le_bytes().to_vec();
        self.set_option(file.fds[0].0, &SocketOption { level, name, value });
    }

    fn set_option(&mut self, fd: u32, option: &SocketOption) {
        let value = self.program.data(&option.value);
        let (level, name) = (u64::from(option.level), u64::from(option.name));
        let (value, len) = match (option.level, option.name) {
            // `struct sock_fprog` has the count and the address of the instructions.
            options::FILTER => (self.program.words(&[option.value.len() as u64 / 8, value]), 16),
            _ => (value, option.value.len() as u64),
        };
        let args = [u64::from(fd), level, name, value, len];
        let detail = Detail::Text(format!("{level}/{name} of fd {fd}"));
        self.program.call(List::Build, SETSOCKOPT, &args, "files: setsockopt", detail);
    }

    /// Writes a text to a file of the child's node, such as a bound of a namespace of its own.
    pub fn write_to(&mut self, path: &str, text: &str) {
        let at = self.lowest(1)[0];
        let name = self.program.string(path);
        let detail = || Detail::Text(path.to_owned());
        let (args, list) = ([AT_FDCWD, name, O_WRONLY, 0], List::Build);
        self.program.call_expect(list, OPENAT, &args, u64::from(at), "files: open", detail());
        let data = self.program.data(text.as_bytes());
        let args = [u64::from(at), data, text.len() as u64];
        self.program.call(list, WRITE, &args, "files: write", detail());
        self.close(at);
    }

    /// close(2).
    pub fn close(&mut self, fd: u32) {
        self.program.call(List::Build, CLOSE, &[u64::from(fd)], "files: close", Detail::Fd(fd));
    }

    /// Asks the node for a descriptor and returns its number in the child.
    pub fn provide(&mut self, wanted: Provided) -> u32 {
        self.provided.push(wanted);
        self.provided_base + self.provided.len() as u32 - 1
    }

    /// Number of the socket to another member of the tree.
    fn member(&mut self, number: u32) -> u32 {
        gift::socket(self.provided, self.provided_base, number)
    }
}

/// Whether any socket-like name `prefix:[inode]`; returns the inode.
fn inode_of(link: &str, prefix: &str) -> Option<u64> {
    link.strip_prefix(prefix)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// For a result that the next operations use.
const SLOT: u8 = mitosis_stub::abi::SLOTS as u8 - 1;

/// O_NONBLOCK.
const NONBLOCK: u32 = 0o4000;
