//! What confines the threads of a child, which is put in place last: seccomp filters, strict mode. Under
//! its parent's filters a child makes its last calls: whether they let these through is found out when it
//! is planned.
//!
//! Filters are classic BPF over `struct seccomp_data` (linux/seccomp.h). They jump forward only, so
//! evaluating one takes no more steps than it has instructions, of which the descriptor has a bound.

use crate::{NodeFacts, RestoreError, identity, user};
use mitosis_descriptor::{Confined, Confinement, Descriptor, OtherCreds};
use mitosis_stub::abi::{LastCall, THREAD_KEEPS, THREAD_OTHER};
use std::collections::HashMap;

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
const EXIT: u32 = 60;

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

/// How threads are confined: the way that the process is said to be, then those that differ.
fn ways(descriptor: &Descriptor) -> Vec<Confinement<'_>> {
    let process = &descriptor.process;
    let (filters, no_new_privs) = (process.seccomp.as_slice(), process.creds.no_new_privs);
    let usual = Confinement { filters, strict: false, no_new_privs };
    let first = |one: &Confined| one.threads.first().map_or(0, |n| *n as usize);
    let others = descriptor.rare.confined.iter().map(|one| descriptor.confinement(first(one)));
    std::iter::once(usual).chain(others).collect()
}

/// How many filters, the oldest, the main thread installs for all threads at once. They are what all have,
/// but none where that would give a thread `no_new_privs`, which comes along, that has it not.
fn shared(descriptor: &Descriptor) -> usize {
    let main = descriptor.confinement(0);
    let same = |own: &Confinement<'_>| {
        let same = main.filters.iter().zip(own.filters).take_while(|(a, b)| a == b).count();
        if main.no_new_privs && !own.no_new_privs { 0 } else { same }
    };
    ways(descriptor).iter().map(same).min().unwrap_or(0)
}

/// Whether a thread keeps `CAP_SYS_ADMIN` until the filters that it installs are in place, and then gives it
/// away.
fn keeps(descriptor: &Descriptor, own: Confinement<'_>, installs: usize) -> bool {
    let may = own.no_new_privs || descriptor.process.creds.caps[2] & CAP_SYS_ADMIN != 0;
    installs > 0 && !may
}

/// Whether a thread keeps `CAP_SYS_ADMIN` until its filters are in place.
pub(crate) fn keeps_admin(descriptor: &Descriptor) -> bool {
    let (main, shared) = (descriptor.confinement(0), shared(descriptor));
    let other = |own: &Confinement<'_>| keeps(descriptor, *own, own.filters.len() - shared);
    keeps(descriptor, main, main.filters.len()) || ways(descriptor).iter().any(other)
}

/// Sets of capabilities with that one, which the child has no longer when it goes on.
pub(crate) fn with_admin(
    [inheritable, permitted, effective, bounding, ambient]: [u64; 5],
) -> [u64; 5] {
    [inheritable, permitted | CAP_SYS_ADMIN, effective | CAP_SYS_ADMIN, bounding, ambient]
}

/// What confines threads, and the calls by which it does, as they lie in the child's memory.
#[derive(Default)]
pub(crate) struct Laid {
    /// `struct sock_fprog`s and what they name, what capset(2) takes, [`LastCall`]s.
    pub bytes: Vec<u8>,
    /// Of each thread: the address of its last calls, or 0, and [`ThreadPlan::flags`].
    ///
    /// [`ThreadPlan::flags`]: mitosis_stub::abi::ThreadPlan::flags
    pub threads: Vec<(u64, i32)>,
    /// What capset(2) takes: the address of its header, with its data behind that; or 0.
    pub capset: u64,
    /// Threads may sleep until the gate is open.
    pub asleep: bool,
    /// The threads beside the main thread, if any of them confines itself.
    pub others: u32,
}

/// Lays it out at `at`, which is aligned to 16 bytes. `go` is what threads wait for.
///
/// # Errors
/// [`RestoreError::Incompatible`]: a call would not be let through, and which.
pub(crate) fn lay(
    descriptor: &Descriptor,
    node: &NodeFacts,
    at: u64,
    go: u64,
) -> Result<Laid, RestoreError> {
    let mut laid = Laid::default();
    if keeps_admin(descriptor) {
        if identity::bounding(descriptor, node) & CAP_SYS_ADMIN == 0 {
            let why = "the parent has seccomp filters, which nobody can install on this node, whose daemon \
                       has not CAP_SYS_ADMIN";
            return Err(RestoreError::Incompatible(why.into()));
        }
        laid.capset = at;
        let words = identity::capset(descriptor.process.creds.caps, descriptor, node);
        laid.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    let shared = shared(descriptor);
    let mut programs = HashMap::new();
    let main = descriptor.confinement(0);
    // The list of the main thread, then one for each way in which other threads are confined.
    let mut lists = Vec::new();
    for (n, own) in std::iter::once(main).chain(ways(descriptor)).enumerate() {
        let addresses: Vec<u64> =
            own.filters.iter().map(|filter| laid.program(at, filter, &mut programs)).collect();
        let from = if n == 0 { 0 } else { shared };
        let keeps = keeps(descriptor, own, own.filters.len() - from);
        let capset = if n == 0 || keeps { laid.capset } else { 0 };
        let calls = last_calls(own, &addresses, (from, shared), capset)?;
        lists.push((laid.list(at, &calls), if keeps { THREAD_KEEPS } else { 0 }));
    }
    laid.threads = vec![lists[1]; descriptor.threads.len()];
    for (one, list) in descriptor.rare.confined.iter().zip(&lists[2..]) {
        one.threads.iter().for_each(|n| laid.threads[*n as usize] = *list);
    }
    laid.threads[0] = lists[0];
    for OtherCreds { threads, creds } in &descriptor.rare.other_creds {
        if user::is_below(descriptor) && !user::same_ids(creds, &descriptor.process.creds) {
            let why = "a thread of the parent, which is in a user namespace, has other ids than its main thread";
            return Err(RestoreError::Incompatible(why.into()));
        }
        for n in threads.iter().map(|n| *n as usize) {
            let own = descriptor.confinement(n);
            let may = own.no_new_privs || creds.caps[2] & CAP_SYS_ADMIN != 0;
            let (_, flags) = &mut laid.threads[n];
            if *flags & THREAD_KEEPS != 0 || own.filters.len() > shared && !may {
                let why = "a thread of the parent with other credentials than its main thread has seccomp \
                           filters of its own that it could not install";
                return Err(RestoreError::Incompatible(why.into()));
            }
            *flags |= THREAD_OTHER;
        }
    }
    let wait = pass(&main.filters[..shared], &call(FUTEX, &[go, 0, 0]));
    let wake = pass(main.filters, &call(FUTEX, &[go, 1, i32::MAX as u64]));
    if let Some(code) = descriptor.rare.ended_leader {
        passes(main.filters, "exit", call(EXIT, &[code.into()]))?;
    }
    if laid.threads.iter().skip(1).any(|(calls, _)| *calls != 0) {
        laid.others = laid.threads.len() as u32 - 1;
    }
    laid.asleep = wait && wake && !main.strict && laid.others == 0;
    Ok(laid)
}

impl Laid {
    /// The `struct sock_fprog` of a filter.
    fn program<'a>(
        &mut self,
        at: u64,
        filter: &'a [u64],
        programs: &mut HashMap<&'a [u64], u64>,
    ) -> u64 {
        *programs.entry(filter).or_insert_with(|| {
            let code = at + self.bytes.len() as u64;
            self.bytes.extend(filter.iter().flat_map(|word| word.to_le_bytes()));
            let program = at + self.bytes.len() as u64;
            let header = [filter.len() as u64, code];
            self.bytes.extend(header.iter().flat_map(|word| word.to_le_bytes()));
            program
        })
    }

    /// The list of these calls.
    fn list(&mut self, at: u64, calls: &[Call]) -> u64 {
        if calls.is_empty() {
            return 0;
        }
        let list = at + self.bytes.len() as u64;
        for Call { nr, args } in calls {
            let words = [u64::from(*nr), args[0], args[1], args[2]];
            self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        self.bytes.resize(self.bytes.len() + size_of::<LastCall>(), 0);
        list
    }
}

/// The call, if these filters let it through.
fn passes(filters: &[Vec<u64>], name: &str, call: Call) -> Result<Call, RestoreError> {
    let why = || {
        let what = format!(
            "the parent's seccomp filters do not let {name}(2) through, which its child must call \
             when they are in place"
        );
        RestoreError::Incompatible(what)
    };
    pass(filters, &call).then_some(call).ok_or_else(why)
}

/// What a thread calls last that installs its filters after the first `from`, up to `shared` for all threads.
fn last_calls(
    own: Confinement<'_>,
    programs: &[u64],
    (from, shared): (usize, usize),
    capset: u64,
) -> Result<Vec<Call>, RestoreError> {
    const STRICT: u64 = 0;
    const FILTER: u64 = 1;
    const TSYNC: u64 = 1;
    let mut calls = Vec::new();
    for (count, program) in programs.iter().enumerate().skip(from) {
        let flags = if count < shared { TSYNC } else { 0 };
        let install = call(SECCOMP, &[FILTER, flags, *program]);
        calls.push(passes(&own.filters[..count], "seccomp", install)?);
    }
    if capset != 0 {
        let give = call(CAPSET, &[capset, capset + 8]);
        calls.push(passes(own.filters, "capset", give)?);
    }
    if own.strict {
        calls.push(call(SECCOMP, &[STRICT]));
    }
    passes(own.filters, "rt_sigreturn", call(RT_SIGRETURN, &[]))?;
    Ok(calls)
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
