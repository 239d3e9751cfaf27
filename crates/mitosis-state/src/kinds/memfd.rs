//! memfd_create(2), and files and directories that have been deleted: no path leads to them, so their bytes go
//! along, those that are not zero. So do those of files that are memory of a machine's own: see
//! [`crate::shm`].

use super::{Capture, Files, Kind, decode, encode};
use crate::program::{Detail, List};
use crate::{Group, StateError, deleted, shm};
use mitosis_descriptor::{DeletedDirectory, OpenFile, SharedName};
use mitosis_sys::SysError;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 10, name: "memfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    /// Device and inode: descriptions of one file stay descriptions of one file.
    file: (u64, u64),
    name: String,
    seals: u32,
    mode: u32,
    size: u64,
    pos: u64,
    /// Its name, if it has one.
    at: Option<SharedName>,
    /// What it is like, if it is a directory.
    directory: Option<DeletedDirectory>,
    /// Offset and bytes of what is not zero.
    content: Vec<(u64, Vec<u8>)>,
}

/// Content is cut at blocks of zeros of this size.
const BLOCK: usize = 4096;
/// O_PATH.
const PATH: u32 = 0o10_000_000;
/// Longest name that memfd_create(2) takes.
const NAME_BYTES_MAX: usize = 249;

fn capture(context: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    let link = context.path(group);
    let deleted = group.link.strip_suffix(" (deleted)").filter(|path| path.starts_with('/'));
    let Some(path) = deleted.or_else(|| of_machine(&link, group)) else { return Ok(None) };
    let name =
        path.strip_prefix("/memfd:").unwrap_or_else(|| path.rsplit('/').next().unwrap_or(""));
    let fail = |call| {
        let fd = group.first();
        move |e: rustix::io::Errno| StateError::Sys { fd, source: SysError::io(call, fd, e) }
    };
    // Opened anew: the parent's may be for writing only, and its offset is not to be touched.
    let stat = rustix::fs::stat(&link).map_err(fail("stat"))?;
    let directory = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile => None,
        rustix::fs::FileType::Directory => deleted::look(&link),
        // A FIFO's name says nothing of who has its ends.
        rustix::fs::FileType::Fifo if group.flags & PATH == 0 => return Ok(None),
        _ => return Err(group.refused(format!("{}, which is no regular file", group.link))),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(&link, flags, Mode::empty()).map_err(fail("open"))?;
    let fail = |e| StateError::Sys { fd: group.first(), source: SysError::io("stat", &link, e) };
    let meta = std::fs::metadata(&link).map_err(fail)?;
    let at = shm::named(context.place(group).0, &group.link, &meta);
    let seals = rustix::fs::fcntl_get_seals(&file).map_or(SEAL_SEAL, |seals| seals.bits());
    let mapped = context.shared_mappings(stat.st_dev, stat.st_ino);
    let content = match directory {
        Some(_) => Vec::new(),
        None => content(&file, stat.st_size as u64, &mapped, context.content_max, group)?,
    };
    let body = Body {
        file: (stat.st_dev, stat.st_ino),
        name: name.into(),
        seals,
        mode: stat.st_mode & 0o7777,
        size: stat.st_size as u64,
        pos: group.pos,
        at,
        directory,
        content,
    };
    encode(KIND.number, &body).map(Some)
}

/// The name of a file that has one and is memory of the machine all the same.
fn of_machine<'a>(link: &str, group: &'a Group) -> Option<&'a str> {
    let named = group.flags & PATH == 0 && group.link.starts_with('/');
    if !named || !shm::is_named(&group.link) && !shm::is_huge(link) {
        return None;
    }
    std::fs::metadata(link).is_ok_and(|meta| meta.is_file()).then_some(&group.link)
}

/// What is not zero and not mapped; refused where that is too much.
fn content(
    file: &std::os::fd::OwnedFd,
    size: u64,
    mapped: &[(u64, u64)],
    max: u64,
    group: &Group,
) -> Result<Vec<(u64, Vec<u8>)>, StateError> {
    let mut content: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut taken = 0;
    let mut at = 0;
    let mut block = [0u8; BLOCK];
    while at < size {
        // Holes are passed over without being read; ENXIO says that only a hole is left.
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = at.max(data / BLOCK as u64 * BLOCK as u64),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        if let Some((_, end)) = mapped.iter().find(|(start, end)| *start <= at && at < *end) {
            at = *end;
            continue;
        }
        let got = rustix::io::pread(file, &mut block, at).map_err(|e| StateError::Sys {
            fd: group.first(),
            source: SysError::io("pread", at, e),
        })?;
        if got == 0 {
            break;
        }
        let bytes = &block[..got];
        if bytes.iter().any(|byte| *byte != 0) {
            taken += got as u64;
            if taken > max {
                let what = format!("{} with more than {} MiB in it", group.link, max >> 20);
                let hint = ": see --content-max";
                return Err(StateError::Refused { fd: group.first(), what, hint });
            }
            match content.last_mut().filter(|(from, part)| from + part.len() as u64 == at) {
                Some((_, part)) => part.extend(bytes),
                None => content.push((at, bytes.to_vec())),
            }
        }
        at += got as u64;
    }
    Ok(content)
}

const MEMFD_CREATE: u16 = 319;
const MFD_ALLOW_SEALING: u64 = 2;
const SEAL_SEAL: u32 = 1;
const FTRUNCATE: u16 = 77;
const PWRITE64: u16 = 18;
const LSEEK: u16 = 8;
const FCHMOD: u16 = 91;
const FCHOWN: u16 = 93;
const FCNTL: u16 = 72;
const F_SETFL: u64 = 4;
const F_ADD_SEALS: u64 = 1033;
const OPENAT: u16 = 257;
const AT_FDCWD: u64 = -100i64 as u64;
const O_NOFOLLOW: u64 = 0o400_000;
const ACCESS_MODE: u32 = 3;
const READ_WRITE: u32 = 2;
/// O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC are about the moment of opening only.
const OPENING_ONLY: u32 = 0o100 | 0o200 | 0o400 | 0o1000;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let flags = u64::from(file.flags & !OPENING_ONLY);
    let first = first_of(&body, files)?.unwrap_or(fd);
    let object = files.objects.get(&body.file).copied();
    match object {
        Some(object) if first == fd => fill(object, files, &body),
        None if first == fd => make(file, files, &body)?,
        _ => {}
    }
    let source = object.unwrap_or(first);
    if object.is_none() && first == fd && file.flags & ACCESS_MODE == READ_WRITE {
        files.call(FCNTL, &[u64::from(fd), F_SETFL, flags], "files: F_SETFL", fd);
    } else {
        let path = files.program.string(&format!("/proc/self/fd/{source}"));
        // The path is a link, whatever the parent's was not to be.
        let args = [AT_FDCWD, path, flags & !O_NOFOLLOW, 0];
        files.make(file, OPENAT, &args, "files: open memfd", Detail::Fd(fd));
    }
    if body.pos != 0 {
        files.call(LSEEK, &[u64::from(fd), body.pos, 0], "files: lseek", fd);
    }
    Ok(())
}

/// The first descriptor that names the same file: it is planned first.
fn first_of(body: &Body, files: &Files<'_>) -> Result<Option<u32>, StateError> {
    for candidate in files.of_object(KIND.number, body.file.1) {
        let theirs: Body = decode(&candidate)?;
        if theirs.file == body.file {
            return Ok(Some(candidate.fds[0].0));
        }
    }
    Ok(None)
}

/// Which file it is, but for its device.
pub(super) fn inode(file: &OpenFile) -> Result<u64, StateError> {
    decode::<Body>(file).map(|body| body.file.1)
}

/// The file with its content, at the numbers of `file`.
fn make(file: &OpenFile, files: &mut Files<'_>, body: &Body) -> Result<(), StateError> {
    if let Some(directory) = &body.directory {
        return make_directory(file, files, directory);
    }
    if body.name.len() > NAME_BYTES_MAX {
        let reason = "a name that is too long".into();
        return Err(StateError::Malformed { kind: KIND.number, reason });
    }
    let fd = file.fds[0].0;
    let label = Detail::Text(format!("{} for fd {fd}", body.name));
    if let Some(at) = &body.at {
        let args = shm::create(files.program, at)
            .map_err(|reason| StateError::Malformed { kind: KIND.number, reason })?;
        files.make(file, OPENAT, &args, "files: make shared memory", label);
        let args = [u64::from(fd), u64::from(at.uid), u64::from(at.gid)];
        files.call(FCHOWN, &args, "files: fchown", fd);
    } else {
        let name = files.program.string(&body.name);
        let sealing = if body.seals == SEAL_SEAL { 0 } else { MFD_ALLOW_SEALING };
        files.make(file, MEMFD_CREATE, &[name, sealing], "files: memfd_create", label);
    }
    files.call(FTRUNCATE, &[u64::from(fd), body.size], "files: ftruncate", fd);
    fill(fd, files, body);
    Ok(())
}

/// An empty directory that is deleted, too.
fn make_directory(
    file: &OpenFile,
    files: &mut Files<'_>,
    directory: &DeletedDirectory,
) -> Result<(), StateError> {
    let malformed = |e: mitosis_descriptor::DescriptorError| StateError::Malformed {
        kind: KIND.number,
        reason: e.to_string(),
    };
    directory.validate().map_err(malformed)?;
    let free = files.lowest(3);
    deleted::make(files.program, [free[0], free[1], free[2]], directory);
    files.park(&free[2..]);
    files.spread(file, 0);
    Ok(())
}

/// The first number of an open file that is this directory.
pub fn number_of(directory: &DeletedDirectory, files: &[OpenFile]) -> Option<u32> {
    let candidates = files.iter().filter(|file| file.kind == KIND.number);
    let is_it = |file: &&OpenFile| {
        decode::<Body>(file)
            .is_ok_and(|body| body.directory.is_some_and(|d| d.file == directory.file))
    };
    candidates.filter(is_it).find_map(|file| file.fds.first().map(|(number, _)| *number))
}

/// Content, permissions and seals of the file that is open at `fd`.
fn fill(fd: u32, files: &mut Files<'_>, body: &Body) {
    let me = u64::from(fd);
    for (at, bytes) in &body.content {
        let len = bytes.len() as u64;
        let data = files.program.data(bytes);
        let (list, label) = (List::Build, Detail::Fd(fd));
        let args = [me, data, len, *at];
        files.program.call_expect(list, PWRITE64, &args, len, "files: pwrite", label);
    }
    files.call(FCHMOD, &[me, u64::from(body.mode & 0o7777)], "files: fchmod", fd);
    // A file that is no memfd cannot be sealed: neither can what stands for it.
    if body.seals != 0 && body.seals != SEAL_SEAL {
        // Others of its tree map it, to fill it, for as long as any is being built.
        let late = files.place.is_some() && files.objects.contains_key(&body.file);
        let list = if late { List::Finish } else { List::Build };
        let args = [me, F_ADD_SEALS, u64::from(body.seals)];
        files.program.call(list, FCNTL, &args, "files: F_ADD_SEALS", Detail::Fd(fd));
    }
}

/// Whether it is a file with a name in the child's own `/dev/shm`.
pub(crate) fn is_named(file: &OpenFile) -> bool {
    file.kind == KIND.number && decode::<Body>(file).is_ok_and(|body| body.at.is_some())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let bytes: usize = body.content.iter().map(|(_, part)| part.len()).sum();
    Ok(format!("{}, {} bytes, {bytes} of them carried", body.name, body.size))
}
