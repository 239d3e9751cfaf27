//! Under its parent's seccomp filters a child makes its last calls: whether the filters let them
//! through is found out when it is planned.
//!
//! Filters are classic BPF over `struct seccomp_data` (linux/seccomp.h). They jump forward only, so
//! evaluating one takes no more steps than it has instructions, of which the descriptor has a bound.

use crate::{NodeFacts, RestoreError, identity};
use mitosis_descriptor::Descriptor;

/// Installing a filter takes it or `no_new_privs` (seccomp(2)).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const RET_ACTION_FULL: u32 = 0xffff_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_LOG: u32 = 0x7ffc_0000;

const SECCOMP: u32 = 317;
const CAPSET: u32 = 126;
const FUTEX: u32 = 202;
const RT_SIGRETURN: u32 = 15;

/// A call as a filter sees it. Where it is made from is not said: a filter that asks for that lets
/// nothing through.
#[derive(Clone, Copy, Debug)]
struct Call {
    nr: u32,
    args: [u64; 6],
}

fn call(nr: u32, given: &[u64]) -> Call {
    let mut args = [0; 6];
    args[..given.len()].copy_from_slice(given);
    Call { nr, args }
}

/// Whether the main thread keeps `CAP_SYS_ADMIN` until the filters are in place, and then gives it away.
pub(crate) fn keeps_admin(descriptor: &Descriptor) -> bool {
    let creds = &descriptor.process.creds;
    let may = creds.no_new_privs || creds.caps[2] & CAP_SYS_ADMIN != 0;
    !descriptor.process.seccomp.is_empty() && !may
}

/// Sets of capabilities with that one, which the child has no longer when it goes on.
pub(crate) fn with_admin(
    [inheritable, permitted, effective, bounding, ambient]: [u64; 5],
) -> [u64; 5] {
    [inheritable, permitted | CAP_SYS_ADMIN, effective | CAP_SYS_ADMIN, bounding, ambient]
}

/// Where things are that the last calls of the main thread name.
pub(crate) struct Addresses {
    /// `struct sock_fprog`s.
    pub filters: u64,
    /// What capset(2) takes: its header, and its data behind that.
    pub capset: Option<u64>,
    /// What the other threads wait for.
    pub go: u64,
}

/// Whether all calls under the filters are let through; gives whether those by which a thread waits and is
/// woken are, too.
///
/// # Errors
/// [`RestoreError::Incompatible`]: one is not, and which.
pub(crate) fn admitted(
    descriptor: &Descriptor,
    node: &NodeFacts,
    at: &Addresses,
) -> Result<bool, RestoreError> {
    let filters = &descriptor.process.seccomp;
    let refused = |name: &str| {
        let why = format!(
            "the parent's seccomp filters do not let {name}(2) through, which its child must call \
             when they are in place"
        );
        Err(RestoreError::Incompatible(why))
    };
    if at.capset.is_some() && identity::bounding(descriptor, node) & CAP_SYS_ADMIN == 0 {
        let why = "the parent has seccomp filters, which nobody can install on this node, whose daemon has \
                   not CAP_SYS_ADMIN";
        return Err(RestoreError::Incompatible(why.into()));
    }
    for n in 1..filters.len() {
        // seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, program)
        if !pass(&filters[..n], &call(SECCOMP, &[1, 1, at.filters + 16 * n as u64])) {
            return refused("seccomp");
        }
    }
    if at.capset.is_some_and(|head| !pass(filters, &call(CAPSET, &[head, head + 8]))) {
        return refused("capset");
    }
    if !pass(filters, &call(RT_SIGRETURN, &[])) {
        return refused("rt_sigreturn");
    }
    let futex = [[at.go, 0, 0], [at.go, 1, i32::MAX as u64]];
    Ok(futex.iter().all(|args| pass(filters, &call(FUTEX, args))))
}

/// Whether all these filters let a call through.
fn pass(filters: &[Vec<u64>], call: &Call) -> bool {
    filters.iter().all(|filter| {
        let action = evaluate(filter, call).map(|result| result & RET_ACTION_FULL);
        matches!(action, Some(RET_ALLOW | RET_LOG))
    })
}

/// What a filter returns for a call; `None` if it is not one that the kernel takes, or asks for what is
/// not known.
fn evaluate(filter: &[u64], call: &Call) -> Option<u32> {
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let word = *filter.get(at)?;
        let (code, k) = (word as u16, (word >> 32) as u32);
        let (jump_true, jump_false) = ((word >> 16) as u8, (word >> 24) as u8);
        let cell = usize::try_from(k).ok()?;
        at += 1;
        // linux/bpf_common.h: the class in the lowest bits, then size or source, mode or operation.
        match code {
            0x20 => a = load(call, k)?,
            0x80 => a = DATA_BYTES,
            0x81 => x = DATA_BYTES,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = *memory.get(cell)?,
            0x61 => x = *memory.get(cell)?,
            0x02 => *memory.get_mut(cell)? = a,
            0x03 => *memory.get_mut(cell)? = x,
            0x07 => x = a,
            0x87 => a = x,
            0x06 => return Some(k),
            0x16 => return Some(a),
            0x05 => at = at.checked_add(cell)?,
            _ if code & 7 == 5 => {
                let with = if code & 8 != 0 { x } else { k };
                let holds = match code & 0xf0 {
                    0x10 => a == with,
                    0x20 => a > with,
                    0x30 => a >= with,
                    0x40 => a & with != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jump_true } else { jump_false });
            }
            _ if code & 7 == 4 => {
                let with = if code & 8 != 0 { x } else { k };
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(with),
                    0x10 => a.wrapping_sub(with),
                    0x20 => a.wrapping_mul(with),
                    // A division by zero ends the filter with 0.
                    0x30 if with == 0 => return Some(0),
                    0x30 => a / with,
                    0x40 => a | with,
                    0x50 => a & with,
                    // Only the lowest bits of a number of bits count.
                    0x60 => a.wrapping_shl(with),
                    0x70 => a.wrapping_shr(with),
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ with,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
}

/// Bytes of `struct seccomp_data`.
const DATA_BYTES: u32 = 64;

/// A word of it: the number, the architecture, eight bytes of address, six arguments.
fn load(call: &Call, offset: u32) -> Option<u32> {
    match offset {
        0 => Some(call.nr),
        4 => Some(AUDIT_ARCH_X86_64),
        16.. if offset < DATA_BYTES && offset % 4 == 0 => {
            let argument = call.args[(offset as usize - 16) / 8];
            Some(if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
