//! The matrix of runtimes: servers in the languages people use, unmodified and unaware, each forked
//! while idle and while under load.
//!
//! A row is a line in `rows.rs` and a small server in `tests/runtimes`. `make test-runtimes` runs
//! all of them; `MITOSIS_RUNTIMES=NAME,NAME` only these. With `MITOSIS_RUNTIMES_KEEP=1` what was seen
//! becomes `bench/results/runtimes.json` and the table in `docs/runtimes.md`. Root is needed.

#![allow(clippy::unwrap_used)]

mod client;
mod course;
mod matrix;
mod rows;

#[path = "../lab/support.rs"]
#[allow(dead_code)]
mod support;
