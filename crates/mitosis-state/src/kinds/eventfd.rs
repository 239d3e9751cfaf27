//! eventfd(2): a counter.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::Detail;
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 3, name: "eventfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    count: u64,
    semaphore: bool,
}

fn capture(_: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[eventfd]" {
        return Ok(None);
    }
    let count = group.info_field("eventfd-count").unwrap_or("0");
    let count = u64::from_str_radix(count, 16)
        .map_err(|_| group.refused(format!("an eventfd whose count reads {count}")))?;
    let semaphore = group.info_field("eventfd-semaphore") == Some("1");
    encode(KIND.number, &Body { count, semaphore }).map(Some)
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
