//! The bytes of a descriptor: header, then body.
//!
//! ```text
//! offset 0  magic     "MITO"
//!        4  version   u16 LE
//!        6  flags     u16 LE, zero: no flag is defined
//!        8  length    u32 LE, bytes of the body
//!       12  checksum  u32 LE, CRC-32 of the body
//!       16  body      counts, parts (both postcard), then the page runs (see `runs`)
//! ```
//!
//! The counts come first so that each is held against its limit before anything is allocated for
//! it. VMAs and runs are written as distances from their predecessors, and the XSAVE images
//! without their stretches of zeros: these three would otherwise be most of a descriptor.

mod runs;
mod vmas;
mod xstate;

use crate::{Clocks, Descriptor, DescriptorError, Hooks, Limits, MappedFile, OpenFile, Origin};
use crate::{Owner, PageIndex, Process, Rare, SharedObject, Thread};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// First bytes of every descriptor.
pub const MAGIC: [u8; 4] = *b"MITO";
/// Version written by this build, and the only one it reads.
pub const VERSION: u16 = 2;
/// Bytes of the header: magic, version, flags, length of the body, CRC-32 of the body.
pub const HEADER_BYTES: usize = 16;

/// How many of each thing follow. Checked against [`Limits`] before they are decoded, and against
/// what was decoded afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Counts {
    threads: u32,
    files: u32,
    vmas: u32,
    owners: u32,
    shared: u32,
    runs: u32,
    open_files: u32,
}

/// All of a [`Descriptor`] but its page runs, in the form in which it travels.
#[derive(Serialize, Deserialize)]
struct Parts<'a> {
    origin: Cow<'a, Origin>,
    process: Cow<'a, Process>,
    /// With empty `xstate`; it travels in `xstates`, in the same order.
    threads: Vec<Thread>,
    xstates: Vec<xstate::Packed>,
    files: Cow<'a, [MappedFile]>,
    vmas: Vec<vmas::Packed>,
    owners: Cow<'a, [Owner]>,
    shared: Cow<'a, [SharedObject]>,
    open_files: Cow<'a, [OpenFile]>,
    clocks: Clocks,
    hooks: Cow<'a, Hooks>,
    rare: Cow<'a, Rare>,
}

/// Encodes a descriptor. Order is what the encoding rests on and is checked; all else is
/// [`Descriptor::validate`]'s business.
///
/// # Errors
/// [`DescriptorError::Invalid`] when VMAs or runs are not page-aligned, ascending and disjoint;
/// [`DescriptorError::TooLarge`] when a count or the body does not fit 32 bits.
pub fn encode(descriptor: &Descriptor) -> Result<Vec<u8>, DescriptorError> {
    // Destructured, so that a field added to the image cannot be forgotten here.
    let Descriptor {
        origin,
        process,
        threads,
        files,
        vmas,
        owners,
        pages,
        shared,
        open_files,
        clocks,
        hooks,
        rare,
    } = descriptor;
    let counts = Counts {
        threads: count_u32("threads", threads.len())?,
        files: count_u32("files", files.len())?,
        vmas: count_u32("VMAs", vmas.len())?,
        owners: count_u32("owners", owners.len())?,
        shared: count_u32("shared memory objects", shared.len())?,
        runs: count_u32("page runs", pages.runs().len())?,
        open_files: count_u32("open files", open_files.len())?,
    };
    let parts = Parts {
        origin: Cow::Borrowed(origin),
        process: Cow::Borrowed(process),
        threads: threads.iter().map(without_xstate).collect(),
        xstates: threads.iter().map(|t| xstate::pack(&t.xstate)).collect(),
        files: Cow::Borrowed(files),
        vmas: vmas::pack(vmas)?,
        owners: Cow::Borrowed(owners),
        shared: Cow::Borrowed(shared),
        open_files: Cow::Borrowed(open_files),
        clocks: *clocks,
        hooks: Cow::Borrowed(hooks),
        rare: Cow::Borrowed(rare),
    };
    let body = vec![0; HEADER_BYTES];
    let body = postcard::to_extend(&counts, body).map_err(malformed)?;
    let mut out = postcard::to_extend(&parts, body).map_err(malformed)?;
    runs::encode(pages.runs(), &mut out)?;
    let length = count_u32("bytes", out.len() - HEADER_BYTES)?;
    let checksum = crc32fast::hash(&out[HEADER_BYTES..]);
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&length.to_le_bytes());
    out[12..16].copy_from_slice(&checksum.to_le_bytes());
    Ok(out)
}

/// Decodes and validates a descriptor. Of bytes that are none, however made, comes an error: no
/// panic, and no allocation beyond a small multiple of `bytes`.
///
/// # Errors
/// [`DescriptorError`], naming the first thing that is wrong.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Descriptor, DescriptorError> {
    let body = open(bytes, limits)?;
    let (counts, rest) = postcard::take_from_bytes::<Counts>(body).map_err(malformed)?;
    limits.check("threads", counts.threads as usize, limits.threads_max)?;
    limits.check("files", counts.files as usize, limits.vmas_max)?;
    limits.check("VMAs", counts.vmas as usize, limits.vmas_max)?;
    limits.check("owners", counts.owners as usize, limits.owners_max)?;
    limits.check("shared memory objects", counts.shared as usize, limits.vmas_max)?;
    limits.check("page runs", counts.runs as usize, limits.runs_max)?;
    limits.check("open files", counts.open_files as usize, limits.open_files_max)?;
    let (parts, rest) = postcard::take_from_bytes::<Parts<'_>>(rest).map_err(malformed)?;
    let runs = runs::decode(rest, counts.runs as usize)?;
    let descriptor = assemble(parts, PageIndex::from_wire(runs), limits)?;
    if tally(&descriptor) != counts {
        return Err(DescriptorError::Malformed("the counts do not fit the parts".to_owned()));
    }
    descriptor.validate(limits)?;
    Ok(descriptor)
}

/// Checks the header and returns the body.
fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<&'a [u8], DescriptorError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(DescriptorError::Truncated { have: bytes.len(), need: HEADER_BYTES });
    };
    let &[m0, m1, m2, m3, v0, v1, f0, f1, l0, l1, l2, l3, c0, c1, c2, c3] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(DescriptorError::Magic);
    }
    let found = u16::from_le_bytes([v0, v1]);
    if found != VERSION {
        return Err(DescriptorError::Version { found, reads: VERSION });
    }
    let flags = u16::from_le_bytes([f0, f1]);
    if flags != 0 {
        return Err(DescriptorError::Malformed(format!("unknown flags {flags:#x}")));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    limits.check("bytes", length.saturating_add(HEADER_BYTES), limits.bytes_max)?;
    if body.len() < length {
        let need = HEADER_BYTES + length;
        return Err(DescriptorError::Truncated { have: bytes.len(), need });
    }
    if body.len() > length {
        let extra = body.len() - length;
        return Err(DescriptorError::Malformed(format!("{extra} bytes after the body")));
    }
    if crc32fast::hash(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(DescriptorError::Checksum);
    }
    Ok(body)
}

fn assemble(
    parts: Parts<'_>,
    pages: PageIndex,
    limits: &Limits,
) -> Result<Descriptor, DescriptorError> {
    let mut threads = parts.threads;
    if threads.len() != parts.xstates.len() {
        return Err(DescriptorError::Malformed("threads without XSAVE image".to_owned()));
    }
    let mut unpacked = 0;
    for (thread, packed) in threads.iter_mut().zip(&parts.xstates) {
        // An image of zeros is a few bytes here and kilobytes there: bound each and their sum.
        limits.check("XSAVE image", packed.unpacked_len(), limits.xstate_max)?;
        unpacked += packed.unpacked_len();
        limits.check("XSAVE images", unpacked, limits.bytes_max)?;
        thread.xstate = xstate::unpack(packed)?;
    }
    Ok(Descriptor {
        origin: parts.origin.into_owned(),
        process: parts.process.into_owned(),
        threads,
        files: parts.files.into_owned(),
        vmas: vmas::unpack(parts.vmas)?,
        owners: parts.owners.into_owned(),
        pages,
        shared: parts.shared.into_owned(),
        open_files: parts.open_files.into_owned(),
        clocks: parts.clocks,
        hooks: parts.hooks.into_owned(),
        rare: parts.rare.into_owned(),
    })
}

fn tally(d: &Descriptor) -> Counts {
    Counts {
        threads: d.threads.len() as u32,
        files: d.files.len() as u32,
        vmas: d.vmas.len() as u32,
        owners: d.owners.len() as u32,
        shared: d.shared.len() as u32,
        runs: d.pages.runs().len() as u32,
        open_files: d.open_files.len() as u32,
    }
}

fn without_xstate(thread: &Thread) -> Thread {
    let mut bare = thread.clone();
    bare.xstate = Vec::new();
    bare
}

fn count_u32(what: &'static str, have: usize) -> Result<u32, DescriptorError> {
    let over = |_| DescriptorError::TooLarge { what, have: have as u64, limit: u32::MAX.into() };
    u32::try_from(have).map_err(over)
}

fn malformed(error: postcard::Error) -> DescriptorError {
    DescriptorError::Malformed(error.to_string())
}
