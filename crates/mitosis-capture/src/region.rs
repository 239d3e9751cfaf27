//! The region that is mapped into the parent for the injected code: what lies where in it, and how the
//! answers that the code leaves there are read. The shadow keeps it.

use crate::CaptureError;
use crate::gadget::{Gadget, check};
use crate::refuse::Facts;
use crate::shared::{PIECE_BYTES, PIECES_MAX};
use crate::timers;
use mitosis_stub::abi::{CaptureData, CaptureThread};
use mitosis_sys::ptrace::Stopped;
use std::mem::offset_of;
use std::time::Instant;

const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
/// EACCES.
const DENIED: i64 = -13;
const PROT_RW: u64 = 3;
const PROT_RX: u64 = 5;
const PROT_RWX: u64 = 7;
const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
/// Stack of the leading thread, and of the helper, in the region.
const STACK: u64 = 4096;
/// Stack and data of every other thread.
pub(crate) const THREAD_SLOT: u64 = 1024;
/// Bytes that the shadow has for its own use behind the code, at least: see [`Layout`].
pub(crate) const DATA_BYTES: u64 = 2 * STACK + THREADS_SPARE as u64 * THREAD_SLOT;
/// Threads that may be started between the first stop and the second.
const THREADS_SPARE: usize = 64;

/// What the injected code brought.
pub(crate) struct Injected {
    /// The region, which the shadow still has.
    pub region: (u64, u64),
    /// Process-wide answers.
    pub data: Box<CaptureData>,
    /// Per-thread answers, in the order of the threads.
    pub threads: Vec<CaptureThread>,
}

/// Layout of the region: code, data, two stacks, then one slot for each other thread.
pub(crate) struct Layout {
    pub data: u64,
    pub leader_stack: u64,
    pub helper_stack: u64,
    pub slots: u64,
    pub slot_count: usize,
    /// Of pieces of shared memory, for a process that has some.
    pub table: u64,
    /// Of timers, where the first look found some.
    pub timers: u64,
    pub timer_count: usize,
    pub len: u64,
}

impl Layout {
    pub fn new(threads: usize, facts: &Facts) -> Layout {
        // Pages of its own: they may have to be protected otherwise than the data.
        let code = (mitosis_stub::text().len() as u64).next_multiple_of(4096);
        let data = code;
        let stacks = (data + size_of::<CaptureData>() as u64).next_multiple_of(64);
        let slots = stacks + 2 * STACK;
        let slot_count = threads + THREADS_SPARE;
        let table = (slots + slot_count as u64 * THREAD_SLOT).next_multiple_of(64);
        let table_len = if facts.shared { PIECES_MAX * PIECE_BYTES } else { 0 };
        let timers = table + table_len as u64;
        let timer_count = if facts.timers == 0 { 0 } else { facts.timers + timers::SPARE };
        let timers_len = (timer_count * timers::PLACE_BYTES) as u64;
        let len = (timers + timers_len).next_multiple_of(4096);
        let (leader_stack, helper_stack) = (stacks + STACK, slots);
        Layout {
            data,
            leader_stack,
            helper_stack,
            slots,
            slot_count,
            table,
            timers,
            timer_count,
            len,
        }
    }
}

/// Maps the region.
///
/// # Errors
/// The call's, or the leading thread's end.
pub(crate) fn map(
    leader: &mut Stopped,
    gadget: &Gadget,
    layout: &Layout,
    deadline: Instant,
) -> Result<u64, CaptureError> {
    let fail = CaptureError::sys("plant", leader.tid());
    let args = [0, layout.len, PROT_RWX, MAP_PRIVATE_ANONYMOUS, u64::MAX, 0];
    let base = leader.inject(gadget.address, MMAP, args, deadline).map_err(&fail)?;
    let base = match base {
        DENIED => without_wx(leader, gadget, layout, deadline)?,
        base => base,
    };
    check("mmap", base)?;
    Ok(base as u64)
}

/// The same in a process that may not have memory that is writable and executable
/// (`PR_SET_MDWE`): the tracer can write what the process itself cannot.
fn without_wx(
    leader: &mut Stopped,
    gadget: &Gadget,
    layout: &Layout,
    deadline: Instant,
) -> Result<i64, CaptureError> {
    let fail = CaptureError::sys("plant", leader.tid());
    let args = [0, layout.len, PROT_RX, MAP_PRIVATE_ANONYMOUS, u64::MAX, 0];
    let base = leader.inject(gadget.address, MMAP, args, deadline).map_err(&fail)?;
    if base < 0 {
        return Ok(base);
    }
    let args = [base as u64 + layout.data, layout.len - layout.data, PROT_RW, 0, 0, 0];
    let protected = leader.inject(gadget.address, MPROTECT, args, deadline).map_err(&fail)?;
    if protected < 0 {
        let args = [base as u64, layout.len, 0, 0, 0, 0];
        leader.inject(gadget.address, MUNMAP, args, deadline).map_err(&fail)?;
        return Ok(protected);
    }
    Ok(base)
}

pub(crate) fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0u8; 8];
        word.copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks_exact(8).map(word).collect()
}

pub(crate) fn decode_thread(bytes: &[u8]) -> CaptureThread {
    let w = words(bytes);
    CaptureThread {
        tid_address: w[0],
        altstack: [w[1], w[2], w[3]],
        values: [4, 5, 6, 7, 8].map(|n| w[n] as i64),
        policy: [w[9], w[10], w[11], w[12]],
    }
}

pub(crate) fn decode_data(bytes: &[u8]) -> CaptureData {
    let w = words(bytes);
    let mut sigactions = [[0u64; 4]; 64];
    for (n, action) in sigactions.iter_mut().enumerate() {
        action.copy_from_slice(&w[8 + 4 * n..12 + 4 * n]);
    }
    let mut itimers = [[0u64; 4]; 3];
    for (n, timer) in itimers.iter_mut().enumerate() {
        let at = offset_of!(CaptureData, itimers) / 8 + 4 * n;
        timer.copy_from_slice(&w[at..at + 4]);
    }
    let values = offset_of!(CaptureData, values) / 8;
    CaptureData {
        helper_stack_top: w[0],
        helper: w[1] as i64,
        shadow: w[2] as i64,
        brk: w[3],
        prctl: [w[4] as i64, w[5] as i64, w[6] as i64, w[7] as i64],
        sigactions,
        thread: decode_thread(&bytes[8 * 264..]),
        shadow_flags: 0,
        shared: [0; 2],
        shared_result: 0,
        itimers,
        timers: [0; 2],
        values: [0, 1, 2].map(|n| w[values + n] as i64),
    }
}
