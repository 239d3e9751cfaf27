//! inotify(7): every watch with its number and mask, on the child's node's file of that path.
//!
//! The kernel knows the watched file, not its path: it is found by the file's handle, on a mount of
//! the parent, or among what the process has open. Where nothing leads to it any more it has been
//! deleted, and a child is told that it is gone. Events that nobody has read cannot be seen without
//! being taken: they stay with the parent, whose node's files they tell of.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;
use mitosis_sys::{openfile, procfs};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 30, name: "inotify", capture, plan, describe };

/// How the kernel names one.
const LINKS: [&str; 2] = ["anon_inode:inotify", "anon_inode:[inotify]"];

#[derive(Serialize, Deserialize)]
struct Watch {
    number: u32,
    mask: u32,
    /// Empty where none leads there.
    path: String,
}

/// What inotify_add_watch(2) takes and the kernel keeps: all events, ONLYDIR, EXCL_UNLINK, ONESHOT.
const MASK_KEPT: u32 = 0xfff | 0x0100_0000 | 0x0400_0000 | 0x8000_0000;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if !LINKS.contains(&group.link.as_str()) {
        return Ok(None);
    }
    let mut watches = Vec::new();
    for line in group.info.lines().filter(|line| line.starts_with("inotify ")) {
        let seen = parse(line);
        let seen = seen.ok_or_else(|| group.refused(format!("an inotify with `{line}`")))?;
        let path = path_of(context.pid, &seen).or_else(|| open_at(context, &seen));
        let path = path.unwrap_or_default();
        watches.push(Watch { number: seen.number, mask: seen.mask & MASK_KEPT, path });
    }
    watches.sort_by_key(|watch| watch.number);
    encode(KIND.number, &watches).map(Some)
}

/// A line of fdinfo.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    number: u32,
    inode: u64,
    /// Major and minor number, as `statx` and `mountinfo` have them.
    device: (u32, u32),
    mask: u32,
    handle_kind: i32,
    handle: Vec<u8>,
}

/// `inotify wd:1 ino:2a sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1
/// f_handle:2a00000000000000`, all in hexadecimal.
fn parse(line: &str) -> Option<Seen> {
    let after = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let number = |key: &str| u64::from_str_radix(after(key)?, 16).ok();
    let device = number("sdev:")?;
    let text = after("f_handle:")?;
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    Some(Seen {
        number: number("wd:")? as u32,
        inode: number("ino:")?,
        device: ((device >> 20) as u32, (device & 0xf_ffff) as u32),
        mask: number("mask:")? as u32,
        handle_kind: number("fhandle-type:")? as i32,
        handle: (0..text.len()).step_by(2).map(byte).collect::<Option<_>>()?,
    })
}

/// Looks on each mount of the file's device.
fn path_of(pid: i32, seen: &Seen) -> Option<String> {
    let mounts = procfs::text(pid, "mountinfo").ok()?;
    let device = format!("{}:{}", seen.device.0, seen.device.1);
    let points = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next()? == device).then_some(())?;
        words.nth(1)
    });
    points.filter_map(|point| path_on(pid, point, seen)).next()
}

/// A file that was deleted may be open: then it is what a child has open there.
fn open_at(context: &Capture<'_>, seen: &Seen) -> Option<String> {
    let (major, minor) = seen.device;
    let same = |group: &&Group| {
        let stat = rustix::fs::stat(format!("/proc/{}/fd/{}", context.pid, group.first()));
        stat.is_ok_and(|stat| {
            let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
            (stat.st_ino, device) == (seen.inode, (major, minor))
        })
    };
    let group = context.groups.iter().find(same)?;
    Some(format!("/proc/self/fd/{}", group.first()))
}

fn path_on(pid: i32, mount_point: &str, seen: &Seen) -> Option<String> {
    let root = format!("/proc/{pid}/root");
    let point = mount_point.replace("\\040", " ");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mount = rustix::fs::open(format!("{root}{point}"), flags, Mode::empty()).ok()?;
    let file = openfile::by_handle(&mount, seen.handle_kind, &seen.handle).ok()?;
    let link = procfs::link(
        std::process::id() as i32,
        &format!("fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)),
    );
    let path = link.ok().filter(|path| path.starts_with('/'))?;
    // Of several names, or of one in another mount namespace, only one that leads there is of use.
    let leads = |to: String| rustix::fs::lstat(to).is_ok_and(|stat| stat.st_ino == seen.inode);
    (leads(format!("{root}{path}")) || leads(path.clone())).then_some(path)
}

const INOTIFY_INIT1: u16 = 294;
const INOTIFY_ADD_WATCH: u16 = 254;
const IOCTL: u16 = 16;
const MEMFD_CREATE: u16 = 319;
/// _IOW('I', 0, __s32), since Linux 4.17, of kernels with CONFIG_CHECKPOINT_RESTORE.
const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
const IN_ONLYDIR: u32 = 0x0100_0000;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    decode::<Vec<Watch>>(file)?;
    let args = [u64::from(file.flags & NONBLOCK)];
    let label = Detail::Fd(file.fds[0].0);
    files.make(file, INOTIFY_INIT1, &args, "files: inotify_init1", label);
    Ok(())
}

/// Adds the watches when all is open: they are not to tell of that.
pub(super) fn watch(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let watches: Vec<Watch> = decode(file)?;
    let fd = file.fds[0].0;
    let me = u64::from(fd);
    for watch in watches {
        let number = u64::from(watch.number);
        let args = [me, INOTIFY_IOC_SETNEXTWD, number];
        files.call(IOCTL, &args, "files: INOTIFY_IOC_SETNEXTWD", fd);
        if watch.path.is_empty() {
            gone(files, &watch, fd);
        } else {
            add(files, &watch, fd, &watch.path);
        }
    }
    Ok(())
}

fn add(files: &mut Files<'_>, watch: &Watch, fd: u32, path: &str) {
    let (mask, number) = (u64::from(watch.mask), u64::from(watch.number));
    let detail = Detail::Text(format!("{path} for fd {fd}"));
    let args = [u64::from(fd), files.program.string(path), mask];
    let what = "files: inotify_add_watch";
    files.program.call_expect(List::Build, INOTIFY_ADD_WATCH, &args, number, what, detail);
}

/// The watch is of a file that is gone at once, which is what it then tells.
fn gone(files: &mut Files<'_>, watch: &Watch, fd: u32) {
    let at = files.lowest(1)[0];
    let name = files.program.string("gone");
    let (what, label) = ("files: memfd_create", Detail::Fd(fd));
    let args = [name, 0];
    files.program.call_expect(List::Build, MEMFD_CREATE, &args, u64::from(at), what, label);
    let mask = watch.mask & !IN_ONLYDIR;
    let of_file = Watch { number: watch.number, mask, path: String::new() };
    add(files, &of_file, fd, &format!("/proc/self/fd/{at}"));
    files.close(at);
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let watches: Vec<Watch> = decode(file)?;
    let paths: Vec<&str> = watches.iter().map(|watch| watch.path.as_str()).collect();
    Ok(format!("watches {}", paths.join(", ")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_watch_parses() {
        let line = "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 \
                    fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let seen = super::parse(line).expect("a watch");
        assert_eq!((seen.number, seen.inode, seen.device), (3, 0x9e7e, (8, 0x13)));
        assert_eq!((seen.mask, seen.handle_kind, seen.handle.len()), (0x800_afce, 1, 8));
        assert_eq!(super::parse("inotify wd:1 ino:2 sdev:3 mask:4"), None);
    }
}
