//! epoll(7): every registration with its events and data.

use super::{Capture, Files, Kind, decode, encode};
use crate::program::Detail;
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 4, name: "epoll", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Watch {
    fd: u32,
    events: u32,
    data: u64,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[eventpoll]" {
        return Ok(None);
    }
    let mut watches: Vec<Watch> = Vec::new();
    for line in group.info.lines().filter(|line| line.starts_with("tfd:")) {
        let watch = parse(line).ok_or_else(|| group.refused(format!("an epoll with `{line}`")))?;
        // The number under which it was added may name something else by now, or nothing.
        let known = context.groups.iter().any(|g| g.fds.iter().any(|f| f.number == watch.fd));
        if !known {
            return Err(group.refused(format!("an epoll that watches fd {}, now closed", watch.fd)));
        }
        let nth = watches.iter().filter(|other| other.fd == watch.fd).count() as u32;
        let same =
            mitosis_sys::ptrace::watches_same_file(context.pid, group.first(), watch.fd, nth);
        match same {
            Ok(true) => watches.push(watch),
            Ok(false) => {
                let what = format!("an epoll that watches what fd {} was before", watch.fd);
                return Err(group.refused(what));
            }
            Err(e) => return Err(group.refused(format!("an epoll: {e}"))),
        }
    }
    encode(KIND.number, &watches).map(Some)
}

/// `tfd:        5 events:       1b data:                5  pos:0 ino:... sdev:...`
fn parse(line: &str) -> Option<Watch> {
    let mut words = line.split_whitespace();
    let mut after = |key: &str| {
        words.find(|w| *w == key)?;
        words.next()
    };
    Some(Watch {
        fd: after("tfd:")?.parse().ok()?,
        events: u32::from_str_radix(after("events:")?, 16).ok()?,
        data: u64::from_str_radix(after("data:")?, 16).ok()?,
    })
}

const EPOLL_CREATE1: u16 = 291;
const EPOLL_CTL: u16 = 233;
const EPOLL_CTL_ADD: u64 = 1;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let fd = file.fds[0].0;
    files.make(file, EPOLL_CREATE1, &[0], "files: epoll_create1", Detail::Fd(fd));
    Ok(())
}

/// Adds the registrations, once everything is there that they name.
pub(super) fn register(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let watches: Vec<Watch> = decode(file)?;
    for watch in watches {
        let mut event = Vec::with_capacity(12);
        event.extend(watch.events.to_le_bytes());
        event.extend(watch.data.to_le_bytes());
        let event = files.program.data(&event);
        let args = [u64::from(file.fds[0].0), EPOLL_CTL_ADD, u64::from(watch.fd), event];
        files.call(EPOLL_CTL, &args, "files: epoll_ctl add", watch.fd);
    }
    Ok(())
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
