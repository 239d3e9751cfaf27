//! Files, directories and stateless devices that can be opened again by path: same flags, same
//! offset. The child sees its own node's file of that name.

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::userns;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 2, name: "file", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    path: String,
    pos: u64,
}

/// Devices without state of their own.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let path = &group.link;
    if !path.starts_with('/') {
        return Ok(None);
    }
    if path.starts_with("/dev/")
        && !DEVICES.contains(&path.as_str())
        && !path.starts_with("/dev/shm/")
    {
        return Err(group.refused(format!("the device {path}")));
    }
    if group.info_field("lock").is_some_and(|l| l.contains("LEASE")) {
        return Err(group.refused(format!("{path} with a file lease")));
    }
    if context.other_users()? && userns::is_elsewhere(&context.path(group), path) {
        return Err(group.refused(format!("{path} {}", userns::ELSEWHERE)));
    }
    encode(KIND.number, &Body { path: path.clone(), pos: group.pos }).map(Some)
}

const OPENAT: u16 = 257;
const LSEEK: u16 = 8;
const AT_FDCWD: u64 = -100i64 as u64;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC are about the moment of opening only.
const OPENING_ONLY: u32 = 0o100 | 0o200 | 0o400 | 0o1000;
const O_NOCTTY: u64 = 0o400;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let path = files.program.string(&body.path);
    let flags = u64::from(file.flags & !OPENING_ONLY) | O_NOCTTY;
    let label = Detail::Text(format!("{} for fd {}", body.path, file.fds[0].0));
    files.make(file, OPENAT, &[AT_FDCWD, path, flags, 0], "files: open", label);
    if body.pos != 0 {
        let fd = file.fds[0].0;
        let args = [u64::from(fd), body.pos, 0];
        files.program.call(List::Build, LSEEK, &args, "files: lseek", Detail::Fd(fd));
    }
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("{} at {}", body.path, body.pos))
}
