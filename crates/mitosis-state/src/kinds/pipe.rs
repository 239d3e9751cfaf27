//! Pipes and FIFOs with what they hold.
//!
//! A FIFO becomes a pipe: opened by its path, it would be one with that of the child's siblings.
//! When both ends are the parent's, the child gets a pipe of its own with the same content. An
//! end outside the parent stays with the parent: to the child it is closed, so that reading gives
//! what was buffered and then end-of-file, and writing gives EPIPE.

use super::{Capture, Files, Kind, decode, encode, inode_of};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::SysError;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 6, name: "pipe", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    inode: u64,
    /// `O_RDONLY`, `O_WRONLY`, or `O_RDWR` for both ends.
    access: u32,
    capacity: u32,
    /// What is buffered; only at the first description that can read.
    content: Vec<u8>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let inode = inode_of(&group.link, "pipe").or_else(|| fifo_inode(context, group));
    let Some(inode) = inode else { return Ok(None) };
    let fail = |call| {
        let fd = group.first();
        move |e: rustix::io::Errno| StateError::Sys { fd, source: SysError::io(call, fd, e) }
    };
    let access = group.flags & 3;
    // Opened anew, so that reading flags of ours do not become the parent's.
    let path = context.path(group);
    let mode = if access == WRITE_ONLY { OFlags::WRONLY } else { OFlags::RDONLY };
    let flags = mode | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = rustix::fs::open(&path, flags, Mode::empty()).map_err(fail("open"))?;
    let capacity = rustix::pipe::fcntl_getpipe_size(&pipe).map_err(fail("F_GETPIPE_SZ"))? as u32;
    let mut content = Vec::new();
    let first = is_first_reader(context, group);
    if first && rustix::io::ioctl_fionread(&pipe).map_err(fail("FIONREAD"))? > 0 {
        content = peek(&pipe, capacity as usize).map_err(fail("tee"))?;
    }
    encode(KIND.number, &Body { inode, access, capacity, content }).map(Some)
}

/// Access modes of open(2).
const READ_ONLY: u32 = 0;
const WRITE_ONLY: u32 = 1;

/// The inode of a FIFO with a path.
fn fifo_inode(context: &Capture<'_>, group: &Group) -> Option<u64> {
    let named = group.link.starts_with('/') && group.flags & PATH == 0;
    let stat = rustix::fs::stat(context.path(group));
    let stat = stat.ok().filter(|_| named)?;
    let fifo = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo;
    fifo.then_some(stat.st_ino)
}

/// Of several descriptions that can read one pipe the first brings what is in it.
fn is_first_reader(context: &Capture<'_>, group: &Group) -> bool {
    context.first_reader(&group.link) == Some(group.first())
}

/// O_PATH.
const PATH: u32 = 0o10_000_000;

/// Copies what is buffered without consuming it (tee(2)).
fn peek(pipe: &std::os::fd::OwnedFd, capacity: usize) -> Result<Vec<u8>, rustix::io::Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Buffers are counted in pages, not bytes; a bigger capacity may be forbidden, then tee stops.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, capacity);
    let count = rustix::pipe::tee(pipe, &writer, capacity, SpliceFlags::NONBLOCK)?;
    let mut bytes = vec![0u8; count];
    let mut done = 0;
    while done < count {
        done += rustix::io::read(&reader, &mut bytes[done..])?;
    }
    Ok(bytes)
}

const PIPE2: u16 = 293;
const WRITE: u16 = 1;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const F_SETPIPE_SZ: u64 = 1031;
const OPENAT: u16 = 257;
const AT_FDCWD: u64 = -100i64 as u64;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC: about the moment of opening.
const CREATING: u32 = 0o100 | 0o200 | 0o400 | 0o1000;
const DEFAULT_CAPACITY: u32 = 65536;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    if !files.done.insert(body.inode) {
        return Ok(());
    }
    let ends = files.of_object(KIND.number, body.inode).into_iter();
    let with_body = |end: OpenFile| decode(&end).map(|body| (end, body));
    let all = ends.map(with_body).collect::<Result<Vec<(OpenFile, Body)>, StateError>>()?;
    let fresh = files.lowest(2);
    let place = files.program.words(&[0]);
    let first = file.fds[0].0;
    files.program.call(List::Build, PIPE2, &[place, 0], "files: pipe", Detail::Fd(first));
    files.park(&fresh);
    let ends = [files.high, files.high + 1];
    let [read_end, write_end] = ends.map(u64::from);
    if body.capacity != DEFAULT_CAPACITY {
        let args = [write_end, F_SETPIPE_SZ, u64::from(body.capacity)];
        files.program.call_ignore(List::Build, FCNTL, &args, "files: F_SETPIPE_SZ");
    }
    if let Some((_, body)) = all.iter().find(|(_, body)| !body.content.is_empty()) {
        let data = files.program.data(&body.content);
        let len = body.content.len() as u64;
        let args = [write_end, data, len];
        let what = "files: fill pipe";
        files.program.call_expect(List::Build, WRITE, &args, len, what, Detail::Fd(first));
    }
    let mut free = [true; 2];
    for (file, body) in &all {
        let end = usize::from(body.access == WRITE_ONLY);
        let plain = body.access == READ_ONLY || body.access == WRITE_ONLY;
        if plain && std::mem::replace(&mut free[end], false) {
            let args = [[read_end, write_end][end], F_SETFL, u64::from(file.flags)];
            files.program.call(List::Build, FCNTL, &args, "files: F_SETFL", Detail::Fd(first));
            for &(fd, cloexec) in &file.fds {
                files.dup(ends[end], fd, cloexec);
            }
        } else {
            reopen(files, file, ends[end]);
        }
    }
    // An end that nobody has is outside: closed.
    ends.iter().for_each(|&end| files.close(end));
    Ok(())
}

/// Which pipe it is.
pub(super) fn inode(file: &OpenFile) -> Result<u64, StateError> {
    decode::<Body>(file).map(|body| body.inode)
}

/// Another description of an end, or one of both.
fn reopen(files: &mut Files<'_>, file: &OpenFile, end: u32) {
    const O_NONBLOCK: u64 = 0o4000;
    let (fd, at) = (file.fds[0].0, files.lowest(1)[0]);
    let path = files.program.string(&format!("/proc/self/fd/{end}"));
    // Not to wait for whoever would open the other end.
    let flags = u64::from(file.flags & !CREATING) | O_NONBLOCK;
    let args = [AT_FDCWD, path, flags, 0];
    let (list, what) = (List::Build, "files: open the pipe again");
    files.program.call_expect(list, OPENAT, &args, u64::from(at), what, Detail::Fd(fd));
    files.settle(file, at);
    files.call(FCNTL, &[u64::from(fd), F_SETFL, u64::from(file.flags)], "files: F_SETFL", fd);
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let end = ["read end", "write end"].get(body.access as usize).unwrap_or(&"both ends");
    Ok(format!("{}, {end}, {} bytes in it", body.inode, body.content.len()))
}
