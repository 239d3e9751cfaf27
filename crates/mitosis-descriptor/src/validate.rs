//! Limits and self-consistency: what must hold of a descriptor before any of it is acted on.

use crate::{Backing, Clocks, DeletedDirectory, Descriptor, DescriptorError, MmLayout};
use crate::{
    Origin, PAGE_SHIFT, PAGE_SIZE, PageRun, Process, SHM_DIRECTORY, SharedName, SharedObject,
    SigInfo, Thread,
};
use crate::{Vma, vma_flags};
use std::collections::HashSet;

/// End of user space with four-level page tables (asm/processor.h, `TASK_SIZE_MAX`, rounded up).
pub(crate) const USER_END: u64 = 1 << 47;
/// The page number of [`USER_END`].
pub(crate) const VPN_END: u64 = USER_END >> PAGE_SHIFT;

/// `PID_MAX_LIMIT` of linux/threads.h.
const PID_MAX: i32 = 4 << 20;
/// `PATH_MAX` of linux/limits.h, for every path.
const PATH_MAX: usize = 4096;
/// Names of nodes and files, kernel releases, `HOST:PORT`.
const NAME_MAX: usize = 255;
/// `RLIM_NLIMITS` of asm-generic/resource.h.
const RLIMITS_MAX: usize = 16;
/// `_NSIG` of asm-generic/signal.h.
const SIGNALS_MAX: usize = 64;
/// Words of the auxiliary vector; the kernel keeps 46 (`AT_VECTOR_SIZE`).
const AUXV_MAX: usize = 128;
/// `NGROUPS_MAX` of linux/limits.h.
const GROUPS_MAX: usize = 65_536;
/// `BPF_MAXINSNS` of linux/bpf_common.h, for one filter.
const FILTER_MAX: usize = 4096;
/// `MAX_INSNS_PER_PATH` of kernel/seccomp.c, for all filters of a process.
const FILTERS_SUM_MAX: usize = 32_768;
/// `TASK_COMM_LEN` of linux/sched.h, each byte escaped as in `/proc/PID/status`.
const COMM_MAX: usize = 4 * 16;
/// Signals that wait for one process or thread; Linux bounds them by `RLIMIT_SIGPENDING` only.
const PENDING_MAX: usize = 4096;
/// `SI_MAX_SIZE` of asm-generic/siginfo.h.
const SIGINFO_BYTES: usize = 128;
/// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
const ITIMERS_MAX: usize = 3;
/// Timers of timer_create(2).
const TIMERS_MAX: usize = 4096;
/// `NR_CPUS` of x86-64 is at most 8192.
const CPU_WORDS_MAX: usize = 128;
/// Half of what the kernel lets a time namespace show (`KTIME_SEC_MAX / 2`): 73 years.
const CLOCK_MAX: u64 = 1 << 61;
/// Functions that can be called; a program has one of each name, or a few with static libraries.
const FUNCTIONS_MAX: usize = 64;
/// Registers of CPUID: more than are compared today.
const CPUID_MAX: usize = 64;
/// Bits of XCR0.
const XSAVE_BITS: usize = 64;
/// Read, write and execute.
const PROT_ALL: u8 = 7;

/// Upper bounds the decoder enforces before it believes a count.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of an encoded descriptor, and of all XSAVE images together.
    pub bytes_max: usize,
    /// Threads.
    pub threads_max: usize,
    /// Bytes of one thread's XSAVE image (11 KB with AMX).
    pub xstate_max: usize,
    /// VMAs (the kernel's own default limit is 65530), and files that they map.
    pub vmas_max: usize,
    /// Page runs.
    pub runs_max: usize,
    /// Owners.
    pub owners_max: usize,
    /// Open file descriptions.
    pub open_files_max: usize,
    /// Highest number of a file descriptor, plus one (`fs.nr_open` is 1048576 by default).
    pub fds_max: u32,
    /// Processes of a tree besides its root, zombies included.
    pub members_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes_max: 64 << 20,
            threads_max: 8192,
            xstate_max: 16 << 10,
            vmas_max: 65_530,
            runs_max: 4 << 20,
            owners_max: 1024,
            open_files_max: 65_536,
            fds_max: 1 << 20,
            members_max: crate::MEMBERS_MAX - 1,
        }
    }
}

impl Limits {
    /// An error if there is more of `what` than `limit`.
    pub(crate) fn check(
        &self,
        what: &'static str,
        have: usize,
        limit: usize,
    ) -> Result<(), DescriptorError> {
        if have > limit {
            let (have, limit) = (have as u64, limit as u64);
            return Err(DescriptorError::TooLarge { what, have, limit });
        }
        Ok(())
    }
}

impl Descriptor {
    /// Checks what the types cannot: order, alignment, indices in range, bounded sizes.
    ///
    /// What the kernel checks anyway when the child is built (whether a register may hold a value,
    /// whether a user may have a capability) is left to it.
    ///
    /// # Errors
    /// [`DescriptorError`] naming the first thing that is wrong.
    pub fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        bounded("node name", self.origin.node.as_bytes(), NAME_MAX)?;
        bounded("kernel release", self.origin.kernel.as_bytes(), NAME_MAX)?;
        self.origin.validate(limits)?;
        self.process.validate(limits)?;
        self.validate_threads(limits)?;
        limits.check("files", self.files.len(), limits.vmas_max)?;
        for file in &self.files {
            bounded("path of a mapped file", file.path.as_bytes(), PATH_MAX)?;
        }
        limits.check("shared memory objects", self.shared.len(), limits.vmas_max)?;
        for object in &self.shared {
            bounded("name of shared memory", object.name.as_bytes(), NAME_MAX)?;
            object.at.as_ref().map_or(Ok(()), SharedName::validate)?;
        }
        self.validate_vmas(limits)?;
        self.validate_owners(limits)?;
        self.validate_runs(limits)?;
        self.validate_open_files(limits)?;
        self.clocks.validate()?;
        self.validate_hooks(limits)?;
        self.rare.validate(self, limits)
    }

    fn validate_threads(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("threads", self.threads.len(), limits.threads_max)?;
        match self.threads.first() {
            None => return invalid("no thread"),
            Some(leader) if leader.tid != self.process.pid => {
                return invalid("the first thread is not the thread-group leader");
            }
            Some(_) => {}
        }
        let mut tids = HashSet::with_capacity(self.threads.len());
        for thread in &self.threads {
            thread.validate(limits)?;
            if !tids.insert(thread.tid) {
                return invalid(format!("two threads with id {}", thread.tid));
            }
        }
        Ok(())
    }

    fn validate_vmas(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("VMAs", self.vmas.len(), limits.vmas_max)?;
        let mut end_before = 0;
        for vma in &self.vmas {
            vma.validate(self.files.len(), &self.shared)?;
            if vma.start < end_before {
                return invalid(format!("VMA {:#x} begins in the one before it", vma.start));
            }
            end_before = vma.end;
        }
        Ok(())
    }

    fn validate_hooks(&self, limits: &Limits) -> Result<(), DescriptorError> {
        const PROT_EXEC: u8 = 4;
        limits.check("functions to call", self.hooks.functions.len(), FUNCTIONS_MAX)?;
        for function in &self.hooks.functions {
            bounded("name of a function", function.name.as_bytes(), NAME_MAX)?;
            let address = function.address;
            let code = self.vmas.iter().find(|vma| vma.start <= address && address < vma.end);
            if code.is_none_or(|vma| vma.prot & PROT_EXEC == 0) {
                return invalid(format!("function {} at {address:#x}: no code", function.name));
            }
        }
        Ok(())
    }

    fn validate_owners(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("owners", self.owners.len(), limits.owners_max)?;
        if self.owners.is_empty() {
            return invalid("no owner: entry 0 must be the seed itself");
        }
        for owner in &self.owners {
            bounded("address of an owner", owner.address.as_bytes(), NAME_MAX)?;
        }
        Ok(())
    }

    fn validate_runs(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("page runs", self.pages.runs().len(), limits.runs_max)?;
        let mut vmas = self.vmas.as_slice();
        let mut end_before = 0;
        for run in self.pages.runs() {
            let count = u64::from(run.count);
            let below = |vpn: u64| vpn <= VPN_END && vpn + count <= VPN_END;
            if count == 0 || !below(run.start.0) || !below(run.source.0) {
                return invalid(format!("page run {:#x}: empty or too high", run.start.0));
            }
            if run.start.0 < end_before {
                return invalid(format!("page run {:#x} begins in one before it", run.start.0));
            }
            if usize::from(run.owner) >= self.owners.len() {
                return invalid(format!("page run {:#x}: no owner {}", run.start.0, run.owner));
            }
            vmas = covered(run, vmas)?;
            end_before = run.end().0;
        }
        Ok(())
    }

    fn validate_open_files(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("open files", self.open_files.len(), limits.open_files_max)?;
        if self.open_files.iter().any(|f| f.fds.is_empty()) {
            return invalid("an open file that no fd names");
        }
        let mut seen = HashSet::new();
        for (fd, _) in self.open_files.iter().flat_map(|f| &f.fds) {
            if *fd >= limits.fds_max {
                return invalid(format!("fd {fd} is over the limit of {}", limits.fds_max));
            }
            if !seen.insert(*fd) {
                return invalid(format!("fd {fd} names two open files"));
            }
        }
        Ok(())
    }
}

impl Origin {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("registers of CPUID", self.cpuid.len(), CPUID_MAX)?;
        limits.check("areas of an XSAVE image", self.xsave.len(), XSAVE_BITS)?;
        for area in &self.xsave {
            let end = u64::from(area.offset) + u64::from(area.bytes);
            let bit = usize::from(area.bit);
            if !(2..XSAVE_BITS).contains(&bit) || end > limits.xstate_max as u64 {
                return invalid(format!("register state {bit} up to byte {end}"));
            }
        }
        Ok(())
    }
}

impl DeletedDirectory {
    /// Whether its name is that of one file, and no path that leads elsewhere.
    ///
    /// # Errors
    /// [`DescriptorError::Invalid`].
    pub fn validate(&self) -> Result<(), DescriptorError> {
        let name = self.name.as_str();
        let elsewhere = matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
        if elsewhere || name.len() > NAME_MAX || self.mode > 0o7777 {
            return invalid(format!("a deleted directory {name:?} with mode {:#o}", self.mode));
        }
        Ok(())
    }
}

impl crate::Creds {
    pub(crate) fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("groups", self.groups.len(), GROUPS_MAX)
    }
}

impl Process {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        pid("process id", self.pid)?;
        bounded("executable", self.exe.as_bytes(), PATH_MAX)?;
        bounded("current directory", self.cwd.as_bytes(), PATH_MAX)?;
        if let Some(deleted) = &self.cwd_deleted {
            deleted.validate()?;
        }
        bounded("root directory", self.root.as_bytes(), PATH_MAX)?;
        if self.umask > 0o777 {
            return invalid(format!("umask {:#o}", self.umask));
        }
        self.creds.validate(limits)?;
        limits.check("rlimits", self.rlimits.len(), RLIMITS_MAX)?;
        limits.check("signal dispositions", self.sigactions.len(), SIGNALS_MAX)?;
        for (number, (soft, hard)) in self.rlimits.iter().enumerate() {
            if soft > hard {
                return invalid(format!("rlimit {number}: soft {soft} is over hard {hard}"));
            }
        }
        self.validate_timers(limits)?;
        filters(limits, self.seccomp.iter())?;
        self.mm.validate(limits)
    }

    fn validate_timers(&self, limits: &Limits) -> Result<(), DescriptorError> {
        pending(limits, &self.pending)?;
        limits.check("interval timers", self.itimers.len(), ITIMERS_MAX)?;
        if let Some(timer) = self.itimers.iter().find(|t| usize::from(t.which) >= ITIMERS_MAX) {
            return invalid(format!("interval timer {}", timer.which));
        }
        limits.check("timers", self.timers.len(), TIMERS_MAX)?;
        let mut ids = HashSet::with_capacity(self.timers.len());
        for timer in &self.timers {
            if i32::try_from(timer.id).is_err() || !ids.insert(timer.id) {
                return invalid(format!("timer id {}: too high, or twice", timer.id));
            }
            if timer.signal as usize > SIGNALS_MAX {
                return invalid(format!("timer {}: signal {}", timer.id, timer.signal));
            }
        }
        Ok(())
    }
}

/// Checks seccomp filters.
pub(crate) fn filters<'a>(
    limits: &Limits,
    all: impl Iterator<Item = &'a Vec<u64>>,
) -> Result<(), DescriptorError> {
    let mut sum = 0;
    for filter in all {
        if filter.is_empty() {
            return invalid("an empty seccomp filter");
        }
        limits.check("instructions of a seccomp filter", filter.len(), FILTER_MAX)?;
        // As the kernel counts them (`MAX_INSNS_PER_PATH`).
        sum += filter.len() + 4;
        limits.check("instructions of all seccomp filters", sum, FILTERS_SUM_MAX)?;
    }
    Ok(())
}

/// Checks signals that wait.
fn pending(limits: &Limits, signals: &[SigInfo]) -> Result<(), DescriptorError> {
    limits.check("pending signals", signals.len(), PENDING_MAX)?;
    for info in signals {
        limits.check("bytes of a pending signal", info.0.len(), SIGINFO_BYTES)?;
        if !(1..=SIGNALS_MAX).contains(&usize::from(info.signal())) {
            return invalid(format!("pending signal {}", info.signal()));
        }
    }
    Ok(())
}

impl Clocks {
    /// So that sums and differences of them stay within 64 bits.
    fn validate(&self) -> Result<(), DescriptorError> {
        let all = [self.monotonic, self.boottime, self.monotonic_shift, self.boottime_shift];
        match all.into_iter().find(|nanos| nanos.unsigned_abs() > CLOCK_MAX) {
            Some(nanos) => invalid(format!("a clock at {nanos} ns")),
            None => Ok(()),
        }
    }
}

impl MmLayout {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        limits.check("words of the auxiliary vector", self.auxv.len(), AUXV_MAX)?;
        let ranges = [
            ("code", self.start_code, self.end_code),
            ("data", self.start_data, self.end_data),
            ("heap", self.start_brk, self.brk),
            ("stack", self.start_stack, self.start_stack),
            ("arguments", self.arg_start, self.arg_end),
            ("environment", self.env_start, self.env_end),
        ];
        for (what, start, end) in ranges {
            if start > end || end > USER_END {
                return invalid(format!("{what} at {start:#x}-{end:#x}"));
            }
        }
        Ok(())
    }
}

impl Thread {
    fn validate(&self, limits: &Limits) -> Result<(), DescriptorError> {
        pid("thread id", self.tid)?;
        limits.check("XSAVE image", self.xstate.len(), limits.xstate_max)?;
        pending(limits, &self.pending)?;
        limits.check("words of a CPU set", self.sched.cpus.len(), CPU_WORDS_MAX)?;
        bounded("name of a thread", &self.name, COMM_MAX)
    }
}

impl SharedName {
    /// Whether it can be a name in a directory of a child's own, and nowhere else.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub fn validate(&self) -> Result<(), DescriptorError> {
        bounded("path of shared memory", self.path.as_bytes(), PATH_MAX)?;
        let below = self.path.strip_prefix(SHM_DIRECTORY).unwrap_or_default();
        if below.split('/').any(|part| matches!(part, "" | "." | "..")) || below.contains('\0') {
            return invalid(format!("shared memory at {}", self.path));
        }
        Ok(())
    }
}

impl Vma {
    fn validate(&self, files: usize, shared: &[SharedObject]) -> Result<(), DescriptorError> {
        let Vma { start, end, .. } = *self;
        if start % PAGE_SIZE != 0 || end % PAGE_SIZE != 0 || start >= end || end > USER_END {
            return invalid(format!("VMA {start:#x}-{end:#x}: unaligned, empty or too high"));
        }
        if self.prot & !PROT_ALL != 0 {
            return invalid(format!("VMA {start:#x}: protection {:#x}", self.prot));
        }
        if let Backing::File { file, offset } = self.backing {
            if file as usize >= files {
                return invalid(format!("VMA {start:#x}: no mapped file {file}"));
            }
            // The kernel's file offsets are signed.
            let last = offset.checked_add(end - start).filter(|l| i64::try_from(*l).is_ok());
            if offset % PAGE_SIZE != 0 || last.is_none() {
                return invalid(format!("VMA {start:#x}: file offset {offset:#x}"));
            }
        }
        if let Backing::Shared { object, offset } = self.backing {
            let Some(object) = shared.get(object as usize) else {
                return invalid(format!("VMA {start:#x}: no shared memory {object}"));
            };
            // An object may be shorter than its mappings, which then fault behind its end.
            let last = offset.checked_add(end - start).filter(|l| i64::try_from(*l).is_ok());
            let fits = last.is_some() && i64::try_from(object.size).is_ok();
            if offset % PAGE_SIZE != 0 || !fits {
                return invalid(format!("VMA {start:#x}: offset {offset:#x} in shared memory"));
            }
        }
        Ok(())
    }

    /// Whether pages of ours can lie in it: the vdso and its data belong to the child's kernel, and
    /// what a writable shared mapping of a file shows to the child's file.
    fn holds_pages(&self) -> bool {
        const PROT_WRITE: u8 = 2;
        match self.backing {
            Backing::Anonymous | Backing::Shared { .. } => true,
            Backing::File { .. } => {
                self.flags & vma_flags::SHARED == 0 || self.prot & PROT_WRITE == 0
            }
            Backing::Vdso | Backing::Vvar | Backing::VvarVclock => false,
        }
    }
}

/// Checks that every page of `run` lies in one of `vmas`, and returns those that later runs can
/// lie in: from the one with the run's last page on.
fn covered<'a>(run: &PageRun, vmas: &'a [Vma]) -> Result<&'a [Vma], DescriptorError> {
    let (start, end) = (run.start.addr(), run.end().addr());
    let first = vmas.partition_point(|v| v.end <= start);
    let mut at = start;
    for (index, vma) in vmas.iter().enumerate().skip(first) {
        if vma.start > at || !vma.holds_pages() {
            break;
        }
        at = vma.end;
        if at >= end {
            return Ok(&vmas[index..]);
        }
    }
    invalid(format!("page run {:#x}+{:#x} leaves its VMAs", run.start.0, run.count))
}

pub(crate) fn pid(what: &str, id: i32) -> Result<(), DescriptorError> {
    if id <= 0 || id > PID_MAX {
        return invalid(format!("{what} {id}"));
    }
    Ok(())
}

/// Text that the kernel will get as a C string, or people will read.
pub(crate) fn bounded(what: &'static str, text: &[u8], max: usize) -> Result<(), DescriptorError> {
    if text.len() > max {
        let (have, limit) = (text.len() as u64, max as u64);
        return Err(DescriptorError::TooLarge { what, have, limit });
    }
    if text.contains(&0) {
        return invalid(format!("{what} with a NUL in it"));
    }
    Ok(())
}

pub(crate) fn invalid<T>(why: impl Into<String>) -> Result<T, DescriptorError> {
    Err(DescriptorError::Invalid(why.into()))
}
