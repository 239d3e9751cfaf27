//! Which user namespace is above which (user_namespaces(7)), and the maps of one that is new.

use crate::SysError;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// `NS_GET_PARENT` of linux/nsfs.h.
const NS_GET_PARENT: libc::c_ulong = 0xb702;

/// Where a process is, as this one sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In this process's user namespace, or on a kernel without any.
    Here,
    /// In one that was made in this process's.
    Below,
    /// In one further down.
    Deeper,
    /// In one that is not below this process's at all.
    Elsewhere,
}

/// In which user namespace a process is.
///
/// # Errors
/// `/proc/PID/ns/user` cannot be opened.
pub fn place(pid: i32) -> Result<Place, SysError> {
    let path = format!("/proc/{pid}/ns/user");
    let failed = |call, path: &str| {
        let path = path.to_owned();
        move |e| SysError::io(call, path, e)
    };
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
    let own = match File::open("/proc/self/ns/user") {
        Ok(own) => own,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Place::Here),
        Err(e) => return Err(failed("open", "/proc/self/ns/user")(e)),
    };
    let own = id(&own).map_err(failed("stat", "/proc/self/ns/user"))?;
    let its = File::open(&path).map_err(failed("open", &path))?;
    if id(&its).map_err(failed("stat", &path))? == own {
        return Ok(Place::Here);
    }
    match above(&its) {
        Ok(parent) if id(&parent).map_err(failed("stat", &path))? == own => Ok(Place::Below),
        Ok(_) => Ok(Place::Deeper),
        // The one above it is not below this process's.
        Err(e) if e.is(libc::EPERM) => Ok(Place::Elsewhere),
        Err(e) => Err(e),
    }
}

/// What is said of a file that [`is_elsewhere`].
pub const ELSEWHERE: &str =
    "in its user namespace, which is not the file of that path on this node";

/// Whether what a process has open or mapped (`its`, a link below `/proc`) is not what this process finds at
/// `path`. To be asked of one in another user namespace: whoever rules a mount namespace can have any file at any path
/// there; opened by that path with this process's rights, it would be one that it may not open.
pub fn is_elsewhere(its: &str, path: &str) -> bool {
    let id = |path: &str| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(its).is_none_or(|its| id(path) != Some(its))
}

fn above(namespace: &File) -> Result<File, SysError> {
    // SAFETY: the request takes no argument and gives a new descriptor, or an error.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT) };
    if fd < 0 {
        return Err(SysError::last("NS_GET_PARENT", "user namespace"));
    }
    // SAFETY: the kernel made it for this call.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Says what user and group ids a user namespace has, that process `pid` is in: once for each namespace.
/// `uids` and `gids` are the lines of its maps.
///
/// # Errors
/// write(2) to one of the files, which is named: this process may not give those ids.
pub fn set_maps(pid: i32, uids: &str, gids: &str, setgroups: bool) -> Result<(), SysError> {
    // Before the groups' map: afterwards it cannot be changed any more.
    let allowed = if setgroups { "" } else { "deny" };
    for (name, text) in [("setgroups", allowed), ("gid_map", gids), ("uid_map", uids)] {
        if text.is_empty() {
            continue;
        }
        let path = format!("/proc/{pid}/{name}");
        // In one call: the kernel takes no other.
        std::fs::write(&path, text)
            .map_err(|e| SysError::io("write", format!("{path}, of a user namespace"), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_where_it_is() {
        let own = std::process::id() as i32;
        assert_eq!(place(own).expect("its namespace"), Place::Here);
        assert!(place(-1).is_err());
    }

    #[test]
    fn a_file_is_where_its_path_leads() {
        let exe = std::env::current_exe().expect("path");
        assert!(!is_elsewhere("/proc/self/exe", exe.to_str().expect("text")));
        assert!(is_elsewhere("/proc/self/exe", "/dev/null"));
        assert!(is_elsewhere("/proc/self/fd/-1", "/dev/null"));
    }

    /// The kernel takes no second map for a namespace.
    #[test]
    fn ids_that_cannot_be_given_are_an_error() {
        let own = std::process::id() as i32;
        let said = set_maps(own, "0 0 1\n", "", true).expect_err("it has one").to_string();
        assert!(said.contains("uid_map, of a user namespace"), "{said}");
    }
}
