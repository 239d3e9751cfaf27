//! Mappings and what is behind them: anonymous memory, files, shared objects.

use serde::{Deserialize, Serialize};

/// A file that VMAs map privately (or shared, read-only).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MappedFile {
    /// Path as the parent saw it.
    pub path: String,
    /// Size in bytes at capture.
    pub size: u64,
    /// BLAKE3 of the content, when the seed's node knew it. Unknown means: fetch from the owner.
    pub hash: Option<[u8; 32]>,
}

/// A memory mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `PROT_*` bits.
    pub prot: u8,
    /// See [`vma_flags`].
    pub flags: u16,
    /// What is behind it.
    pub backing: Backing,
}

/// Bits of [`Vma::flags`].
pub mod vma_flags {
    /// Grows downwards (`MAP_GROWSDOWN`).
    pub const GROWSDOWN: u16 = 1;
    /// `mlock(2)`ed.
    pub const LOCKED: u16 = 2;
    /// `MAP_NORESERVE`.
    pub const NORESERVE: u16 = 4;
    /// `MADV_HUGEPAGE`.
    pub const HUGEPAGE: u16 = 8;
    /// `MADV_NOHUGEPAGE`.
    pub const NOHUGEPAGE: u16 = 16;
    /// `MADV_DONTDUMP`.
    pub const DONTDUMP: u16 = 32;
    /// `MADV_WIPEONFORK`.
    pub const WIPEONFORK: u16 = 64;
    /// Mapped `MAP_SHARED`.
    pub const SHARED: u16 = 128;
    /// Counted as committed memory (`ac` in smaps): once writable private.
    pub const ACCOUNTED: u16 = 256;
    /// `mseal(2)`ed.
    pub const SEALED: u16 = 512;
    /// `MAP_DROPPABLE`.
    pub const DROPPABLE: u16 = 1024;
    /// `MADV_DONTFORK`.
    pub const DONTFORK: u16 = 2048;
    /// Shared memory that was attached (`SHM_RDONLY`) or mapped so that it can never be written.
    pub const READ_ONLY: u16 = 4096;
}

/// What a mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous private memory, heap and stacks included.
    Anonymous,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// `[vvar_vclock]`.
    VvarVclock,
    /// A file, from `offset` (bytes).
    File {
        /// Index into [`crate::Descriptor::files`].
        file: u32,
        /// Offset in the file, in bytes.
        offset: u64,
    },
    /// Shared memory without a path, from `offset` (bytes).
    Shared {
        /// Index into [`crate::Descriptor::shared`].
        object: u32,
        /// Offset in the object, in bytes.
        offset: u64,
    },
}

/// Where POSIX shared memory has its names (shm_overview(7)).
pub const SHM_DIRECTORY: &str = "/dev/shm/";

/// What shared memory is called, by those who do not inherit it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SharedName {
    /// Below [`SHM_DIRECTORY`].
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Memory that is shared between mappings, of one process or of several, and that is a machine's own:
/// `MAP_SHARED | MAP_ANONYMOUS`, a memfd, a file that was deleted, POSIX shared memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SharedObject {
    /// What `/proc/PID/maps` is to show of it, for people.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Its name, if it has one.
    pub at: Option<SharedName>,
}
