//! What few processes have: guard regions, memory policies, protection keys, values of prctl(2).

use crate::NodeFacts;
use mitosis_descriptor::{Backing, Descriptor, MemoryPolicy, ThreadValues, Vma, vma_flags};
use mitosis_state::{Detail, List, Program};

const MADVISE: u16 = 28;
const PRCTL: u16 = 157;
const ARCH_PRCTL: u16 = 158;
const MBIND: u16 = 237;
const PKEY_MPROTECT: u16 = 329;
const PKEY_ALLOC: u16 = 330;
const SET_MEMPOLICY: u16 = 238;
/// Since Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;
const PR_SET_TIMERSLACK: u64 = 29;
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_SET: u64 = 1;
const PR_SET_MDWE: u64 = 65;
const PR_SET_MEMORY_MERGE: u64 = 67;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// The highest mode that names nodes is below this; above are flags (linux/mempolicy.h).
const MODE_MASK: u32 = 0x1fff;
/// `MPOL_LOCAL`, which names none.
const MODE_LOCAL: u32 = 4;

/// Whether the program has sealed it: parts of the vdso are the kernel's to seal.
pub(crate) fn is_sealed(vma: &Vma) -> bool {
    let own = matches!(vma.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock);
    !own && vma.flags & vma_flags::SEALED != 0
}

/// What belongs to memory: when all is mapped.
pub(crate) fn memory(program: &mut Program, descriptor: &Descriptor, node: &NodeFacts) {
    for &(start, end) in &descriptor.rare.guards {
        let detail = Detail::Range(start, end);
        let args = [start, end - start, MADV_GUARD_INSTALL];
        let what = "map-vmas: guard region";
        program.call(List::Build, MADVISE, &args, what, detail);
    }
    for (start, end, policy) in &descriptor.rare.policies {
        let Some((mode, nodes, bits)) = here(program, policy, node) else { continue };
        let args = [*start, end - start, mode, nodes, bits, 0];
        let detail = Detail::Range(*start, *end);
        program.call(List::Build, MBIND, &args, "map-vmas: mbind", detail);
    }
}

/// Protection keys, when nothing is mapped yet: the kernel gives what can only be executed one of those
/// that are left. All up to the highest that is used are the program's, for that one has them that were
/// allocated before it; a key that guards no memory yet cannot be seen.
pub(crate) fn allocate_keys(program: &mut Program, descriptor: &Descriptor) {
    let highest = descriptor.rare.keys.iter().map(|(.., key)| *key).max().unwrap_or(0);
    for key in 1..=u64::from(highest) {
        let what = "map-vmas: pkey_alloc";
        program.call_expect(List::Build, PKEY_ALLOC, &[0, 0], key, what, Detail::Number(key));
    }
}

/// And when all is mapped.
pub(crate) fn assign_keys(program: &mut Program, descriptor: &Descriptor) {
    assign_keys_in(program, descriptor, (0, u64::MAX));
}

/// The same for one mapping that was made anew.
pub(crate) fn assign_keys_of(program: &mut Program, descriptor: &Descriptor, vma: &Vma) {
    assign_keys_in(program, descriptor, (vma.start, vma.end));
}

fn assign_keys_in(program: &mut Program, descriptor: &Descriptor, (from, to): (u64, u64)) {
    let inside = |range: &&(u64, u64, u8)| from <= range.0 && range.1 <= to;
    for &(start, end, key) in descriptor.rare.keys.iter().filter(inside) {
        let vma = descriptor.vmas.iter().find(|vma| vma.start <= start && start < vma.end);
        let prot = vma.map_or(0, |vma| u64::from(vma.prot));
        let args = [start, end - start, prot, u64::from(key)];
        let what = "map-vmas: pkey_mprotect";
        program.call(List::Build, PKEY_MPROTECT, &args, what, Detail::Range(start, end));
    }
}

/// Mode, address and length of the nodes that this node has of a policy; `None` where it has none.
fn here(program: &mut Program, policy: &MemoryPolicy, node: &NodeFacts) -> Option<(u64, u64, u64)> {
    let mode = u64::from(policy.mode);
    if policy.mode & MODE_MASK == MODE_LOCAL {
        return Some((mode, 0, 0));
    }
    let both = policy.nodes.iter().zip(&node.memory_nodes).map(|(want, have)| want & have);
    let nodes: Vec<u64> = both.collect();
    if nodes.iter().all(|word| *word == 0) {
        return None;
    }
    let at = program.words(&nodes);
    Some((mode, at, nodes.len() as u64 * 64 + 1))
}

/// What belongs to threads.
pub(crate) fn threads(program: &mut Program, descriptor: &Descriptor, node: &NodeFacts) {
    let usual = ThreadValues::usual();
    for (n, values) in descriptor.rare.threads.iter().enumerate() {
        let list = List::Thread(n);
        if values.slack_ns != usual.slack_ns {
            let args = [PR_SET_TIMERSLACK, values.slack_ns, 0, 0, 0];
            program.call(list, PRCTL, &args, "threads: timer slack", Detail::None);
        }
        if values.mce_kill != usual.mce_kill {
            let args = [PR_MCE_KILL, PR_MCE_KILL_SET, u64::from(values.mce_kill), 0, 0];
            program.call(list, PRCTL, &args, "threads: PR_MCE_KILL", Detail::None);
        }
        if values.policy == usual.policy {
            continue;
        }
        if let Some((mode, nodes, bits)) = here(program, &values.policy, node) {
            let args = [mode, nodes, bits];
            program.call(list, SET_MEMPOLICY, &args, "threads: set_mempolicy", Detail::None);
        }
    }
}

/// What stands in the way of building the process: the last operation.
pub(crate) fn process(program: &mut Program, descriptor: &Descriptor) {
    let values = &descriptor.rare.values;
    if values.mdwe != 0 {
        let args = [PR_SET_MDWE, u64::from(values.mdwe), 0, 0, 0];
        program.call(List::Finish, PRCTL, &args, "finish: PR_SET_MDWE", Detail::None);
    }
}

/// What must be asked for before there are other threads.
pub(crate) fn registers(program: &mut Program, descriptor: &Descriptor) {
    if descriptor.rare.values.merge {
        let args = [PR_SET_MEMORY_MERGE, 1, 0, 0, 0];
        program.call(List::Build, PRCTL, &args, "threads: PR_SET_MEMORY_MERGE", Detail::None);
    }
    let asked = descriptor.rare.values.xcomp;
    for feature in (0..64).filter(|bit| asked & (1 << bit) != 0) {
        let args = [ARCH_REQ_XCOMP_PERM, feature];
        let what = "threads: permission for register state (AMX)";
        program.call(List::Build, ARCH_PRCTL, &args, what, Detail::Number(feature));
    }
}
