//! What few processes have: guard regions, memory policies, protection keys, values of prctl(2).

use crate::memory::Memory;
use crate::region::Injected;
use crate::taken::Taken;
use crate::{CaptureError, describe};
use mitosis_descriptor::{
    Confined, Creds, MemoryPolicy, OtherCreds, Process, ProcessValues, Rare, ThreadValues,
};
use mitosis_stub::abi::CaptureThread;
use mitosis_sys::procfs::{self, Status};

/// Of all threads that asked for no other one, in nanoseconds (kernel/init/init_task.c).
const USUAL_SLACK_NS: i64 = 50_000;
/// Register state that every process may use without asking: all but the two of AMX.
const XCOMP_ASKED: u64 = 1 << 17 | 1 << 18;
/// Permission is asked for the data; the configuration comes with it.
const XCOMP_TILE_DATA: u64 = 1 << 18;

pub(crate) fn describe(
    shadow: i32,
    memory: &Memory,
    injected: &Injected,
    taken: &Taken,
) -> Result<Rare, CaptureError> {
    let xcomp = injected.data.values[2] as u64 & XCOMP_ASKED & XCOMP_TILE_DATA;
    if let Some(thread) = taken.threads.iter().find(|thread| thread.tiles_in_use) {
        let why = format!("has AMX tile data in use in thread {}: try again", thread.host_tid);
        return Err(CaptureError::Refused { pid: taken.threads[0].host_tid, why });
    }
    let threads: Vec<ThreadValues> = injected.threads.iter().map(of_thread).collect();
    let usual = threads.iter().all(|thread| *thread == ThreadValues::usual());
    // Reading it walks all pages: only where it can make a difference.
    let several = memory_nodes(shadow) > 1;
    let maps = if several { procfs::text(shadow, "numa_maps") } else { Ok(String::new()) };
    let maps = maps.unwrap_or_default();
    Ok(Rare {
        guards: memory.guards.clone(),
        values: ProcessValues {
            mdwe: injected.data.values[0].max(0) as u32,
            merge: injected.data.values[1] == 1,
            xcomp,
        },
        threads: if usual { Vec::new() } else { threads },
        policies: policies(&maps, memory),
        keys: memory.keys.clone(),
        ..Rare::default()
    })
}

/// Memory nodes that the process may use.
fn memory_nodes(pid: i32) -> u32 {
    let Ok(status) = Status::read(pid) else { return 1 };
    let words = status.field("Mems_allowed").split(',');
    words.filter_map(|word| u32::from_str_radix(word, 16).ok()).map(u32::count_ones).sum()
}

fn of_thread(asked: &CaptureThread) -> ThreadValues {
    let usual = ThreadValues::usual();
    let [result, mode, low, high] = asked.policy;
    let policy = match (result, mode) {
        (0, mode) if mode != 0 => MemoryPolicy { mode: mode as u32, nodes: vec![low, high] },
        _ => MemoryPolicy::default(), // None, or a kernel without them.
    };
    let [slack, kill, ..] = asked.values;
    ThreadValues {
        slack_ns: if slack > 0 && slack != USUAL_SLACK_NS { slack as u64 } else { 0 },
        mce_kill: if kill >= 0 { kill as u8 } else { usual.mce_kill },
        policy,
    }
}

/// Threads whose credentials are others than the process's are said to be.
pub(crate) fn other_creds(
    process: &Process,
    taken: &Taken,
    asked: &[CaptureThread],
) -> Vec<OtherCreds> {
    let mut all: Vec<OtherCreds> = Vec::new();
    for (n, (taken, asked)) in (0..).zip(taken.threads.iter().zip(asked)).skip(1) {
        let Some(status) = &taken.status else { continue };
        let [.., securebits] = asked.values;
        let no_new_privs = process.creds.no_new_privs;
        let creds = Creds { no_new_privs, ..describe::creds(status, securebits) };
        if creds == process.creds {
            continue;
        }
        match all.iter_mut().find(|one| one.creds == creds) {
            Some(one) => one.threads.push(n),
            None => all.push(OtherCreds { threads: vec![n], creds }),
        }
    }
    all
}

/// Threads that are confined otherwise than the process is said to be. The main one was asked before all stood
/// still, so what is known of its `shadow` counts.
pub(crate) fn confined(
    process: &Process,
    shadow: &Status,
    taken: &Taken,
    asked: &[CaptureThread],
) -> Vec<Confined> {
    /// `SECCOMP_MODE_STRICT`.
    const STRICT: i64 = 1;
    let mut all: Vec<Confined> = Vec::new();
    for (n, (taken, asked)) in (0..).zip(taken.threads.iter().zip(asked)) {
        let [_, _, no_new_privs, mode, _] = asked.values;
        let (mode, no_new_privs) = match n {
            0 => (shadow.number("Seccomp", 10) as i64, process.creds.no_new_privs),
            _ => (mode, no_new_privs == 1),
        };
        let (seccomp, strict) = (&taken.seccomp, mode == STRICT);
        let same = |one: &Confined| {
            (&one.seccomp, one.strict, one.no_new_privs) == (seccomp, strict, no_new_privs)
        };
        let usual = (&process.seccomp, false, process.creds.no_new_privs);
        if usual == (seccomp, strict, no_new_privs) {
            continue;
        }
        match all.iter_mut().find(|one| same(one)) {
            Some(one) => one.threads.push(n),
            None => {
                let seccomp = seccomp.clone();
                all.push(Confined { threads: vec![n], seccomp, strict, no_new_privs });
            }
        }
    }
    all
}

/// `7f0000000000 bind=static:0-1,3 anon=...`: the policies of mappings that have one of their own.
/// The kernel shows the thread's where a mapping has none.
fn policies(maps: &str, memory: &Memory) -> Vec<(u64, u64, MemoryPolicy)> {
    let shown = maps.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let start = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((start, parse(words.next()?)?))
    });
    let of_main = shown.clone().find(|(start, _)| memory.stack == Some(*start));
    let usual = of_main.map(|(_, policy)| policy).unwrap_or_default();
    shown
        .filter(|(_, policy)| *policy != usual)
        .filter_map(|(start, policy)| {
            let vma = memory.vmas.iter().find(|vma| vma.start == start)?;
            Some((vma.start, vma.end, policy))
        })
        .collect()
}

/// The kernel's text of a policy (mpol_to_str of mm/mempolicy.c).
fn parse(text: &str) -> Option<MemoryPolicy> {
    const STATIC: u32 = 1 << 15;
    const RELATIVE: u32 = 1 << 14;
    const BALANCING: u32 = 1 << 13;
    let (head, list) = text.split_once(':').unwrap_or((text, ""));
    let (name, flag) = head.split_once('=').unwrap_or((head, ""));
    let mode = match name {
        "default" => return Some(MemoryPolicy::default()),
        "prefer" => 1,
        "bind" => 2,
        "interleave" => 3,
        "local" => 4,
        "prefer (many)" => 5,
        "weighted interleave" => 6,
        _ => return None,
    };
    let bit = |name: &str, bit| if flag.contains(name) { bit } else { 0 };
    let flags = bit("static", STATIC) | bit("relative", RELATIVE) | bit("balancing", BALANCING);
    let mut nodes = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for node in first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?.min(1023) {
            nodes.resize(nodes.len().max(node / 64 + 1), 0u64);
            nodes[node / 64] |= 1 << (node % 64);
        }
    }
    Some(MemoryPolicy { mode: mode | flags, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_policies_are_understood() {
        let bind = MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![0b1011] };
        assert_eq!(parse("bind=static:0-1,3"), Some(bind));
        assert_eq!(parse("local"), Some(MemoryPolicy { mode: 4, nodes: Vec::new() }));
        assert_eq!(parse("default"), Some(MemoryPolicy::default()));
        assert_eq!(parse("something:0"), None);
    }

    #[test]
    fn what_is_usual_is_left_out() {
        let asked = CaptureThread {
            tid_address: 0,
            altstack: [0; 3],
            values: [USUAL_SLACK_NS, 2, 0, 0, 0],
            policy: [0; 4],
        };
        assert_eq!(of_thread(&asked), ThreadValues::usual());
        let other = CaptureThread { values: [1, 2, 0, 0, 0], policy: [0, 2, 1, 0], ..asked };
        let bind = MemoryPolicy { mode: 2, nodes: vec![1, 0] };
        assert_eq!(of_thread(&other), ThreadValues { slack_ns: 1, mce_kill: 2, policy: bind });
    }
}
