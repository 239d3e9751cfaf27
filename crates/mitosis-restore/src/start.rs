//! Performing a plan: one message to a guard or a template, one answer from the child.

use crate::{RestoreError, RestorePlan};
use mitosis_descriptor::Phase;
use mitosis_stub::abi::{
    FD_PROVIDED, Gate, LIST_MAKE, MAKE_CHILD, MAKE_ENTER, MAKE_ENTER_PID, TEMPLATE_REGION,
    guard_message,
};
use mitosis_sys::SysError;
use mitosis_sys::sched::Patience;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Descriptors for the child.
#[derive(Debug)]
pub struct StartFds {
    /// Socket on which the pager, or the node alone if it is a template, will receive its userfaultfd.
    pub pager: OwnedFd,
    /// What the plan asked for, in its order.
    pub provided: Vec<OwnedFd>,
    /// A cgroup (v2) to be born in.
    pub cgroup: Option<OwnedFd>,
}

/// A child that runs.
#[derive(Debug)]
pub struct Started {
    /// Its pid, as this node sees it.
    pub pid: i32,
    /// CLOCK_MONOTONIC in ns just before its first own instruction.
    pub first_instruction_ns: u64,
    /// Duration of each phase in microseconds.
    pub phases: Vec<(Phase, u64)>,
    /// What stays of us in the child.
    pub resident: (u64, u64),
}

/// Who makes a child.
#[derive(Clone, Copy, Debug)]
pub enum Maker<'a> {
    /// Its guard. The plan is a [`crate::Part::Whole`].
    Guard,
    /// A template, in its guard's namespaces. The plan is a [`crate::Part::Rest`].
    Template {
        /// Where the template takes orders.
        orders: BorrowedFd<'a>,
        /// The guard.
        guard: BorrowedFd<'a>,
        /// The child's generation number.
        generation: u64,
    },
    /// Another process for it. The plan is a [`crate::Part::Whole`].
    Steward(Steward<'a>),
}

/// A process that makes this one child, or this one tree, in the guard's namespaces, with the node's rights,
/// which the guard has not: [`crate::is_below`].
#[derive(Clone, Copy, Debug)]
pub struct Steward<'a> {
    /// Where it takes its order.
    pub orders: BorrowedFd<'a>,
    /// The guard.
    pub guard: BorrowedFd<'a>,
    /// The child's generation number.
    pub generation: u64,
}

/// Bound on building a child.
pub(crate) const BUILD_TIMEOUT: Duration = Duration::from_secs(20);
/// Bound on the hooks of the program.
const HOOKS_TIMEOUT: Duration = Duration::from_secs(10);
/// `mitosis_stub::abi::Status` in words.
const STATUS_WORDS: usize = 9;
pub(crate) const STATUS_STARTED: u64 = 1;

/// A child that is being built.
#[derive(Clone, Copy, Debug)]
pub struct Building<'a> {
    pub(crate) status: BorrowedFd<'a>,
    pub(crate) control: Option<BorrowedFd<'a>>,
    pub(crate) deadline: Instant,
}

impl Building<'_> {
    /// Waits until something of the child's can be read from `socket`; `false` if it or its guard has
    /// ended or given up before, or nothing came in the time for building: [`start`] says why.
    pub fn sends(&self, socket: BorrowedFd<'_>) -> bool {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut polled = vec![
                PollFd::from_borrowed_fd(socket, PollFlags::IN),
                PollFd::from_borrowed_fd(self.status, PollFlags::IN),
            ];
            polled.extend(self.control.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut polled, Some(&timespec(left))) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return polled[0].revents().contains(PollFlags::IN),
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// Makes the child under the guard behind `control` and waits until it runs. What the caller has to
/// do besides, it does in `meanwhile`, while the guard and the child work; if that is `false` the child
/// is not waited for. On error the caller ends the guard; `meanwhile` has not run if nobody could be
/// told.
///
/// # Errors
/// [`RestoreError`], with the operation that failed.
pub fn start(
    plan: &RestorePlan,
    control: BorrowedFd<'_>,
    maker: Maker<'_>,
    fds: StartFds,
    meanwhile: impl FnOnce(&Building<'_>) -> bool,
) -> Result<Started, RestoreError> {
    let begun = Instant::now();
    let (status, status_child) = status_pair()?;
    let image = plan.image_file()?;
    let attached = [image.as_fd(), status_child.as_fd(), fds.pager.as_fd()];
    let mut attached: Vec<BorrowedFd<'_>> = attached.to_vec();
    attached.extend(fds.provided.iter().map(AsFd::as_fd));
    let cgroup = fds.cgroup.as_ref().map(|fd| {
        attached.push(fd.as_fd());
        attached.len() as u32 - 1
    });
    let order = order(plan, attached.len(), cgroup);
    match maker {
        Maker::Guard => {
            let head = [u64::from(guard_message::FORK), 0];
            send(control, &[&head[..], &order[..]].concat(), &attached)
                .map_err(failed("sendmsg", "guard"))?;
        }
        Maker::Template { orders, guard, generation }
        | Maker::Steward(Steward { orders, guard, generation }) => {
            let make = [u64::from(guard_message::MAKE), 0];
            let head = if matches!(maker, Maker::Steward(_)) { &make[..] } else { &[] };
            let rest = [plan.program.region.code_len, generation, plan.maker_pid as u64];
            let behind = [guard, control];
            let attached = [&attached[..], &behind[..]].concat();
            send(orders, &[head, &order[..], &rest[..]].concat(), &attached)
                .map_err(failed("sendmsg", "template"))?;
        }
    }
    drop(attached);
    // A message wakes its receiver on this processor, as if this thread were about to sleep.
    std::thread::yield_now();
    let deadline = begun + BUILD_TIMEOUT;
    if !meanwhile(&Building { status: status.as_fd(), control: Some(control), deadline }) {
        return Err(RestoreError::Silent("given up".into()));
    }
    drop((status_child, fds));
    let sent = Instant::now();
    // A child that says that it runs is to run.
    let patience = Patience::begin();
    let (pid, words) = receive(&status, Some(control), deadline)?;
    drop(patience);
    let word = |n: usize| words[n];
    if word(0) & 0xffff_ffff != STATUS_STARTED {
        return Err(operation_error(plan, &words));
    }
    // times[0..=4] begin at word 3.
    let times: Vec<u64> = (3..8).map(word).collect();
    let micros = |from: u64, to: u64| to.saturating_sub(from) / 1000;
    let sandbox = (sent - begun).as_micros() as u64;
    let total = begun.elapsed().as_micros() as u64;
    let build = micros(times[0], times[4]);
    let phases =
        vec![(Phase::Sandbox, total.saturating_sub(build).max(sandbox)), (Phase::Build, build)];
    // The child's clock is not always ours.
    let first_instruction_ns = times[4].wrapping_sub(plan.monotonic_shift as u64);
    Ok(Started { pid, first_instruction_ns, phases, resident: plan.resident })
}

/// Waits until the child's hooks are done. Under its filters it may be allowed no system call to say
/// so: the gate is looked at from here.
///
/// Gives the microseconds that it took; `None` if the child ended before it was seen to go on.
///
/// # Errors
/// [`RestoreError::Hook`]: a hook failed, or they did not return in time. The caller ends the child.
pub fn await_hooks(plan: &RestorePlan, pid: i32) -> Result<Option<u64>, RestoreError> {
    if plan.hooks.is_empty() {
        return Ok(Some(0));
    }
    let begun = Instant::now();
    let failed = |index: usize, why: &str| {
        let what = plan.hooks.get(index).cloned().unwrap_or_else(|| "the program".into());
        RestoreError::Hook { what, why: why.into() }
    };
    let mut pause = Duration::from_micros(50);
    let Ok(memory) = std::fs::File::open(format!("/proc/{pid}/mem")) else { return Ok(None) };
    loop {
        let mut gate = [0u8; size_of::<Gate>()];
        let read = std::os::unix::fs::FileExt::read_at(&memory, &mut gate, plan.gate);
        if read.unwrap_or(0) != gate.len() {
            return Ok(None);
        }
        let word =
            |at: usize| u32::from_ne_bytes([gate[at], gate[at + 1], gate[at + 2], gate[at + 3]]);
        if word(offset_of!(Gate, go)) != 0 {
            break;
        }
        match word(offset_of!(Gate, failed)) {
            0 => {}
            index => return Err(failed(index as usize - 1, "it failed, see the log of the child")),
        }
        if begun.elapsed() > HOOKS_TIMEOUT {
            return Err(failed(usize::MAX, "its hooks did not return in 10 s"));
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_millis(1));
    }
    Ok(Some(begun.elapsed().as_micros() as u64))
}

/// `ForkOrder` in words.
pub(crate) fn order(plan: &RestorePlan, fds: usize, cgroup: Option<u32>) -> [u64; 6] {
    [
        plan.program.region.base,
        plan.image.region_len,
        plan.image.bytes.len() as u64,
        plan.image.plan_offset,
        u64::from(plan.pid as u32) | u64::from(plan.fd_base) << 32,
        fds as u64 | u64::from(cgroup.unwrap_or(u32::MAX)) << 32,
    ]
}

pub(crate) fn failed(
    call: &'static str,
    object: &'static str,
) -> impl FnOnce(rustix::io::Errno) -> RestoreError {
    move |e| RestoreError::Sys { phase: Phase::Sandbox, source: SysError::io(call, object, e) }
}

/// A pair of connected sockets that carry messages.
pub(crate) fn pair(object: &'static str) -> Result<(OwnedFd, OwnedFd), RestoreError> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(failed("socketpair", object))
}

/// The ends of the node and of the child of its status socket.
pub(crate) fn status_pair() -> Result<(OwnedFd, OwnedFd), RestoreError> {
    let (status, child) = pair("child")?;
    sockopt::set_socket_passcred(&status, true).map_err(failed("SO_PASSCRED", "child"))?;
    Ok((status, child))
}

pub(crate) fn send(
    socket: BorrowedFd<'_>,
    words: &[u64],
    attached: &[BorrowedFd<'_>],
) -> Result<(), rustix::io::Errno> {
    let packet: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(attached.len()))];
    let mut control_data = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        control_data.push(SendAncillaryMessage::ScmRights(attached));
    }
    let iov = [IoSlice::new(&packet)];
    rustix::net::sendmsg(socket, &iov, &mut control_data, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Lets a process that has nothing yet, behind `control`, become a template: it performs the plan, a
/// [`crate::Part::Memory`]. `meanwhile` is as in [`start`]. Returns the socket on which it takes orders;
/// when that is closed, the template ends.
///
/// # Errors
/// [`RestoreError`], with the operation that failed.
pub fn start_template(
    plan: &RestorePlan,
    control: BorrowedFd<'_>,
    fds: StartFds,
    meanwhile: impl FnOnce(&Building<'_>) -> bool,
) -> Result<OwnedFd, RestoreError> {
    let deadline = Instant::now() + BUILD_TIMEOUT;
    let (status, status_child) = status_pair()?;
    let image = plan.image_file()?;
    let mut attached = vec![image.as_fd(), status_child.as_fd(), fds.pager.as_fd()];
    attached.extend(fds.provided.iter().map(AsFd::as_fd));
    let mut order = order(plan, attached.len(), None);
    order[1] = TEMPLATE_REGION;
    let head = [u64::from(guard_message::FORK), 0];
    send(control, &[&head[..], &order[..]].concat(), &attached)
        .map_err(failed("sendmsg", "template"))?;
    drop(attached);
    if !meanwhile(&Building { status: status.as_fd(), control: None, deadline }) {
        return Err(RestoreError::Silent("given up".into()));
    }
    drop((status_child, fds));
    let (_, words) = receive(&status, None, deadline)?;
    if words[0] & 0xffff_ffff != STATUS_STARTED {
        return Err(operation_error(plan, &words));
    }
    Ok(status)
}

/// Waits for the child's word, or the guard's that there will be none.
pub(crate) fn receive(
    status: &OwnedFd,
    control: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<(i32, [u64; STATUS_WORDS]), RestoreError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RestoreError::Silent("not done in 20 s".into()));
        }
        let mut polled = vec![PollFd::new(status, PollFlags::IN)];
        polled.extend(control.map(|control| PollFd::from_borrowed_fd(control, PollFlags::IN)));
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(RestoreError::Silent(e.to_string())),
        }
        let told = polled[0].revents();
        let guard = polled.get(1).map_or(PollFlags::empty(), PollFd::revents);
        if told.contains(PollFlags::IN) {
            if let Some(answer) = read_status(status)? {
                return Ok(answer);
            }
        }
        if let (Some(control), false) = (control, guard.is_empty()) {
            return Err(guard_error(control));
        }
        if told.contains(PollFlags::HUP) {
            return Err(RestoreError::Silent("its status socket closed".into()));
        }
    }
}

fn read_status(status: &OwnedFd) -> Result<Option<(i32, [u64; STATUS_WORDS])>, RestoreError> {
    let mut bytes = [0u8; STATUS_WORDS * 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(status, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| RestoreError::Silent(e.to_string()))?;
    if got.bytes != STATUS_WORDS * 8 {
        return Ok(None);
    }
    let mut pid = 0;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(creds) = message {
            pid = creds.pid.as_raw_nonzero().get();
        }
    }
    let mut words = [0u64; STATUS_WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(chunk);
        *word = u64::from_le_bytes(eight);
    }
    Ok(Some((pid, words)))
}

fn guard_error(control: BorrowedFd<'_>) -> RestoreError {
    let mut message = [0u8; 16];
    let mut got = rustix::net::recv(control, &mut message[..], RecvFlags::DONTWAIT);
    if got == Err(rustix::io::Errno::CONNRESET) {
        // It ended before it read what it was sent last. That is told once, ahead of its own last words.
        got = rustix::net::recv(control, &mut message[..], RecvFlags::DONTWAIT);
    }
    let word = |at: usize| {
        let mut four = [0u8; 4];
        four.copy_from_slice(&message[at..at + 4]);
        u32::from_le_bytes(four)
    };
    match got {
        Ok((16, _)) if word(0) == guard_message::FORK_FAILED => {
            let errno = word(4) as i32;
            let source = std::io::Error::from_raw_os_error(errno);
            RestoreError::Guard { source, hint: clone_hint(errno) }
        }
        Ok((16, _)) if word(0) == guard_message::CHILD_EXITED => {
            let code = (word(4) >> 8) & 0xff;
            let why = match code {
                124 => "its descriptors did not fit below RLIMIT_NOFILE",
                123 => "the restore region was not free",
                122 => "the plan could not be read",
                _ => "it ended",
            };
            RestoreError::Silent(format!("{why} (wait status {:#x})", word(4)))
        }
        _ => RestoreError::Silent("the guard ended".into()),
    }
}

/// What may help when clone3(2) failed.
fn clone_hint(errno: i32) -> &'static str {
    match errno {
        17 => " (a thread or process id is taken in the namespace)",
        1 => " (choosing a pid needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN)",
        22 => " (the parent's pid is above this node's pid_max, or clone3 set_tid is missing)",
        11 => " (this node's pids limit is reached)",
        _ => "",
    }
}

pub(crate) fn operation_error(plan: &RestorePlan, words: &[u64; STATUS_WORDS]) -> RestoreError {
    let list = (words[0] >> 32) as u32;
    if list == LIST_MAKE {
        let errno = -(words[2] as i64) as i32;
        let what = match words[1] {
            MAKE_ENTER_PID => "template: enter the guard's pid namespace".to_owned(),
            MAKE_ENTER => "template: enter the guard's namespaces".to_owned(),
            MAKE_CHILD => format!("template: make the child{}", clone_hint(errno)),
            _ => "template: make the process that makes the child".to_owned(),
        };
        return RestoreError::Operation { what, source: std::io::Error::from_raw_os_error(errno) };
    }
    let what = match plan.program.label(list, words[1]) {
        Some(label) => label.to_string(),
        None => format!("threads: clone of thread {}", list.saturating_sub(3)),
    };
    let errno = -(words[2] as i64) as i32;
    RestoreError::Operation { what, source: std::io::Error::from_raw_os_error(errno) }
}

const _: () = assert!(FD_PROVIDED == 5);
