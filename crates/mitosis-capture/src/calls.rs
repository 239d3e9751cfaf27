//! Has a shadow make ioctl(2) calls on a file of this process's: registering memory with a device is
//! something that only the process itself can do.
//!
//! Only its registers are set, to an entry of the stub that is in its region since the fork; what it
//! does there ends by itself, see `mitosis_stub`. Then it gets the registers that it had: one that makes
//! children ([`serve`](crate::serve)) goes on waiting for orders. The region is found by the address at
//! which it sleeps, so this works for shadows of an earlier daemon too, if that was of the same version.

use crate::CaptureError;
use crate::inject::start;
use crate::region::DATA_BYTES;
use mitosis_stub::abi::{Calls, ENTRY_CALLS, calls_stage};
use mitosis_sys::SysError;
use mitosis_sys::ptrace::{Metronome, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// Bound on stopping a shadow: one in a frozen cgroup cannot be.
const STOP: Duration = Duration::from_secs(2);
/// Bound on its calls.
const DONE: Duration = Duration::from_secs(60);
/// How often it is looked whether it waits for the file.
const LOOK: Duration = Duration::from_micros(100);
/// Its stack, at the end of the data.
const STACK: u64 = 4096;

/// The calls: each is `ioctl(file, request, argument)`.
pub struct IoctlCalls<'a> {
    /// The file, open here.
    pub file: BorrowedFd<'a>,
    /// Of all of them.
    pub request: u64,
    /// Bytes of each argument.
    pub size: usize,
    /// How many; at most [`calls_max`] of their size.
    pub count: usize,
    /// Writes the n-th argument, which will be at this address in the shadow.
    pub argument: &'a (dyn Fn(usize, u64, &mut [u8]) + Sync),
}

/// How many calls with arguments of `size` bytes fit one visit.
pub fn calls_max(size: usize) -> usize {
    let room = DATA_BYTES - STACK - size_of::<Calls>() as u64;
    room as usize / (size + size_of::<i64>())
}

/// Has the shadow `pid` make calls; gives the result of each (a negative errno where it failed), and its
/// argument as the call left it.
///
/// # Errors
/// [`CaptureError`]: it has ended, is in a frozen cgroup, was made by another version, or may not be
/// handed the file. Then none of the calls may be counted upon, though some may have been made.
pub fn ioctls(pid: i32, calls: &IoctlCalls<'_>) -> Result<Vec<(i64, Vec<u8>)>, CaptureError> {
    // ptrace belongs to a thread; when that ends, nothing is traced any more, whatever happened.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _metronome = Metronome::start().map_err(CaptureError::sys("shadow", pid))?;
            visit(pid, calls)
        });
        let panicked = |_| Err(CaptureError::Internal("the thread of a visit panicked".into()));
        worker.join().unwrap_or_else(panicked)
    })
}

/// Where things are in the region of a shadow.
struct Place {
    order: u64,
    results: u64,
    arguments: u64,
    stack: u64,
}

impl Place {
    fn new(base: u64, count: usize) -> Place {
        let order = base + (mitosis_stub::text().len() as u64).next_multiple_of(PAGE);
        let results = order + size_of::<Calls>() as u64;
        let arguments = results + (count * size_of::<i64>()) as u64;
        Place { order, results, arguments, stack: order + DATA_BYTES }
    }
}

fn visit(pid: i32, calls: &IoctlCalls<'_>) -> Result<Vec<(i64, Vec<u8>)>, CaptureError> {
    let fail = CaptureError::sys("shadow", pid);
    if calls.count > calls_max(calls.size) {
        return Err(CaptureError::Internal("more calls than fit".into()));
    }
    let path = format!("/proc/{pid}/mem");
    let mem = OpenOptions::new().read(true).write(true).open(&path);
    let mem = mem.map_err(|e| fail(SysError::io("open", path, e)))?;
    let running = Running::seize(pid).map_err(&fail)?;
    running.interrupt().map_err(&fail)?;
    let stopped = running.wait_stopped(Instant::now() + STOP).map_err(&fail)?;
    let before = stopped.regs().map_err(&fail)?;
    let base = base(&mem, before.rip).ok_or_else(|| {
        let why = "is a shadow of another version's, or not asleep".into();
        CaptureError::Refused { pid, why }
    })?;
    let place = Place::new(base, calls.count);
    let mut arguments = vec![0u8; calls.count * calls.size];
    for (n, argument) in arguments.chunks_exact_mut(calls.size.max(1)).enumerate() {
        (calls.argument)(n, place.arguments + (n * calls.size) as u64, argument);
    }
    let order = [
        0, // stage
        0, // sockets
        0, // failed
        calls.request,
        calls.count as u64,
        place.arguments,
        calls.size as u64,
        place.results,
    ];
    let order: Vec<u8> = order.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    let write = |at, bytes: &[u8]| {
        mem.write_all_at(bytes, at).map_err(|e| fail(SysError::io("write", "the shadow", e)))
    };
    write(place.order, &order)?;
    write(place.arguments, &arguments)?;
    start(&stopped, base + ENTRY_CALLS, place.order, place.stack).map_err(&fail)?;
    let running = stopped.traced();
    let done = hand_over(&running, &mem, &place, calls.file);
    // Stopped again, to be let go: it sleeps, or its calls take too long and go on.
    running.interrupt().map_err(&fail)?;
    let stopped = running.wait_stopped(Instant::now() + STOP).map_err(&fail)?;
    done?;
    stopped.set_regs(&before).map_err(&fail)?;
    drop(stopped);
    let mut results = vec![0u8; calls.count * size_of::<i64>()];
    let read = |at, bytes: &mut [u8]| {
        mem.read_exact_at(bytes, at).map_err(|e| fail(SysError::io("read", "the shadow", e)))
    };
    read(place.results, &mut results)?;
    read(place.arguments, &mut arguments)?;
    let results = results.chunks_exact(8).map(word);
    let arguments = arguments.chunks_exact(calls.size.max(1)).map(<[u8]>::to_vec);
    Ok(results.map(|result| result as i64).zip(arguments).collect())
}

/// Where the stub's text is, of which `rip` is a part.
fn base(mem: &File, rip: u64) -> Option<u64> {
    let text = mitosis_stub::text();
    let mut found = vec![0u8; text.len()];
    let pages = text.len() as u64 / PAGE;
    let first = rip & !(PAGE - 1);
    (0..=pages)
        .map(|n| first.saturating_sub(n * PAGE))
        .find(|base| mem.read_exact_at(&mut found, *base).is_ok() && found == text)
}

/// Sends the file once the shadow waits for it, and waits until it has closed its socket.
fn hand_over(
    shadow: &Running,
    mem: &File,
    place: &Place,
    file: BorrowedFd<'_>,
) -> Result<(), CaptureError> {
    let pid = shadow.tid();
    let fail = CaptureError::sys("shadow", pid);
    let io = |call| move |e: rustix::io::Errno| SysError::io(call, pid, e);
    let field = |offset: usize| {
        let mut bytes = [0u8; 8];
        let read = mem.read_exact_at(&mut bytes, place.order + offset as u64);
        read.map(|()| u64::from_le_bytes(bytes))
            .map_err(|e| fail(SysError::io("read", "the shadow", e)))
    };
    let failed = || {
        let errno = field(offset_of!(Calls, failed))? as i64;
        if errno < 0 {
            let e = std::io::Error::from_raw_os_error(-errno as i32);
            return Err(fail(SysError::io("hand over a file", pid, e)));
        }
        Ok(())
    };
    let begun = Instant::now();
    while field(offset_of!(Calls, stage))? != calls_stage::WAITING {
        failed()?;
        shadow.keep_on().map_err(&fail)?;
        if begun.elapsed() > STOP {
            return Err(fail(SysError::Timeout { what: "a call by shadow", tid: pid }));
        }
        std::thread::sleep(LOOK);
    }
    let theirs = field(offset_of!(Calls, sockets))? as u32 as i32;
    let raw = Pid::from_raw(pid).ok_or_else(|| fail(SysError::Ended(pid)))?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(io("pidfd_open")).map_err(&fail)?;
    let socket: OwnedFd = pidfd_getfd(&pidfd, theirs, PidfdGetfdFlags::empty())
        .map_err(io("pidfd_getfd"))
        .map_err(&fail)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket.as_fd(), &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL)
        .map_err(io("sendmsg"))
        .map_err(&fail)?;
    let deadline = Instant::now() + DONE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(fail(SysError::Timeout { what: "a call by shadow", tid: pid })),
            // The metronome's.
            Err(rustix::io::Errno::INTR) => shadow.keep_on().map_err(&fail)?,
            Ok(_) => break,
            Err(e) => return Err(fail(io("poll")(e))),
        }
    }
    failed()?;
    match field(offset_of!(Calls, stage))? {
        calls_stage::DONE => Ok(()),
        _ => Err(fail(SysError::Ended(pid))),
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
