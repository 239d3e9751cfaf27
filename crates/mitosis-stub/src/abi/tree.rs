//! The processes of a tree, as a guard makes them.

/// A process of a tree.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TreeEntry {
    /// Its pid.
    pub pid: i32,
    /// The process group to join, once it is there; 0 for the one that it is born in.
    pub group: i32,
    /// Index of the process that makes it: smaller than its own.
    pub parent: u32,
    /// Index of the one whose child it is when those have ended that do so.
    pub heir: u32,
    /// `TREE_*`.
    pub flags: u32,
    /// Of a zombie, how it ended, as `waitpid(2)` gives it.
    pub status: u32,
    /// Index among those that live.
    pub order: u32,
    /// Number of the pseudo-terminal that controls the session which it begins, plus one; 0 for none.
    pub terminal: u32,
}

/// A file system of pseudo-terminals, for `/dev/pts`.
pub const MOUNT_TERMINALS: u64 = 1;
/// A file system for memory that has names, for `/dev/shm`.
pub const MOUNT_MEMORY: u64 = 2;

/// Bytes of a [`TreeEntry`].
pub const TREE_ENTRY: usize = 32;
/// Most processes of a tree.
pub const TREE_MAX: usize = 200;
/// [`TreeEntry::flags`]: it begins a session of its own.
pub const TREE_LEADS_SESSION: u32 = 1;
/// [`TreeEntry::flags`]: it leads its process group.
pub const TREE_LEADS_GROUP: u32 = 2;
/// [`TreeEntry::flags`]: it is born before its parent begins a session of its own.
pub const TREE_BEFORE: u32 = 4;
/// [`TreeEntry::flags`]: it ends, and is not waited for.
pub const TREE_ZOMBIE: u32 = 8;
/// [`TreeEntry::flags`]: it ends when all have joined their groups, and nobody hears of it.
pub const TREE_TEMPORARY: u32 = 16;
/// [`TreeEntry::flags`]: orphans of those that it makes become its own.
pub const TREE_ADOPTS: u32 = 32;
/// [`TreeEntry::flags`]: it leads a process group until the others have joined theirs, and then joins
/// its own.
pub const TREE_LEAVES: u32 = 64;
