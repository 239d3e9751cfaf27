//! The table of operations that builds a child, as it is put together.
//!
//! Every address in the table is final: the region's place in the child is chosen first, and data
//! gets its address as it is appended.

use mitosis_stub::abi::{
    ENTRY_RESTORE, OP_ENDED, OP_EXPECT, OP_IGNORE, OP_TIME, Op, PLAN_MAGIC, Plan, SAVE_NONE,
    ThreadPlan,
};

/// Which list an operation belongs to (see `mitosis_stub::abi::Plan`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// Main thread, before the others exist.
    Build,
    /// Every thread on itself: credentials.
    Identity,
    /// Main thread, after all are ready.
    Finish,
    /// Thread `n` on itself; 0 is the main thread.
    Thread(usize),
}

/// What an operation is about, for plans and errors; formatted only when somebody reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing more to say.
    None,
    /// An address range.
    Range(u64, u64),
    /// A descriptor.
    Fd(u32),
    /// A number.
    Number(u64),
    /// A path or name.
    Text(String),
}

/// Name of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What is done, e.g. `map-vmas: mmap`.
    pub what: &'static str,
    /// To what.
    pub detail: Detail,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.detail {
            Detail::None => f.write_str(self.what),
            Detail::Range(start, end) => write!(f, "{} {start:#x}..{end:#x}", self.what),
            Detail::Fd(fd) => write!(f, "{} fd {fd}", self.what),
            Detail::Number(n) => write!(f, "{} {n}", self.what),
            Detail::Text(text) => write!(f, "{} {text}", self.what),
        }
    }
}

/// Where the restore region lies and how it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Bytes of code, page-rounded: stays mapped, read-execute.
    pub code_len: u64,
    /// Bytes of signal frames and gate after it, page-rounded: stay mapped, read-write.
    pub frames_len: u64,
}

impl Region {
    /// End of what stays mapped in the child.
    pub fn resident_end(&self) -> u64 {
        self.base + self.code_len + self.frames_len
    }
    /// First byte of the frames.
    pub fn frames(&self) -> u64 {
        self.base + self.code_len
    }
}

/// Bytes of stack of the main thread and of every other one while they build.
const MAIN_STACK: u64 = 8192;
const THREAD_STACK: u64 = 2048;

/// A program under construction.
#[derive(Debug)]
pub struct Program {
    /// Its region.
    pub region: Region,
    image: Vec<u8>,
    build: Vec<(Op, Label)>,
    identity: Vec<(Op, Label)>,
    finish: Vec<(Op, Label)>,
    threads: Vec<ThreadOps>,
    ended: Option<i32>,
}

#[derive(Debug, Default)]
struct ThreadOps {
    tid: i32,
    frame: u64,
    flags: i32,
    ops: Vec<(Op, Label)>,
}

/// A finished program.
#[derive(Debug)]
pub struct Image {
    /// Content of the region from its base on.
    pub bytes: Vec<u8>,
    /// Length of the region, stacks included.
    pub region_len: u64,
    /// Offset of the plan in it.
    pub plan_offset: u64,
    /// Entry point, for the curious.
    pub entry: u64,
}

impl Program {
    /// An empty program for `region`.
    pub fn new(region: Region) -> Program {
        let mut image = vec![0u8; (region.code_len + region.frames_len) as usize];
        let code = mitosis_stub::text();
        image[..code.len()].copy_from_slice(code);
        image.resize(image.len() + size_of::<Plan>(), 0);
        Program {
            region,
            image,
            build: Vec::with_capacity(1024),
            identity: Vec::new(),
            finish: Vec::new(),
            threads: Vec::new(),
            ended: None,
        }
    }

    /// Makes a process that has ended and has this pid, unless there is one: what stands for processes
    /// of the parent's machine. It is there until [`Program::forget_ended`].
    pub fn make_ended(&mut self, pid: i32) {
        if self.ended.is_none() {
            let mut make = op(0, OP_ENDED | OP_EXPECT, &[pid as u64]);
            make.expect = pid as u64;
            let detail = Detail::Number(pid as u64);
            self.push(List::Build, make, "files: a process that has ended", detail);
            self.ended = Some(pid);
        }
    }

    /// Waits for the process of [`Program::make_ended`], if there is one, so that it is gone.
    pub fn forget_ended(&mut self) {
        const WAIT4: u16 = 61;
        const WALL: u64 = 0x4000_0000;
        if let Some(pid) = self.ended.take() {
            let pid = pid as u64;
            let (what, detail) = ("files: wait for it", Detail::Number(pid));
            self.call_expect(List::Finish, WAIT4, &[pid, 0, WALL, 0], pid, what, detail);
        }
    }

    /// Appends a `struct msghdr` with these bytes and descriptors (SCM_RIGHTS, if there are any), and
    /// returns its address in the child.
    pub fn message(&mut self, bytes: &[u8], fds: &[u32]) -> u64 {
        /// SOL_SOCKET, SCM_RIGHTS.
        const RIGHTS: u64 = 1 | 1 << 32;
        let at = self.data(bytes);
        let vector = self.words(&[at, bytes.len() as u64]);
        if fds.is_empty() {
            return self.words(&[0, 0, vector, 1, 0, 0, 0]);
        }
        let mut control = Vec::with_capacity(16 + 4 * fds.len());
        control.extend((16 + 4 * fds.len() as u64).to_le_bytes());
        control.extend(RIGHTS.to_le_bytes());
        control.extend(fds.iter().flat_map(|fd| fd.to_le_bytes()));
        control.resize(control.len().next_multiple_of(8), 0);
        let len = control.len() as u64;
        let control = self.data(&control);
        self.words(&[0, 0, vector, 1, control, len, 0])
    }

    /// Appends data and returns its address in the child.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        let start = self.image.len().next_multiple_of(16);
        self.image.resize(start, 0);
        self.image.extend_from_slice(bytes);
        self.region.base + start as u64
    }

    /// Appends words as data.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// Appends a NUL-terminated string as data.
    pub fn string(&mut self, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// Writes into the resident frames area.
    pub fn write_frame(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - self.region.base) as usize;
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Declares the next thread; the first is the main thread. `flags`: see [`ThreadPlan::flags`].
    pub fn thread(&mut self, tid: i32, frame: u64, flags: i32) {
        self.threads.push(ThreadOps { tid, frame, flags, ops: Vec::new() });
    }

    /// Appends an operation as it is.
    pub fn push(&mut self, list: List, op: Op, what: &'static str, detail: Detail) {
        let ops = match list {
            List::Build => &mut self.build,
            List::Identity => &mut self.identity,
            List::Finish => &mut self.finish,
            List::Thread(n) => &mut self.threads[n].ops,
        };
        ops.push((op, Label { what, detail }));
    }

    /// Appends a system call that must not fail.
    pub fn call(&mut self, list: List, nr: u16, args: &[u64], what: &'static str, detail: Detail) {
        self.push(list, op(nr, 0, args), what, detail);
    }

    /// Appends a system call that must return `expect`.
    pub fn call_expect(
        &mut self,
        list: List,
        nr: u16,
        args: &[u64],
        expect: u64,
        what: &'static str,
        detail: Detail,
    ) {
        let mut op = op(nr, OP_EXPECT, args);
        op.expect = expect;
        self.push(list, op, what, detail);
    }

    /// Appends a system call whose failure does not matter.
    pub fn call_ignore(&mut self, list: List, nr: u16, args: &[u64], what: &'static str) {
        self.push(list, op(nr, OP_IGNORE, args), what, Detail::None);
    }

    /// Takes the time into slot `index` of the status.
    pub fn time(&mut self, list: List, index: u64) {
        self.push(list, op(0, OP_TIME, &[index]), "time", Detail::Number(index));
    }

    /// The operations in the order in which they are performed.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &Op, &Label)> {
        let threads = self.threads.iter().flat_map(|t| &t.ops).map(|(o, l)| ("thread", o, l));
        let build = self.build.iter().map(|(o, l)| ("build", o, l));
        let identity = self.identity.iter().map(|(o, l)| ("identity", o, l));
        build
            .chain(threads)
            .chain(identity)
            .chain(self.finish.iter().map(|(o, l)| ("finish", o, l)))
    }

    /// The label of operation `index` of list number `list` (`mitosis_stub::abi::LIST_*`).
    pub fn label(&self, list: u32, index: u64) -> Option<&Label> {
        let ops = match list {
            0 => &self.build,
            1 => &self.identity,
            2 => &self.finish,
            n => &self.threads.get(n as usize - 3)?.ops,
        };
        ops.get(usize::try_from(index).ok()?).map(|(_, label)| label)
    }

    /// Lays out operations, threads and stacks behind the data. All of the region that there is, and
    /// of `room` bytes if that is more, is unmapped in the end, but for what stays.
    pub fn finish(&mut self, gate: u64, status_fd: i32, room: u64) -> Image {
        let build = self.lay_ops(|p| &p.build);
        let identity = self.lay_ops(|p| &p.identity);
        let finish = self.lay_ops(|p| &p.finish);
        let ops: Vec<(u64, u64)> =
            (0..self.threads.len()).map(|n| self.lay_ops(|p| &p.threads[n].ops)).collect();
        let table_at = self.image.len().next_multiple_of(16);
        let table_len = self.threads.len() * size_of::<ThreadPlan>();
        let stacks = (table_at + table_len).next_multiple_of(4096) as u64;
        self.image.resize(table_at, 0);
        for (n, thread) in self.threads.iter().enumerate() {
            let top = self.region.base + stacks + MAIN_STACK + n as u64 * THREAD_STACK;
            let (offset, count) = ops[n];
            let first = u64::from(thread.tid as u32) | u64::from(thread.flags as u32) << 32;
            let words = [first, top, offset, count, thread.frame];
            self.image.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        }
        let region_len =
            (stacks + MAIN_STACK + self.threads.len() as u64 * THREAD_STACK).next_multiple_of(4096);
        let plan_offset = self.region.resident_end() - self.region.base;
        let words = [
            PLAN_MAGIC,
            self.region.base,
            build.0,
            build.1,
            identity.0,
            identity.1,
            finish.0,
            finish.1,
            table_at as u64,
            self.threads.len() as u64,
            self.region.resident_end(),
            self.region.base + region_len.max(room),
            gate,
            status_fd as u32 as u64,
        ];
        let plan: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = plan_offset as usize;
        self.image[at..at + plan.len()].copy_from_slice(&plan);
        Image {
            bytes: std::mem::take(&mut self.image),
            region_len,
            plan_offset,
            entry: self.region.base + ENTRY_RESTORE,
        }
    }

    fn lay_ops(&mut self, list: impl Fn(&Program) -> &Vec<(Op, Label)>) -> (u64, u64) {
        let start = self.image.len().next_multiple_of(16);
        let mut bytes = Vec::with_capacity(list(self).len() * size_of::<Op>());
        for (op, _) in list(self) {
            let head = u64::from(op.nr)
                | u64::from(op.flags) << 16
                | u64::from(op.save) << 32
                | u64::from(op.slot) << 40;
            bytes.extend_from_slice(&head.to_le_bytes());
            op.args.iter().for_each(|a| bytes.extend_from_slice(&a.to_le_bytes()));
            bytes.extend_from_slice(&op.expect.to_le_bytes());
        }
        let count = list(self).len() as u64;
        self.image.resize(start, 0);
        self.image.extend_from_slice(&bytes);
        (start as u64, count)
    }
}

/// A plain operation.
pub fn op(nr: u16, flags: u16, given: &[u64]) -> Op {
    let mut args = [0u64; 6];
    args[..given.len()].copy_from_slice(given);
    Op { nr, flags, save: SAVE_NONE, slot: 0, pad: 0, args, expect: 0 }
}

/// Bytes the guest's code takes, page-rounded.
pub fn code_len() -> u64 {
    (mitosis_stub::text().len() as u64).next_multiple_of(4096)
}
