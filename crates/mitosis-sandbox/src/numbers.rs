//! Generation numbers as files, all in one file system of the node's that nobody sees: each guard mounts
//! the file of its child. Without it each guard makes a file system for that one file, and takes away
//! the mount that it needed for that: a wait for all processors, and most of what its mounts cost.

use crate::SandboxError;
use mitosis_sys::SysError;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The file system. It goes with the last of its files that a guard has mounted.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(Arc<OwnedFd>);

/// One file, which goes when this is dropped. It has a name as long as its child lives: the open file of a
/// child would else be carried to its children as it is.
#[derive(Debug)]
pub struct Number {
    all: Numbers,
    name: String,
}

impl Numbers {
    /// `None` where a part of a file system cannot be mounted that is mounted nowhere itself (before
    /// Linux 6.15).
    pub fn new() -> Option<Numbers> {
        let all = Numbers(Arc::new(filesystem().ok()?));
        all.file("probe").is_ok().then_some(all)
    }

    /// A file with a number, and a mount of it that is to be put into place.
    ///
    /// # Errors
    /// No memory, or no more mounts.
    pub fn put(&self, number: &str) -> Result<(Number, OwnedFd), SandboxError> {
        self.file(number).map_err(|e| SysError::io("open_tree", "generation number", e).into())
    }

    fn file(&self, number: &str) -> Result<(Number, OwnedFd), Errno> {
        let fd = create(self.0.as_fd(), number)?;
        let name = Number { all: self.clone(), name: number.to_owned() };
        write(fd, number)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok((name, open_tree(&*self.0, number, flags)?))
    }
}

/// A file system of its own for one number, to be mounted where the file's directory is: where there can be
/// no mount of the file alone.
///
/// # Errors
/// No memory.
pub(crate) fn whole(number: &str) -> Result<OwnedFd, SandboxError> {
    let failed = |e: Errno| SandboxError::from(SysError::io("fsmount", "generation number", e));
    let root = filesystem().map_err(failed)?;
    let file = create(root.as_fd(), "generation").map_err(failed)?;
    write(file, number).map_err(failed)?;
    Ok(root)
}

fn create(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let readable = Mode::RUSR | Mode::RGRP | Mode::ROTH;
    let fd = rustix::fs::openat(directory, name, flags, readable)?;
    // The child may be anybody, and the umask took the others' right.
    rustix::fs::fchmod(&fd, readable)?;
    Ok(fd)
}

fn write(file: OwnedFd, number: &str) -> Result<(), Errno> {
    let written = std::fs::File::from(file).write_all(format!("{number}\n").as_bytes());
    written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

fn filesystem() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "mode", "711")?;
    fsconfig_create(context.as_fd())?;
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, safe)
}

impl Drop for Number {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&*self.all.0, self.name.as_str(), AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_file_as_long_as_it_is_kept() {
        let Some(all) = Numbers::new() else { return };
        let (number, mount) = all.put("00000000000000ff").expect("file");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount));
        assert_eq!(std::fs::read_to_string(path).expect("read"), "00000000000000ff\n");
        let left = || rustix::fs::statat(&*all.0, "00000000000000ff", AtFlags::empty());
        assert!(left().is_ok());
        assert!(all.put("00000000000000ff").is_err(), "there is one");
        drop(number);
        assert_eq!(left().err(), Some(Errno::NOENT));
    }
}
