//! Listening sockets, TCP and unix.
//!
//! Children of one seed on one node share one socket, as after fork(2), so the node makes it.
//! In a network namespace of its own a child makes its internet listeners itself.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode, inode_of};
use crate::net::{self, Address, ListenSpec};
use crate::options;
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
const AF_UNIX: u8 = 1;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    match &body.spec.address {
        // These names belong to the network namespace; a path does not.
        Address::V4(..) | Address::V6(..) | Address::Abstract(_) if files.own_net => {
            make(file, files, &body.spec);
        }
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

fn make(file: &OpenFile, files: &mut Files<'_>, spec: &ListenSpec) {
    let fd = u64::from(file.fds[0].0);
    let detail = || Detail::Text(format!("{} for fd {fd}", spec.address));
    let raw = net::raw_address(&spec.address);
    let kind = u64::from(spec.kind) | u64::from(file.flags & NONBLOCK);
    files.make(file, SOCKET, &[u64::from(raw[0]), kind, 0], "files: socket", detail());
    files.set_options(file, &spec.options);
    // A port in TIME_WAIT is not held by anybody, and the address of another node's interface does
    // not exist here.
    let both = [options::REUSEADDR, options::FREEBIND];
    let both = if raw[0] == AF_UNIX { &[][..] } else { &both };
    for &switch in both {
        files.set_switch(file, switch, true);
    }
    let address = files.program.data(&raw);
    let args = [fd, address, raw.len() as u64];
    files.program.call(List::Build, BIND, &args, "files: bind", detail());
    let args = [fd, u64::from(spec.backlog)];
    files.program.call(List::Build, LISTEN, &args, "files: listen", detail());
    for &switch in both {
        files.set_switch(file, switch, options::is_on(&spec.options, switch));
    }
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("at {}", body.spec.address))
}
