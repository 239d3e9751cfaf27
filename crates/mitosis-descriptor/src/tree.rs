//! Process trees: who hangs below whom, and what several members have in common.
//!
//! A member is described as a process alone is. What it has in common with others is made by the
//! first member that has it, and handed to the others while the tree is built.

use crate::validate::{invalid, pid};
use crate::{Descriptor, DescriptorError, Kin, Limits, births, decode};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Most processes of a tree, zombies included.
pub const MEMBERS_MAX: usize = 200;
/// The highest number of a pseudo-terminal that is made again: all below it are opened for it.
pub const TERMINAL_MAX: u32 = 127;
/// What all members may hand to one another.
const GIFTS_MAX: usize = 65_536;

/// The tree of a process, and its own place in it. Empty for a process alone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tree {
    /// Of the root alone: the other members, a parent before its children.
    pub members: Vec<Member>,
    /// Of the root alone: processes that have ended and were not waited for.
    pub zombies: Vec<Zombie>,
    /// Its own place.
    pub place: Place,
}

/// A process of a tree that is not its root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its parent: 0 is the root, `n` the member before it with index `n - 1`.
    pub parent: u32,
    /// Its encoded descriptor.
    pub image: Vec<u8>,
}

/// A process that has ended and was not waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Zombie {
    /// Its parent, as in [`Member`].
    pub parent: u32,
    /// Its pid in the tree's pid namespace.
    pub pid: i32,
    /// Its group and session.
    pub session: Session,
    /// How it ended, as `waitpid(2)` gives it.
    pub status: u32,
}

/// Process group and session, by the pids of their leaders; the root leads those that it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Session {
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
}

/// A pseudo-terminal with both ends in the tree that controls a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terminal {
    /// Its number.
    pub index: u32,
    /// The process group in its foreground; 0 for that of whoever leads the session.
    pub foreground: i32,
}

/// What a member has in common with others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// Its group and session.
    pub session: Session,
    /// What controls the session that it leads.
    pub terminal: Option<Terminal>,
    /// Open files that it makes and hands to later members, in this order.
    pub gifts: Vec<Gift>,
    /// Numbers at which it has open files only until they are handed over.
    pub temporary: Vec<u32>,
    /// Shared memory that it makes and hands to later members, in this order; `fd` is the index into
    /// [`Descriptor::shared`].
    pub memory_to: Vec<Gift>,
    /// Shared memory that it gets: index into [`Descriptor::shared`], ascending, and from whom.
    pub memory_from: Vec<(u32, u32)>,
}

/// Something that a member hands to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gift {
    /// What: the number of a descriptor of the giver.
    pub fd: u32,
    /// To whom: 0 is the root.
    pub to: u32,
}

impl Tree {
    /// Whether it is a process alone.
    pub fn is_alone(&self) -> bool {
        self.members.is_empty() && self.zombies.is_empty()
    }

    /// All ids that its sessions and groups have.
    pub fn leaders(kin: &[Kin]) -> HashSet<i32> {
        kin.iter().flat_map(|one| [one.session.group, one.session.session]).collect()
    }

    /// What the other members are.
    ///
    /// # Errors
    /// [`DescriptorError`]; for a descriptor that was decoded it does not happen.
    pub fn images(&self, limits: &Limits) -> Result<Vec<Descriptor>, DescriptorError> {
        // A member is no root: nothing nests deeper than this.
        let limits = Limits { members_max: 0, ..*limits };
        self.members.iter().map(|member| decode(&member.image, &limits)).collect()
    }

    /// How all processes are related, the root first and those that have ended last.
    pub fn kin<'a>(&self, living: impl Iterator<Item = &'a Descriptor>) -> Vec<Kin> {
        let parents = std::iter::once(0).chain(self.members.iter().map(|member| member.parent));
        let living = living.zip(parents).map(|(one, parent)| Kin {
            pid: one.process.pid,
            parent: parent as usize,
            session: one.rare.tree.place.session,
            zombie: false,
        });
        let ended = self.zombies.iter().map(|zombie| Kin {
            pid: zombie.pid,
            parent: zombie.parent as usize,
            session: zombie.session,
            zombie: true,
        });
        living.chain(ended).collect()
    }

    pub(crate) fn validate(
        &self,
        root: &Descriptor,
        limits: &Limits,
    ) -> Result<(), DescriptorError> {
        let count = self.members.len() + self.zombies.len();
        limits.check("processes of a tree", count, limits.members_max)?;
        if limits.members_max == 0 {
            // Its place says something about others, which its root's image holds.
            return Ok(());
        }
        let images = self.images(limits)?;
        let mut pids = HashSet::new();
        for (index, member) in self.members.iter().enumerate() {
            if member.parent as usize > index {
                return invalid(format!("member {} of a tree: before its parent", index + 1));
            }
        }
        let users = &root.rare.user_namespace;
        if let Some(other) = images.iter().find(|image| image.rare.user_namespace != *users) {
            let other = other.process.pid;
            return invalid(format!("process {other} of a tree: in another user namespace"));
        }
        let processes = std::iter::once(root).chain(&images);
        let tids = processes.clone().flat_map(|one| one.threads.iter().map(|thread| thread.tid));
        for id in tids.chain(self.zombies.iter().map(|zombie| zombie.pid)) {
            pid("process of a tree", id)?;
            if !pids.insert(id) && !self.is_alone() {
                return invalid(format!("two processes or threads of a tree with id {id}"));
            }
        }
        for zombie in &self.zombies {
            if zombie.parent as usize > self.members.len() {
                return invalid(format!("zombie {}: no such parent", zombie.pid));
            }
            zombie.validate()?;
        }
        if let Err((at, why)) = births(&self.kin(processes.clone())) {
            return invalid(format!("process {at} of a tree {why}"));
        }
        for (index, process) in processes.enumerate() {
            process.rare.tree.place.validate(process, index, self.members.len(), limits)?;
        }
        Ok(())
    }
}

impl Zombie {
    /// It is made to end like that: one that a signal only stops would not.
    fn validate(&self) -> Result<(), DescriptorError> {
        /// SIGCHLD, SIGCONT, the four that stop, SIGURG, SIGWINCH: none of them ends a process.
        const ENDS_NONE: [u32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
        let signal = self.status & 0x7f;
        let wrong = signal > 64 || ENDS_NONE.contains(&signal) || self.status > 0xffff;
        match wrong {
            true => invalid(format!("zombie {}: ended with status {:#x}", self.pid, self.status)),
            false => Ok(()),
        }
    }
}

impl Place {
    fn validate(
        &self,
        process: &Descriptor,
        index: usize,
        members: usize,
        limits: &Limits,
    ) -> Result<(), DescriptorError> {
        for list in [&self.gifts, &self.memory_to] {
            limits.check("gifts", list.len(), GIFTS_MAX)?;
            let later = |gift: &&Gift| gift.to as usize <= index || gift.to as usize > members;
            if let Some(gift) = list.iter().find(later) {
                return invalid(format!("member {index} of a tree hands to member {}", gift.to));
            }
        }
        if let Some(terminal) = self.terminal {
            let wrong = terminal.index > TERMINAL_MAX || terminal.foreground < 0;
            let leads = index == 0 || self.session.session == process.process.pid;
            if wrong || !leads {
                return invalid(format!("member {index} of a tree leads {terminal:?}"));
            }
        }
        limits.check("temporary descriptors", self.temporary.len(), limits.open_files_max)?;
        let shared = process.shared.len();
        let unknown = self.memory_to.iter().any(|gift| gift.fd as usize >= shared);
        let mut last = None;
        for &(object, from) in &self.memory_from {
            let ordered = last.is_none_or(|last| last < object);
            if object as usize >= shared || from as usize >= index || !ordered {
                return invalid(format!("member {index} of a tree gets memory {object} of {from}"));
            }
            last = Some(object);
        }
        if unknown || self.gifts.iter().any(|gift| gift.fd >= limits.fds_max) {
            return invalid(format!("member {index} of a tree hands over what it has not"));
        }
        Ok(())
    }
}
