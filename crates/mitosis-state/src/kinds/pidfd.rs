//! pidfd_open(2). Of the process itself: in a child, of the child. Of another one: the child's node has
//! no such process, so to a child it has ended.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::{Detail, List, op};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_stub::abi::{OP_ENDED, OP_EXPECT, SLOTS};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 12, name: "pidfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    /// Of the process itself.
    own: bool,
}

/// PIDFD_THREAD, which is O_EXCL.
const THREAD: u32 = 0o200;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[pidfd]" {
        return Ok(None);
    }
    // The kernel tells the pid as the reader of fdinfo sees it.
    let pid = group.info_field("Pid").unwrap_or("?");
    let own = pid == context.pid.to_string();
    if own && group.flags & THREAD != 0 {
        return Err(group.refused("a pidfd of a thread"));
    }
    encode(KIND.number, &Body { own }).map(Some)
}

const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const GETPID: u16 = 39;
const PIDFD_OPEN: u16 = 434;
/// Used by nothing else.
const SLOT: u8 = SLOTS as u8 - 1;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let fd = file.fds[0].0;
    if !decode::<Body>(file)?.own {
        let at = files.lowest(1)[0];
        let mut make = op(0, OP_ENDED | OP_EXPECT, &[]);
        make.expect = u64::from(at);
        let what = "files: pidfd of an ended process";
        files.program.push(List::Build, make, what, Detail::Fd(fd));
        files.park(&[at]);
        files.spread(file, 0);
        let args = [u64::from(fd), F_SETFL, u64::from(file.flags & NONBLOCK)];
        files.call(FCNTL, &args, "files: F_SETFL", fd);
        return Ok(());
    }
    // Asked for: with `--new-pid` the plan does not know it.
    let mut ask = op(GETPID, 0, &[]);
    ask.save = SLOT;
    files.program.push(List::Build, ask, "files: getpid", Detail::Fd(fd));
    let at = files.lowest(1)[0];
    let args = [0, u64::from(file.flags & NONBLOCK)];
    let mut open = op(PIDFD_OPEN, OP_EXPECT | 1, &args);
    open.slot = SLOT;
    open.expect = u64::from(at);
    files.program.push(List::Build, open, "files: pidfd_open", Detail::Fd(fd));
    files.park(&[at]);
    files.spread(file, 0);
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(if body.own { "of itself" } else { "of another process" }.into())
}
