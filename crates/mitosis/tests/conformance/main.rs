//! The conformance suite: for each kind of state one program of `tests/conformance`, which tells
//! whether it still has it: in the parent, in two children that live together, in a grandchild.
//!
//! The tests walk the directory, so a program is one file there and one word in the table of
//! `docs/limits.md`. `MITOSIS_CONFORMANCE=NAME,NAME` runs only these. Root is needed.

#![allow(clippy::unwrap_used)]

mod refused;
mod run;
mod table;

#[path = "../lab/support.rs"]
#[allow(dead_code)]
mod support;
