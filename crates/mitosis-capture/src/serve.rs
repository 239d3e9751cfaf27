//! A shadow that makes children: forks of itself, on its own node.
//!
//! It gets the loop of a template (see `mitosis_stub`): a region of its own for the code and for its
//! children's plans, and a socket on which orders come. Nothing else of it changes, and it still
//! executes nothing for those who only read its pages. A shadow cannot do it that could not make a
//! guard: it has the rights of its parent and no others, and the filters, too.

use crate::CaptureError;
use crate::gadget::{Gadget, check};
use mitosis_descriptor::{Descriptor, Sched, ThreadValues};
use mitosis_stub::abi::ENTRY_SERVE;
use mitosis_sys::ptrace::{Metronome, Running, Stopped};
use mitosis_sys::{SysError, procfs};
use rustix::process::{Pid, PidfdGetfdFlags, Resource, getrlimit, pidfd_getfd, prlimit};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const CLOSE: u64 = 3;
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const SOCKETPAIR: u64 = 53;
const DUP3: u64 = 292;
const PROT_RWX: u64 = 7;
/// PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE
const MAP_FLAGS: u64 = 0x2 | 0x20 | 0x4000 | 0x10_0000;
const AF_UNIX: u64 = 1;
const SEQPACKET_CLOEXEC: u64 = 5 | 0o2_000_000;
const O_CLOEXEC: u64 = 0o2_000_000;
/// Where the loop takes orders.
const ORDERS: u64 = 3;
const TIMEOUT: Duration = Duration::from_secs(5);

/// What must be this process's, for its children are to enter guards that this process made.
const NAMESPACES: [&str; 4] = ["pid", "user", "time", "cgroup"];
/// Lines of `/proc/PID/status` that must be as this process's.
const RIGHTS: [&str; 6] = ["Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd"];

/// What `prlimit(2)` knows, but for what a process may not pass even for a moment.
const LIMITS: [Resource; 8] = [
    Resource::Nofile,
    Resource::As,
    Resource::Data,
    Resource::Fsize,
    Resource::Stack,
    Resource::Nproc,
    Resource::Cpu,
    Resource::Memlock,
];

/// Lets the shadow `pid` of the process that `descriptor` describes take orders as a template does, in
/// a region of `len` bytes at `base`. Returns the socket for them. A shadow that did so before, for a
/// daemon that has ended, can do it again.
///
/// # Errors
/// The shadow may not, with the reason; it stays what it was.
pub fn serve(
    (pid, pidfd): (i32, BorrowedFd<'_>),
    descriptor: &Descriptor,
    (base, len): (u64, u64),
) -> Result<OwnedFd, CaptureError> {
    refuse(pid, descriptor)?;
    let fail = CaptureError::sys("shadow", pid);
    let gadget = Gadget::find(pid)?;
    let _metronome = Metronome::start().map_err(&fail)?;
    let deadline = Instant::now() + TIMEOUT;
    let running = Running::seize(pid).map_err(&fail)?;
    running.interrupt().map_err(&fail)?;
    let stopped = running.wait_stopped(deadline).map_err(&fail)?;
    let asleep = stopped.regs().map_err(&fail)?;
    let mut shadow = Shadow { pid, stopped, gadget: &gadget, deadline };
    let done = shadow.equip(pidfd, descriptor, (base, len), asleep.rip);
    let Shadow { stopped, .. } = shadow;
    match done {
        Ok(orders) => {
            let mut regs = asleep;
            (regs.rip, regs.rdi, regs.rsp) = (base + ENTRY_SERVE, base + len, base + len);
            (regs.rax, regs.orig_rax) = (0, u64::MAX);
            stopped.set_regs(&regs).map_err(&fail)?;
            Ok(orders)
        }
        Err(error) => {
            // With these it goes on waiting.
            stopped.set_regs(&asleep).map_err(&fail)?;
            Err(error)
        }
    }
}

/// What the shadow has from its parent is what a process has that a node makes, or each child gets it
/// anew.
fn refuse(pid: i32, descriptor: &Descriptor) -> Result<(), CaptureError> {
    let refused = |why: &str| Err(CaptureError::Refused { pid, why: format!("is a shadow {why}") });
    let fail = CaptureError::sys("shadow", pid);
    let of = |pid: &str, name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
    for name in NAMESPACES {
        let (its, ours) = (of(&pid.to_string(), name), of("self", name));
        if its.ok() != ours.ok() {
            return refused(&format!("in a {name} namespace of its own"));
        }
    }
    let (its, ours) = (procfs::Status::read(pid), procfs::Status::read(std::process::id() as i32));
    let (its, ours) = (its.map_err(&fail)?, ours.map_err(&fail)?);
    if RIGHTS.iter().any(|line| its.field(line) != ours.field(line)) {
        return refused("without the rights to enter namespaces");
    }
    let own = descriptor.confinement(0);
    if !own.filters.is_empty() || own.strict {
        return refused("with a seccomp filter");
    }
    let free = |n| !descriptor.confinement(n).no_new_privs;
    if own.no_new_privs && (1..descriptor.threads.len()).any(free) {
        return refused("with no_new_privs, which not all of its threads have");
    }
    // They would have to be reserved again for each child.
    if procfs::mappings(pid).map_err(&fail)?.iter().any(|mapping| mapping.has(b"ht")) {
        return refused("with huge pages of its own (hugetlb)");
    }
    // What is usual is not set in a child, whose threads begin with what the shadow has.
    let values = &descriptor.rare.threads;
    let scheduling: Vec<&Sched> = descriptor.threads.iter().map(|thread| &thread.sched).collect();
    if !inheritable(values, &ThreadValues::usual()) || !inheritable(&scheduling, &&Sched::default())
    {
        return refused("with a scheduling or memory policy that not all of its threads have");
    }
    if descriptor.rare.values.mdwe != 0 {
        return refused("that may not have writable code (PR_SET_MDWE)");
    }
    Ok(())
}

/// Whether threads that begin with what the first has, and are given what is not usual, have theirs.
fn inheritable<T: PartialEq>(all: &[T], usual: &T) -> bool {
    all.first().is_none_or(|first| first == usual || all.iter().all(|one| one == first))
}

struct Shadow<'a> {
    pid: i32,
    stopped: Stopped,
    gadget: &'a Gadget,
    deadline: Instant,
}

impl Shadow<'_> {
    fn call(&mut self, name: &'static str, nr: u64, args: &[u64]) -> Result<u64, CaptureError> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let result = self.stopped.inject(self.gadget.address, nr, all, self.deadline);
        let result = result.map_err(CaptureError::sys("shadow", self.pid))?;
        check(name, result)?;
        Ok(result as u64)
    }

    /// All that the loop needs. `asleep_at` is the instruction at which the shadow waits.
    fn equip(
        &mut self,
        pidfd: BorrowedFd<'_>,
        descriptor: &Descriptor,
        (base, len): (u64, u64),
        asleep_at: u64,
    ) -> Result<OwnedFd, CaptureError> {
        let fail = CaptureError::sys("shadow", self.pid);
        for limit in LIMITS {
            prlimit(Pid::from_raw(self.pid), limit, getrlimit(limit))
                .map_err(|e| fail(SysError::io("prlimit", self.pid, e)))?;
        }
        let again = (base..base + len).contains(&asleep_at);
        if !again {
            let args = [base, len, PROT_RWX, MAP_FLAGS, u64::MAX, 0];
            self.call("mmap", MMAP, &args)?;
        }
        self.gadget.write(base, mitosis_stub::text()).map_err(&fail)?;
        let pair_at = base + len - 64;
        self.call("socketpair", SOCKETPAIR, &[AF_UNIX, SEQPACKET_CLOEXEC, 0, pair_at])?;
        let mut pair = [0u8; 8];
        self.gadget.read(pair_at, &mut pair).map_err(&fail)?;
        let number =
            |at: usize| i32::from_ne_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]);
        let ours = pidfd_getfd(pidfd, number(4), PidfdGetfdFlags::empty())
            .map_err(|e| fail(SysError::io("pidfd_getfd", self.pid, e)))?;
        self.call("dup3", DUP3, &[number(0) as u64, ORDERS, O_CLOEXEC])?;
        for end in [number(0), number(4)] {
            self.call("close", CLOSE, &[end as u64])?;
        }
        if !again && let Some((start, end)) = self.spare(descriptor, asleep_at)? {
            // Where it waited until now; its children are not to have it.
            self.call("munmap", MUNMAP, &[start, end - start])?;
        }
        Ok(ours)
    }

    /// What is mapped around an address and is no part of the image: the kernel joins mappings that
    /// are alike.
    fn spare(&self, descriptor: &Descriptor, at: u64) -> Result<Option<(u64, u64)>, CaptureError> {
        let ranges = procfs::ranges(self.pid).map_err(CaptureError::sys("shadow", self.pid))?;
        let Some(range) = ranges.iter().find(|range| range.start <= at && at < range.end) else {
            return Ok(None);
        };
        let vmas = &descriptor.vmas;
        let below = vmas.iter().map(|vma| vma.end).filter(|end| *end <= at).max();
        let above = vmas.iter().map(|vma| vma.start).filter(|start| *start > at).min();
        let start = range.start.max(below.unwrap_or(0));
        let end = range.end.min(above.unwrap_or(u64::MAX));
        Ok(Some((start, end)))
    }
}
