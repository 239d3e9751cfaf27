//! What must hold of the parts that few processes have.

use crate::ThreadValues;
use crate::validate::{USER_END, filters, invalid, pid};
use crate::{
    Descriptor, DescriptorError, IdRange, Limits, MemoryPolicy, OpenObject, PAGE_SIZE, Rare,
    UserNamespace,
};
use std::collections::HashSet;

/// Words of a set of memory nodes: `MAX_NUMNODES` is at most 1024.
const NODE_WORDS_MAX: usize = 16;
/// The highest protection key: pkeys(7), x86.
const KEY_MAX: u8 = 15;
/// Highest number of a signal.
const SIGNALS_MAX: u32 = 64;
/// `F_OWNER_PGRP` of asm-generic/fcntl.h, the highest.
const OWNER_KIND_MAX: u32 = 2;
/// `UID_GID_MAP_MAX_EXTENTS` of linux/user_namespace.h.
const ID_RANGES_MAX: usize = 340;

impl Rare {
    pub(crate) fn validate(
        &self,
        all: &Descriptor,
        limits: &Limits,
    ) -> Result<(), DescriptorError> {
        limits.check("guard regions", self.guards.len(), limits.runs_max)?;
        ordered("guard region", self.guards.iter().copied())?;
        limits.check("memory policies", self.policies.len(), limits.vmas_max)?;
        ordered("memory policy", self.policies.iter().map(|(start, end, _)| (*start, *end)))?;
        limits.check("protection keys", self.keys.len(), limits.vmas_max)?;
        ordered("protection key", self.keys.iter().map(|(start, end, _)| (*start, *end)))?;
        if let Some((.., key)) = self.keys.iter().find(|(.., key)| !(1..=KEY_MAX).contains(key)) {
            return invalid(format!("protection key {key}"));
        }
        let of_threads = self.threads.iter().map(|thread| &thread.policy);
        for policy in self.policies.iter().map(|(_, _, policy)| policy).chain(of_threads) {
            policy.validate(limits)?;
        }
        if !self.threads.is_empty() && self.threads.len() != all.threads.len() {
            return invalid(format!("values of {} threads", self.threads.len()));
        }
        if self.ended_leader.is_some() && all.threads.len() < 2 {
            return invalid("a leading thread that has ended, and no other one");
        }
        self.validate_objects(all, limits)?;
        self.validate_confined(all, limits)?;
        self.tree.validate(all, limits)?;
        self.ipc.validate(all, limits)?;
        limits.check("rings of asynchronous I/O", self.rings.len(), limits.vmas_max)?;
        ordered("ring", self.rings.iter().map(|ring| (ring.start, ring.end)))?;
        self.user_namespace.as_ref().map_or(Ok(()), |space| space.validate(limits))?;
        for signals in all.open_files.iter().filter_map(|file| file.signals) {
            if signals.id != 0 {
                pid("owner of an open file", signals.id)?;
            }
            if signals.kind > OWNER_KIND_MAX || signals.signal > SIGNALS_MAX {
                return invalid(format!("an open file that tells {signals:?}"));
            }
        }
        Ok(())
    }

    fn validate_confined(&self, all: &Descriptor, limits: &Limits) -> Result<(), DescriptorError> {
        some_of(limits, all, self.confined.iter().map(|one| &one.threads))?;
        if self.confined.iter().any(|one| one.strict && !one.seccomp.is_empty()) {
            return invalid("filters of threads in strict mode");
        }
        some_of(limits, all, self.other_creds.iter().map(|one| &one.threads))?;
        if self.other_creds.iter().any(|one| one.threads.contains(&0)) {
            return invalid("other credentials of the first thread");
        }
        for one in &self.other_creds {
            one.creds.validate(limits)?;
        }
        filters(limits, self.confined.iter().flat_map(|one| &one.seccomp))
    }

    fn validate_objects(&self, all: &Descriptor, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("open shared memory", self.open_objects.len(), all.shared.len())?;
        let mut seen = HashSet::new();
        for OpenObject { object, .. } in &self.open_objects {
            if *object as usize >= all.shared.len() || !seen.insert(*object) {
                return invalid(format!("shared memory {object}: none, or named twice"));
            }
        }
        Ok(())
    }
}

impl Descriptor {
    /// What confines thread `n`.
    pub fn confinement(&self, n: usize) -> Confinement<'_> {
        let own = self
            .rare
            .confined
            .iter()
            .find(|one| u32::try_from(n).is_ok_and(|n| one.threads.binary_search(&n).is_ok()));
        match own {
            Some(one) => Confinement {
                filters: &one.seccomp,
                strict: one.strict,
                no_new_privs: one.no_new_privs,
            },
            None => Confinement {
                filters: &self.process.seccomp,
                strict: false,
                no_new_privs: self.process.creds.no_new_privs,
            },
        }
    }
}

/// What confines a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confinement<'a> {
    /// Seccomp filters, oldest first.
    pub filters: &'a [Vec<u64>],
    /// Seccomp's strict mode.
    pub strict: bool,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// Checks lists of threads, each of which is in one at most.
fn some_of<'a>(
    limits: &Limits,
    all: &Descriptor,
    lists: impl Iterator<Item = &'a Vec<u32>>,
) -> Result<(), DescriptorError> {
    let mut seen = HashSet::new();
    for threads in lists {
        limits.check("listed threads", threads.len(), all.threads.len())?;
        for thread in threads {
            if *thread as usize >= all.threads.len() || !seen.insert(*thread) {
                return invalid(format!("thread {thread} of a list: none, or named twice"));
            }
        }
        if threads.is_empty() || !threads.windows(2).all(|pair| pair[0] < pair[1]) {
            return invalid(format!("threads {threads:?} of a list"));
        }
    }
    Ok(())
}

impl MemoryPolicy {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("words of a set of memory nodes", self.nodes.len(), NODE_WORDS_MAX)
    }
}

impl UserNamespace {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        for (what, ranges) in
            [("ranges of user ids", &self.uids), ("ranges of group ids", &self.gids)]
        {
            limits.check(what, ranges.len(), ID_RANGES_MAX)?;
            // That they do not overlap is the kernel's to say. -1 is no id.
            let fits = |first: u32, count: u32| first.checked_add(count).is_some();
            let good = |range: &&IdRange| {
                range.count > 0
                    && fits(range.inside, range.count)
                    && fits(range.outside, range.count)
            };
            if let Some(range) = ranges.iter().find(|range| !good(range)) {
                return invalid(format!("{what}: {range:?}"));
            }
        }
        Ok(())
    }
}

impl ThreadValues {
    /// What a thread has that asked for nothing.
    pub fn usual() -> ThreadValues {
        ThreadValues { slack_ns: 0, mce_kill: 2, policy: MemoryPolicy::default() }
    }
}

fn ordered(what: &str, ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), DescriptorError> {
    let mut end_before = 0;
    for (start, end) in ranges {
        let aligned = start % PAGE_SIZE == 0 && end % PAGE_SIZE == 0;
        if !aligned || start >= end || start < end_before || end > USER_END {
            return invalid(format!(
                "{what} {start:#x}-{end:#x}: unaligned, empty or out of order"
            ));
        }
        end_before = end;
    }
    Ok(())
}
