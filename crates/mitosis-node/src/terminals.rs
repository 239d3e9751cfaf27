//! File systems of a process tree's own: its pseudo-terminals, and where its shared memory has names.
//! They are there before its processes: what controls a session
//! is inherited at birth (credentials(7)), so whoever leads one must have it before it has children.

use crate::error::NodeError;
use crate::recipe::Recipe;
use mitosis_descriptor::{Phase, TERMINAL_MAX};
use mitosis_restore::Provided;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A file system of pseudo-terminals that is mounted nowhere yet, and the masters.
pub(crate) struct Terminals {
    mount: OwnedFd,
    masters: BTreeMap<u32, OwnedFd>,
}

impl Terminals {
    /// Those that the processes of a tree have; `None` if they have none.
    ///
    /// # Errors
    /// No such file system, or no descriptor.
    pub fn of(recipes: &[&Arc<Recipe>]) -> Result<Option<Terminals>, NodeError> {
        let open = recipes.iter().flat_map(|recipe| &recipe.plan.provided);
        let open = open.filter_map(|wanted| match wanted {
            Provided::Terminal(index) => Some(*index),
            _ => None,
        });
        let places = recipes.iter().map(|recipe| &recipe.descriptor.rare.tree.place);
        let controls = places.filter_map(|place| Some(place.terminal?.index));
        match open.chain(controls).max() {
            Some(last) if last > TERMINAL_MAX => Err(failed("pseudo-terminal", last)),
            Some(last) => Terminals::up_to(last).map(Some),
            None => Ok(None),
        }
    }

    /// Numbers are given in order.
    fn up_to(last: u32) -> Result<Terminals, NodeError> {
        let mount = mount().map_err(|e| failed("devpts", e))?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |index: u32| {
            let master = rustix::fs::openat(&mount, "ptmx", flags, Mode::empty())?;
            rustix::pty::unlockpt(&master)?;
            Ok((index, master))
        };
        let masters = (0..=last).map(open).collect::<Result<_, rustix::io::Errno>>();
        let masters = masters.map_err(|e| failed("pseudo-terminal", e))?;
        Ok(Terminals { mount, masters })
    }

    /// The master of one of them.
    pub fn master(&self, index: u32) -> Option<OwnedFd> {
        self.masters.get(&index)?.try_clone().ok()
    }

    /// To be put at `/dev/pts`.
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

fn mount() -> Result<OwnedFd, rustix::io::Errno> {
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    detached("devpts", &options, attributes)
}

/// A file system for memory that has names.
///
/// # Errors
/// No such file system, or no descriptor.
pub(crate) fn memory() -> Result<OwnedFd, NodeError> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    detached("tmpfs", &[("mode", "1777")], attributes).map_err(|e| failed("/dev/shm", e))
}

fn detached(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, rustix::io::Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *name, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn failed(object: &str, cause: impl std::fmt::Display) -> NodeError {
    NodeError::step(Phase::Sandbox, object, cause)
}
