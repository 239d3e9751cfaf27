//! epoll(7): every registration with its events and data.
//!
//! A registration is of an open file, under the number that it had then. That number may have been
//! closed since, or name another file: the registration lives as long as anything holds the file. What
//! only another process holds is not the child's, and neither is its registration, unless that process
//! is of its tree: see `tree::watches`.

use super::{Capture, F_DUPFD_CLOEXEC, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 4, name: "epoll", capture, plan, describe };

/// A registration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// The number under which it was added.
    pub fd: u32,
    /// What it waits for, and how.
    pub events: u32,
    /// What the program is told of it.
    pub data: u64,
    /// A number of the file that is watched.
    pub file: u32,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if !is_instance(group) {
        return Ok(None);
    }
    if let Some(watches) = context.watches {
        let watches = watches.get(&group.first()).map_or(&[][..], Vec::as_slice);
        return encode(KIND.number, &watches).map(Some);
    }
    let mut watches: Vec<Watch> = Vec::new();
    for (watch, nth) in registrations(group)? {
        let file = watched(context, group.first(), (watch.fd, nth))
            .map_err(|e| group.refused(format!("an epoll: {e}")))?;
        watches.extend(file.map(|file| Watch { file, ..watch }));
    }
    encode(KIND.number, &watches).map(Some)
}

/// Whether a description is an epoll instance.
pub(crate) fn is_instance(group: &Group) -> bool {
    group.link == "anon_inode:[eventpoll]"
}

/// What is registered, and how many registrations with the same number come before each.
pub(crate) fn registrations(group: &Group) -> Result<Vec<(Watch, u32)>, StateError> {
    let mut seen: Vec<(Watch, u32)> = Vec::new();
    for line in group.info.lines().filter(|line| line.starts_with("tfd:")) {
        let watch = parse(line).ok_or_else(|| group.refused(format!("an epoll with `{line}`")))?;
        let nth = seen.iter().filter(|(before, _)| before.fd == watch.fd).count() as u32;
        seen.push((watch, nth));
    }
    Ok(seen)
}

/// A number of the file behind a registration: most likely the one under which it was added.
fn watched(
    context: &Capture<'_>,
    epoll: u32,
    (target, nth): (u32, u32),
) -> Result<Option<u32>, mitosis_sys::SysError> {
    let of = |group: &Group| group.fds.iter().any(|fd| fd.number == target);
    let likely = context.groups.iter().filter(|group| of(group)).map(|_| target);
    let others = context.groups.iter().filter(|group| !of(group)).map(Group::first);
    for candidate in likely.chain(others) {
        let (instance, file) = ((context.pid, epoll), (context.pid, candidate));
        if mitosis_sys::kcmp::watches_file(instance, (target, nth), file)? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// `tfd:        5 events:       1b data:                5  pos:0 ino:... sdev:...`
fn parse(line: &str) -> Option<Watch> {
    let mut words = line.split_whitespace();
    let mut after = |key: &str| {
        words.find(|w| *w == key)?;
        words.next()
    };
    let fd = after("tfd:")?.parse().ok()?;
    Some(Watch {
        fd,
        file: fd,
        events: u32::from_str_radix(after("events:")?, 16).ok()?,
        data: u64::from_str_radix(after("data:")?, 16).ok()?,
    })
}

const EPOLL_CREATE1: u16 = 291;
const EPOLL_CTL: u16 = 233;
const EPOLL_CTL_ADD: u64 = 1;
const FCNTL: u16 = 72;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let fd = file.fds[0].0;
    files.make(file, EPOLL_CREATE1, &[0], "files: epoll_create1", Detail::Fd(fd));
    Ok(())
}

/// Adds the registrations, once everything is there that they name.
pub(super) fn register(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let watches: Vec<Watch> = decode(file)?;
    add(file.fds[0].0, watches, files);
    Ok(())
}

/// Adds registrations to the instance at `epoll`.
pub(super) fn add(epoll: u32, watches: Vec<Watch>, files: &mut Files<'_>) {
    for watch in watches {
        let mut event = Vec::with_capacity(12);
        event.extend(watch.events.to_le_bytes());
        event.extend(watch.data.to_le_bytes());
        let event = files.program.data(&event);
        let args = [u64::from(epoll), EPOLL_CTL_ADD, u64::from(watch.fd), event];
        let owner = owner_of(watch.fd, files);
        if owner.is_some() && owner == owner_of(watch.file, files) {
            let list = if files.late.contains(&watch.fd) { List::Finish } else { List::Build };
            let detail = Detail::Fd(watch.fd);
            files.program.call(list, EPOLL_CTL, &args, "files: epoll_ctl add", detail);
            continue;
        }
        // For a moment the number names what it did then.
        if owner.is_some() {
            let args = [u64::from(watch.fd), F_DUPFD_CLOEXEC, u64::from(files.high)];
            files.call(FCNTL, &args, "files: set aside", watch.fd);
        }
        files.dup(watch.file, watch.fd, true);
        files.call(EPOLL_CTL, &args, "files: epoll_ctl add", watch.fd);
        match owner {
            Some((_, cloexec)) => {
                files.dup(files.high, watch.fd, cloexec);
                files.close(files.high);
            }
            None => {
                files.close(watch.fd);
                files.used.remove(watch.fd);
            }
        }
    }
}

/// Which of the files has a number, and whether that is closed by exec.
fn owner_of(fd: u32, files: &Files<'_>) -> Option<(usize, bool)> {
    files.all.iter().enumerate().find_map(|(n, file)| {
        let (_, cloexec) = file.fds.iter().find(|(number, _)| *number == fd)?;
        Some((n, *cloexec))
    })
}

/// `NR_OPEN` of linux/fs.h: no process has higher ones, unless its machine is told so.
const NUMBERS_MAX: u32 = 1 << 20;

/// The highest number that is used in passing, open or not.
pub(super) fn highest(file: &OpenFile) -> u32 {
    highest_of(&decode::<Vec<Watch>>(file).unwrap_or_default())
}

/// The same of registrations.
pub(super) fn highest_of(watches: &[Watch]) -> u32 {
    watches.iter().map(|watch| watch.fd).max().unwrap_or(0).min(NUMBERS_MAX)
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let watches: Vec<Watch> = decode(file)?;
    let fds: Vec<String> = watches.iter().map(|w| w.fd.to_string()).collect();
    Ok(format!("watches {}", fds.join(",")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_registration_parses() {
        let line = "tfd:        5 events: 8000001b data: ffffffff00000005  pos:0 ino:2f sdev:8";
        let watch = super::parse(line).expect("registration");
        assert_eq!((watch.fd, watch.events, watch.data), (5, 0x8000_001b, 0xffff_ffff_0000_0005));
    }
}
