//! What the namespaces of a guard get before there is anybody in them: `/proc`, the generation number, and
//! a loopback device that is up.

use crate::abi::*;
use crate::guard::exit;
use crate::sys::{self, syscall};

/// Mounts of its own from here on, and a /proc of its pid namespace.
pub fn mount_proc() {
    let root = *b"/\0";
    let none = *b"none\0";
    let proc = *b"proc\0";
    let at = *b"/proc\0";
    const REC_PRIVATE: u64 = 0x4000 | 0x40000;
    const NOSUID_NODEV_NOEXEC: u64 = 2 | 4 | 8;
    if syscall!(sys::MOUNT, none.as_ptr(), root.as_ptr(), 0, REC_PRIVATE, 0) < 0
        || syscall!(sys::MOUNT, proc.as_ptr(), at.as_ptr(), proc.as_ptr(), NOSUID_NODEV_NOEXEC, 0) < 0
    {
        exit(GUARD_NO_PROC);
    }
}

/// Puts the number where the child and its descendants read it, as a file on a file. (Not a file that has
/// no name any more: the open file of a child would be carried to its children as it is.)
pub fn mount_generation(generation: u64, (number, whole): (i32, bool)) {
    const ENOENT: i64 = -2;
    let placed = match (number, whole) {
        (0.., false) => put_in_place(number),
        (0.., true) => place(number),
        _ => place_generation(generation),
    };
    match placed {
        // Where no node runs there is no such file: a test, which needs no number.
        0 | ENOENT => {}
        _ => exit(GUARD_NO_GENERATION),
    }
}

/// Puts a mount of a file there, which can only be read, and closes its descriptor.
fn put_in_place(tree: i32) -> i64 {
    const AT_FDCWD: i64 = -100;
    const AT_EMPTY_PATH: u64 = 0x1000;
    const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
    const RDONLY_NOSUID_NODEV_NOEXEC: u64 = 1 | 2 | 4 | 8;
    let empty = *b"\0";
    // struct mount_attr (linux/mount.h): set, clear, propagation, user namespace.
    let attributes = [RDONLY_NOSUID_NODEV_NOEXEC, 0, 0, 0];
    let (empty, file) = (empty.as_ptr(), GENERATION_FILE.as_ptr());
    let mut done = syscall!(sys::MOUNT_SETATTR, tree, empty, AT_EMPTY_PATH, attributes.as_ptr(), 32);
    if done >= 0 {
        done = syscall!(sys::MOVE_MOUNT, tree, empty, AT_FDCWD, file, MOVE_MOUNT_F_EMPTY_PATH);
    }
    syscall!(sys::CLOSE, tree);
    done
}

/// The same without the node's help: a file system for this one file.
fn place_generation(generation: u64) -> i64 {
    let mut text = [b'\n'; GENERATION_DIGITS + 1];
    let mut at = 0;
    while at < GENERATION_DIGITS {
        let digit = (generation >> (60 - 4 * at)) as u8 & 15;
        text[at] = if digit > 9 { b'a' + digit - 10 } else { b'0' + digit };
        at += 1;
    }
    const AT_FDCWD: i64 = -100;
    const CREAT_EXCL_WRONLY: u64 = 0o100 | 0o200 | 1;
    const NOSUID_NODEV_NOEXEC: u64 = 2 | 4 | 8;
    let (dir, file) = (GENERATION_DIR.as_ptr(), GENERATION_FILE.as_ptr());
    let kind = *b"tmpfs\0";
    let options = *b"size=4k,nr_inodes=4,mode=711\0";
    let (kind, options) = (kind.as_ptr(), options.as_ptr());
    let mounted = syscall!(sys::MOUNT, kind, dir, kind, NOSUID_NODEV_NOEXEC, options);
    if mounted < 0 {
        return mounted;
    }
    let fd = syscall!(sys::OPENAT, AT_FDCWD, file, CREAT_EXCL_WRONLY, 0o444);
    // The umask is not ours to choose: the child may be anybody.
    syscall!(sys::FCHMOD, fd, 0o444);
    let written = syscall!(sys::WRITE, fd, text.as_ptr(), text.len());
    syscall!(sys::CLOSE, fd);
    let placed = put_file_over();
    if written < 0 { written } else { placed }
}

/// The same with a file system that has the file, and closes its descriptor.
fn place(filesystem: i32) -> i64 {
    const AT_FDCWD: i64 = -100;
    const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
    let (empty, dir) = (*b"\0", GENERATION_DIR.as_ptr());
    let (empty, flags) = (empty.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH);
    let moved = syscall!(sys::MOVE_MOUNT, filesystem, empty, AT_FDCWD, dir, flags);
    syscall!(sys::CLOSE, filesystem);
    if moved < 0 { moved } else { put_file_over() }
}

/// Mounts the file of the file system that is mounted over the directory on the one that is under that, and
/// takes that mount away.
fn put_file_over() -> i64 {
    const AT_FDCWD: i64 = -100;
    const NOSUID_NODEV_NOEXEC: u64 = 2 | 4 | 8;
    const REMOUNT_BIND_RO: u64 = 32 | 4096 | 1;
    const OPEN_TREE_CLONE_CLOEXEC: u64 = 1 | 0o2_000_000;
    const MNT_DETACH: u64 = 2;
    const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
    let (dir, file) = (GENERATION_DIR.as_ptr(), GENERATION_FILE.as_ptr());
    let tree = syscall!(sys::OPEN_TREE, AT_FDCWD, file, OPEN_TREE_CLONE_CLOEXEC);
    syscall!(sys::UMOUNT2, dir, MNT_DETACH);
    if tree < 0 {
        return tree;
    }
    let empty = *b"\0";
    let (empty, flags) = (empty.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH);
    let moved = syscall!(sys::MOVE_MOUNT, tree, empty, AT_FDCWD, file, flags);
    syscall!(sys::CLOSE, tree);
    if moved < 0 {
        return moved;
    }
    let flags = REMOUNT_BIND_RO | NOSUID_NODEV_NOEXEC;
    syscall!(sys::MOUNT, 0, file, 0, flags, 0)
}

/// `ip link set lo up`: needed in a new network namespace.
pub fn loopback_up() {
    const SIOCGIFFLAGS: u64 = 0x8913;
    const SIOCSIFFLAGS: u64 = 0x8914;
    let fd = syscall!(sys::SOCKET, 2, 2 | 0x80000, 0);
    if fd < 0 {
        return;
    }
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [u64::from(b'l') | u64::from(b'o') << 8, 0, 0, 0, 0];
    if syscall!(sys::IOCTL, fd, SIOCGIFFLAGS, request.as_mut_ptr()) >= 0 && request[2] & 1 == 0 {
        request[2] |= 1;
        syscall!(sys::IOCTL, fd, SIOCSIFFLAGS, request.as_mut_ptr());
    }
    syscall!(sys::CLOSE, fd);
}
