//! signalfd(2): the set of signals. What it would give is pending at the process, not in it.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::Detail;
use crate::{Group, StateError};
use mitosis_descriptor::OpenFile;

/// The kind.
pub const KIND: Kind = Kind { number: 9, name: "signalfd", capture, plan, describe };

fn capture(_: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[signalfd]" {
        return Ok(None);
    }
    let mask = group.info_field("sigmask").and_then(|text| u64::from_str_radix(text, 16).ok());
    let mask = mask.ok_or_else(|| group.refused("a signalfd without a mask"))?;
    encode(KIND.number, &mask).map(Some)
}

const SIGNALFD4: u16 = 289;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let mask: u64 = decode(file)?;
    let mask = files.program.words(&[mask]);
    let args = [u64::MAX, mask, 8, u64::from(file.flags & NONBLOCK)];
    files.make(file, SIGNALFD4, &args, "files: signalfd", Detail::Fd(file.fds[0].0));
    Ok(())
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let mask: u64 = decode(file)?;
    Ok(format!("mask {mask:#x}"))
}
