//! Layouts shared by the guest and those who give it orders: plain data, no references. The guest
//! has this by `#[path]`.

mod calls;
mod capture;
mod guard;
mod plan;
mod tree;

pub use calls::*;
pub use capture::*;
pub use guard::*;
pub use plan::*;
pub use tree::*;

/// Offset of the guest's text in its ELF file; entries are relative to it.
pub const TEXT_OFFSET: usize = 4096;
/// Entry: the guard process (the ELF entry point).
pub const ENTRY_GUARD: u64 = 0;
/// Entry: the restore interpreter.
pub const ENTRY_RESTORE: u64 = 16;
/// Entry: the capture blob, run by the parent's leading thread.
pub const ENTRY_CAPTURE: u64 = 32;
/// Entry: per-thread capture, run by every other thread of the parent.
pub const ENTRY_CAPTURE_THREAD: u64 = 48;
/// Entry: timers, run by the parent's leading thread.
pub const ENTRY_CAPTURE_TIMERS: u64 = 64;

/// Entry: what CPython calls when it can (`Py_AddPendingCall`); its argument is a
/// [`PendingCalls`].
pub const ENTRY_PENDING: u64 = 80;
/// Entry: `bytes` of an OpenSSL `RAND_METHOD`: random bytes of the kernel.
pub const ENTRY_RANDOM: u64 = 96;
/// Entry: `seed`, `add` and `status` of one: nothing to do, and all is well.
pub const ENTRY_READY: u64 = 112;

/// Entry: the rest of a template's life, once its region is there: see [`Plan`].
pub const ENTRY_TEMPLATE: u64 = 128;
/// Entry: a shadow makes ioctl(2) calls on a file that it is handed, and then sleeps again; its
/// argument is a [`Calls`].
pub const ENTRY_CALLS: u64 = 144;

/// Entry: the life of a shadow that makes children. Its region is there, its socket is descriptor 3,
/// and rdi is one past the region's last byte.
pub const ENTRY_SERVE: u64 = 160;
