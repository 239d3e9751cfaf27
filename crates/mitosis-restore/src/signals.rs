//! Signals that wait, timers, and how threads are scheduled.

use crate::plan::Request;
use crate::{NodeFacts, RestoreError, files};
use mitosis_descriptor::{Descriptor, OpenFile, PosixTimer, Process, Sched, SigInfo, Thread};
use mitosis_state::{Detail, List, Program, op};

const SETITIMER: u16 = 38;
const RT_SIGQUEUEINFO: u16 = 129;
const PRCTL: u16 = 157;
const GETPID: u16 = 39;
const SCHED_SETAFFINITY: u16 = 203;
const TIMER_CREATE: u16 = 222;
const TIMER_SETTIME: u16 = 223;
const TIMER_GETOVERRUN: u16 = 225;
const TIMER_DELETE: u16 = 226;
const IOPRIO_SET: u16 = 251;
const RT_TGSIGQUEUEINFO: u16 = 297;
const SCHED_SETATTR: u16 = 314;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const CLOCK_MONOTONIC: u64 = 1;
/// Ids that are worth counting to: two calls for each.
const COUNTED_IDS: u32 = 4096;
/// `SIGEV_NONE` and `SIGEV_THREAD_ID` of asm-generic/siginfo.h.
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD_ID: u32 = 4;
/// Of `struct f_owner_ex` (fcntl(2)).
const F_OWNER_TID: u32 = 0;
const SLOT_PID: u8 = 4;
/// Of a clock that is somebody's CPU time: a thread's, and which time (linux/posix-timers.h).
const OF_THREAD: i32 = 4;
const CPU_TIME: i32 = 2;

/// Plans all of it.
///
/// # Errors
/// [`RestoreError::Incompatible`]: something of it cannot be had here, or not with other ids.
pub(crate) fn plan(
    descriptor: &Descriptor,
    node: &NodeFacts,
    request: &Request,
    program: &mut Program,
) -> Result<(), RestoreError> {
    let Descriptor { process, threads, .. } = descriptor;
    refuse(process, threads, node, request)?;
    let tells_thread = |file: &OpenFile| file.signals.is_some_and(|to| to.kind == F_OWNER_TID);
    if request.new_pid && descriptor.open_files.iter().any(tells_thread) {
        return Err(RestoreError::Incompatible(
            "a descriptor tells one of the parent's threads (F_SETOWN_EX), whose id --new-pid changes"
                .into(),
        ));
    }
    for info in &process.pending {
        let (signal, at) = (u64::from(info.signal()), siginfo(program, info));
        let mut get = op(GETPID, 0, &[]);
        get.save = SLOT_PID;
        program.push(List::Finish, get, "signals: getpid", Detail::None);
        let mut send = op(RT_SIGQUEUEINFO, 1, &[0, signal, at]);
        send.slot = SLOT_PID;
        let what = "signals: rt_sigqueueinfo";
        program.push(List::Finish, send, what, Detail::Number(signal));
    }
    for (n, thread) in threads.iter().enumerate() {
        for info in &thread.pending {
            let (signal, at) = (u64::from(info.signal()), siginfo(program, info));
            let args = [process.pid as u64, thread.tid as u64, signal, at];
            let what = "signals: rt_tgsigqueueinfo";
            program.call(List::Thread(n), RT_TGSIGQUEUEINFO, &args, what, Detail::Number(signal));
        }
        schedule(n, &thread.sched, node, program);
    }
    let elsewhere = |timer: &PosixTimer| is_elsewhere(timer, process);
    if process.timers.iter().any(elsewhere) {
        program.make_ended(files::spare_pid(descriptor, request));
    }
    timers(process, node, files::spare_pid(descriptor, request), program);
    Ok(())
}

/// Whether it runs on the CPU clock of another process: the bits say which one's
/// (linux/posix-timers.h), and 0 is whoever makes it.
fn is_elsewhere(timer: &PosixTimer, process: &Process) -> bool {
    let (clock, whose) = (timer.clock as i32, !(timer.clock as i32 >> 3));
    clock < 0 && clock & OF_THREAD == 0 && whose != 0 && whose != process.pid
}

fn refuse(
    process: &Process,
    threads: &[Thread],
    node: &NodeFacts,
    request: &Request,
) -> Result<(), RestoreError> {
    let wrong = |why: &str| Err(RestoreError::Incompatible(why.into()));
    let highest = process.timers.iter().map(|timer| timer.id).max();
    if !node.kernel.timer_ids && highest.is_some_and(|id| id >= COUNTED_IDS) {
        return wrong(
            "the parent has a timer (timer_create) with an id above 4095, and this node's kernel \
             cannot make it with that id (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15)",
        );
    }
    if request.new_pid {
        if threads.iter().any(|thread| !thread.pending.is_empty()) {
            return wrong(
                "a signal waits for one of the parent's threads, whose id --new-pid changes",
            );
        }
        if process.timers.iter().any(|timer| timer.notify == SIGEV_THREAD_ID) {
            return wrong("a timer tells one of the parent's threads, whose id --new-pid changes");
        }
        // The CPU time of a thread that is named, not of whoever asks.
        let named = |clock: i32| clock < 0 && clock & OF_THREAD != 0 && clock >> 3 != -1;
        if process.timers.iter().any(|timer| named(timer.clock as i32)) {
            return wrong("a timer runs on the CPU clock of a thread, whose id --new-pid changes");
        }
    }
    Ok(())
}

fn siginfo(program: &mut Program, info: &SigInfo) -> u64 {
    let mut bytes = info.0.clone();
    bytes.resize(128, 0);
    program.data(&bytes)
}

/// What differs from what every process of this node has. CPUs that this node lacks are left out;
/// a thread that could run on none of the rest may run on all.
fn schedule(n: usize, sched: &Sched, node: &NodeFacts, program: &mut Program) {
    let list = List::Thread(n);
    let cpus: Vec<u64> =
        sched.cpus.iter().zip(&node.cpus).map(|(want, have)| want & have).collect();
    if cpus.iter().any(|word| *word != 0) {
        let at = program.words(&cpus);
        let args = [0, cpus.len() as u64 * 8, at];
        program.call(list, SCHED_SETAFFINITY, &args, "threads: affinity", Detail::None);
    }
    let plain = Sched { nice: node.nice, cpus: sched.cpus.clone(), ..Sched::default() };
    if sched.ioprio != plain.ioprio {
        let args = [1, 0, u64::from(sched.ioprio)];
        program.call(list, IOPRIO_SET, &args, "threads: ioprio_set", Detail::None);
    }
    if *sched != (Sched { ioprio: sched.ioprio, ..plain }) {
        // struct sched_attr (linux/sched/types.h), 48 bytes.
        let at = program.words(&[
            48 | u64::from(sched.policy) << 32,
            sched.flags,
            u64::from(sched.nice as u32) | u64::from(sched.priority) << 32,
            sched.reservation[0],
            sched.reservation[1],
            sched.reservation[2],
        ]);
        program.call(list, SCHED_SETATTR, &[0, at, 0], "threads: sched_setattr", Detail::None);
    }
}

/// Started last: they go on from where they were when the parent stood still.
fn timers(process: &Process, node: &NodeFacts, ended: i32, program: &mut Program) {
    for timer in &process.itimers {
        let split = |us: u64| [us / 1_000_000, us % 1_000_000];
        let ([i, iu], [v, vu]) = (split(timer.interval_us), split(timer.value_us));
        let at = program.words(&[i, iu, v, vu]);
        let which = u64::from(timer.which);
        let what = "signals: setitimer";
        program.call(List::Finish, SETITIMER, &[which, at, 0], what, Detail::Number(which));
    }
    if process.timers.is_empty() {
        return;
    }
    // Another process is not there: a child's timer is on the clock of one that has ended, and never
    // expires.
    let mut timers = process.timers.clone();
    for timer in timers.iter_mut().filter(|timer| is_elsewhere(timer, process)) {
        timer.clock = (!ended << 3 | CPU_TIME) as u32;
        timer.value_ns = 0;
    }
    if !node.kernel.timer_ids {
        return count_to_timers(&timers, program);
    }
    let choose = |program: &mut Program, on: u64| {
        let args = [PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0];
        program.call(List::Finish, PRCTL, &args, "signals: choose timer ids", Detail::None);
    };
    choose(program, 1);
    for timer in &timers {
        posix_timer(timer, program);
    }
    choose(program, 0);
}

/// A kernel before 6.15 counts the ids of a process from 0: timers that are deleted again take those
/// between.
fn count_to_timers(timers: &[PosixTimer], program: &mut Program) {
    let mut timers: Vec<&PosixTimer> = timers.iter().collect();
    timers.sort_by_key(|timer| timer.id);
    let spare = program.words(&[0, u64::from(SIGEV_NONE) << 32, 0, 0, 0, 0, 0, 0]);
    let at = program.words(&[0]);
    let mut next = 0;
    for timer in timers {
        for id in (next..timer.id).map(u64::from) {
            let detail = Detail::Number(id);
            let (what, args) = ("signals: timer_create to count to", [CLOCK_MONOTONIC, spare, at]);
            program.call(List::Finish, TIMER_CREATE, &args, what, detail.clone());
            // Fails if it has another id.
            let what = "signals: timer_delete";
            program.call(List::Finish, TIMER_DELETE, &[id], what, detail);
        }
        posix_timer(timer, program);
        let (what, id) = ("signals: the id of timer", u64::from(timer.id));
        program.call(List::Finish, TIMER_GETOVERRUN, &[id], what, Detail::Number(id));
        next = timer.id + 1;
    }
}

fn posix_timer(timer: &PosixTimer, program: &mut Program) {
    let id = u64::from(timer.id);
    let detail = Detail::Number(id);
    // struct sigevent: value, signal, how, whom; 64 bytes.
    let how = u64::from(timer.signal) | u64::from(timer.notify) << 32;
    let event = program.words(&[timer.value, how, u64::from(timer.tid as u32), 0, 0, 0, 0, 0]);
    let at = program.words(&[id]);
    let args = [u64::from(timer.clock), event, at];
    program.call(List::Finish, TIMER_CREATE, &args, "signals: timer_create", detail.clone());
    if timer.value_ns != 0 {
        let split = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
        let ([i, ins], [v, vns]) = (split(timer.interval_ns), split(timer.value_ns));
        let state = program.words(&[i, ins, v, vns]);
        let args = [id, 0, state, 0];
        program.call(List::Finish, TIMER_SETTIME, &args, "signals: timer_settime", detail);
    }
}
