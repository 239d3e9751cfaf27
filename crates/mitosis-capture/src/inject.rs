//! The injected fork, in three short stops of the parent instead of a long one.
//!
//! 1. [`Planted::plant`]: one injected call maps a region, the blob in it makes a helper (see
//!    `mitosis_stub`), which gets rid of the parent's files and waits.
//! 2. [`Planted::fork`]: with all threads stopped the helper forks. This is the only stop that
//!    takes as long as a fork.
//! 3. [`Planted::uproot`]: the helper is reaped and the region unmapped.
//!
//! The helper, and what it makes, is traced: so pids are known, the tenant's seccomp filter does
//! not meet them, and they die with this thread until the shadow has been settled.

use crate::CaptureError;
use crate::gadget::{Gadget, WAIT4, WALL_WNOHANG, check, refuse_critical_section, refuse_replaced};
use crate::meeting::{Meeting, Point};
use crate::refuse::Facts;
use crate::region::{self, Injected, Layout, THREAD_SLOT, decode_data, decode_thread, words};
use crate::shadow::{NewShadow, kill, reap};
use crate::shared;
use crate::stop::{self, StoppedProcess};
use crate::taken::Interrupted;
use mitosis_state::tree::FileKey;
use mitosis_stub::abi::{
    CaptureData, CaptureThread, ENTRY_CAPTURE, ENTRY_CAPTURE_THREAD, ENTRY_CAPTURE_TIMERS,
};
use mitosis_sys::ptrace::{Event, Stopped, wait_event};
use mitosis_sys::{SysError, sched};
use std::collections::BTreeSet;
use std::mem::offset_of;
use std::time::{Duration, Instant};

const MADVISE: u64 = 28;
const MUNMAP: u64 = 11;
const PRCTL: u64 = 157;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const SIGTRAP: i32 = 5;
const PTRACE_EVENT_CLONE: i32 = 3;
/// clone(2): the parent, not the helper, becomes the shadow's parent.
const CLONE_PARENT: u64 = 0x8000;
/// Bound on the injected code: it only makes a fork, whose cost grows with the page tables.
const BLOB_TIMEOUT: Duration = Duration::from_secs(20);

/// Period and time left of a timer, each in seconds and a fraction.
pub(crate) type TimerState = [u64; 4];
/// Those of `setitimer(2)`.
pub(crate) type Intervals = [TimerState; 3];

/// A region and a helper in the parent. To be taken away with [`Planted::uproot`]; a helper that
/// is merely dropped is killed.
pub(crate) struct Planted {
    /// Its pid, or the id of the thread that speaks for it.
    pub pid: i32,
    /// See [`Facts::ended_leader`].
    pub ended_leader: Option<i32>,
    foreign_pid_ns: bool,
    pub gadget: Gadget,
    layout: Layout,
    base: u64,
    /// Traced and stopped, until it has ended.
    helper: Option<Stopped>,
    /// Its pid in the parent's pid namespace.
    helper_inner: u64,
    pub(crate) subreaper: bool,
    forked: bool,
    /// Once it has been seen.
    shadow: Option<NewShadow>,
    /// Whether there was a timer at the first look.
    pub has_timers: bool,
    /// What the first stop interrupted.
    pub interrupted: Option<Interrupted>,
}

impl Drop for Planted {
    fn drop(&mut self) {
        self.end_helper();
    }
}

pub(crate) fn start(
    thread: &Stopped,
    entry: u64,
    argument: u64,
    stack: u64,
) -> Result<(), SysError> {
    let mut regs = thread.regs()?;
    regs.rip = entry;
    regs.rdi = argument;
    regs.rsp = stack;
    regs.orig_rax = u64::MAX;
    regs.rax = 0;
    thread.set_regs(&regs)?;
    thread.resume()
}

impl Planted {
    /// First stop, of the leading thread only.
    pub(crate) fn plant(
        pid: i32,
        facts: &Facts,
        gadget: Gadget,
        place: &stop::Place,
        deadline: Instant,
    ) -> Result<Planted, CaptureError> {
        let fail = CaptureError::sys("plant", pid);
        let threads = mitosis_sys::procfs::threads(pid).map_err(&fail)?.len();
        let layout = Layout::new(threads, facts);
        place.with_parent();
        let mut process = stop::stop_leader(pid, deadline)?;
        process.take_state(facts.foreign_pid_ns, None)?;
        let interrupted = process.taken.interrupted();
        refuse_replaced(pid, &gadget)?;
        refuse_critical_section(&process, &gadget)?;
        let deadline = Instant::now() + BLOB_TIMEOUT;
        let leader = &mut process.threads[0];
        let base = region::map(leader, &gadget, &layout, deadline)?;
        let mut planted = Planted {
            pid,
            ended_leader: facts.ended_leader,
            foreign_pid_ns: facts.foreign_pid_ns,
            gadget,
            layout,
            base,
            helper: None,
            helper_inner: 0,
            subreaper: false,
            forked: false,
            shadow: None,
            has_timers: facts.timers > 0,
            interrupted,
        };
        let may_fork = sched::MayFork::begin(leader.tid()).map_err(&fail)?;
        let done = planted.make_helper(leader, facts, deadline);
        drop(may_fork);
        if let Err(e) = done {
            planted.end_helper();
            let _ = planted.remove(leader);
            return Err(e);
        }
        drop(process.release());
        place.let_parent_run();
        Ok(planted)
    }

    fn make_helper(
        &mut self,
        leader: &mut Stopped,
        facts: &Facts,
        deadline: Instant,
    ) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("plant", self.pid);
        let data = self.base + self.layout.data;
        // An orphan of a pid namespace goes to its init: if that is the parent, it would find a
        // child it never made. Cloned as its child with no exit signal, waitpid(-1) passes it by.
        let shadow_flags = if facts.is_init { CLONE_PARENT } else { 0 };
        let flags_at = data + offset_of!(CaptureData, shadow_flags) as u64;
        self.gadget.write(self.base, mitosis_stub::text()).map_err(&fail)?;
        let helper_stack = self.base + self.layout.helper_stack;
        self.gadget.write(data, &helper_stack.to_le_bytes()).map_err(&fail)?;
        self.gadget.write(flags_at, &u64::to_le_bytes(shadow_flags)).map_err(&fail)?;
        leader.follow_forks(false).map_err(&fail)?;
        let stack = self.base + self.layout.leader_stack;
        start(leader, self.base + ENTRY_CAPTURE, data, stack).map_err(&fail)?;
        let (mut leader_done, mut helper) = (false, None);
        while !(leader_done && (self.helper.is_some() || self.clone_failed(&fail)?)) {
            let (tid, event) = wait_event(-1, deadline).map_err(&fail)?;
            match event {
                Event::Signal(SIGTRAP) if tid == leader.tid() => leader_done = true,
                event if tid == leader.tid() => leader.absorb(event).map_err(&fail)?,
                Event::Ended(_) => return Err(fail(SysError::Ended(self.pid))),
                Event::Signal(SIGTRAP) => self.helper = Some(Stopped::attached(tid)),
                _ => {
                    let stopped = Stopped::attached(tid);
                    if helper.replace(tid).is_none() {
                        stopped.follow_forks(true).map_err(&fail)?;
                    }
                    stopped.run().map_err(&fail)?;
                }
            }
        }
        let answers = self.answers().map_err(&fail)?;
        check("clone of the helper", answers.helper)?;
        self.helper_inner = answers.helper as u64;
        self.subreaper = answers.prctl[0] == 1;
        self.has_timers |= answers.itimers.iter().any(|timer| *timer != [0; 4]);
        if answers.prctl[3] >> 8 != 1 && !facts.privileged {
            // Of a process of root this shows nowhere but to itself.
            let why = "is not dumpable (prctl PR_SET_DUMPABLE): refused by policy".into();
            return Err(CaptureError::Refused { pid: self.pid, why });
        }
        Ok(())
    }

    fn clone_failed(&self, fail: &impl Fn(SysError) -> CaptureError) -> Result<bool, CaptureError> {
        Ok(self.answers().map_err(fail)?.helper < 0)
    }

    fn answers(&self) -> Result<CaptureData, SysError> {
        let mut bytes = vec![0u8; size_of::<CaptureData>()];
        self.gadget.read(self.base + self.layout.data, &mut bytes)?;
        Ok(decode_data(&bytes))
    }

    /// In the second stop: what the leading thread says of the interval timers, and of those of
    /// `timer_create(2)` with these ids.
    pub(crate) fn ask_timers(
        &self,
        process: &mut StoppedProcess,
        ids: &[u32],
    ) -> Result<(Intervals, Vec<TimerState>), CaptureError> {
        let fail = CaptureError::sys("registers", self.pid);
        refuse_replaced(self.pid, &self.gadget)?;
        refuse_critical_section(process, &self.gadget)?;
        if ids.len() > self.layout.timer_count {
            let why = "made many timers while it was looked at: try again".into();
            return Err(CaptureError::Refused { pid: self.pid, why });
        }
        let table = self.base + self.layout.timers;
        let mut places: Vec<u8> = Vec::new();
        for id in ids {
            places.extend([u64::from(*id), 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
        }
        let data = self.base + self.layout.data;
        let told = [table, ids.len() as u64];
        let told: Vec<u8> = told.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.gadget.write(table, &places).map_err(&fail)?;
        self.gadget.write(data + offset_of!(CaptureData, timers) as u64, &told).map_err(&fail)?;
        let leader = &mut process.threads[0];
        let stack = self.base + self.layout.leader_stack;
        start(leader, self.base + ENTRY_CAPTURE_TIMERS, data, stack).map_err(&fail)?;
        leader.wait_trap(Instant::now() + BLOB_TIMEOUT).map_err(&fail)?;
        self.gadget.read(table, &mut places).map_err(&fail)?;
        let intervals = self.answers().map_err(&fail)?.itimers;
        let states = words(&places);
        Ok((intervals, states.chunks_exact(5).map(|w| [w[1], w[2], w[3], w[4]]).collect()))
    }

    /// Second stop: the caller has stopped all threads. When this returns, the fork is done and
    /// the parent may run on.
    pub(crate) fn fork(&mut self, process: &mut StoppedProcess) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("shadow", self.pid);
        refuse_replaced(self.pid, &self.gadget)?;
        refuse_critical_section(process, &self.gadget)?;
        let deadline = Instant::now() + BLOB_TIMEOUT;
        if process.threads.len() > self.layout.slot_count {
            let why = "started many threads while it was looked at: try again".into();
            return Err(CaptureError::Refused { pid: self.pid, why });
        }
        for (n, thread) in process.threads.iter_mut().enumerate().skip(1) {
            let slot = self.slot(n);
            let entry = self.base + ENTRY_CAPTURE_THREAD;
            start(thread, entry, slot, slot + THREAD_SLOT).map_err(&fail)?;
            thread.wait_trap(deadline).map_err(&fail)?;
        }
        let lost = || CaptureError::Internal("the helper is gone".into());
        let helper = self.helper.take().ok_or_else(lost)?;
        let tid = helper.tid();
        helper.run().map_err(&fail)?;
        loop {
            match wait_event(tid, deadline).map_err(&fail)?.1 {
                Event::Ptrace(PTRACE_EVENT_CLONE) => {
                    self.helper = Some(Stopped::attached(tid));
                    self.forked = true;
                    return Ok(());
                }
                Event::Signal(SIGTRAP) => {
                    self.helper = Some(Stopped::attached(tid));
                    let answers = self.answers().map_err(&fail)?;
                    check("clone of the shadow", answers.shadow)?;
                    return Err(CaptureError::Internal("the shadow was not seen".into()));
                }
                Event::Ended(_) => return Err(fail(SysError::Ended(tid))),
                _ => {
                    Stopped::attached(tid).run().map_err(&fail)?;
                }
            }
        }
    }

    /// madvise(2) of ranges by the leading thread, all threads being stopped.
    pub(crate) fn advise(
        &self,
        process: &mut StoppedProcess,
        ranges: &[(u64, u64)],
        advice: u64,
    ) -> Result<(), CaptureError> {
        if ranges.is_empty() {
            return Ok(());
        }
        let fail = CaptureError::sys("shadow", self.pid);
        refuse_replaced(self.pid, &self.gadget)?;
        refuse_critical_section(process, &self.gadget)?;
        let deadline = Instant::now() + BLOB_TIMEOUT;
        let leader = &mut process.threads[0];
        for (start, end) in ranges {
            let args = [*start, end - start, advice, 0, 0, 0];
            let done = leader.inject(self.gadget.address, MADVISE, args, deadline);
            check("madvise", done.map_err(&fail)?)?;
        }
        Ok(())
    }

    fn slot(&self, thread: usize) -> u64 {
        self.base + self.layout.slots + thread as u64 * THREAD_SLOT
    }

    /// The shadow at its first instruction.
    fn meet(&mut self) -> Result<NewShadow, CaptureError> {
        if let Some(met) = self.shadow.take() {
            return Ok(met);
        }
        let fail = CaptureError::sys("shadow", self.pid);
        let deadline = Instant::now() + BLOB_TIMEOUT;
        loop {
            let (tid, event) = wait_event(-1, deadline).map_err(&fail)?;
            if !matches!(event, Event::Ended(_)) {
                return Ok(NewShadow { stopped: Some(Stopped::attached(tid)), kept: None });
            }
        }
    }

    /// Still in the second stop: the shadow gets a copy of what it shares with the parent.
    pub(crate) fn keep_shared(&mut self, open: &BTreeSet<FileKey>) -> Result<(), CaptureError> {
        let mut shadow = self.meet()?;
        let place = shared::Place {
            data: self.base + self.layout.data,
            table: self.base + self.layout.table,
        };
        if let Some(stopped) = &mut shadow.stopped {
            let deadline = Instant::now() + BLOB_TIMEOUT;
            shadow.kept = Some(shared::keep(stopped, self.pid, &place, open, deadline)?);
        }
        self.shadow = Some(shadow);
        Ok(())
    }

    /// Still in the second stop: the helper ends, in a tree of which a member takes the orphans of
    /// others. No shadow may become its child, of which it would hear, and which it could wait for.
    pub(crate) fn orphan(
        &mut self,
        leader: &mut Stopped,
        meeting: &Meeting,
    ) -> Result<(), CaptureError> {
        let shadow = self.meet()?;
        self.shadow = Some(shadow);
        let fail = CaptureError::sys("shadow", self.pid);
        let address = self.gadget.address;
        let mut takes = |orphans: u64| {
            let args = [PR_SET_CHILD_SUBREAPER, orphans, 0, 0, 0, 0];
            leader.inject(address, PRCTL, args, Instant::now() + BLOB_TIMEOUT).map_err(&fail)
        };
        if !self.subreaper {
            meeting.reach(self.pid, Point::TakesNobody)?;
            self.finish_helper();
            return meeting.reach(self.pid, Point::Orphaned);
        }
        takes(0)?;
        let met = meeting.reach(self.pid, Point::TakesNobody).and_then(|()| {
            self.finish_helper();
            meeting.reach(self.pid, Point::Orphaned)
        });
        takes(1)?;
        met
    }

    /// What the fork brought: answers, and the shadow.
    pub(crate) fn collect(
        &mut self,
        threads: usize,
    ) -> Result<(Injected, NewShadow), CaptureError> {
        let fail = CaptureError::sys("shadow", self.pid);
        let shadow = self.meet()?;
        let data = Box::new(self.answers().map_err(&fail)?);
        let mut answers = vec![data.thread];
        for n in 1..threads {
            let mut words = [0u8; size_of::<CaptureThread>()];
            self.gadget.read(self.slot(n), &mut words).map_err(&fail)?;
            answers.push(decode_thread(&words));
        }
        let region = (self.base, self.base + self.layout.len);
        Ok((Injected { region, data, threads: answers }, shadow))
    }

    /// Third stop: nothing of ours stays in the parent.
    pub(crate) fn uproot(mut self, place: &stop::Place) -> Result<(), CaptureError> {
        if !self.forked {
            // Let run, it would fork now.
            self.end_helper();
        } else if !self.subreaper {
            // While the parent runs: the fewer things happen in the stop the better.
            self.finish_helper();
        }
        let deadline = Instant::now() + BLOB_TIMEOUT;
        place.with_parent();
        let mut process = stop::stop_leader(self.pid, deadline)?;
        process.take_state(self.foreign_pid_ns, None)?;
        if refuse_replaced(self.pid, &self.gadget).is_err() {
            // Another program runs there now; only the helper's remains are left.
            let helper = self.helper_outer();
            drop(process);
            self.end_helper();
            return helper.map_or(Ok(()), |helper| reap(self.pid, helper));
        }
        self.remove(&mut process.threads[0])?;
        drop(process.release());
        place.beside_parent();
        Ok(())
    }

    pub(crate) fn helper_outer(&self) -> Option<i32> {
        self.helper.as_ref().map(Stopped::tid)
    }

    /// Reaps the helper and unmaps the region, by way of the stopped leading thread.
    fn remove(&mut self, leader: &mut Stopped) -> Result<(), CaptureError> {
        let fail = CaptureError::sys("resume", self.pid);
        let deadline = Instant::now() + BLOB_TIMEOUT;
        let mut inject = |nr: u64, args: [u64; 6]| {
            leader.inject(self.gadget.address, nr, args, deadline).map_err(&fail)
        };
        if self.subreaper && self.helper.is_some() {
            // Else the orphaned shadow would become the parent's own child.
            inject(PRCTL, [PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0, 0])?;
            let helper = self.helper.take();
            run_to_end(helper);
            inject(PRCTL, [PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, 0])?;
        }
        if self.helper_inner != 0 {
            inject(WAIT4, [self.helper_inner, 0, WALL_WNOHANG, 0, 0, 0])?;
        }
        check("munmap", inject(MUNMAP, [self.base, self.layout.len, 0, 0, 0, 0])?)
    }

    fn finish_helper(&mut self) {
        run_to_end(self.helper.take());
    }

    /// Kills the helper and sees it gone.
    fn end_helper(&mut self) {
        if let Some(helper) = &self.helper {
            kill(helper.tid());
        }
        self.finish_helper();
    }
}

/// Lets the helper run until it has ended.
fn run_to_end(helper: Option<Stopped>) {
    let deadline = Instant::now() + BLOB_TIMEOUT;
    let mut next = helper;
    while let Some(helper) = next.take() {
        let tid = helper.tid();
        // An error means that it is being killed: its end is still to be waited for.
        let _ = helper.run();
        match wait_event(tid, deadline) {
            Ok((_, Event::Ended(_))) | Err(_) => {}
            Ok(_) => next = Some(Stopped::attached(tid)),
        }
    }
}
