//! Makes a seed of a running process: `Running -> Stopped -> Shadow + Descriptor`.
//!
//! The parent is stopped only for as long as it takes to read its registers and open files and to
//! make it fork. The fork — the *shadow* — is frozen and keeps the memory as it was, copy-on-write;
//! everything that can be read from the shadow is read after the parent runs again.

#![forbid(unsafe_code)]

mod aio;
mod calls;
mod describe;
mod dontfork;
mod error;
mod gadget;
mod hooks;
mod inject;
mod ipc;
mod limits;
mod meeting;
mod memory;
mod rare;
mod refuse;
mod region;
mod serve;
mod shadow;
mod shared;
mod stop;
mod taken;
mod timers;
mod together;
mod tree;
mod user;
mod vdso;

pub use calls::{IoctlCalls, calls_max, ioctls};
pub use error::CaptureError;
pub use serve::serve;
pub use tree::{Captured, InheritedOf, Member, OptionsOf, prepare_tree};

use inject::Planted;
use meeting::{Meeting, Point};
use mitosis_descriptor::{Descriptor, OpenFile, Owner, PageIndex, Phase};
use mitosis_state::Prescan;
use mitosis_state::tree::{FileKey, Share};
use mitosis_sys::clock::Clocks;
use mitosis_sys::ptrace::Metronome;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How to capture.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node, for the descriptor.
    pub node: String,
    /// Bound on stopping the parent.
    pub stop_timeout: Duration,
    /// In a child of ours: the range its restore left mapped, which is not part of the image.
    pub resident: Option<(u64, u64)>,
    /// In a child of ours: the functions that it was told to call, see [`mitosis_descriptor::Hooks`].
    pub functions: Vec<mitosis_descriptor::Function>,
    /// Also a process that is set-uid or not dumpable.
    pub privileged: bool,
    /// Bytes of each file without a path that are taken along.
    pub content_max: u64,
}

/// Pages that the parent, itself a child, has not fetched yet.
#[derive(Clone, Debug, Default)]
pub struct InheritedPages {
    /// Their owners.
    pub owners: Vec<Owner>,
    /// Which they are; `owner` indexes [`InheritedPages::owners`].
    pub index: PageIndex,
}

/// Asked while the parent is stopped.
pub trait Inherited {
    /// The pages of the parent that are still remote, or `None` for a process that is no child of
    /// this node.
    ///
    /// # Errors
    /// Text saying why the pager could not tell.
    fn snapshot(&mut self) -> Result<Option<InheritedPages>, String>;
}

/// No child of ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInheritance;

impl Inherited for NoInheritance {
    fn snapshot(&mut self) -> Result<Option<InheritedPages>, String> {
        Ok(None)
    }
}

/// The frozen copy of the parent.
#[derive(Debug)]
pub struct Shadow {
    /// Its pid, as this node sees it.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its `/proc/PID/mem`. Only pread: anything that pins pages would copy them.
    pub mem: File,
    /// The process whose child it is, when that is the parent itself (which then is the init of
    /// its pid namespace); else init reaps it.
    pub child_of: Option<i32>,
}

impl Shadow {
    /// Ends it and sees to it that no zombie stays. Takes a moment when the parent must be stopped
    /// for that.
    pub fn end(&self) {
        end_shadow(self.pid, &self.pidfd, self.child_of);
    }
}

/// Ends a shadow by its parts: see [`Shadow::end`].
pub fn end_shadow(pid: i32, pidfd: &OwnedFd, child_of: Option<i32>) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    let Some(parent) = child_of else { return };
    let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let bound = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut polled, Some(&bound));
    std::thread::scope(|scope| {
        // ptrace belongs to a thread; the parent may be gone, and the zombie with it.
        let _ = scope.spawn(|| shadow::reap(parent, pid)).join();
    });
}

/// A captured process.
#[derive(Debug)]
pub struct Seeded {
    /// Its image. `owners[0]` is a placeholder that the node fills.
    pub descriptor: Descriptor,
    /// Its memory.
    pub shadow: Shadow,
    /// The shadow lives in a pid namespace other than the node's and dies with it.
    pub bound: bool,
    /// Files that VMAs map, opened, in the order of the descriptor's `files`; `None` where the
    /// path no longer leads to the mapped file.
    pub files: Vec<Option<File>>,
    /// It has memory that it keeps from its forks (`MADV_DONTFORK`).
    pub dontfork: bool,
    /// How often it was made to fork: twice where that was not known.
    pub forks: u32,
    /// What it has in common with other members of its tree.
    share: Option<Share>,
    /// Which file is behind each of the descriptor's shared objects.
    shared_files: Vec<FileKey>,
    /// How long the parent stood still, in microseconds.
    pub freeze_us: u64,
    /// Duration of each phase in microseconds.
    pub phases: Vec<(Phase, u64)>,
}

/// Captures process `pid` of this node's pid namespace.
///
/// # Errors
/// [`CaptureError`]. Whatever happens, the parent runs on, and nothing of ours is left in it.
pub fn prepare(
    pid: i32,
    options: &Options,
    inherited: &mut (dyn Inherited + Send),
) -> Result<Seeded, CaptureError> {
    prepare_again(pid, options, false, inherited)
}

/// As [`prepare`], for a process that had memory which it keeps from its forks when it was prepared
/// before, if `dontfork`: see [`Seeded::dontfork`]. That is looked for while it stands still.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_again(
    pid: i32,
    options: &Options,
    dontfork: bool,
    inherited: &mut (dyn Inherited + Send),
) -> Result<Seeded, CaptureError> {
    // ptrace belongs to a thread: one of its own keeps waits and CPU affinity away from others.
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("capture".into())
            .spawn_scoped(scope, || capture(pid, options, dontfork, inherited));
        match worker.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CaptureError::Internal("the capture thread panicked".into())),
            Err(e) => Err(CaptureError::Internal(e.to_string())),
        }
    })
}

/// Measures phases one after another.
pub(crate) struct Clock {
    last: Instant,
    phases: Vec<(Phase, u64)>,
}

impl Clock {
    fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.phases.push((phase, (now - self.last).as_micros() as u64));
        self.last = now;
    }
}

/// What was taken while the parent stood still.
struct Frozen {
    taken: taken::Taken,
    open_files: Vec<OpenFile>,
    share: Option<Share>,
    inherited: Option<InheritedPages>,
    stood_at: Clocks,
    dontfork: Vec<dontfork::Range>,
    ipc: Option<ipc::Objects>,
    rings: Vec<mitosis_descriptor::Ring>,
    freeze: Duration,
}

fn capture(
    pid: i32,
    options: &Options,
    dontfork: bool,
    inherited: &mut (dyn Inherited + Send),
) -> Result<Seeded, CaptureError> {
    let first = capture_once(pid, options, inherited, dontfork, None)?;
    if dontfork || !lacks_memory(refuse::speaker(pid).unwrap_or(pid), &first)? {
        return Ok(first);
    }
    first.shadow.end();
    // Now it is looked for while the parent stands still: nothing of it is missing.
    let mut seeded = capture_once(pid, options, inherited, true, None)?;
    // It stood still twice.
    seeded.forks += first.forks;
    seeded.freeze_us += first.freeze_us;
    let phases = first.phases.into_iter().zip(&mut seeded.phases);
    phases.for_each(|((_, us), (_, total))| *total += us);
    Ok(seeded)
}

/// Whether the shadow lacks memory; if that cannot be known, there is no shadow any more.
fn lacks_memory(pid: i32, seeded: &Seeded) -> Result<bool, CaptureError> {
    match dontfork::lacks(pid, &seeded.descriptor) {
        Ok(lacks) => Ok(lacks),
        // The parent has ended meanwhile: the seed lives on.
        Err(e) if [Errno::NOENT, Errno::SRCH].iter().any(|gone| e.is(gone.raw_os_error())) => {
            Ok(false)
        }
        Err(e) => {
            seeded.shadow.end();
            Err(CaptureError::sys("describe", pid)(e))
        }
    }
}

fn capture_once(
    pid: i32,
    options: &Options,
    inherited: &mut (dyn Inherited + Send),
    has_dontfork: bool,
    meeting: Option<&Meeting>,
) -> Result<Seeded, CaptureError> {
    let _metronome = Metronome::start().map_err(CaptureError::sys("inspect", pid))?;
    let speaker = refuse::speaker(pid)?;
    if speaker != pid && meeting.is_some_and(Meeting::is_tree) {
        let why = "has a leading thread that has ended while others live, in a tree".into();
        return Err(CaptureError::Refused { pid, why });
    }
    // Its leading thread has nothing any more.
    let pid = speaker;
    let mut clock = Clock { last: Instant::now(), phases: Vec::new() };
    let place = stop::Place::of(pid);
    place.beside_parent();
    let facts = refuse::inspect(pid, options.privileged)?;
    let gadget = gadget::Gadget::find(pid)?;
    // What processes of a tree have in common is seen only while all of them stand still.
    let alone = meeting.is_none_or(|meeting| !meeting.is_tree());
    let files = alone.then(|| Prescan::take(pid, options.content_max)).transpose()?;
    let room = limits::make_room(pid)?;
    clock.lap(Phase::Inspect);

    let deadline = Instant::now() + options.stop_timeout;
    let mut planted = Planted::plant(pid, &facts, gadget, &place, deadline)?;
    clock.lap(Phase::Plant);
    let looks = Looks { facts: &facts, files, has_dontfork, meeting };
    let met = looks.reach(pid, Point::Planted(planted.helper_outer(), planted.subreaper));
    // The others may have taken their time.
    let deadline = if meeting.is_some() { Instant::now() + options.stop_timeout } else { deadline };
    let frozen = met.and_then(|()| {
        freeze(looks, options, inherited, &mut planted, &place, deadline, &mut clock)
    });
    place.let_parent_run();
    let forked = frozen.and_then(|frozen| {
        let brought = planted.collect(frozen.taken.threads.len())?;
        Ok((frozen, brought))
    });
    // Whatever came of it, nothing of ours stays in the parent.
    let uprooted = planted.uproot(&place);
    clock.lap(Phase::Resume);
    let (mut frozen, (injected, shadow)) = forked?;
    uprooted?;
    frozen.taken.name_threads(pid);

    let (shadow, kept) = shadow::settle(shadow, pid, &facts)?;
    limits::adopt(shadow.pid);
    drop(room);
    let kept_from_forks = !frozen.dontfork.is_empty();
    let mut seeded = describe::describe(describe::Input {
        pid,
        options,
        facts: &facts,
        taken: frozen.taken,
        open_files: frozen.open_files,
        share: frozen.share,
        inherited: frozen.inherited,
        capture: injected,
        shadow,
        kept,
        stood_at: frozen.stood_at,
        dontfork: frozen.dontfork,
        ipc: frozen.ipc,
        rings: frozen.rings,
    })?;
    clock.lap(Phase::Describe);
    seeded.dontfork = kept_from_forks;
    seeded.freeze_us = frozen.freeze.as_micros() as u64;
    seeded.phases = clock.phases;
    Ok(seeded)
}

/// What was seen of the parent before the stop that counts.
struct Looks<'a> {
    facts: &'a refuse::Facts,
    /// Of a process alone.
    files: Option<Prescan>,
    has_dontfork: bool,
    /// Of the other members of its tree.
    meeting: Option<&'a Meeting>,
}

impl Looks<'_> {
    fn reach(&self, pid: i32, point: Point) -> Result<(), CaptureError> {
        self.meeting.map_or(Ok(()), |meeting| meeting.reach(pid, point))
    }
}

/// The stop that counts: all threads stand still until the fork is done.
fn freeze(
    looks: Looks<'_>,
    options: &Options,
    inherited: &mut (dyn Inherited + Send),
    planted: &mut Planted,
    place: &stop::Place,
    deadline: Instant,
    clock: &mut Clock,
) -> Result<Frozen, CaptureError> {
    place.with_parent();
    let mut process = stop::stop(planted.pid, planted.ended_leader, deadline)?;
    process.let_out_of_vdso(planted.gadget.vdso, deadline)?;
    looks.reach(planted.pid, Point::Stopped)?;
    clock.lap(Phase::Stop);
    let stood_at = Clocks::now();
    let Looks { facts, files, has_dontfork, meeting } = looks;
    process.take_state(facts.foreign_pid_ns, planted.interrupted)?;
    process.leave_vdso(planted.gadget.vdso, deadline)?;
    process.take_pending()?;
    if planted.has_timers {
        process.taken.timers = timers::take(planted, &mut process)?;
    }
    clock.lap(Phase::Registers);
    let (open_files, share) = match (files, meeting) {
        (Some(files), _) => (files.confirm()?, None),
        (None, Some(meeting)) => {
            let share = meeting.exchange(planted.pid)?;
            let files = mitosis_state::capture_member(planted.pid, &share, options.content_max)?;
            (files, Some(share))
        }
        (None, None) => return Err(CaptureError::Internal("no look at the open files".into())),
    };
    let inherited = inherited.snapshot().map_err(CaptureError::Inherited)?;
    clock.lap(Phase::Files);
    let dontfork = match has_dontfork {
        true => dontfork::ranges(planted.pid).map_err(CaptureError::sys("shadow", planted.pid))?,
        false => Vec::new(),
    };
    dontfork::fork(planted, &mut process, &dontfork)?;
    if facts.shared {
        let none = BTreeSet::new();
        planted.keep_shared(share.as_ref().map_or(&none, |share| &share.open))?;
    }
    let ipc = if facts.ipc { Some(ipc::take(planted.pid)?) } else { None };
    let rings = if facts.aio { aio::take(planted.pid)? } else { Vec::new() };
    if let Some(meeting) = meeting {
        meeting.reach(planted.pid, Point::Forked)?;
        if meeting.takes_orphans() {
            planted.orphan(&mut process.threads[0], meeting)?;
        }
    }
    let (taken, freeze) = process.release();
    clock.lap(Phase::Shadow);
    Ok(Frozen { taken, open_files, share, inherited, stood_at, dontfork, ipc, rings, freeze })
}
