//! Files of `/proc`: of the process itself they become the child's own, those of the machine are the
//! child's node's.

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 31, name: "proc", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    path: String,
    pos: u64,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let Some(rest) = group.link.strip_prefix("/proc/") else { return Ok(None) };
    let (first, below) = rest.split_once('/').unwrap_or((rest, ""));
    let path = match first.parse::<i32>() {
        Ok(pid) => {
            let own = context.inner_pid();
            if own != Some(pid) {
                let what = format!("a /proc file of another process ({})", group.link);
                return Err(group.refused(what));
            }
            below_own(pid, below).ok_or_else(|| {
                group.refused(format!("a /proc file of a thread ({})", group.link))
            })?
        }
        Err(_) => group.link.clone(),
    };
    encode(KIND.number, &Body { path, pos: group.pos }).map(Some)
}

/// The same file, whatever the pid is. Only the leading thread is there when files are opened.
fn below_own(pid: i32, below: &str) -> Option<String> {
    match below.strip_prefix("task/") {
        None if below.is_empty() => Some("/proc/self".into()),
        None => Some(format!("/proc/self/{below}")),
        Some(of_thread) => {
            let (thread, rest) = of_thread.split_once('/').unwrap_or((of_thread, ""));
            (thread == pid.to_string()).then(|| format!("/proc/thread-self/{rest}"))
        }
    }
}

const OPENAT: u16 = 257;
const LSEEK: u16 = 8;
const AT_FDCWD: u64 = -100i64 as u64;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC are about the moment of opening only; O_NOFOLLOW would not
/// let `/proc/self` be followed.
const OPENING_ONLY: u32 = 0o100 | 0o200 | 0o400 | 0o1000 | 0o400_000;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let path = files.program.string(&body.path);
    let args = [AT_FDCWD, path, u64::from(file.flags & !OPENING_ONLY), 0];
    let label = Detail::Text(format!("{} for fd {fd}", body.path));
    files.make(file, OPENAT, &args, "files: open", label);
    if body.pos != 0 {
        let args = [u64::from(fd), body.pos, 0];
        files.program.call(List::Build, LSEEK, &args, "files: lseek", Detail::Fd(fd));
    }
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    Ok(format!("{} at {}", body.path, body.pos))
}
