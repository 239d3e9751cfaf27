//! What the members of a process tree have in common: found while all of them stand still.
//!
//! An open file description that several members name is made by the first of them and handed to the
//! others (SCM_RIGHTS). So are both ends of a pipe or of a connected pair of sockets, and all
//! descriptions of one file without a path: whoever makes one of them must make all. Such a member
//! has those that it does not name itself at a number that is closed once they are handed over.

use crate::kinds::{epoll::Watch, gift, terminal::controlling};
use crate::look::pidfd_of;
use crate::net;
use crate::scan::{duplicate, place, scan};
use crate::shm;
use crate::{Group, OpenFd, StateError};
use mitosis_descriptor::{Gift, OpenFile, Terminal};
use mitosis_sys::{kcmp, procfs};
use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};

mod watches;

/// Device and inode of a file, as `/proc/PID/maps` has them.
pub type FileKey = (String, u64);

/// Parts of shared memory: first offset, and one past the last.
pub type Ranges = BTreeMap<FileKey, Vec<(u64, u64)>>;

/// What a member has, seen while it stands still.
#[derive(Debug)]
pub struct Held {
    /// The member, as this node sees it.
    pub pid: i32,
    groups: Vec<Group>,
    /// What is common to descriptions that must be made together.
    objects: Vec<Option<Object>>,
    /// Shared memory that is a machine's own, and which parts of it it maps.
    mapped: Ranges,
    session: SessionOf,
}

/// What a member's session is, by numbers of this node.
#[derive(Debug)]
struct SessionOf {
    leads: bool,
    group: i32,
    /// Its group as it sees it itself.
    inner_group: i32,
    /// The pseudo-terminal that controls it, and the group in the foreground of that.
    terminal: Option<(u32, i32)>,
}

impl SessionOf {
    fn read(pid: i32) -> Result<SessionOf, mitosis_sys::SysError> {
        let stat = procfs::stat(pid)?;
        let field = |number| procfs::stat_field(&stat, number) as i32;
        let group = field(5);
        let inner = procfs::Status::read(pid)?.numbers("NSpgid", 10).last().copied();
        let inner_group = inner.map_or(group, |inner| inner as i32);
        let terminal = controlling(pid).map(|index| (index, field(8)));
        Ok(SessionOf { leads: field(6) == pid, group, inner_group, terminal })
    }
}

/// What a member makes, gets and hands over.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// All members: pids as this node and as they themselves see them.
    pub members: Vec<(i32, i32)>,
    /// Descriptions that it makes, and those of its own that it gets.
    pub groups: Vec<Group>,
    /// Those of `groups` that it gets.
    pub gets: BTreeMap<usize, OpenFile>,
    /// What it hands over.
    pub gifts: Vec<Gift>,
    /// Numbers that are not its own.
    pub temporary: Vec<u32>,
    /// What controls the session that it leads in a child.
    pub terminal: Option<Terminal>,
    /// Shared memory that must stay open when it has been mapped: others get it, or name it too.
    pub open: BTreeSet<FileKey>,
    /// Shared memory that it maps and an earlier member makes.
    pub memory_from: BTreeMap<FileKey, u32>,
    /// Shared memory that it makes, since it has it open, and only later members map.
    pub made: BTreeSet<FileKey>,
    /// What it registers in epoll instances, by their numbers in it.
    pub(crate) watches: BTreeMap<u32, Vec<Watch>>,
    /// Of the files without a path that it makes, the parts that any member maps: those are fetched as
    /// memory.
    pub mapped: Ranges,
}

/// What descriptions can have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
enum Object {
    /// A pipe, by its inode.
    Pipe(u64),
    /// A FIFO, or a file whose content goes along.
    File(FileKey),
    /// A connection, by the lower inode of its two sockets.
    Sockets(u64),
    /// A TCP connection, by the addresses of its ends.
    Tcp(String, String),
    /// A pseudo-terminal.
    Terminal(u32),
}

impl Held {
    /// Looks at a member that stands still.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn of(pid: i32) -> Result<Held, StateError> {
        let groups = scan(pid)?;
        let table = |source| StateError::Sys { fd: u32::MAX, source };
        let own = procfs::ranges(pid).map_err(table)?;
        let mut mapped = Ranges::new();
        for m in own.iter().filter(|m| shm::is_shared(pid, m)) {
            let range = (m.offset, m.offset + (m.end - m.start));
            mapped.entry(mapping_key(m)).or_default().push(range);
        }
        let looker = Looker::new(pid)?;
        let objects = groups.iter().map(|group| looker.object(group)).collect::<Result<_, _>>()?;
        let session = SessionOf::read(pid).map_err(table)?;
        Ok(Held { pid, groups, objects, mapped, session })
    }
}

/// What finds out which object is behind a description.
struct Looker {
    pid: i32,
    pidfd: OwnedFd,
    diag: OwnedFd,
}

impl Looker {
    fn new(pid: i32) -> Result<Looker, StateError> {
        let fail = |call, e: rustix::io::Errno| StateError::Sys {
            fd: u32::MAX,
            source: mitosis_sys::SysError::io(call, pid, e),
        };
        let diag = net::diag_socket(pid).map_err(|e| fail("sock_diag", e))?;
        Ok(Looker { pid, pidfd: pidfd_of(pid)?, diag })
    }

    fn object(&self, group: &Group) -> Result<Option<Object>, StateError> {
        let number = |prefix: &str| -> Option<u64> {
            group.link.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
        };
        if let Some(inode) = number("pipe:[") {
            return Ok(Some(Object::Pipe(inode)));
        }
        if let Some(inode) = number("socket:[") {
            return self.connection(group, inode);
        }
        if group.link.ends_with("ptmx") {
            let index = group.info_field("tty-index").and_then(|index| index.parse().ok());
            return Ok(index.map(Object::Terminal));
        }
        if let Some(slave) = group.link.strip_prefix("/dev/pts/") {
            let index = slave.trim_end_matches(" (deleted)").parse().ok();
            return Ok(index.map(Object::Terminal));
        }
        let path = format!("/proc/{}/fd/{}", self.pid, group.first());
        let Ok(stat) = rustix::fs::stat(&path) else { return Ok(None) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (fifo, is_file) = (kind == FileType::Fifo, kind == FileType::RegularFile);
        let pathless = group.link.starts_with('/') && group.link.ends_with(" (deleted)");
        let carried = pathless || is_file && (shm::is_named(&group.link) || shm::is_huge(&path));
        Ok((fifo || carried).then(|| Object::File(file_key(stat.st_dev, stat.st_ino))))
    }

    fn connection(&self, group: &Group, inode: u64) -> Result<Option<Object>, StateError> {
        let socket = duplicate(self.pidfd.as_fd(), group.first())?;
        let family = sockopt::socket_domain(&socket).ok();
        if family == Some(AddressFamily::UNIX) {
            let peer = net::unix_peer(&self.diag, inode as u32).ok().flatten();
            return Ok(peer.map(|peer| Object::Sockets(inode.min(u64::from(peer)))));
        }
        let tcp = sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        let inet = matches!(family, Some(AddressFamily::INET | AddressFamily::INET6));
        if !tcp || !inet {
            return Ok(None);
        }
        let address = |any| net::address_of(any).ok().map(|address| address.to_string());
        let local = rustix::net::getsockname(&socket).ok().and_then(address);
        let peer = rustix::net::getpeername(&socket).ok().flatten().and_then(address);
        Ok(local.zip(peer).map(|(a, b)| Object::Tcp(a.clone().min(b.clone()), a.max(b))))
    }
}

/// Device and inode as `/proc/PID/maps` has them.
pub fn file_key(device: u64, inode: u64) -> FileKey {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (format!("{major:02x}:{minor:02x}"), inode)
}

/// How the kernel names System V memory (ipc/shm.c).
pub const SYSV: &str = "/SYSV";

/// Device and inode of what is mapped. Of System V memory the inode is its id (ipc/shm.c), which other
/// shared memory without a path may have for its inode, too.
pub fn mapping_key(mapping: &procfs::Mapping) -> FileKey {
    let sysv = mapping.name.starts_with(SYSV);
    (if sysv { SYSV.into() } else { mapping.dev.clone() }, mapping.inode)
}

/// One description, wherever it is named.
struct Description {
    /// Member and index of the group there, ascending.
    holders: Vec<(usize, usize)>,
}

/// Divides what the members have: each description is made by one.
///
/// # Errors
/// kcmp(2), or what cannot be had in common, by name, with the member that it is about.
pub fn share(members: &[Held]) -> Result<Vec<Share>, (i32, StateError)> {
    let descriptions = descriptions(members)?;
    let mut shares: Vec<Share> = members.iter().map(|_| Share::default()).collect();
    let inner = |member: &Held| {
        let inner = procfs::Status::read(member.pid).ok().and_then(|status| status.inner_id());
        (member.pid, inner.unwrap_or(member.pid))
    };
    let pids: Vec<(i32, i32)> = members.iter().map(inner).collect();
    for (share, member) in shares.iter_mut().zip(members) {
        share.members.clone_from(&pids);
        share.groups.clone_from(&member.groups);
    }
    let makers = makers(members, &descriptions);
    let inside = inside(members, &descriptions);
    for (share, member) in shares.iter_mut().zip(members) {
        for (group, object) in share.groups.iter_mut().zip(&member.objects) {
            group.inside = object.as_ref().is_some_and(|object| inside.contains(object));
        }
    }
    let mut gifts = Gifts::new();
    let mut made = Vec::with_capacity(descriptions.len());
    for description in &descriptions {
        let (first, at) = description.holders[0];
        let object = members[first].objects[at].as_ref();
        let maker = object.and_then(|object| makers.get(object).copied()).unwrap_or(first);
        let number = hand_over(members, &mut shares, &mut gifts, description, maker);
        made.push((maker, number));
    }
    watches::divide(members, &descriptions, &made, &mut shares, &mut gifts)?;
    for ((from, to, _), fd) in gifts {
        shares[from].gifts.push(Gift { fd, to: to as u32 });
    }
    memory(members, &mut shares, &makers);
    terminals(members, &mut shares);
    Ok(shares)
}

/// Groups of several members that are one description.
fn descriptions(members: &[Held]) -> Result<Vec<Description>, (i32, StateError)> {
    let mut all: Vec<Description> = Vec::new();
    let mut by_link: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, member) in members.iter().enumerate() {
        for (at, group) in member.groups.iter().enumerate() {
            let alike = by_link.entry(&group.link).or_default();
            let order = |description: usize| {
                let (other, theirs) = all[description].holders[0];
                let theirs = members[other].groups[theirs].first();
                kcmp::order((members[other].pid, theirs), (member.pid, group.first()))
            };
            let fail = |source| (member.pid, StateError::Sys { fd: group.first(), source });
            match place(alike, order).map_err(fail)? {
                Ok(found) => all[alike[found]].holders.push((number, at)),
                Err(place) => {
                    alike.insert(place, all.len());
                    all.push(Description { holders: vec![(number, at)] });
                }
            }
        }
    }
    Ok(all)
}

/// For each object the first member that has any part of it.
fn makers(members: &[Held], descriptions: &[Description]) -> HashMap<Object, usize> {
    let mut makers: HashMap<Object, usize> = HashMap::new();
    for description in descriptions {
        for &(member, at) in &description.holders {
            if let Some(object) = &members[member].objects[at] {
                let maker = makers.entry(object.clone()).or_insert(member);
                *maker = member.min(*maker);
            }
        }
    }
    for (member, held) in members.iter().enumerate() {
        for key in held.mapped.keys() {
            // Only what descriptors name too: the rest is nobody's business here.
            if let Some(maker) = makers.get_mut(&Object::File(key.clone())) {
                *maker = member.min(*maker);
            }
        }
    }
    makers
}

/// Objects with both ends in the tree, not in one process alone.
fn inside(members: &[Held], descriptions: &[Description]) -> BTreeSet<Object> {
    let mut ends: BTreeMap<&Object, [BTreeSet<usize>; 2]> = BTreeMap::new();
    for description in descriptions {
        let (first, at) = description.holders[0];
        // The two ends of a connection have one name: which is which does not matter.
        let second = members[first].objects[at].as_ref().is_some_and(|o| ends.contains_key(o));
        for &(member, at) in &description.holders {
            let group = &members[member].groups[at];
            let Some(object) = &members[member].objects[at] else { continue };
            let end = match object {
                // A reader; what can do both is either.
                Object::Pipe(_) | Object::File(_) => usize::from(group.flags & 3 == 0),
                Object::Terminal(_) => usize::from(group.link.ends_with("ptmx")),
                Object::Sockets(lower) => usize::from(group.link == format!("socket:[{lower}]")),
                Object::Tcp(..) => usize::from(second),
            };
            ends.entry(object).or_default()[end].insert(member);
        }
    }
    let several = |ends: &[BTreeSet<usize>; 2]| {
        !ends[0].is_empty() && !ends[1].is_empty() && ends[0].union(&ends[1]).count() > 1
    };
    ends.into_iter().filter(|(_, ends)| several(ends)).map(|(object, _)| object.clone()).collect()
}

/// What is handed over, as which number of the giver: by whom, to whom, as which of the receiver's
/// descriptions. It takes them in its own order.
type Gifts = BTreeMap<(usize, usize, usize), u32>;

/// Lets `maker` have the description, and all others that name it get it from there. Gives its number at
/// the maker.
fn hand_over(
    members: &[Held],
    shares: &mut [Share],
    gifts: &mut Gifts,
    description: &Description,
    maker: usize,
) -> u32 {
    let own = description.holders.iter().find(|(member, _)| *member == maker);
    let number = match own {
        Some(&(_, at)) => members[maker].groups[at].first(),
        None => {
            let (first, at) = description.holders[0];
            let group = &members[first].groups[at];
            let number = free_number(&shares[maker].groups);
            let holder = Some((members[first].pid, group.first()));
            let fds = vec![OpenFd { number, cloexec: true }];
            let inside = shares[first].groups[at].inside;
            shares[maker].groups.push(Group { fds, holder, inside, ..group.clone() });
            shares[maker].temporary.push(number);
            number
        }
    };
    for &(member, at) in description.holders.iter().filter(|(member, _)| *member != maker) {
        gifts.insert((maker, member, at), number);
        let file = gift::file(&members[member].groups[at], maker as u32, Vec::new());
        shares[member].gets.insert(at, file);
    }
    number
}

fn free_number(groups: &[Group]) -> u32 {
    let highest = groups.iter().flat_map(|group| &group.fds).map(|fd| fd.number).max();
    highest.map_or(3, |highest| highest + 1).max(3)
}

/// Shared memory is made by the first member that maps it or has it open.
fn memory(members: &[Held], shares: &mut [Share], makers: &HashMap<Object, usize>) {
    let mut mappers: BTreeMap<&FileKey, Vec<usize>> = BTreeMap::new();
    for (member, held) in members.iter().enumerate() {
        for key in held.mapped.keys() {
            mappers.entry(key).or_default().push(member);
        }
    }
    for (key, mappers) in mappers {
        let named = makers.get(&Object::File(key.clone())).copied();
        let maker = named.unwrap_or(mappers[0]);
        if named.is_some() {
            let parts = mappers.iter().flat_map(|&member| members[member].mapped[key].clone());
            shares[maker].mapped.insert(key.clone(), parts.collect());
        }
        if maker != mappers[0] {
            shares[maker].made.insert(key.clone());
        }
        for &member in &mappers {
            if named.is_some() || mappers.len() > 1 {
                shares[member].open.insert(key.clone());
            }
            if member != maker {
                shares[member].memory_from.insert(key.clone(), maker as u32);
            }
        }
    }
}

/// Sessions that a pseudo-terminal of the tree controls. The root leads its session in a child.
fn terminals(members: &[Held], shares: &mut [Share]) {
    for (at, (member, share)) in members.iter().zip(shares).enumerate() {
        let session = &member.session;
        let Some((index, shown)) = session.terminal.filter(|_| at == 0 || session.leads) else {
            continue;
        };
        let is_master = |group: &Group| group.link.ends_with("ptmx");
        let holds = |member: &Held| {
            let mut ends = member.groups.iter().zip(&member.objects);
            ends.any(|(group, o)| is_master(group) && *o == Some(Object::Terminal(index)))
        };
        if !members.iter().any(holds) {
            continue;
        }
        let shown = members.iter().find(|one| one.session.group == shown && shown > 0);
        let others = shown.filter(|one| one.session.group != session.group);
        let foreground = others.map_or(0, |one| one.session.inner_group);
        share.terminal = Some(Terminal { index, foreground });
    }
}
