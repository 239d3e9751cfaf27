//! pidfd_open(2). Of the process itself: in a child, of the child. Of a thread of its (PIDFD_THREAD):
//! of the child's. Of another one: the child's node has no such process, so to a child it has ended.

use super::{Capture, Files, Kind, NONBLOCK, SLOT, decode, encode, proc};
use crate::look::PIDFD_THREAD;
use crate::program::{Detail, List, op};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_stub::abi::{OP_ENDED, OP_EXPECT};
use mitosis_sys::procfs;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 12, name: "pidfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
enum Body {
    /// Of another process, or a thread that has ended.
    Ended,
    /// Of the process itself.
    Own,
    /// Of one of its threads.
    Thread(i32),
    /// Of another process of its tree.
    Member(i32),
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[pidfd]" {
        return Ok(None);
    }
    // The kernel tells the pid as the reader of fdinfo sees it.
    let pid = group.info_field("Pid").and_then(|pid| pid.parse::<i32>().ok());
    let threads = procfs::threads(context.pid).unwrap_or_default();
    let body = match pid {
        Some(tid) if group.flags & PIDFD_THREAD != 0 && threads.contains(&tid) => {
            proc::inner_tid(context.pid, tid).map_or(Body::Ended, Body::Thread)
        }
        Some(pid) if pid == context.process => Body::Own,
        Some(pid) => context.inner_pid_of(pid).map_or(Body::Ended, Body::Member),
        None => Body::Ended,
    };
    encode(KIND.number, &body).map(Some)
}

const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const GETPID: u16 = 39;
const PIDFD_OPEN: u16 = 434;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let fd = file.fds[0].0;
    let body: Body = decode(file)?;
    if matches!(body, Body::Ended) {
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
    if let Body::Member(pid) = body {
        // Until all are there, the process's own.
        let args = [pid as u64, u64::from(file.flags & NONBLOCK)];
        files.make_late(file, PIDFD_OPEN, &args, "files: pidfd_open of a process of the tree");
    }
    if let Body::Thread(tid) = body {
        // Until the threads are there, the process's own.
        files.same_ids(file, "a pidfd")?;
        if !knows_threads() {
            let what =
                "a pidfd of a thread (PIDFD_THREAD, Linux 6.9), which this node's kernel lacks";
            return Err(StateError::Refused { fd, what: what.into(), hint: "" });
        }
        let args = [tid as u64, u64::from(PIDFD_THREAD | file.flags & NONBLOCK)];
        files.make_late(file, PIDFD_OPEN, &args, "files: pidfd_open of a thread");
    }
    Ok(())
}

/// Whether this node's kernel has pidfds of threads.
fn knows_threads() -> bool {
    let flags = PidfdFlags::from_bits_retain(PIDFD_THREAD);
    pidfd_open(rustix::thread::gettid(), flags).is_ok()
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    Ok(match decode(file)? {
        Body::Ended => "of another process".into(),
        Body::Own => "of itself".into(),
        Body::Thread(tid) => format!("of its thread {tid}"),
        Body::Member(pid) => format!("of process {pid} of its tree"),
    })
}
