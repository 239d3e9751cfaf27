//! Memory that the parent keeps from its forks (`MADV_DONTFORK`): V8 marks its heap so.
//!
//! A child goes on as the parent, so it needs that memory; but the shadow is a fork and lacks it.
//! Whether a process has such memory only its `smaps` tell, which is too slow a look for all: so
//! what the shadow lacks is found afterwards, and then the parent is prepared once more, with the
//! advice taken back for the moment of the fork.

use crate::CaptureError;
use crate::inject::Planted;
use crate::memory::cut;
use crate::stop::StoppedProcess;
use mitosis_descriptor::Descriptor;
use mitosis_sys::SysError;
use mitosis_sys::procfs::{self, Mapping};

/// First byte, and one past the last.
pub(crate) type Range = (u64, u64);

const DONTFORK: &[u8; 2] = b"dc";
const MADV_DONTFORK: u64 = 10;
const MADV_DOFORK: u64 = 11;

/// Whether the process has such memory that a descriptor of it lacks.
pub(crate) fn lacks(pid: i32, descriptor: &Descriptor) -> Result<bool, SysError> {
    let known = |mapping: &Mapping| {
        let at = descriptor.vmas.partition_point(|vma| vma.end <= mapping.start);
        descriptor.vmas.get(at).is_some_and(|vma| vma.start <= mapping.start)
    };
    // Most processes need no second look. What a busy one has mapped since is looked at in vain.
    if procfs::ranges(pid)?.iter().all(|mapping| known(mapping) || special(mapping)) {
        return Ok(false);
    }
    let lacking = |range: &Range| {
        let at = descriptor.vmas.partition_point(|vma| vma.end <= range.0);
        descriptor.vmas.get(at).is_none_or(|vma| vma.start > range.0)
    };
    Ok(ranges(pid)?.iter().any(lacking))
}

fn special(mapping: &Mapping) -> bool {
    matches!(mapping.name.as_str(), "[vsyscall]" | "[vdso]" | "[vvar]" | "[vvar_vclock]")
}

/// Where such memory lies. Not that of devices, which the kernel never lets a fork have.
pub(crate) fn ranges(pid: i32) -> Result<Vec<Range>, SysError> {
    let mine = |m: &&Mapping| m.has(DONTFORK) && !m.has(b"io") && !m.has(b"pf") && !special(m);
    let mappings = procfs::mappings(pid)?;
    Ok(mappings.iter().filter(mine).map(|mapping| (mapping.start, mapping.end)).collect())
}

/// Forks with the advice taken back, for the ranges of a process that stands still.
pub(crate) fn fork(
    planted: &mut Planted,
    process: &mut StoppedProcess,
    ranges: &[Range],
) -> Result<(), CaptureError> {
    let prepared = planted.advise(process, ranges, MADV_DOFORK);
    let forked = prepared.and_then(|()| planted.fork(process));
    // Whatever came of it.
    let restored = planted.advise(process, ranges, MADV_DONTFORK);
    forked.and(restored)
}

/// The mappings of a shadow, with that memory marked as in the parent.
pub(crate) fn mark(mappings: Vec<Mapping>, ranges: &[Range]) -> Vec<Mapping> {
    let mut all = mappings;
    for range in ranges {
        let parts = all.into_iter().flat_map(|mapping| cut(mapping, *range));
        let marked = |(mut part, inside): (Mapping, bool)| {
            if inside {
                part.flags.push(*DONTFORK);
            }
            part
        };
        all = parts.map(marked).collect();
    }
    all
}
