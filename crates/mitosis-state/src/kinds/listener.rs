//! Listening sockets, TCP and unix.
//!
//! Children of one seed on one node share one socket, as after fork(2), so the node makes it.
//! In a network namespace of its own a child makes its internet listeners itself.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, inode_of};
use crate::net::{self, ListenSpec};
use crate::program::{Detail, List};
use crate::{Group, Provided, StateError};
use mitosis_descriptor::OpenFile;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 5, name: "listener", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    key: u64,
    spec: ListenSpec,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some(key) = inode_of(&group.link, "socket") else { return Ok(None) };
    let socket = context.duplicate(group)?;
    let spec = ListenSpec::of(&socket, group.flags & NONBLOCK != 0)
        .map_err(|what| group.refused(format!("a socket: {what}")))?;
    spec.map(|spec| encode(KIND.number, &Body { key, spec })).transpose()
}

const SOCKET: u16 = 41;
const BIND: u16 = 49;
const LISTEN: u16 = 50;
const SETSOCKOPT: u16 = 54;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    match net::raw_inet(&body.spec.address) {
        Some(raw) if files.own_net => make(file, files, &body.spec, &raw),
        _ => {
            let fd = file.fds[0].0;
            let wanted = Provided::Listener { key: body.key, fd, spec: body.spec };
            let from = files.provide(wanted);
            for &(fd, cloexec) in &file.fds {
                files.dup(from, fd, cloexec);
            }
        }
    }
    Ok(())
}

fn make(file: &OpenFile, files: &mut Files<'_>, spec: &ListenSpec, raw: &[u8]) {
    let fd = u64::from(file.fds[0].0);
    let detail = || Detail::Text(format!("{} for fd {fd}", spec.address));
    let family = u64::from(raw[0]);
    let kind = u64::from(spec.kind) | u64::from(file.flags & NONBLOCK);
    files.make(file, SOCKET, &[family, kind, 0], "files: socket", detail());
    let one = files.program.data(&1u32.to_le_bytes());
    let zero = files.program.data(&0u32.to_le_bytes());
    // (level, option): SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, IP_FREEBIND, TCP_NODELAY. The
    // address of another node's interface does not exist here, hence IP_FREEBIND.
    let options = [
        (1, 2, spec.reuse_addr),
        (1, 15, spec.reuse_port),
        (1, 9, spec.keepalive),
        (0, 15, true),
        (6, 1, spec.nodelay),
    ];
    for (level, option, _) in options.iter().filter(|(_, _, on)| *on) {
        let args = [fd, *level, *option, one, 4];
        files.program.call_ignore(List::Build, SETSOCKOPT, &args, "files: setsockopt");
    }
    if family == 10 {
        let value = if spec.v6_only { one } else { zero };
        let args = [fd, 41, 26, value, 4];
        files.program.call_ignore(List::Build, SETSOCKOPT, &args, "files: setsockopt");
    }
    let address = files.program.data(raw);
    let args = [fd, address, raw.len() as u64];
    files.program.call(List::Build, BIND, &args, "files: bind", detail());
    let args = [fd, u64::from(spec.backlog)];
    files.program.call(List::Build, LISTEN, &args, "files: listen", detail());
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("at {}", body.spec.address))
}
