//! Page runs in at most 16 bytes each, mostly in two to four.
//!
//! The low two bits of a run's first byte tell its form:
//!
//! | form | bytes |
//! |---|---|
//! | 0 | varint `gap << 2`, varint count: owner and shift as before |
//! | 1 | varint `gap << 2 \| 1`, varint count, varint owner: another owner, shift as before |
//! | 3 | 5 bytes `start << 2 \| 3`, 4 bytes count, 2 bytes owner, 5 bytes source, all LE |
//!
//! `gap` is the distance from the end of the run before, `shift` is `source - start`. Page numbers
//! have 35 bits, so form 3 always suffices and forms 0 and 1 take 14 bytes at most.

use super::malformed;
use crate::validate::VPN_END;
use crate::{DescriptorError, PageRun, Vpn};

const SAME: u8 = 0;
const OWNER: u8 = 1;
const FULL: u8 = 3;
const FULL_BYTES: usize = 16;

/// What a run is told relative to.
struct Cursor {
    end: u64,
    owner: u16,
    shift: i64,
}

impl Cursor {
    const START: Cursor = Cursor { end: 0, owner: 0, shift: 0 };

    fn after(run: &PageRun) -> Cursor {
        Cursor { end: run.end().0, owner: run.owner, shift: shift(run) }
    }
}

fn shift(run: &PageRun) -> i64 {
    run.source.0 as i64 - run.start.0 as i64
}

/// Appends `runs`.
pub(super) fn encode(runs: &[PageRun], out: &mut Vec<u8>) -> Result<(), DescriptorError> {
    let mut cursor = Cursor::START;
    for run in runs {
        check(run, &cursor)?;
        let gap = run.start.0 - cursor.end;
        if shift(run) != cursor.shift {
            out.extend_from_slice(&(run.start.0 << 2 | u64::from(FULL)).to_le_bytes()[..5]);
            out.extend_from_slice(&run.count.to_le_bytes());
            out.extend_from_slice(&run.owner.to_le_bytes());
            out.extend_from_slice(&run.source.0.to_le_bytes()[..5]);
        } else if run.owner != cursor.owner {
            varint(gap << 2 | u64::from(OWNER), out);
            varint(u64::from(run.count), out);
            varint(u64::from(run.owner), out);
        } else {
            varint(gap << 2 | u64::from(SAME), out);
            varint(u64::from(run.count), out);
        }
        cursor = Cursor::after(run);
    }
    Ok(())
}

/// Decodes exactly `count` runs, which must be all of `bytes`.
pub(super) fn decode(mut bytes: &[u8], count: usize) -> Result<Vec<PageRun>, DescriptorError> {
    // A run takes two bytes or more, so a count that the bytes cannot hold allocates nothing.
    let mut runs = Vec::with_capacity(count.min(bytes.len() / 2));
    let mut cursor = Cursor::START;
    for _ in 0..count {
        let (run, rest) = take(bytes, &cursor)?;
        check(&run, &cursor)?;
        cursor = Cursor::after(&run);
        runs.push(run);
        bytes = rest;
    }
    if !bytes.is_empty() {
        let extra = bytes.len();
        return Err(DescriptorError::Malformed(format!("{extra} bytes after the page runs")));
    }
    Ok(runs)
}

fn take<'a>(bytes: &'a [u8], cursor: &Cursor) -> Result<(PageRun, &'a [u8]), DescriptorError> {
    let form = bytes.first().map_or(SAME, |b| b & 3);
    if form == FULL {
        return take_full(bytes);
    }
    if form != SAME && form != OWNER {
        return Err(DescriptorError::Malformed(format!("page run of unknown form {form}")));
    }
    let (head, rest) = postcard::take_from_bytes::<u64>(bytes).map_err(malformed)?;
    let (count, rest) = postcard::take_from_bytes::<u32>(rest).map_err(malformed)?;
    let (owner, rest) = match form {
        OWNER => postcard::take_from_bytes::<u16>(rest).map_err(malformed)?,
        _ => (cursor.owner, rest),
    };
    let start = cursor.end.saturating_add(head >> 2);
    // Both are below 2^62 here: `head >> 2` by the shift, the cursor by `check`.
    let source = u64::try_from(start as i64 + cursor.shift)
        .map_err(|_| DescriptorError::Malformed("page run with a negative source".to_owned()))?;
    Ok((PageRun { start: Vpn(start), count, owner, source: Vpn(source) }, rest))
}

fn take_full(bytes: &[u8]) -> Result<(PageRun, &[u8]), DescriptorError> {
    let Some((full, rest)) = bytes.split_first_chunk::<FULL_BYTES>() else {
        return Err(DescriptorError::Truncated { have: bytes.len(), need: FULL_BYTES });
    };
    let &[s0, s1, s2, s3, s4, c0, c1, c2, c3, o0, o1, p0, p1, p2, p3, p4] = full;
    let run = PageRun {
        start: Vpn(u64::from_le_bytes([s0, s1, s2, s3, s4, 0, 0, 0]) >> 2),
        count: u32::from_le_bytes([c0, c1, c2, c3]),
        owner: u16::from_le_bytes([o0, o1]),
        source: Vpn(u64::from_le_bytes([p0, p1, p2, p3, p4, 0, 0, 0])),
    };
    Ok((run, rest))
}

/// Not empty, after its predecessor, and below the end of user space on both sides.
fn check(run: &PageRun, cursor: &Cursor) -> Result<(), DescriptorError> {
    let count = u64::from(run.count);
    let fits = |vpn: Vpn| vpn.0 <= VPN_END && vpn.0 + count <= VPN_END;
    if count == 0 || run.start.0 < cursor.end || !fits(run.start) || !fits(run.source) {
        return Err(DescriptorError::Invalid(format!(
            "page run {:#x}+{:#x} from {:#x}: empty, overlapping or beyond user space",
            run.start.0, run.count, run.source.0
        )));
    }
    Ok(())
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
