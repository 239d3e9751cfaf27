//! The injected fork.
//!
//! One system call maps a region in the parent, the capture blob runs there (see
//! `mitosis_stub`), one system call unmaps it. While the blob runs, every process it makes is
//! attached by itself: so its pid is known, the tenant's seccomp filter does not meet it, and it
//! dies with this thread until it has been settled.

use crate::refuse::Facts;
use crate::stop::{self, StoppedProcess};
use crate::{CaptureError, Shadow};
use mitosis_stub::abi::{CaptureData, CaptureThread, ENTRY_CAPTURE, ENTRY_CAPTURE_THREAD};
use mitosis_sys::ptrace::{Event, Metronome, Stopped, wait_event};
use mitosis_sys::{SysError, procfs};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const PROT_RWX: u64 = 7;
const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
const SIGTRAP: i32 = 5;
/// Stack of the leading thread, and of the helper, in the region.
const STACK: u64 = 4096;
/// Stack and data of every other thread.
const THREAD_SLOT: u64 = 1024;
/// Bound on the injected code: it only makes a fork, whose cost grows with the page tables.
const BLOB_TIMEOUT: Duration = Duration::from_secs(20);

/// What can be found out before the parent is stopped.
pub(crate) struct Plan {
    mem: File,
    /// Address of a `syscall` instruction in the parent's vdso.
    gadget: u64,
    /// How the shadow is cloned.
    shadow_flags: u64,
}

/// clone(2): the parent, not the helper, becomes the shadow's parent.
const CLONE_PARENT: u64 = 0x8000;

/// What the injected code brought.
pub(crate) struct Injected {
    /// The region, which the shadow still has.
    pub region: (u64, u64),
    /// Process-wide answers.
    pub data: Box<CaptureData>,
    /// Per-thread answers, in the order of the threads.
    pub threads: Vec<CaptureThread>,
}

/// A shadow that is still traced. Dropping it kills it.
pub(crate) struct NewShadow(Option<Stopped>);

impl Drop for NewShadow {
    fn drop(&mut self) {
        if let Some(stopped) = &self.0 {
            kill(stopped.tid());
        }
    }
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

impl Plan {
    pub(crate) fn new(pid: i32, facts: &Facts) -> Result<Plan, CaptureError> {
        let fail = CaptureError::sys("inspect", pid);
        let path = format!("/proc/{pid}/mem");
        let mem = OpenOptions::new().read(true).write(true).open(&path);
        let mem = mem.map_err(|e| fail(SysError::io("open", path, e)))?;
        let ranges = procfs::ranges(pid).map_err(&fail)?;
        let vdso = ranges
            .iter()
            .find(|m| m.name == "[vdso]")
            .ok_or_else(|| CaptureError::Refused { pid, why: "has no vdso".into() })?;
        let mut code = vec![0u8; (vdso.end - vdso.start) as usize];
        mem.read_exact_at(&mut code, vdso.start)
            .map_err(|e| fail(SysError::io("read", "vdso", e)))?;
        let at = code.windows(SYSCALL.len()).position(|w| w == SYSCALL).ok_or_else(|| {
            CaptureError::Refused { pid, why: "has a vdso without a system call in it".into() }
        })?;
        // An orphan of a pid namespace goes to its init: if that is the parent, it would find a
        // child it never made. Cloned as its child with no exit signal, waitpid(-1) passes it by.
        let shadow_flags = if facts.is_init { CLONE_PARENT } else { 0 };
        Ok(Plan { mem, gadget: vdso.start + at as u64, shadow_flags })
    }
}

/// Layout of the region: code, data, two stacks, then one slot for each other thread.
struct Layout {
    data: u64,
    leader_stack: u64,
    helper_stack: u64,
    slots: u64,
    len: u64,
}

impl Layout {
    fn new(threads: usize) -> Layout {
        let code = (mitosis_stub::text().len() as u64).next_multiple_of(64);
        let data = code;
        let stacks = (data + size_of::<CaptureData>() as u64).next_multiple_of(64);
        let slots = stacks + 2 * STACK;
        let len = (slots + threads as u64 * THREAD_SLOT).next_multiple_of(4096);
        Layout { data, leader_stack: stacks + STACK, helper_stack: slots, slots, len }
    }
}

/// Makes the shadow. The parent's registers are left changed; dropping `process` restores them.
pub(crate) fn fork_shadow(
    process: &mut StoppedProcess,
    plan: &Plan,
) -> Result<(Injected, NewShadow), CaptureError> {
    let pid = process.pid;
    let fail = CaptureError::sys("shadow", pid);
    refuse_replaced(pid, plan)?;
    refuse_critical_section(process, plan)?;
    let layout = Layout::new(process.threads.len());
    let deadline = Instant::now() + BLOB_TIMEOUT;
    let args = [0, layout.len, PROT_RWX, MAP_PRIVATE_ANONYMOUS, u64::MAX, 0];
    let base = process.threads[0].inject(plan.gadget, MMAP, args, deadline).map_err(&fail)?;
    check("mmap", base)?;
    let base = base as u64;
    let done = run_in_region(process, plan, &layout, base, deadline);
    let args = [base, layout.len, 0, 0, 0, 0];
    let unmapped = process.threads[0].inject(plan.gadget, MUNMAP, args, deadline);
    let done = done?;
    check("munmap", unmapped.map_err(&fail)?)?;
    Ok(done)
}

fn check(call: &'static str, result: i64) -> Result<(), CaptureError> {
    if (-4095..0).contains(&result) {
        let source = std::io::Error::from_raw_os_error(-result as i32);
        let hint = match -result {
            11 => " (the parent's pids limit, RLIMIT_NPROC or the machine's pid_max is reached)",
            12 => " (the machine, or the parent's memory cgroup, is out of memory)",
            _ => "",
        };
        return Err(CaptureError::Fork { call, source, hint });
    }
    Ok(())
}

/// What was looked at before the stop may have been replaced since (execve(2)): then the memory
/// behind `plan.mem` is no more, and nothing can be read from it.
fn refuse_replaced(pid: i32, plan: &Plan) -> Result<(), CaptureError> {
    let mut code = [0u8; SYSCALL.len()];
    match plan.mem.read_exact_at(&mut code, plan.gadget) {
        Ok(()) if code == SYSCALL => Ok(()),
        _ => {
            let why = "has just replaced its program (execve): try again".into();
            Err(CaptureError::Refused { pid, why })
        }
    }
}

/// An injected call inside an rseq critical section would let it go on as if nothing had been.
fn refuse_critical_section(process: &StoppedProcess, plan: &Plan) -> Result<(), CaptureError> {
    for thread in &process.taken.threads {
        let (area, len, _) = thread.rseq;
        if len == 0 {
            continue;
        }
        let word = |at: u64| -> u64 {
            let mut bytes = [0u8; 8];
            let read = plan.mem.read_exact_at(&mut bytes, at);
            read.map_or(0, |()| u64::from_le_bytes(bytes))
        };
        let descriptor = word(area + 8);
        if descriptor == 0 {
            continue;
        }
        let (start, length) = (word(descriptor + 8), word(descriptor + 16));
        if (start..start.saturating_add(length)).contains(&thread.regs.rip) {
            let why = "is inside an rseq critical section: try again".into();
            return Err(CaptureError::Refused { pid: process.pid, why });
        }
    }
    Ok(())
}

fn run_in_region(
    process: &mut StoppedProcess,
    plan: &Plan,
    layout: &Layout,
    base: u64,
    deadline: Instant,
) -> Result<(Injected, NewShadow), CaptureError> {
    let fail = CaptureError::sys("shadow", process.pid);
    let write = |at: u64, bytes: &[u8]| {
        plan.mem.write_all_at(bytes, at).map_err(|e| SysError::io("write", "parent's memory", e))
    };
    write(base, mitosis_stub::text()).map_err(&fail)?;
    write(base + layout.data, &(base + layout.helper_stack).to_le_bytes()).map_err(&fail)?;
    let flags_at = base + layout.data + offset_of!(CaptureData, shadow_flags) as u64;
    write(flags_at, &plan.shadow_flags.to_le_bytes()).map_err(&fail)?;
    // The other threads first: their answers must be in the region when the leader forks.
    for (n, thread) in process.threads.iter_mut().enumerate().skip(1) {
        let slot = base + layout.slots + n as u64 * THREAD_SLOT;
        let entry = base + ENTRY_CAPTURE_THREAD;
        start(thread, entry, slot, slot + THREAD_SLOT).map_err(&fail)?;
        thread.wait_trap(deadline).map_err(&fail)?;
    }
    let leader = &mut process.threads[0];
    leader.follow_forks(false).map_err(&fail)?;
    let (data_at, stack) = (base + layout.data, base + layout.leader_stack);
    start(leader, base + ENTRY_CAPTURE, data_at, stack).map_err(&fail)?;
    let mut shadow = follow(leader, deadline, process.pid)?;
    let injected = read_answers(process, plan, layout, base)?;
    // The parent may trap before its newborn shadow has run as far as its own first stop.
    while shadow.0.is_none() {
        let (tid, event) = wait_event(-1, deadline).map_err(&fail)?;
        let newborn = !process.threads.iter().any(|thread| thread.tid() == tid);
        if newborn && !matches!(event, Event::Ended(_)) {
            shadow.0 = Some(Stopped::attached(tid));
        }
    }
    Ok((injected, shadow))
}

fn start(thread: &Stopped, entry: u64, argument: u64, stack: u64) -> Result<(), SysError> {
    let mut regs = thread.regs()?;
    regs.rip = entry;
    regs.rdi = argument;
    regs.rsp = stack;
    regs.orig_rax = u64::MAX;
    regs.rax = 0;
    thread.set_regs(&regs)?;
    thread.resume()
}

/// Follows the blob until the parent traps: the helper is let run, the shadow is kept stopped.
fn follow(leader: &mut Stopped, deadline: Instant, pid: i32) -> Result<NewShadow, CaptureError> {
    let fail = CaptureError::sys("shadow", pid);
    let mut helper = None;
    let mut shadow = NewShadow(None);
    let result = loop {
        let (tid, event) = match wait_event(-1, deadline) {
            Ok(happened) => happened,
            Err(e) => break Err(fail(e)),
        };
        if tid == leader.tid() {
            match event {
                Event::Signal(SIGTRAP) => break Ok(()),
                event => {
                    if let Err(e) = leader.absorb(event) {
                        break Err(fail(e));
                    }
                }
            }
        } else if !matches!(event, Event::Ended(_)) {
            let stopped = Stopped::attached(tid);
            match helper {
                // The helper is attached, and let run, before it can make anything.
                None => {
                    helper = Some(tid);
                    let _ = stopped.follow_forks(true);
                    let _ = stopped.run();
                }
                Some(helper) if helper == tid => drop(stopped.run()),
                Some(_) => shadow.0 = Some(stopped),
            }
        }
    };
    if result.is_err() {
        helper.into_iter().for_each(kill);
    }
    result.map(|()| shadow)
}

fn read_answers(
    process: &StoppedProcess,
    plan: &Plan,
    layout: &Layout,
    base: u64,
) -> Result<Injected, CaptureError> {
    let fail = CaptureError::sys("shadow", process.pid);
    let mut bytes = vec![0u8; size_of::<CaptureData>()];
    let read = |at: u64, bytes: &mut [u8]| {
        plan.mem.read_exact_at(bytes, at).map_err(|e| SysError::io("read", "parent's memory", e))
    };
    read(base + layout.data, &mut bytes).map_err(&fail)?;
    let data = Box::new(decode_data(&bytes));
    check("clone of the helper", data.helper)?;
    check("clone of the shadow", data.shadow)?;
    let mut threads = vec![data.thread];
    for n in 1..process.threads.len() as u64 {
        let mut words = [0u8; size_of::<CaptureThread>()];
        read(base + layout.slots + n * THREAD_SLOT, &mut words).map_err(&fail)?;
        threads.push(decode_thread(&words));
    }
    Ok(Injected { region: (base, base + layout.len), data, threads })
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0u8; 8];
        word.copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks_exact(8).map(word).collect()
}

fn decode_thread(bytes: &[u8]) -> CaptureThread {
    let w = words(bytes);
    CaptureThread { tid_address: w[0], altstack: [w[1], w[2], w[3]] }
}

fn decode_data(bytes: &[u8]) -> CaptureData {
    let w = words(bytes);
    let mut sigactions = [[0u64; 4]; 64];
    for (n, action) in sigactions.iter_mut().enumerate() {
        action.copy_from_slice(&w[8 + 4 * n..12 + 4 * n]);
    }
    CaptureData {
        helper_stack_top: w[0],
        helper: w[1] as i64,
        shadow: w[2] as i64,
        brk: w[3],
        prctl: [w[4] as i64, w[5] as i64, w[6] as i64, w[7] as i64],
        sigactions,
        thread: decode_thread(&bytes[8 * 264..]),
        shadow_flags: 0,
    }
}

/// Lets the shadow set itself up and then leaves it alone for good: asleep in a system call, or,
/// where a seccomp filter would kill it for that, stopped.
pub(crate) fn settle_shadow(
    mut new: NewShadow,
    parent: i32,
    facts: &Facts,
) -> Result<Shadow, CaptureError> {
    let lost = || CaptureError::Internal("the shadow was not seen".into());
    let stopped = new.0.as_mut().ok_or_else(lost)?;
    let pid = stopped.tid();
    let fail = CaptureError::sys("shadow", pid);
    stopped.follow_forks(true).map_err(&fail)?;
    stopped.resume().map_err(&fail)?;
    stopped.wait_trap(Instant::now() + Duration::from_secs(5)).map_err(&fail)?;
    let raw = Pid::from_raw(pid).ok_or_else(lost)?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        .map_err(|e| fail(SysError::io("pidfd_open", pid, e)))?;
    let path = format!("/proc/{pid}/mem");
    let mem = File::open(&path).map_err(|e| fail(SysError::io("open", path, e)))?;
    if let Some(stopped) = new.0.take() {
        const SIGSTOP: i32 = 19;
        stopped.detach(if facts.seccomp { SIGSTOP } else { 0 });
    }
    Ok(Shadow { pid, pidfd, mem, child_of: facts.is_init.then_some(parent) })
}

/// Makes `parent` reap a shadow that was cloned as its child and has ended: a zombie that it
/// cannot see, but `ps` can.
pub(crate) fn reap(parent: i32, shadow: i32) -> Result<(), CaptureError> {
    let fail = CaptureError::sys("shadow", parent);
    let _metronome = Metronome::start().map_err(&fail)?;
    let status = procfs::Status::read(shadow).map_err(&fail)?;
    let inner = status.numbers("NSpid", 10).last().copied().unwrap_or(shadow as u64);
    let facts = crate::refuse::inspect(parent)?;
    let plan = Plan::new(parent, &facts)?;
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut process = stop::stop(parent, deadline)?;
    process.take_state(facts.foreign_pid_ns)?;
    const WAIT4: u64 = 61;
    const WALL_WNOHANG: u64 = 0x4000_0001;
    let args = [inner, 0, WALL_WNOHANG, 0, 0, 0];
    process.threads[0].inject(plan.gadget, WAIT4, args, deadline).map_err(&fail)?;
    drop(process.release());
    Ok(())
}
