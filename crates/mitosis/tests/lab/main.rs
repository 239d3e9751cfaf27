//! The product from outside: the real binary, its command line, and machines to fork between.
//!
//! Each test makes a lab of its own (see `mitosis-lab`), so they may run at the same time; those
//! that need much of the machine take turns (`support::turn`). Root is needed. `MITOSIS_BIN` names
//! another binary to judge.

#![allow(clippy::unwrap_used)]

mod access;
mod admission;
mod bad_use;
mod clocks;
mod failures;
mod files;
mod flags;
mod hops;
mod independence;
mod inputs;
mod instruments;
mod leftovers;
mod notice;
mod pager_kills;
mod paging;
mod support;
mod template;
mod tenants;
mod tree_faults;
mod trees;
mod unique;
mod users;
mod whole;
mod working_set;
