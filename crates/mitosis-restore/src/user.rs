//! The way into a user namespace of the child's own, for one whose parent is not in its node's.
//!
//! All that is made before, a child makes with what the node's daemon may do. What comes after it can only do
//! what it may do inside, where it has all capabilities at first; that suffices for its threads, since its pid
//! namespace belongs to its user namespace.

use crate::identity;
use crate::plan::provided_base;
use mitosis_descriptor::{Creds, Descriptor};
use mitosis_state::{Detail, List, Program, Provided};

const SETNS: u16 = 308;
/// A change of user ids changes no capabilities. Whoever enters a user namespace loses this bit.
const SECBIT_NO_SETUID_FIXUP: u64 = 4;
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// Whether a child is made by a process that its guard is not: one that has the node's rights.
pub fn is_below(descriptor: &Descriptor) -> bool {
    descriptor.rare.user_namespace.is_some()
}

/// Whether these have the same ids and groups, which a child in a user namespace takes before it has threads.
pub(crate) fn same_ids(one: &Creds, other: &Creds) -> bool {
    let ids = |creds: &Creds| (creds.uids, creds.gids, creds.groups.clone());
    ids(one) == ids(other)
}

/// The last operations of a process with one thread: no other can enter. It takes its ids and groups outside,
/// where each has a number: inside some may have none, and setgroups(2) may be forbidden.
pub(crate) fn enter(
    descriptor: &Descriptor,
    program: &mut Program,
    provided: &mut Vec<Provided>,
    fd_base: u32,
) {
    identity::ids(&descriptor.process.creds, List::Build, SECBIT_NO_SETUID_FIXUP, program);
    let fd = provided_base(fd_base) + provided.len() as u32;
    provided.push(Provided::UserNamespace);
    let args = [u64::from(fd), CLONE_NEWUSER];
    program.call(List::Build, SETNS, &args, "identity: setns user", Detail::None);
}
