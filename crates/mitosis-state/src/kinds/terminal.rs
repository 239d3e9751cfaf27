//! Pseudo-terminals (pty(7)): both ends, with their number, modes, size and the flags of each.
//!
//! A child gets a file system of its own at `/dev/pts`, where the numbers are free. An end that is
//! not the process's follows the rule of pipes: to the child it is closed, so that reading a master
//! gives EIO and a slave is hung up. What is typed or written but not read stays with the parent: it
//! cannot be seen without being taken, and what was put back would be typed anew, with all that a
//! terminal does with it (echo, signals, other ends of lines).

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List, Program};
use crate::{Group, Provided, StateError};
use mitosis_descriptor::{OpenFile, TERMINAL_MAX};
use mitosis_sys::{openfile, procfs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The kind.
pub const KIND: Kind = Kind { number: 35, name: "terminal", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    index: u32,
    master: bool,
    /// The slave's device node: owner, group, permissions.
    node: (u32, u32, u32),
    /// `struct termios2`.
    modes: Vec<u8>,
    /// `struct winsize`.
    size: Vec<u8>,
    locked: bool,
    packet: bool,
    exclusive: bool,
    /// It is the process's controlling terminal.
    controls: bool,
}

/// A child opens all masters below one to get its number.
const INDEX_MAX: u32 = TERMINAL_MAX;
/// The first device of slaves (Documentation/admin-guide/devices.txt: 136 to 143).
const SLAVE_MAJOR: u32 = 136;

const TIOCGPTN: u64 = 0x8004_5430;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGEXCL: u64 = 0x8004_5440;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let link = group.link.strip_suffix(" (deleted)").unwrap_or(&group.link);
    let master = matches!(link, "/dev/ptmx" | "/dev/pts/ptmx");
    let slave = link.strip_prefix("/dev/pts/").and_then(|number| number.parse::<u32>().ok());
    if !master && slave.is_none() && link != "/dev/tty" {
        return Ok(None);
    }
    let fail = |source| StateError::Sys { fd: group.first(), source };
    let file = context.duplicate(group)?;
    let control = controlling(context.pid);
    let index = match (master, slave) {
        (true, _) => openfile::int_of(&file, TIOCGPTN).map_err(fail)? as u32,
        (false, Some(index)) => index,
        (false, None) => control
            .ok_or_else(|| group.refused("/dev/tty of a terminal that is no pseudo-terminal"))?,
    };
    if index > INDEX_MAX {
        return Err(group.refused(format!("pseudo-terminal {index}, above {INDEX_MAX}")));
    }
    let node = rustix::fs::stat(format!("/proc/{}/root/dev/pts/{index}", context.pid));
    let node = node.map_or((0, 5, 0o620), |stat| (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777));
    let on = |request| openfile::int_of(&file, request).is_ok_and(|value| value != 0);
    let body = Body {
        index,
        master,
        node,
        // A slave that is hung up has none any more.
        modes: openfile::terminal_modes(&file).map_or_else(|_| Vec::new(), |modes| modes.to_vec()),
        size: openfile::terminal_size(&file).map_or_else(|_| Vec::new(), |size| size.to_vec()),
        locked: master && on(TIOCGPTLCK),
        packet: master && on(TIOCGPKT),
        exclusive: on(TIOCGEXCL),
        // Of a tree it is given to whoever leads the session: see `Share::terminal`.
        controls: !master && control == Some(index) && !context.in_tree(),
    };
    encode(KIND.number, &body).map(Some)
}

/// Number of the slave that is the process's controlling terminal.
pub(crate) fn controlling(pid: i32) -> Option<u32> {
    let device = procfs::stat_field(&procfs::stat(pid).ok()?, 7) as u32;
    // Major in bits 8 to 19, minor in the others (proc(5)).
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    let first = SLAVE_MAJOR..SLAVE_MAJOR + 8;
    first.contains(&major).then(|| (major - SLAVE_MAJOR) * 256 + minor)
}

const IOCTL: u16 = 16;
const OPENAT: u16 = 257;
const MOUNT: u16 = 165;
const FCHOWN: u16 = 93;
const FCHMOD: u16 = 91;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const AT_FDCWD: u64 = -100i64 as u64;
const O_RDWR_NOCTTY_CLOEXEC: u64 = 2 | 0o400 | 0o2_000_000;
const NOSUID_NOEXEC: u64 = 2 | 8;
const TCSETS2: u64 = 0x402c_542b;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCPKT: u64 = 0x5420;
const TIOCEXCL: u64 = 0x540c;
const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const SIGPROCMASK: u16 = 14;
const SIG_BLOCK: u64 = 0;
const SIGTTOU: u64 = 22;
/// O_CREAT, O_EXCL, O_TRUNC: about the moment of opening.
const OPENING_ONLY: u32 = 0o100 | 0o200 | 0o1000;
/// What of `Files::done` belongs to this kind: no inode has this number.
const ALL_DONE: u64 = u64::MAX;

/// All terminals at once: their numbers are given in order.
fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    if !files.done.insert(ALL_DONE) {
        return Ok(());
    }
    let mut ends: Vec<(OpenFile, Body)> = Vec::new();
    for candidate in files.all.iter().filter(|f| f.kind == KIND.number) {
        ends.push((candidate.clone(), decode(candidate)?));
    }
    let indices: BTreeSet<u32> = ends.iter().map(|(_, body)| body.index).collect();
    let last = indices.last().copied().unwrap_or(0);
    if last > INDEX_MAX {
        let reason = format!("pseudo-terminal {last}");
        return Err(StateError::Malformed { kind: KIND.number, reason });
    }
    if files.place.is_some() {
        // They were there before the processes of the tree, of which any may be in a session that one
        // of them controls.
        stay_in_background(files.program);
        for &index in &indices {
            let mine: Vec<&(OpenFile, Body)> = ends.iter().filter(|e| e.1.index == index).collect();
            let master = files.provide(Provided::Terminal(index));
            pair(files, master, index, &mine);
        }
        return Ok(());
    }
    mount(files, file.fds[0].0);
    for index in 0..=last {
        let at = files.lowest(1)[0];
        let path = files.program.string("/dev/pts/ptmx");
        let args = [AT_FDCWD, path, O_RDWR_NOCTTY_CLOEXEC, 0];
        let detail = Detail::Text(format!("for terminal {index}"));
        let what = "files: open /dev/pts/ptmx";
        files.program.call_expect(List::Build, OPENAT, &args, u64::from(at), what, detail);
        files.park(&[at]);
    }
    for &index in &indices {
        let mine: Vec<&(OpenFile, Body)> = ends.iter().filter(|e| e.1.index == index).collect();
        pair(files, files.high + index, index, &mine);
    }
    (0..=last).for_each(|index| files.close(files.high + index));
    Ok(())
}

/// Whoever changes a terminal from the background would be stopped (termios(3), SIGTTOU). The signal
/// mask becomes the parent's when a child goes on.
fn stay_in_background(program: &mut Program) {
    let mask = program.words(&[1 << (SIGTTOU - 1)]);
    let args = [SIG_BLOCK, mask, 0, 8];
    program.call(List::Build, SIGPROCMASK, &args, "files: block SIGTTOU", Detail::None);
}

/// In a process that leads a session of its tree: which group is in the foreground of its terminal.
/// All groups are there.
pub(super) fn foreground(files: &mut Files<'_>) {
    let Some(terminal) = files.place.and_then(|place| place.terminal) else { return };
    if terminal.foreground == 0 {
        return;
    }
    stay_in_background(files.program);
    let (at, list) = (files.lowest(1)[0], List::Build);
    let path = format!("/dev/pts/{}", terminal.index);
    let (name, detail) = (files.program.string(&path), || Detail::Text(path.clone()));
    let args = [AT_FDCWD, name, O_RDWR_NOCTTY_CLOEXEC, 0];
    let what = "files: open controlling terminal";
    files.program.call_expect(list, OPENAT, &args, u64::from(at), what, detail());
    let group = files.program.words(&[terminal.foreground as u64]);
    let args = [u64::from(at), TIOCSPGRP, group];
    files.program.call(list, IOCTL, &args, "files: TIOCSPGRP", detail());
    files.close(at);
}

fn mount(files: &mut Files<'_>, fd: u32) {
    let kind = files.program.string("devpts");
    let at = files.program.string("/dev/pts");
    let how = files.program.string("newinstance,ptmxmode=0666,mode=0620,gid=5");
    let args = [kind, at, kind, NOSUID_NOEXEC, how];
    files.call(MOUNT, &args, "files: mount /dev/pts", fd);
}

/// One terminal, whose master is at `master`.
fn pair(files: &mut Files<'_>, master: u32, index: u32, ends: &[&(OpenFile, Body)]) {
    let me = u64::from(master);
    let set = |files: &mut Files<'_>, request: u64, bytes: &[u8], what| {
        let at = files.program.data(bytes);
        files.call(IOCTL, &[me, request, at], what, master);
    };
    set(files, TIOCSPTLCK, &0u32.to_le_bytes(), "files: unlock terminal");
    let slaves = ends.iter().filter(|(_, body)| !body.master);
    let masters = ends.iter().filter(|(_, body)| body.master);
    let path = files.program.string(&format!("/dev/pts/{index}"));
    for (file, body) in slaves {
        open_slave(files, file, body, path);
    }
    if !ends.iter().any(|(_, body)| !body.master) {
        // Opened and closed once: to the master the other end is gone, not yet to come.
        let at = files.lowest(1)[0];
        let args = [AT_FDCWD, path, O_RDWR_NOCTTY_CLOEXEC, 0];
        files.call(OPENAT, &args, "files: open terminal", master);
        files.close(at);
    }
    for (file, body) in masters {
        if body.packet {
            set(files, TIOCPKT, &1u32.to_le_bytes(), "files: TIOCPKT");
        }
        if body.exclusive {
            files.call(IOCTL, &[me, TIOCEXCL, 0], "files: TIOCEXCL", master);
        }
        let args = [me, F_SETFL, u64::from(file.flags)];
        files.call(FCNTL, &args, "files: F_SETFL", master);
        for &(fd, cloexec) in &file.fds {
            files.dup(master, fd, cloexec);
        }
    }
    // Either end tells and sets what belongs to both.
    let modes = ends.iter().map(|(_, body)| &body.modes).find(|modes| modes.len() == 44);
    let size = ends.iter().map(|(_, body)| &body.size).find(|size| size.len() == 8);
    if let Some(modes) = modes {
        set(files, TCSETS2, modes, "files: TCSETS2");
    }
    if let Some(size) = size {
        set(files, TIOCSWINSZ, size, "files: TIOCSWINSZ");
    }
    if ends.iter().any(|(_, body)| body.locked) {
        set(files, TIOCSPTLCK, &1u32.to_le_bytes(), "files: lock terminal");
    }
}

fn open_slave(files: &mut Files<'_>, file: &OpenFile, body: &Body, path: u64) {
    let (fd, at) = (file.fds[0].0, files.lowest(1)[0]);
    let me = u64::from(at);
    let flags = u64::from(file.flags & !OPENING_ONLY) | O_RDWR_NOCTTY_CLOEXEC & !2;
    let args = [AT_FDCWD, path, flags, 0];
    let what = "files: open terminal";
    files.program.call_expect(List::Build, OPENAT, &args, me, what, Detail::Fd(fd));
    let (user, group, mode) = body.node;
    let args = [me, u64::from(user), u64::from(group)];
    files.call(FCHOWN, &args, "files: fchown terminal", fd);
    files.call(FCHMOD, &[me, u64::from(mode)], "files: fchmod terminal", fd);
    if body.exclusive {
        files.call(IOCTL, &[me, TIOCEXCL, 0], "files: TIOCEXCL", fd);
    }
    files.settle(file, at);
    if body.controls {
        // The child leads its session by then.
        let args = [u64::from(fd), TIOCSCTTY, 0];
        let what = "files: TIOCSCTTY";
        files.program.call(List::Finish, IOCTL, &args, what, Detail::Fd(fd));
    }
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let end = if body.master { "master" } else { "slave" };
    Ok(format!("{end} of pseudo-terminal {}", body.index))
}
