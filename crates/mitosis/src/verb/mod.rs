//! One file per verb, or per family of verbs.

pub mod bench;
pub mod check;
pub mod children;
pub mod fork;
pub mod inspect;
pub mod meta;
pub mod node;
pub mod pager;
pub mod prepare;
pub mod seed;

use crate::error::CliError;

/// Exit status of a verb that was done, or why not.
pub type Done = Result<u8, CliError>;
