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
    writer: bool,
    capacity: u32,
    /// What is buffered; only at the reading end.
    content: Vec<u8>,
}

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let inode = inode_of(&group.link, "pipe").or_else(|| fifo_inode(context, group));
    let Some(inode) = inode else { return Ok(None) };
    if group.flags & 3 == 2 {
        return Err(group.refused("a pipe opened for reading and writing"));
    }
    if shares_its_end(context, group) {
        return Err(group.refused("a pipe with an end that was opened twice"));
    }
    let fail = |call| {
        let fd = group.first();
        move |e: rustix::io::Errno| StateError::Sys { fd, source: SysError::io(call, fd, e) }
    };
    let writer = group.flags & 3 == 1;
    // Opened anew, so that reading flags of ours do not become the parent's.
    let path = format!("/proc/{}/fd/{}", context.pid, group.first());
    let mode = if writer { OFlags::WRONLY } else { OFlags::RDONLY };
    let flags = mode | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = rustix::fs::open(&path, flags, Mode::empty()).map_err(fail("open"))?;
    let capacity = rustix::pipe::fcntl_getpipe_size(&pipe).map_err(fail("F_GETPIPE_SZ"))? as u32;
    let mut content = Vec::new();
    if !writer && rustix::io::ioctl_fionread(&pipe).map_err(fail("FIONREAD"))? > 0 {
        content = peek(&pipe, capacity as usize).map_err(fail("tee"))?;
    }
    encode(KIND.number, &Body { inode, writer, capacity, content }).map(Some)
}

/// The inode of a FIFO with a path.
fn fifo_inode(context: &Capture<'_>, group: &Group) -> Option<u64> {
    let named = group.link.starts_with('/') && group.flags & PATH == 0;
    let stat = rustix::fs::stat(format!("/proc/{}/fd/{}", context.pid, group.first()));
    let stat = stat.ok().filter(|_| named)?;
    let fifo = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo;
    fifo.then_some(stat.st_ino)
}

/// Whether another description is the same end of the same pipe: a plan makes one of each.
fn shares_its_end(context: &Capture<'_>, group: &Group) -> bool {
    let same = |other: &&Group| other.link == group.link && other.flags & 3 == group.flags & 3;
    context.groups.iter().filter(same).count() > 1
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
const DEFAULT_CAPACITY: u32 = 65536;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    if !files.done.insert(body.inode) {
        return Ok(());
    }
    let mut other = None;
    for candidate in files.all.iter().filter(|f| f.kind == KIND.number) {
        let theirs: Body = decode(candidate)?;
        if theirs.inode == body.inode && theirs.writer != body.writer {
            other = Some((candidate.clone(), theirs));
        }
    }
    let (reading, writing) =
        if body.writer { (other.as_ref(), None) } else { (None, other.as_ref()) };
    let reader = if body.writer { reading.map(|(f, b)| (f, b)) } else { Some((file, &body)) };
    let writer = if body.writer { Some(file) } else { writing.map(|(f, _)| f) };
    let fresh = files.lowest(2);
    let place = files.program.words(&[0]);
    let first = file.fds[0].0;
    files.program.call(List::Build, PIPE2, &[place, 0], "files: pipe", Detail::Fd(first));
    files.park(&fresh);
    let (read_end, write_end) = (u64::from(files.high), u64::from(files.high) + 1);
    if body.capacity != DEFAULT_CAPACITY {
        let args = [write_end, F_SETPIPE_SZ, u64::from(body.capacity)];
        files.program.call_ignore(List::Build, FCNTL, &args, "files: F_SETPIPE_SZ");
    }
    if let Some((_, body)) = reader.filter(|(_, body)| !body.content.is_empty()) {
        let data = files.program.data(&body.content);
        let len = body.content.len() as u64;
        let args = [write_end, data, len];
        let what = "files: fill pipe";
        files.program.call_expect(List::Build, WRITE, &args, len, what, Detail::Fd(first));
    }
    for (end, flags) in
        [(read_end, reader.map(|r| r.0.flags)), (write_end, writer.map(|w| w.flags))]
    {
        if let Some(flags) = flags {
            let args = [end, F_SETFL, u64::from(flags)];
            files.program.call(List::Build, FCNTL, &args, "files: F_SETFL", Detail::Fd(first));
        }
    }
    let (reader, writer) = (reader.map(|r| r.0.clone()), writer.cloned());
    spread_or_close(files, reader.as_ref(), 0);
    spread_or_close(files, writer.as_ref(), 1);
    Ok(())
}

fn spread_or_close(files: &mut Files<'_>, file: Option<&OpenFile>, index: u32) {
    match file {
        Some(file) => files.spread(file, index),
        None => files.close(files.high + index),
    }
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let end = if body.writer { "write" } else { "read" };
    Ok(format!("{}, {end} end, {} bytes in it", body.inode, body.content.len()))
}
