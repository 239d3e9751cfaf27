//! Descriptors that wait in unix sockets (SCM_RIGHTS): of what the process has open as well, or of
//! files that it has sent and closed.

use super::{Capture, Files, regular};
use crate::program::{Detail, List};
use crate::scan::{OpenFd, group_of};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::{kcmp, procfs};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, OwnedFd};

/// A message of a socket's queue.
#[derive(Serialize, Deserialize)]
pub(super) struct Message {
    pub bytes: Vec<u8>,
    pub passed: Vec<Passed>,
}

/// A descriptor in a message.
#[derive(Serialize, Deserialize)]
pub(super) enum Passed {
    /// The process has it open too, at this number.
    Open(u32),
    /// A file that only the message holds; no descriptor names it yet.
    Alone(OpenFile),
}

/// What was peeked at: descriptors of our own now.
pub(super) fn capture(
    context: &Capture<'_>,
    socket: &Group,
    fds: &[OwnedFd],
) -> Result<Vec<Passed>, StateError> {
    fds.iter().map(|fd| one(context, socket, fd)).collect()
}

fn one(context: &Capture<'_>, socket: &Group, fd: &OwnedFd) -> Result<Passed, StateError> {
    let fail = |source| StateError::Sys { fd: socket.first(), source };
    let (us, number) = (std::process::id() as i32, fd.as_raw_fd() as u32);
    let link = procfs::link(us, &format!("fd/{number}")).map_err(fail)?;
    for group in context.groups.iter().filter(|group| group.link == link) {
        let there = context.place(group);
        if kcmp::same_file_of(there, (us, number)).map_err(fail)? {
            return Ok(Passed::Open(group.first()));
        }
    }
    let info = procfs::text(us, &format!("fdinfo/{number}")).map_err(fail)?;
    let open = OpenFd { number: socket.first(), cloexec: true };
    let group = group_of(open, link, info);
    let kind = regular::KIND;
    let body =
        if group.link.ends_with(" (deleted)") { None } else { (kind.capture)(context, &group)? };
    match body {
        Some(body) => {
            let (fds, flags) = (Vec::new(), group.flags);
            let file = OpenFile { kind: kind.number, flags, fds, body, signals: None };
            Ok(Passed::Alone(file))
        }
        None => {
            let what = "a unix socket in which a descriptor waits that the process has not open";
            Err(socket.refused(format!("{what}: {}", group.link)))
        }
    }
}

const SENDMSG: u16 = 46;
/// MSG_DONTWAIT and MSG_NOSIGNAL.
const FLAGS: u64 = 0x40 | 0x4000;
/// Where files are for a moment that only a message holds: above those that are parked.
const BESIDE: u32 = 10;

/// Sends the messages from `writer`, at a time when all is open that they name.
pub(super) fn send(
    files: &mut Files<'_>,
    writer: u32,
    queued: &[Message],
) -> Result<(), StateError> {
    for message in queued {
        let mut numbers = Vec::with_capacity(message.passed.len());
        let mut made = Vec::new();
        for passed in &message.passed {
            match passed {
                Passed::Open(fd) => numbers.push(*fd),
                Passed::Alone(file) => {
                    let at = files.high + BESIDE + made.len() as u32;
                    let fds = vec![(at, true)];
                    (regular::KIND.plan)(&OpenFile { fds, ..file.clone() }, files)?;
                    numbers.push(at);
                    made.push(at);
                }
            }
        }
        let header = files.program.message(&message.bytes, &numbers);
        let len = message.bytes.len() as u64;
        let args = [u64::from(writer), header, FLAGS];
        let (list, what) = (List::Build, "files: fill socket");
        files.program.call_expect(list, SENDMSG, &args, len, what, Detail::Fd(writer));
        made.iter().for_each(|&at| files.close(at));
    }
    Ok(())
}
