//! What must fit between the parent's machine and this one, and cannot be made to.

use crate::RestoreError;
use crate::plan::NodeFacts;
use mitosis_descriptor::Descriptor;

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
    let creds = &descriptor.process.creds;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let may_filter = creds.no_new_privs || creds.caps[2] & CAP_SYS_ADMIN != 0;
    if !descriptor.process.seccomp.is_empty() && !may_filter {
        return wrong(
            "the parent has seccomp filters, but neither no_new_privs nor CAP_SYS_ADMIN: its \
             child could not install them"
                .into(),
        );
    }
    let missing = descriptor.origin.xcr0 & !node.xcr0 & !NOT_CARRIED;
    if missing != 0 {
        let names = states(missing);
        return wrong(format!(
            "the parent's CPU has register state that this node's lacks: {names}"
        ));
    }
    Ok(())
}

/// Names of register state, and the bits of what has none here.
fn states(bits: u64) -> String {
    let known = STATES.iter().filter(|(mask, _)| bits & mask != 0);
    let mut names: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
    let rest = STATES.iter().fold(bits, |rest, (mask, _)| rest & !mask);
    if rest != 0 {
        names.push(format!("XCR0 bits {rest:#x}"));
    }
    names.join(", ")
}
