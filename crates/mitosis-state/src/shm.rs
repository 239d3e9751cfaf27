//! Memory of a machine that has a name: POSIX shared memory and named semaphores, which are files of
//! `/dev/shm` (shm_overview(7), sem_overview(7)), and files of huge pages. Programs share it as they
//! share what has none; so a child has its own, and what others have is not there for it. Its names are
//! in a `/dev/shm` of its own.

use crate::kinds::memfd;
use crate::program::{Detail, List, Program};
use mitosis_descriptor::{OpenFile, SharedName};
use mitosis_sys::procfs;
use rustix::fs::{Mode, OFlags};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub use mitosis_descriptor::SHM_DIRECTORY;

/// How the kernel names the ring of an io_setup(2) context.
pub const AIO: &str = "/[aio]";
/// What it appends to the name of what has none any more (fs/d_path.c).
const DELETED: &str = " (deleted)";
/// include/uapi/linux/magic.h
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Whether that is a name in `/dev/shm`.
pub fn is_named(link: &str) -> bool {
    link.starts_with(SHM_DIRECTORY) && !link.ends_with(DELETED)
}

/// Whether a file of huge pages is there.
pub fn is_huge(path: &str) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == HUGETLBFS_MAGIC)
}

/// Whether the mapping is of memory that is copied for a child, and shared by what shares it: of what no
/// path leads to, and of what is the machine's, with a path or without.
pub fn is_shared(pid: i32, mapping: &procfs::Mapping) -> bool {
    let name = mapping.name.as_str();
    let pathless = name.ends_with(DELETED) && !name.starts_with(AIO);
    // The first segment of an IPC namespace has the id 0, and that is its inode.
    let object = mapping.inode != 0 || name.starts_with(crate::tree::SYSV);
    // What each mapping is like is not asked for at every look.
    let huge = || match mapping.flags.is_empty() {
        true => name.starts_with('/') && is_huge(&behind(pid, mapping)),
        false => mapping.has(b"ht"),
    };
    mapping.perms[3] == b's' && object && (pathless || is_named(name) || huge())
}

/// A path to what is mapped.
fn behind(pid: i32, mapping: &procfs::Mapping) -> String {
    format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end)
}

/// The name in `/dev/shm` of a file that process `pid` has as `link`. A named semaphore is made under
/// another name than its own, which whoever made it goes on to see (sem_open(3) in the GNU C library).
pub fn named(pid: i32, link: &str, meta: &Metadata) -> Option<SharedName> {
    let path = match is_named(link) {
        true => link.to_owned(),
        false if link.starts_with(SHM_DIRECTORY) && meta.nlink() > 0 => other_name(pid, meta)?,
        false => return None,
    };
    Some(SharedName { path, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid() })
}

fn other_name(pid: i32, meta: &Metadata) -> Option<String> {
    let directory = format!("/proc/{pid}/root{SHM_DIRECTORY}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::open(&directory, flags, Mode::empty()).ok()?;
    let mut entries = rustix::fs::Dir::new(listing).ok()?;
    let same = entries.find_map(|entry| entry.ok().filter(|entry| entry.ino() == meta.ino()))?;
    let name = same.file_name().to_str().ok()?;
    let at = std::fs::metadata(Path::new(&directory).join(name)).ok()?;
    ((at.dev(), at.ino()) == (meta.dev(), meta.ino())).then(|| format!("{SHM_DIRECTORY}{name}"))
}

const MKDIR: u16 = 83;
const MOUNT: u16 = 165;
const AT_FDCWD: u64 = -100i64 as u64;
/// O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC
const NEW: u64 = 0o2_000_302;
/// MS_NOSUID | MS_NODEV
const NOSUID_NODEV: u64 = 6;

/// A `/dev/shm` of the child's own, for a process that is alone in its namespace.
pub fn mount(program: &mut Program) {
    let kind = program.string("tmpfs");
    let at = program.string(SHM_DIRECTORY.trim_end_matches('/'));
    let how = program.string("mode=1777");
    let args = [kind, at, kind, NOSUID_NODEV, how];
    let detail = Detail::Text(SHM_DIRECTORY.into());
    program.call(List::Build, MOUNT, &args, "sandbox: mount", detail);
}

/// Whether a file needs that.
pub fn has_name(file: &OpenFile) -> bool {
    memfd::is_named(file)
}

/// Arguments of the openat(2) that makes shared memory of that name in a `/dev/shm` of the child's own.
///
/// # Errors
/// What is wrong with the name.
pub fn create(program: &mut Program, name: &SharedName) -> Result<[u64; 4], String> {
    name.validate().map_err(|e| e.to_string())?;
    let parts = name.path.match_indices('/').map(|(end, _)| &name.path[..end]);
    for directory in parts.filter(|part| part.len() >= SHM_DIRECTORY.len()) {
        let at = program.string(directory);
        program.call_ignore(List::Build, MKDIR, &[at, 0o777], "files: mkdir");
    }
    Ok([AT_FDCWD, program.string(&name.path), NEW, u64::from(name.mode)])
}
