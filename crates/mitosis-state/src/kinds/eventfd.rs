//! eventfd(2): a counter.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::Detail;
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use rustix::io::ReadWriteFlags;
use serde::{Deserialize, Serialize};
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

/// The kind.
pub const KIND: Kind = Kind { number: 3, name: "eventfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    count: u64,
    semaphore: bool,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[eventfd]" {
        return Ok(None);
    }
    let count = group.info_field("eventfd-count").unwrap_or("0");
    let count = u64::from_str_radix(count, 16)
        .map_err(|_| group.refused(format!("an eventfd whose count reads {count}")))?;
    let semaphore = match group.info_field(SEMAPHORE) {
        Some(told) => told == "1",
        None if context.stopped => {
            is_semaphore(&context.duplicate(group)?, count).map_err(|e| {
                group.refused(format!("an eventfd that cannot be tried for EFD_SEMAPHORE: {e}"))
            })?
        }
        // Looked at again in the stop.
        None => false,
    };
    encode(KIND.number, &Body { count, semaphore }).map(Some)
}

/// What `/proc/PID/fdinfo` tells since Linux 6.5.
pub(crate) const SEMAPHORE: &str = "eventfd-semaphore";

/// Whether a read takes one, or all. Tried with a count of at least two, and put back, while the
/// process stands still.
fn is_semaphore(eventfd: &OwnedFd, count: u64) -> rustix::io::Result<bool> {
    let add = |count: u64| rustix::io::write(eventfd, &count.to_ne_bytes()).map(|_| ());
    // Not to wait if another process that has it was quicker.
    let take = || -> rustix::io::Result<u64> {
        let mut count = [0; 8];
        let mut into = [IoSliceMut::new(&mut count)];
        rustix::io::preadv2(eventfd, &mut into, u64::MAX, ReadWriteFlags::NOWAIT)?;
        Ok(u64::from_ne_bytes(count))
    };
    let added = if count < 2 { 2 } else { 0 };
    if added > 0 {
        add(added)?;
    }
    let taken = take()?;
    if taken != 1 {
        let back = taken - added;
        return if back > 0 { add(back).map(|()| false) } else { Ok(false) };
    }
    match added {
        0 => add(1)?,
        _ => drop(take()?),
    }
    Ok(true)
}

const EVENTFD2: u16 = 290;
const WRITE: u16 = 1;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let flags = u64::from(file.flags & NONBLOCK) | u64::from(body.semaphore);
    let fd = file.fds[0].0;
    files.make(file, EVENTFD2, &[0, flags], "files: eventfd", Detail::Fd(fd));
    if body.count != 0 {
        // By write(2): the argument of eventfd(2) has 32 bits only.
        let data = files.program.words(&[body.count]);
        let args = [u64::from(fd), data, 8];
        let list = crate::List::Build;
        files.program.call(list, WRITE, &args, "files: set eventfd", Detail::Fd(fd));
    }
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("count {}", body.count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_semaphore_is_told_from_a_counter_and_both_keep_their_count() {
        for semaphore in [false, true] {
            for count in [0, 1, 2, 7, u64::MAX - 1] {
                let flags = if semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
                let fd = eventfd(0, flags).expect("eventfd");
                if count > 0 {
                    rustix::io::write(&fd, &count.to_ne_bytes()).expect("write");
                }
                assert_eq!(is_semaphore(&fd, count), Ok(semaphore), "{count}");
                let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
                let info = std::fs::read_to_string(path).expect("fdinfo");
                let left = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
                let left = u64::from_str_radix(left.expect("count").trim(), 16);
                assert_eq!(left, Ok(count), "{semaphore}");
            }
        }
    }
}
