//! Everything that can be read from the shadow while the parent already runs again.

use crate::refuse::Facts;
use crate::region::Injected;
use crate::shared::Kept;
use crate::taken::{Taken, TakenThread, child_registers};
use crate::{CaptureError, InheritedPages, Options, Seeded, Shadow};
use crate::{dontfork, hooks, ipc, memory, rare, user};
use mitosis_descriptor::{
    Creds, Descriptor, Hooks, MmLayout, OpenFile, Origin, Owner, Process, Rare, Sched, Secret,
    SeedId, SigAction, Thread, XsaveArea,
};
use mitosis_state::deleted;
use mitosis_state::tree::Share;
use mitosis_stub::abi::CaptureThread;
use mitosis_sys::clock::Clocks;
use mitosis_sys::procfs::{self, Status, stat_field};
use mitosis_sys::{SysError, cpu};
use std::time::{SystemTime, UNIX_EPOCH};

/// `SS_DISABLE`.
const SS_DISABLE: u32 = 2;
/// Field of `/proc/PID/stat`.
const EXIT_CODE: usize = 52;

pub(crate) struct Input<'a> {
    pub pid: i32,
    pub options: &'a Options,
    pub facts: &'a Facts,
    pub taken: Taken,
    pub open_files: Vec<OpenFile>,
    pub share: Option<Share>,
    pub inherited: Option<InheritedPages>,
    pub capture: Injected,
    pub shadow: Shadow,
    pub kept: Option<Kept>,
    /// This node's clocks when the parent stood still.
    pub stood_at: Clocks,
    /// Memory that the parent keeps from its forks.
    pub dontfork: Vec<dontfork::Range>,
    /// System V objects, where it may have some.
    pub ipc: Option<ipc::Objects>,
    /// Rings of asynchronous I/O.
    pub rings: Vec<mitosis_descriptor::Ring>,
}

pub(crate) fn describe(input: Input<'_>) -> Result<Seeded, CaptureError> {
    let shadow = &input.shadow;
    // Whatever goes wrong here, the shadow must not stay.
    match build(&input) {
        Ok((descriptor, files)) => Ok(Seeded {
            descriptor,
            shadow: input.shadow,
            bound: input.facts.foreign_pid_ns,
            files,
            dontfork: false,
            forks: 1,
            share: input.share,
            shared_files: input.kept.map(|kept| kept.keys).unwrap_or_default(),
            freeze_us: 0,
            phases: Vec::new(),
        }),
        Err(e) => {
            shadow.end();
            Err(e)
        }
    }
}

fn build(input: &Input<'_>) -> Result<(Descriptor, Vec<Option<std::fs::File>>), CaptureError> {
    let pid = input.shadow.pid;
    let fail = CaptureError::sys("describe", pid);
    let mut ours = vec![input.capture.region];
    ours.extend(input.options.resident);
    let (inherited, kept) = (input.inherited.as_ref(), input.kept.as_ref());
    let looks = memory::Looks { inherited, kept, dontfork: &input.dontfork, rings: &input.rings };
    let memory = memory::read(pid, &ours, &looks)?;
    let status = Status::read(pid).map_err(&fail)?;
    let process = process(input, &status).map_err(&fail)?;
    let mut rare = rare::describe(pid, &memory, &input.capture, &input.taken)?;
    rare.open_objects = input.kept.as_ref().map_or_else(Vec::new, |kept| kept.open.clone());
    rare.rings = input.rings.clone();
    rare.user_namespace = user::describe(pid)?;
    let asked = &input.capture.threads;
    rare.other_creds = rare::other_creds(&process, &input.taken, asked);
    rare.confined = rare::confined(&process, &status, &input.taken, asked);
    rare.ipc = ipc::describe(input.pid, input.ipc.as_ref(), kept)?;
    let mut threads: Vec<Thread> = input
        .taken
        .threads
        .iter()
        .zip(&input.capture.threads)
        .map(|(taken, asked)| thread(taken, asked))
        .collect();
    if let Some(leader) = input.facts.ended_leader {
        ended_leader(leader, &mut threads, &mut rare).map_err(&fail)?;
    }
    // Filled by the node, which alone knows where it listens and what the capability is.
    let placeholder =
        Owner { address: String::new(), seed: SeedId([0; 8]), secret: Secret([0; 32]) };
    let mut owners = vec![placeholder];
    owners.extend(input.inherited.iter().flat_map(|i| i.owners.iter().cloned()));
    let taken_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let origin = Origin {
        node: input.options.node.clone(),
        taken_unix_ms,
        vdso_crc: crc32fast::hash(&procfs::vdso(pid).map_err(&fail)?),
        xcr0: cpu::xcr0(),
        xsave: xsave_areas(),
        cpuid: cpu::cpuid(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let main_waits = input.taken.main_waits && input.facts.ended_leader.is_none();
    let functions = hooks::find(&memory.vmas, &memory.opened, &input.options.functions);
    let descriptor = Descriptor {
        origin,
        process,
        threads,
        files: memory.files,
        vmas: memory.vmas,
        owners,
        pages: memory.pages,
        shared: input.kept.as_ref().map_or_else(Vec::new, |kept| kept.objects.clone()),
        open_files: input.open_files.clone(),
        clocks: clocks(input),
        hooks: Hooks { idle: input.taken.idle, main_waits, functions },
        rare,
    };
    Ok((descriptor, memory.opened))
}

/// Puts a leading thread that has ended before all others. Of its own it has an id and a name; what a child's
/// does until it ends, too, it does as the thread behind it.
fn ended_leader(pid: i32, threads: &mut Vec<Thread>, rare: &mut Rare) -> Result<(), SysError> {
    let inner = Status::read(pid)?.inner_id();
    let Some(speaker) = threads.first() else { return Ok(()) };
    let mut leader = Thread {
        tid: inner.unwrap_or(pid),
        altstack: (0, SS_DISABLE, 0),
        robust_list: (0, 0),
        clear_tid: 0,
        rseq: (0, 0, 0),
        name: procfs::text(pid, "comm")?.trim_end_matches('\n').as_bytes().to_vec(),
        pending: Vec::new(),
        ..speaker.clone()
    };
    // Room that a processor has for one.
    if leader.sched.reservation != [0; 3] {
        leader.sched = Sched::default();
    }
    threads.insert(0, leader);
    if let Some(first) = rare.threads.first().cloned() {
        rare.threads.insert(0, first);
    }
    let confined = rare.confined.iter_mut().map(|one| &mut one.threads);
    let others = rare.other_creds.iter_mut().map(|one| &mut one.threads);
    confined.chain(others).flatten().for_each(|n| *n += 1);
    let code = stat_field(&procfs::stat(pid)?, EXIT_CODE) >> 8;
    rare.ended_leader = Some(code as u8);
    Ok(())
}

fn xsave_areas() -> Vec<XsaveArea> {
    let areas = cpu::xsave_areas(cpu::frame_features()).into_iter();
    areas.map(|cpu::Area { bit, offset, bytes }| XsaveArea { bit, offset, bytes }).collect()
}

fn clocks(input: &Input<'_>) -> mitosis_descriptor::Clocks {
    let (node, shift) = (input.stood_at, input.facts.clock_shift);
    mitosis_descriptor::Clocks {
        monotonic: node.monotonic.saturating_add(shift.monotonic),
        boottime: node.boottime.saturating_add(shift.boottime),
        monotonic_shift: shift.monotonic,
        boottime_shift: shift.boottime,
    }
}

fn thread(taken: &TakenThread, asked: &CaptureThread) -> Thread {
    Thread {
        tid: taken.tid,
        regs: child_registers(taken),
        xstate: taken.xstate.clone(),
        sigmask: taken.sigmask,
        altstack: (asked.altstack[0], asked.altstack[1] as u32, asked.altstack[2]),
        robust_list: taken.robust_list,
        clear_tid: asked.tid_address,
        rseq: taken.rseq,
        name: taken.name.clone(),
        pending: taken.pending.clone(),
        sched: taken.sched.clone(),
    }
}

/// `status` is the shadow's.
fn process(input: &Input<'_>, status: &Status) -> Result<Process, SysError> {
    let pid = input.shadow.pid;
    let data = &input.capture.data;
    let number = |name: &str, radix| {
        procfs::text(pid, name).map(|t| i64::from_str_radix(t.trim(), radix).unwrap_or(0))
    };
    let parent_stat = procfs::stat(input.pid).unwrap_or_default();
    Ok(Process {
        pid: match input.facts.ended_leader {
            Some(leader) => Status::read(leader)?.inner_id().unwrap_or(leader),
            None => input.taken.threads[0].tid,
        },
        exe: procfs::link(pid, "exe")?,
        cwd: procfs::link(pid, "cwd")?,
        cwd_deleted: deleted::look(&format!("/proc/{pid}/cwd")),
        root: procfs::link(pid, "root")?,
        umask: status.number("Umask", 8) as u32,
        personality: number("personality", 16)? as u32,
        oom_score_adj: number("oom_score_adj", 10)? as i32,
        creds: creds(status, data.prctl[2]),
        rlimits: rlimits(&procfs::text(pid, "limits")?),
        mm: layout(pid, data.brk)?,
        sigactions: data
            .sigactions
            .iter()
            .map(|a| SigAction { handler: a[0], flags: a[1], restorer: a[2], mask: a[3] })
            .collect(),
        // 2, by which the kernel marks set-uid programs, cannot be set: 0 denies as much.
        dumpable: u32::from(data.prctl[3] >> 8 == 1),
        subreaper: data.prctl[0] == 1,
        pdeathsig: data.prctl[1] as u32,
        thp_disable: data.prctl[3] & 0xff == 1,
        session_leader: stat_field(&parent_stat, 6) as i32
            == input.facts.ended_leader.unwrap_or(input.pid),
        seccomp: input.taken.threads[0].seccomp.clone(),
        pending: input.taken.pending.clone(),
        itimers: input.taken.timers.intervals.clone(),
        timers: input.taken.timers.posix.clone(),
    })
}

pub(crate) fn creds(status: &Status, securebits: i64) -> Creds {
    let four = |key: &str| {
        let ids = status.numbers(key, 10);
        [0, 1, 2, 3].map(|n| ids.get(n).copied().unwrap_or(0) as u32)
    };
    let caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    Creds {
        uids: four("Uid"),
        gids: four("Gid"),
        groups: status.numbers("Groups", 10).into_iter().map(|g| g as u32).collect(),
        caps: caps.map(|key| status.number(key, 16)),
        securebits: securebits as u32,
        no_new_privs: status.number("NoNewPrivs", 10) == 1,
    }
}

/// `/proc/PID/limits` in the numeric order of `RLIMIT_*`.
fn rlimits(text: &str) -> Vec<(u64, u64)> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let value = |word: Option<&str>| match word {
        Some("unlimited") | None => u64::MAX,
        Some(word) => word.parse().unwrap_or(u64::MAX),
    };
    NAMES
        .iter()
        .map(|name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
            let mut words = line.split_whitespace();
            (value(words.next()), value(words.next()))
        })
        .collect()
}

fn layout(pid: i32, brk: u64) -> Result<MmLayout, SysError> {
    let stat = procfs::stat(pid)?;
    let field = |number| stat_field(&stat, number);
    let path = format!("/proc/{pid}/auxv");
    let auxv = std::fs::read(&path).map_err(|e| SysError::io("read", path, e))?;
    let word = |chunk: &[u8]| {
        let mut word = [0u8; 8];
        word.copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    Ok(MmLayout {
        start_code: field(26),
        end_code: field(27),
        start_stack: field(28),
        start_data: field(45),
        end_data: field(46),
        start_brk: field(47),
        brk,
        arg_start: field(48),
        arg_end: field(49),
        env_start: field(50),
        env_end: field(51),
        auxv: auxv.chunks_exact(8).map(word).collect(),
    })
}
