//! Directories that were deleted while a process is in them or has them open. A child gets one that is
//! deleted as well: it is made in a file system of memory that is nowhere mounted, so nobody else's
//! names are touched, and it goes when the child has no more use of it.

use crate::program::{Detail, List, Program};
use mitosis_descriptor::DeletedDirectory;
use std::os::unix::fs::MetadataExt;

const FSOPEN: u16 = 430;
const FSCONFIG: u16 = 431;
const FSMOUNT: u16 = 432;
const MKDIRAT: u16 = 258;
const OPENAT: u16 = 257;
const UNLINKAT: u16 = 263;
const FCHOWN: u16 = 93;
const FCHMOD: u16 = 91;
const CLOSE: u16 = 3;
const CLOEXEC: u64 = 1;
/// FSCONFIG_CMD_CREATE
const CREATE: u64 = 6;
/// MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
const NOSUID_NODEV: u64 = 6;
/// O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
const OPEN: u64 = 0o200_000 | 0o400_000 | 0o2_000_000;
const AT_REMOVEDIR: u64 = 0x200;
/// What the kernel appends to a path that leads there no more (fs/d_path.c).
const DELETED: &str = " (deleted)";

/// The directory to which `link`, a link of `/proc`, leads, if that was deleted. What cannot be looked at
/// is not known to be.
pub fn look(link: &str) -> Option<DeletedDirectory> {
    let meta = std::fs::metadata(link).ok().filter(|meta| meta.is_dir() && meta.nlink() == 0)?;
    let path = std::fs::read_link(link).ok()?;
    let path = path.to_string_lossy();
    let path = path.strip_suffix(DELETED).unwrap_or(&path);
    Some(DeletedDirectory {
        file: (meta.dev(), meta.ino()),
        name: path.rsplit('/').next().unwrap_or_default().into(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}

/// Makes such a directory, which is open at the last one of `numbers` then, the three lowest that are
/// free.
pub fn make(program: &mut Program, numbers: [u32; 3], directory: &DeletedDirectory) {
    let [context, root, at] = numbers.map(u64::from);
    let list = List::Build;
    let detail = || Detail::Text(format!("{}, a deleted directory", directory.name));
    let kind = program.string("tmpfs");
    let name = program.string(&directory.name);
    let (uid, gid) = (u64::from(directory.uid), u64::from(directory.gid));
    program.call_expect(list, FSOPEN, &[kind, CLOEXEC], context, "files: fsopen", detail());
    program.call(list, FSCONFIG, &[context, CREATE, 0, 0, 0], "files: fsconfig", detail());
    let args = [context, CLOEXEC, NOSUID_NODEV];
    program.call_expect(list, FSMOUNT, &args, root, "files: fsmount", detail());
    program.call(list, MKDIRAT, &[root, name, 0o700], "files: mkdirat", detail());
    let args = [root, name, OPEN, 0];
    program.call_expect(list, OPENAT, &args, at, "files: open", detail());
    program.call(list, FCHOWN, &[at, uid, gid], "files: fchown", detail());
    let args = [at, u64::from(directory.mode)];
    program.call(list, FCHMOD, &args, "files: fchmod", detail());
    program.call(list, UNLINKAT, &[root, name, AT_REMOVEDIR], "files: rmdir", detail());
    for number in [root, context] {
        program.call(list, CLOSE, &[number], "files: close", Detail::Number(number));
    }
}
