//! Signals, limits, credentials and what else a process and its threads are.

use crate::plan::Request;
use crate::{NodeFacts, seccomp, user};
use mitosis_descriptor::{Creds, Descriptor, OtherCreds, Process, Thread};
use mitosis_state::{Detail, List, Program, op};
use mitosis_stub::abi::OP_STORE32;

const SIGACTION: u16 = 13;
const SETSID: u16 = 112;
const PERSONALITY: u16 = 135;
const ARCH_PRCTL: u16 = 158;
const PRCTL: u16 = 157;
const SETHOSTNAME: u16 = 170;
const GETTID: u16 = 186;
const SET_TID_ADDRESS: u16 = 218;
const SET_ROBUST_LIST: u16 = 273;
const KEYCTL: u16 = 250;
const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
const PRLIMIT64: u16 = 302;
const RSEQ: u16 = 334;
const SETGROUPS: u16 = 116;
const SETRESUID: u16 = 117;
const SETRESGID: u16 = 119;
const CAPSET: u16 = 126;
const OPENAT: u16 = 257;
const WRITE: u16 = 1;
const CLOSE: u16 = 3;

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const PR_SET_PDEATHSIG: u64 = 1;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_NAME: u64 = 15;
const PR_CAPBSET_DROP: u64 = 24;
const PR_SET_SECUREBITS: u64 = 28;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_SET_NO_NEW_PRIVS: u64 = 38;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_CAP_AMBIENT: u64 = 47;
const SECBIT_KEEP_CAPS: u64 = 16;
const SLOT_TID: u8 = 2;

pub(crate) fn plan(
    descriptor: &Descriptor,
    node: &NodeFacts,
    request: &Request,
    program: &mut Program,
) {
    let process = &descriptor.process;
    // Whoever makes the processes of a tree has seen to their sessions.
    if request.tree.is_none() {
        program.call_ignore(List::Build, SETSID, &[], "identity: setsid");
    }
    // Its own, and empty: not that of the node's daemon, and no way between children.
    let args = [KEYCTL_JOIN_SESSION_KEYRING, 0];
    program.call_ignore(List::Build, KEYCTL, &args, "identity: session keyring");
    if let Some(name) = &request.hostname {
        let at = program.string(name);
        let args = [at, name.len() as u64];
        let detail = Detail::Text(name.clone());
        program.call(List::Build, SETHOSTNAME, &args, "identity: sethostname", detail);
    }
    signals(process, program);
    oom_score(process, node, program);
    if process.personality != 0 {
        let args = [u64::from(process.personality)];
        program.call(List::Build, PERSONALITY, &args, "identity: personality", Detail::None);
    }
    if process.subreaper {
        let args = [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0];
        program.call(List::Build, PRCTL, &args, "identity: subreaper", Detail::None);
    }
    if process.thp_disable {
        let args = [PR_SET_THP_DISABLE, 1, 0, 0, 0];
        program.call_ignore(List::Build, PRCTL, &args, "identity: thp_disable");
    }
    let mut usual = process.creds.caps;
    if seccomp::keeps_admin(descriptor) {
        usual = seccomp::with_admin(usual);
    }
    credentials(descriptor, (&process.creds, usual), List::Identity, node, program);
    no_new_privs(descriptor, program);
    let args = [PR_SET_DUMPABLE, u64::from(process.dumpable), 0, 0, 0];
    program.call(List::Finish, PRCTL, &args, "identity: dumpable", Detail::None);
    if process.pdeathsig != 0 {
        // The child's parent is its guard: the signal comes when the sandbox ends.
        let args = [PR_SET_PDEATHSIG, u64::from(process.pdeathsig), 0, 0, 0];
        program.call(List::Finish, PRCTL, &args, "identity: pdeathsig", Detail::None);
    }
}

fn signals(process: &Process, program: &mut Program) {
    for (n, action) in process.sigactions.iter().enumerate() {
        let signal = n as u64 + 1;
        if (action.handler, action.flags) == (0, 0) || signal == 9 || signal == 19 {
            continue;
        }
        let at = program.words(&[action.handler, action.flags, action.restorer, action.mask]);
        let args = [signal, at, 0, 8];
        let what = "identity: rt_sigaction";
        program.call(List::Build, SIGACTION, &args, what, Detail::Number(signal));
    }
}

/// Lowering it needs CAP_SYS_RESOURCE, which not every node has: then it stays as it is.
fn oom_score(process: &Process, node: &NodeFacts, program: &mut Program) {
    if process.oom_score_adj == node.oom_score_adj {
        return;
    }
    let path = program.string("/proc/self/oom_score_adj");
    const AT_FDCWD: u64 = -100i64 as u64;
    let mut open = op(OPENAT, mitosis_stub::abi::OP_IGNORE, &[AT_FDCWD, path, 1]);
    open.save = SLOT_TID;
    program.push(List::Build, open, "identity: open oom_score_adj", Detail::None);
    let text = process.oom_score_adj.to_string();
    let at = program.data(text.as_bytes());
    for (nr, args) in [(WRITE, vec![0, at, text.len() as u64]), (CLOSE, vec![0])] {
        let mut op = op(nr, 1 | mitosis_stub::abi::OP_IGNORE, &args);
        op.slot = SLOT_TID;
        program.push(List::Build, op, "identity: oom_score_adj", Detail::None);
    }
}

/// In the last list: a limit must not stand in the way of building. A hard limit cannot be higher
/// than this node's.
pub(crate) fn limits(process: &Process, node: &NodeFacts, program: &mut Program) {
    for (resource, &(soft, hard)) in process.rlimits.iter().enumerate() {
        let ceiling = node.hard_limits.get(resource).copied().unwrap_or(u64::MAX);
        let hard = hard.min(ceiling);
        let at = program.words(&[soft.min(hard), hard]);
        let args = [0, resource as u64, at, 0];
        let what = "identity: prlimit";
        program.call(List::Finish, PRLIMIT64, &args, what, Detail::Number(resource as u64));
    }
}

/// Every thread does this to itself: on Linux credentials belong to threads.
fn credentials(
    descriptor: &Descriptor,
    (creds, caps): (&Creds, [u64; 5]),
    list: List,
    node: &NodeFacts,
    program: &mut Program,
) {
    let dropped = bounding(descriptor, node) & !creds.caps[3];
    for cap in (0..64u64).filter(|cap| dropped & (1 << cap) != 0) {
        let args = [PR_CAPBSET_DROP, cap, 0, 0, 0];
        program.call(list, PRCTL, &args, "identity: bounding set", Detail::Number(cap));
    }
    if !user::is_below(descriptor) {
        ids(creds, list, u64::from(creds.securebits) | SECBIT_KEEP_CAPS, program);
    }
    let args = [PR_SET_SECUREBITS, u64::from(creds.securebits), 0, 0, 0];
    program.call_ignore(list, PRCTL, &args, "identity: securebits");
    capabilities(descriptor, caps, list, node, program);
}

/// Of threads that have others than the main thread; the last that they do.
pub(crate) fn other_credentials(descriptor: &Descriptor, node: &NodeFacts, program: &mut Program) {
    for OtherCreds { threads, creds } in &descriptor.rare.other_creds {
        for n in threads {
            let list = List::Thread(*n as usize);
            credentials(descriptor, (creds, creds.caps), list, node, program);
        }
    }
}

/// Of all threads, or of those that have it.
fn no_new_privs(descriptor: &Descriptor, program: &mut Program) {
    let has = |n: &usize| descriptor.confinement(*n).no_new_privs;
    let all = descriptor.threads.len();
    let lists = match (0..all).filter(has).count() {
        count if count == all && descriptor.rare.other_creds.is_empty() => vec![List::Identity],
        _ => (0..all).filter(has).map(List::Thread).collect(),
    };
    for list in lists {
        let args = [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0];
        program.call(list, PRCTL, &args, "identity: no_new_privs", Detail::None);
    }
}

/// User, group, and other groups; `meanwhile` are the securebits that save capabilities from that.
pub(crate) fn ids(creds: &Creds, list: List, meanwhile: u64, program: &mut Program) {
    let root = creds.uids == [0; 4] && creds.gids == [0; 4];
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let at = program.data(&groups);
    let args = [creds.groups.len() as u64, at];
    program.call(list, SETGROUPS, &args, "identity: setgroups", Detail::None);
    let three = |ids: [u32; 4]| [u64::from(ids[0]), u64::from(ids[1]), u64::from(ids[2])];
    if !root {
        let keep = [PR_SET_SECUREBITS, meanwhile, 0, 0, 0];
        program.call(list, PRCTL, &keep, "identity: keep capabilities", Detail::None);
        program.call(list, SETRESGID, &three(creds.gids), "identity: setresgid", Detail::None);
        program.call(list, SETRESUID, &three(creds.uids), "identity: setresuid", Detail::None);
    }
}

/// The capabilities that a child can have: all that there are, in a user namespace of its own.
pub(crate) fn bounding(descriptor: &Descriptor, node: &NodeFacts) -> u64 {
    if user::is_below(descriptor) { node.caps } else { node.cap_bounding }
}

/// What capset(2) takes to have `caps` as far as the child can: its header, and its data from the second
/// word on.
pub(crate) fn capset(caps: [u64; 5], descriptor: &Descriptor, node: &NodeFacts) -> [u64; 4] {
    const VERSION_3: u64 = 0x2008_0522;
    let bounding = bounding(descriptor, node);
    let [inheritable, permitted, effective, ..] = caps.map(|set| set & bounding);
    let (low, high) = (|set: u64| set & 0xffff_ffff, |set: u64| set >> 32);
    [
        VERSION_3,
        low(effective) | low(permitted) << 32,
        low(inheritable) | high(effective) << 32,
        high(permitted) | high(inheritable) << 32,
    ]
}

fn capabilities(
    descriptor: &Descriptor,
    caps: [u64; 5],
    list: List,
    node: &NodeFacts,
    program: &mut Program,
) {
    let ambient = caps[4] & bounding(descriptor, node);
    let header = program.words(&capset(caps, descriptor, node));
    let args = [header, header + 8];
    program.call(list, CAPSET, &args, "identity: capset", Detail::None);
    for cap in (0..64u64).filter(|cap| ambient & (1 << cap) != 0) {
        let args = [PR_CAP_AMBIENT, 2, cap, 0, 0];
        program.call(list, PRCTL, &args, "identity: ambient set", Detail::Number(cap));
    }
}

pub(crate) fn plan_threads(descriptor: &Descriptor, request: &Request, program: &mut Program) {
    for (n, thread) in descriptor.threads.iter().enumerate() {
        plan_thread(n, thread, request, program);
    }
}

fn plan_thread(n: usize, thread: &Thread, request: &Request, program: &mut Program) {
    let list = List::Thread(n);
    let mut name = thread.name.clone();
    name.resize(16, 0);
    let name = program.data(&name);
    program.call(list, PRCTL, &[PR_SET_NAME, name, 0, 0, 0], "threads: name", Detail::None);
    let regs = &thread.regs;
    let what = "threads: arch_prctl";
    program.call(list, ARCH_PRCTL, &[ARCH_SET_FS, regs.fs_base], what, Detail::None);
    if regs.gs_base != 0 {
        program.call(list, ARCH_PRCTL, &[ARCH_SET_GS, regs.gs_base], what, Detail::None);
    }
    let args = [thread.clear_tid];
    program.call(list, SET_TID_ADDRESS, &args, "threads: set_tid_address", Detail::None);
    let (head, len) = thread.robust_list;
    if head != 0 {
        let what = "threads: set_robust_list";
        program.call(list, SET_ROBUST_LIST, &[head, len], what, Detail::None);
    }
    if request.new_pid && thread.clear_tid != 0 {
        // The thread control block holds the thread's id; fork(2) in libc would rewrite it too.
        let mut get = op(GETTID, 0, &[]);
        get.save = SLOT_TID;
        program.push(list, get, "threads: gettid", Detail::None);
        let mut store = op(0, OP_STORE32, &[thread.clear_tid]);
        store.slot = SLOT_TID;
        program.push(list, store, "threads: write the thread id", Detail::None);
    }
    let (area, len, signature) = thread.rseq;
    if len != 0 {
        let args = [area, u64::from(len), 0, u64::from(signature)];
        program.call(list, RSEQ, &args, "threads: rseq", Detail::None);
    }
}
