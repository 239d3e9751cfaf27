//! What must fit between the parent's machine and this one, and cannot be made to.

use crate::NodeFacts;
use crate::{RestoreError, rare};
use mitosis_descriptor::Descriptor;
use mitosis_sys::cpu;

/// Register state that travels cut away: AMX.
const NOT_CARRIED: u64 = 1 << 17 | 1 << 18;
/// Bits of XCR0 (Intel SDM volume 1, 13.1; APX architecture specification).
const STATES: [(u64, &str); 9] = [
    (1 << 0, "x87"),
    (1 << 1, "SSE"),
    (1 << 2, "AVX"),
    (3 << 3, "MPX"),
    (7 << 5, "AVX-512"),
    (1 << 9, "protection keys"),
    (1 << 11 | 1 << 12, "shadow stacks"),
    (1 << 14, "user interrupts"),
    (1 << 19, "APX"),
];

/// Refuses what a child could not go on with here.
///
/// # Errors
/// [`RestoreError::Incompatible`] with the word for what differs.
pub(crate) fn compatible(descriptor: &Descriptor, node: &NodeFacts) -> Result<(), RestoreError> {
    let wrong = |why: String| Err(RestoreError::Incompatible(why));
    let mut missing = states(descriptor.origin.xcr0 & !node.xcr0 & !NOT_CARRIED);
    let instructions = cpu::lacking(&descriptor.origin.cpuid, &node.cpuid);
    missing.extend(instructions.into_iter().map(str::to_owned));
    if !missing.is_empty() {
        let names = missing.join(", ");
        return wrong(format!("the parent's CPU has what this node's lacks: {names}"));
    }
    match lacking(descriptor, node) {
        Some(what) => wrong(format!("the parent has {what}, which this node's kernel has not")),
        None => Ok(()),
    }
}

/// What the parent has of its kernel, and this node's lacks.
fn lacking(descriptor: &Descriptor, node: &NodeFacts) -> Option<String> {
    let (rare, kernel) = (&descriptor.rare, &node.kernel);
    let sealed = descriptor.vmas.iter().any(rare::is_sealed);
    let table = [
        (sealed && !kernel.seals, "sealed memory (mseal, Linux 6.10)"),
        (
            !rare.guards.is_empty() && !kernel.guards,
            "guard regions (MADV_GUARD_INSTALL, Linux 6.13)",
        ),
        (rare.values.mdwe != 0 && !kernel.mdwe, "PR_SET_MDWE (Linux 6.3)"),
        (rare.values.merge && !kernel.merge, "PR_SET_MEMORY_MERGE (Linux 6.4, CONFIG_KSM)"),
        (rare.values.xcomp & !node.xcr0 != 0, "permission for AMX"),
    ];
    if let Some((_, what)) = table.iter().find(|(lacks, _)| *lacks) {
        return Some((*what).to_owned());
    }
    let largest = descriptor.threads.iter().map(|thread| thread.rseq.1).max();
    let rseq = largest.filter(|bytes| *bytes > kernel.rseq_bytes);
    rseq.map(|bytes| format!("an rseq area of {bytes} bytes"))
}

/// Names of register state, and the bits of what has none here.
fn states(bits: u64) -> Vec<String> {
    let known = STATES.iter().filter(|(mask, _)| bits & mask != 0);
    let mut names: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
    let rest = STATES.iter().fold(bits, |rest, (mask, _)| rest & !mask);
    if rest != 0 {
        names.push(format!("XCR0 bits {rest:#x}"));
    }
    names
}
