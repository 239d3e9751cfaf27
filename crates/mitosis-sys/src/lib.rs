//! The kernel's process primitives as safe, owned, move-only types.

pub mod uffd;
