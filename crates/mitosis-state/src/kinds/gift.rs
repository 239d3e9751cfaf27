//! A description that another member of the process tree makes and hands over: see
//! [`crate::tree`]. No kind of its own is behind it.

use super::epoll::{self, Watch};
use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List, Program};
use crate::{Group, Provided, StateError};
use mitosis_descriptor::{MEMBERS_MAX, OpenFile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kind.
pub const KIND: Kind = Kind { number: 40, name: "shared in the tree", capture, plan, describe };

/// Most descriptors in a message (SCM_MAX_FD of net/scm.h is 253).
const MESSAGE_FDS_MAX: usize = 128;
const SENDMSG: u16 = 46;
const RECVMSG: u16 = 47;

/// Lets a member register files in the instance that it gets as description `at`.
pub(crate) fn watch(gets: &mut BTreeMap<usize, OpenFile>, at: usize, watches: Vec<Watch>) {
    if let Some(file) = gets.get_mut(&at) {
        let from = decode::<Body>(file).map_or(0, |body| body.from);
        file.body = encode(KIND.number, &Body { from, watches }).unwrap_or_default();
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    /// The member that makes it.
    from: u32,
    /// Of an epoll instance: registrations that are this member's to make.
    watches: Vec<Watch>,
}

/// Never found by a look: only whoever sees the whole tree knows.
fn capture(_: &Capture<'_>, _: &Group) -> Result<Option<Vec<u8>>, StateError> {
    Ok(None)
}

/// The description at the numbers that it has in a member that gets it from member `from`.
/// It registers `watches`, if that is an epoll instance.
pub(crate) fn file(group: &Group, from: u32, watches: Vec<Watch>) -> OpenFile {
    let fds = group.fds.iter().map(|fd| (fd.number, fd.cloexec)).collect();
    // A number always can be encoded.
    let body = encode(KIND.number, &Body { from, watches }).unwrap_or_default();
    OpenFile { kind: KIND.number, flags: group.flags, fds, body, signals: None }
}

/// Comes with the others: see [`exchange`].
fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let Body { from, .. } = decode(file)?;
    if files.place.is_none() {
        let reason = format!("of member {from} of a tree, in a process alone");
        return Err(StateError::Malformed { kind: KIND.number, reason });
    }
    Ok(())
}

/// Hands over what others get, and then takes what is handed to it. Members get from earlier ones
/// only, so none waits for one that waits for it.
pub(super) fn exchange(all: &[OpenFile], files: &mut Files<'_>) -> Result<(), StateError> {
    let Some(place) = files.place else { return Ok(()) };
    for (to, fds) in by_member(place.gifts.iter().map(|gift| (gift.to, gift.fd))) {
        let socket = files.member(to);
        for fds in fds.chunks(MESSAGE_FDS_MAX) {
            give(files.program, socket, fds, "tree: hand over open files to member", to);
        }
    }
    let mut wanted = Vec::new();
    for file in all.iter().filter(|file| file.kind == KIND.number) {
        let Body { from, .. } = decode(file)?;
        if from as usize >= MEMBERS_MAX {
            // Each would be a socket that the node makes.
            let reason = format!("comes from member {from}, which no tree has");
            return Err(StateError::Malformed { kind: KIND.number, reason });
        }
        wanted.push((from, file));
    }
    for (from, gifts) in by_member(wanted.into_iter()) {
        let socket = files.member(from);
        for gifts in gifts.chunks(MESSAGE_FDS_MAX) {
            let fresh = files.lowest(gifts.len());
            take(files.program, socket, gifts.len(), "tree: open files of member", from);
            files.park(&fresh);
            for (index, file) in gifts.iter().enumerate() {
                files.spread(file, index as u32);
            }
        }
    }
    Ok(())
}

/// Registers in instances that others have made what only this process holds.
pub(super) fn register(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let Body { watches, .. } = decode(file)?;
    epoll::add(file.fds[0].0, watches, files);
    Ok(())
}

/// Closes what is there for others only.
pub(super) fn close_temporary(files: &mut Files<'_>) {
    let Some(place) = files.place else { return };
    for &fd in &place.temporary {
        files.close(fd);
        files.used.remove(fd);
    }
}

/// The highest number that is used in passing.
pub(super) fn highest(file: &OpenFile) -> u32 {
    decode::<Body>(file).map_or(0, |body| epoll::highest_of(&body.watches))
}

/// What goes to, or comes from, each member, in the order in which it was named.
fn by_member<T>(all: impl Iterator<Item = (u32, T)>) -> BTreeMap<u32, Vec<T>> {
    let mut members = BTreeMap::<u32, Vec<T>>::new();
    for (member, one) in all {
        members.entry(member).or_default().push(one);
    }
    members
}

/// Number of the socket to a member, which the node provides once.
pub fn socket(provided: &mut Vec<Provided>, base: u32, member: u32) -> u32 {
    let wanted = Provided::Member(member);
    let at = provided.iter().position(|one| *one == wanted).unwrap_or_else(|| {
        provided.push(wanted);
        provided.len() - 1
    });
    base + at as u32
}

/// Sends descriptors in one message.
pub fn give(program: &mut Program, socket: u32, fds: &[u32], what: &'static str, to: u32) {
    let message = program.message(b"t", fds);
    let args = [u64::from(socket), message, 0];
    program.call_expect(List::Build, SENDMSG, &args, 1, what, Detail::Number(u64::from(to)));
}

/// Receives a message with `count` descriptors, which get the lowest free numbers. Gives the address
/// at which the first of these stands afterwards.
pub fn take(
    program: &mut Program,
    socket: u32,
    count: usize,
    what: &'static str,
    from: u32,
) -> u64 {
    let byte = program.data(b"?");
    let iov = program.words(&[byte, 1]);
    let len = (16 + 4 * count).next_multiple_of(8);
    let control = program.data(&vec![0u8; len]);
    let message = program.words(&[0, 0, iov, 1, control, len as u64, 0]);
    let args = [u64::from(socket), message, 0];
    program.call_expect(List::Build, RECVMSG, &args, 1, what, Detail::Number(u64::from(from)));
    control + 16
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    Ok(format!("with member {}", decode::<Body>(file)?.from))
}
