//! Descriptors for tests: the smallest, a CPython server's, and that of a fork of a fork.
#![allow(dead_code)] // each test crate uses some of it

use mitosis_descriptor::*;

pub const ANON: Backing = Backing::Anonymous;

pub fn vma(start: u64, pages: u64, backing: Backing) -> Vma {
    Vma { start, end: start + pages * PAGE_SIZE, prot: 3, flags: 0, backing }
}

pub fn run(start: u64, count: u32, owner: u16, source: u64) -> PageRun {
    PageRun { start: Vpn(start), count, owner, source: Vpn(source) }
}

pub fn owner(n: u8) -> Owner {
    Owner {
        address: format!("10.0.0.{n}:7070"),
        seed: SeedId([n; 8]),
        secret: Secret([n.wrapping_mul(37); 32]),
    }
}

pub fn process(pid: i32) -> Process {
    Process {
        pid,
        exe: "/usr/bin/true".to_owned(),
        cwd: "/".to_owned(),
        cwd_deleted: None,
        root: "/".to_owned(),
        umask: 0o22,
        personality: 0,
        oom_score_adj: 0,
        creds: Creds::default(),
        rlimits: vec![(u64::MAX, u64::MAX); 16],
        mm: MmLayout::default(),
        sigactions: vec![SigAction::default(); 64],
        dumpable: 1,
        subreaper: false,
        pdeathsig: 0,
        thp_disable: false,
        session_leader: false,
        seccomp: Vec::new(),
        pending: Vec::new(),
        itimers: Vec::new(),
        timers: Vec::new(),
    }
}

pub fn thread(tid: i32, xstate: Vec<u8>) -> Thread {
    Thread {
        tid,
        regs: Registers { rip: 0x7f00_1234_5678, rsp: 0x7ffd_0000_1000, ..Registers::default() },
        xstate,
        sigmask: 0,
        altstack: (0, 2, 0),
        robust_list: (0x7f00_0000_1000, 24),
        clear_tid: 0x7f00_0000_2000,
        rseq: (0x7f00_0000_3000, 32, 0x5305_3053),
        name: b"worker".to_vec(),
        pending: Vec::new(),
        sched: Sched::default(),
    }
}

/// One thread, one page.
pub fn minimal() -> Descriptor {
    Descriptor {
        origin: Origin {
            node: "a".to_owned(),
            taken_unix_ms: 1_700_000_000_000,
            vdso_crc: 1,
            xcr0: 7,
            xsave: vec![XsaveArea { bit: 2, offset: 576, bytes: 256 }],
            cpuid: vec![0x7ffa_3203, 0x219c_97a9, 0x40_069c],
            kernel: "6.18.0".to_owned(),
        },
        process: process(42),
        threads: vec![thread(42, vec![0; 832])],
        files: Vec::new(),
        vmas: vec![vma(0x10_0000, 1, ANON)],
        owners: vec![owner(1)],
        pages: PageIndex::from_sorted([run(0x100, 1, 0, 0x100)]).expect("one run"),
        shared: Vec::new(),
        open_files: Vec::new(),
        clocks: Clocks::default(),
        hooks: Hooks::default(),
        rare: Rare::default(),
    }
}

/// An image as hard to shorten as an XSAVE image gets: every byte in use.
pub fn dense_xstate(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 | 1
    };
    (0..bytes).map(|_| next()).collect()
}

/// What CPython with `http.server` looks like: 170 VMAs over 34 files, a run of dirty pages in
/// every second of them, and a dense XSAVE image of `xstate` bytes.
pub fn cpython(xstate: usize) -> Descriptor {
    let mut d = minimal();
    d.threads = vec![thread(42, dense_xstate(xstate))];
    d.files = (0..34)
        .map(|n| MappedFile {
            path: format!("/usr/lib/python3.13/lib-dynload/_module{n:02}.cpython-313-x86_64.so"),
            size: 123_456,
            hash: Some([n; 32]),
        })
        .collect();
    d.vmas.clear();
    let mut runs = Vec::new();
    let mut at = 0x5555_5555_0000u64;
    for n in 0..170u32 {
        if n == 6 {
            at = 0x7fff_f000_0000;
        }
        let file = Backing::File { file: n / 5, offset: u64::from(n % 5) * 16 * PAGE_SIZE };
        let backing = if n % 9 == 0 { ANON } else { file };
        let mut next = vma(at, 16, backing);
        next.flags = if n % 3 == 0 { vma_flags::ACCOUNTED } else { 0 };
        d.vmas.push(next);
        if n % 2 == 0 {
            let page = Vpn::of(at).0 + 3;
            runs.push(run(page, 2 + n % 7, 0, page));
        }
        at += (16 + u64::from(n % 11) * 3) * PAGE_SIZE;
    }
    d.pages = PageIndex::from_sorted(runs).expect("ascending");
    // Eventfds (kind 3): a counter and whether it is a semaphore.
    d.open_files = (0..8)
        .map(|n| OpenFile {
            kind: 3,
            flags: 2,
            fds: vec![(n, false), (n + 100, true)],
            body: vec![n as u8, 0],
            signals: None,
        })
        .collect();
    d
}

/// A fork of a fork of a fork, one mapping of which was moved before it was fetched.
pub fn three_hops() -> Descriptor {
    let mut d = minimal();
    d.owners = vec![owner(1), owner(2), owner(3)];
    d.vmas = vec![vma(0x10_0000, 64, ANON), vma(0x7f00_0000_0000, 64, ANON)];
    let alarm = SigInfo(vec![14, 0, 0, 0, 0, 0, 0, 0, 0x80]);
    d.process.pending = vec![alarm.clone()];
    d.process.itimers = vec![IntervalTimer { which: 0, interval_us: 0, value_us: 1_500_000 }];
    d.process.timers = vec![PosixTimer {
        id: 3,
        clock: 1,
        notify: 0,
        signal: 34,
        value: 0x7f00_0000_0010,
        tid: 0,
        interval_ns: 1_000_000_000,
        value_ns: 250_000_000,
    }];
    d.threads[0].pending = vec![alarm];
    d.threads[0].sched = Sched { nice: 5, cpus: vec![2], ..Sched::default() };
    let uids = vec![
        IdRange { inside: 0, outside: 1000, count: 1 },
        IdRange { inside: 1, outside: 100_000, count: 65_535 },
    ];
    let gids = vec![IdRange { inside: 0, outside: 1000, count: 1 }];
    d.rare.user_namespace = Some(UserNamespace { uids, gids, setgroups: false });
    let (threads, seccomp) = (vec![0], vec![vec![0x7fff_0000_0000_0006]]);
    d.rare.confined = vec![Confined { threads, seccomp, strict: false, no_new_privs: true }];
    let path = format!("{SHM_DIRECTORY}pool");
    let name = SharedName { path, mode: 0o600, uid: 1000, gid: 1000 };
    d.shared = vec![SharedObject { at: Some(name), ..memory("dev/shm/pool", 8) }];
    d.clocks =
        Clocks { monotonic: 1 << 50, boottime: 1 << 51, monotonic_shift: -5, boottime_shift: 7 };
    let reseed = Function { name: "mitosis_after_fork".to_owned(), address: 0x7f00_2000_0010 };
    d.hooks = Hooks { idle: true, main_waits: true, functions: vec![reseed] };
    d.vmas.push(vma(0x7f00_1000_0000, 8, Backing::Shared { object: 0, offset: 0 }));
    let code = vma(0x7f00_2000_0000, 1, ANON);
    d.vmas.push(Vma { prot: 5, ..code });
    let high = 0x7_f000_0000u64;
    d.pages = PageIndex::from_sorted([
        run(0x100, 3, 0, 0x100),
        run(0x103, 2, 1, 0x103),
        run(0x108, 1, 2, 0x108),
        run(high, 8, 2, 0x55_5555),
        run(high + 8, 4, 1, high + 8),
        run(high + 20, 1, 1, high + 20),
    ])
    .expect("ascending");
    d
}

fn memory(name: &str, pages: u64) -> SharedObject {
    SharedObject { name: name.to_owned(), size: pages * PAGE_SIZE, at: None }
}

/// A tree: a shell on a terminal of the root's, a daemon whose leader has ended, one that has ended; they
/// share memory, a System V segment and what one hands to another.
pub fn family() -> Descriptor {
    let process_of = |pid: i32, group: i32, session: i32| {
        let mut d = minimal();
        (d.process, d.threads) = (process(pid), vec![thread(pid, vec![0; 832])]);
        d.rare.tree.place.session = Session { group, session };
        d.shared = vec![memory("zero", 4), memory("SYSV00004d54", 4)];
        d.vmas.push(vma(0x7f00_0000_0000, 4, Backing::Shared { object: 0, offset: 0 }));
        d.vmas.push(vma(0x7f00_1000_0000, 4, Backing::Shared { object: 1, offset: 0 }));
        let ipc = IpcObject { id: 3, key: 0x4d54, mode: 0o640, ..IpcObject::default() };
        let (size, removed, locked) = (4 * PAGE_SIZE, true, false);
        d.rare.ipc.segments = vec![Segment { ipc, object: 1, size, removed, locked }];
        d
    };
    let (mut shell, mut daemon) = (process_of(100, 100, 100), process_of(101, 90, 90));
    for member in [&mut shell, &mut daemon] {
        member.rare.tree.place.memory_from = vec![(0, 0), (1, 0)];
    }
    shell.rare.tree.place.terminal = Some(Terminal { index: 2, foreground: 100 });
    daemon.rare.open_objects = vec![OpenObject { object: 0, file: (1, 77) }];
    daemon.open_files = vec![OpenFile {
        // Handed over by member 0; it registers nothing.
        kind: 40,
        flags: 2,
        fds: vec![(3, true)],
        body: vec![0, 0],
        signals: None,
    }];
    let mut root = process_of(42, 42, 42);
    let ipc = IpcObject { id: 9, ..IpcObject::default() };
    root.rare.ipc.semaphores = vec![Semaphores { ipc, values: vec![1, 0] }];
    root.open_files = vec![OpenFile {
        kind: 3,
        flags: 2,
        fds: vec![(5, false)],
        body: vec![0, 0],
        signals: None,
    }];
    root.rare.tree.place.gifts = vec![Gift { fd: 5, to: 2 }];
    root.rare.tree.place.memory_to =
        [(0, 1), (1, 1), (0, 2), (1, 2)].map(|(fd, to)| Gift { fd, to }).to_vec();
    let member = |one: &Descriptor| Member { parent: 0, image: encode(one).expect("encodes") };
    root.rare.tree.members = vec![member(&shell), member(&daemon)];
    // Of a group of the shell's that nobody leads any more.
    let session = Session { group: 80, session: 100 };
    root.rare.tree.zombies = vec![Zombie { parent: 1, pid: 200, session, status: 9 }];
    root
}

/// What decodes here is held to.
pub fn limits() -> Limits {
    Limits::default()
}

/// A user namespace with that range of user ids, so many times.
pub fn id_map(times: usize, (inside, outside, count): (u32, u32, u32)) -> UserNamespace {
    let range = IdRange { inside, outside, count };
    UserNamespace { uids: vec![range; times], ..UserNamespace::default() }
}

/// A tree whose other members have these parents, and the pids 100, 101 and so on.
pub fn tree(parents: &[u32]) -> Descriptor {
    let mut root = minimal();
    root.rare.tree.place.session = Session { group: 42, session: 42 };
    let member = |(number, parent): (usize, &u32)| {
        let mut image = Descriptor { process: process(100 + number as i32), ..minimal() };
        image.rare.tree.place.session = root.rare.tree.place.session;
        let threads = vec![thread(100 + number as i32, Vec::new())];
        Member {
            parent: *parent,
            image: encode(&Descriptor { threads, ..image }).expect("encodes"),
        }
    };
    root.rare.tree.members = parents.iter().enumerate().map(member).collect();
    root
}
