//! Standard input, output and error: fds 0-2 become the caller's, or the child's log.
//!
//! A terminal or a pipe to whoever started the parent means nothing on another node. `/dev/null`
//! stays `/dev/null`, and what leads to another member of a process tree stays that.

use super::{Capture, Files, Kind, decode, encode};
use crate::{Group, Provided, StateError};
use mitosis_descriptor::OpenFile;

/// The kind.
pub const KIND: Kind = Kind { number: 1, name: "stdio", capture, plan, describe };

fn capture(_: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let first = group.first();
    if first > 2 || group.link == "/dev/null" || group.inside {
        return Ok(None);
    }
    encode(KIND.number, &first).map(Some)
}

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let stream: u32 = decode(file)?;
    let from = files.provide(Provided::Stdio(stream));
    for &(fd, cloexec) in &file.fds {
        files.dup(from, fd, cloexec);
    }
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let stream: u32 = decode(file)?;
    Ok(format!("stream {stream} of the caller or the log"))
}
