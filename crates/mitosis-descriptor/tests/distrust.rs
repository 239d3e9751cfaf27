//! The decoder distrusts: whatever the bytes, an error and no more.

mod common;

use common::*;
use mitosis_descriptor::*;
use proptest::prelude::*;

/// Puts a correct header before a body.
fn seal(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn deleted_directory(name: &str, mode: u32) -> DeletedDirectory {
    DeletedDirectory { file: (1, 2), name: name.to_owned(), mode, uid: 0, gid: 0 }
}

fn confined(threads: &[u32], filters: usize, strict: bool) -> Confined {
    let seccomp = vec![vec![6]; filters];
    Confined { threads: threads.to_vec(), seccomp, strict, no_new_privs: false }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = encode(&cpython(832)).expect("encodes");
    for len in 0..bytes.len() {
        let error = decode(&bytes[..len], &limits()).expect_err("cut short");
        assert!(matches!(error, DescriptorError::Truncated { .. }), "{len}: {error}");
    }
    let body = &bytes[HEADER_BYTES..];
    for len in 0..body.len() {
        assert!(decode(&seal(&body[..len]), &limits()).is_err(), "body of {len} bytes");
    }
}

#[test]
fn every_flipped_bit_is_an_error() {
    let mut bytes = encode(&minimal()).expect("encodes");
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes, &limits()).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn header_errors_are_told_apart() {
    let good = encode(&minimal()).expect("encodes");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes, &limits()).expect_err("altered")
    };
    assert_eq!(with(0, b'X'), DescriptorError::Magic);
    assert_eq!(with(4, 1), DescriptorError::Version { found: 1, reads: VERSION });
    assert!(matches!(with(6, 1), DescriptorError::Malformed(_)));
    assert_eq!(with(12, good[12] ^ 1), DescriptorError::Checksum);
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(decode(&longer, &limits()), Err(DescriptorError::Malformed(_))));
}

#[test]
fn an_oversized_length_is_refused_before_it_is_awaited() {
    let mut bytes = encode(&minimal()).expect("encodes");
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = decode(&bytes, &limits()).expect_err("too large");
    assert!(matches!(error, DescriptorError::TooLarge { what: "bytes", .. }), "{error}");
}

#[test]
fn every_count_has_its_limit() {
    let d = cpython(832);
    let bytes = encode(&d).expect("encodes");
    let tight = [
        Limits { threads_max: 0, ..limits() },
        Limits { xstate_max: 831, ..limits() },
        Limits { vmas_max: 169, ..limits() },
        Limits { runs_max: d.pages.runs().len() - 1, ..limits() },
        Limits { owners_max: 0, ..limits() },
        Limits { open_files_max: 7, ..limits() },
        Limits { bytes_max: bytes.len() - 1, ..limits() },
    ];
    for limit in tight {
        let error = decode(&bytes, &limit).expect_err("over a limit");
        assert!(matches!(error, DescriptorError::TooLarge { .. }), "{limit:?}: {error}");
    }
    let fds = Limits { fds_max: 7, ..limits() };
    assert!(matches!(decode(&bytes, &fds), Err(DescriptorError::Invalid(_))));
}

/// What is wrong, and a change that makes it so.
type Case = (&'static str, fn(&mut Descriptor));

const CONTRADICTIONS: &[Case] = &[
    ("no thread", |d| d.threads.clear()),
    ("leader", |d| d.threads[0].tid = 43),
    ("two threads", |d| d.threads.push(d.threads[0].clone())),
    ("thread id 0", |d| d.threads.push(thread(0, Vec::new()))),
    ("process id", |d| d.process.pid = -1),
    ("name of a thread", |d| d.threads[0].name = vec![b'x'; 65]),
    ("executable", |d| d.process.exe = "x".repeat(4097)),
    ("NUL", |d| d.process.cwd = "/a\0b".to_owned()),
    ("deleted directory", |d| d.process.cwd_deleted = Some(deleted_directory("../etc", 0o755))),
    ("deleted directory", |d| d.process.cwd_deleted = Some(deleted_directory("..", 0o755))),
    ("deleted directory", |d| d.process.cwd_deleted = Some(deleted_directory("gone", 0o10_000))),
    ("umask", |d| d.process.umask = 0o1000),
    ("rlimits", |d| d.process.rlimits = vec![(0, 0); 17]),
    ("over hard", |d| d.process.rlimits[3] = (2, 1)),
    ("signal dispositions", |d| d.process.sigactions = vec![SigAction::default(); 65]),
    ("groups", |d| d.process.creds.groups = vec![0; 65_537]),
    ("empty seccomp", |d| d.process.seccomp = vec![Vec::new()]),
    ("seccomp", |d| d.process.seccomp = vec![vec![0; 4097]]),
    ("all seccomp", |d| d.process.seccomp = vec![vec![0; 4096]; 9]),
    ("heap", |d| d.process.mm.start_brk = 1),
    ("auxiliary", |d| d.process.mm.auxv = vec![0; 129]),
    ("stack", |d| d.process.mm.start_stack = 1 << 48),
    ("too high", |d| {
        d.pages = PageIndex::default();
        d.vmas[0] = vma((1 << 47) - PAGE_SIZE, 2, ANON);
    }),
    ("protection", |d| d.vmas[0].prot = 8),
    ("no mapped file", |d| d.vmas[0].backing = Backing::File { file: 0, offset: 0 }),
    ("file offset", |d| {
        d.files = cpython(0).files;
        d.vmas[0].backing = Backing::File { file: 0, offset: 1 };
    }),
    ("file offset", |d| {
        d.files = cpython(0).files;
        d.vmas[0].backing = Backing::File { file: 0, offset: i64::MAX as u64 & !4095 };
    }),
    ("register state 1 up to", |d| d.origin.xsave[0].bit = 1),
    ("register state 2 up to", |d| d.origin.xsave[0].offset = u32::MAX),
    ("registers of CPUID", |d| d.origin.cpuid = vec![0; 65]),
    ("leaves its VMAs", |d| {
        d.files = vec![MappedFile { path: "/f".to_owned(), size: 4096, hash: None }];
        d.vmas[0].backing = Backing::File { file: 0, offset: 0 };
        d.vmas[0].flags = vma_flags::SHARED;
    }),
    ("pending signal 0", |d| d.process.pending = vec![SigInfo(vec![0])]),
    ("pending signal 65", |d| d.threads[0].pending = vec![SigInfo(vec![65])]),
    ("bytes of a pending signal", |d| d.process.pending = vec![SigInfo(vec![1; 129])]),
    ("pending signals", |d| d.process.pending = vec![SigInfo(vec![1]); 4097]),
    ("words of a CPU set", |d| d.threads[0].sched.cpus = vec![1; 129]),
    ("a clock at", |d| d.clocks.boottime_shift = i64::MIN),
    ("no code", |d| {
        let (name, address) = ("mitosis_after_fork".to_owned(), 0x10_0010);
        d.hooks.functions = vec![Function { name, address }];
    }),
    ("functions to call", |d| {
        d.hooks.functions = vec![Function { name: String::new(), address: 0 }; 65];
    }),
    ("interval timer 3", |d| {
        d.process.itimers = vec![IntervalTimer { which: 3, interval_us: 0, value_us: 1 }];
    }),
    ("interval timers", |d| {
        d.process.itimers = vec![IntervalTimer { which: 0, interval_us: 0, value_us: 1 }; 4];
    }),
    ("timer id 7", |d| d.process.timers = vec![timer(7, 1), timer(7, 1)]),
    ("timer id 2147483648", |d| d.process.timers = vec![timer(1 << 31, 1)]),
    ("timer 1: signal 65", |d| d.process.timers = vec![timer(1, 65)]),
    ("no shared memory", |d| d.vmas[0].backing = Backing::Shared { object: 0, offset: 0 }),
    ("in shared memory", |d| {
        d.shared = vec![SharedObject { name: String::new(), size: 4096, at: None }];
        d.vmas[0].backing = Backing::Shared { object: 0, offset: 1 };
    }),
    ("in shared memory", |d| {
        d.shared = vec![SharedObject { name: String::new(), size: u64::MAX, at: None }];
        d.vmas[0].backing = Backing::Shared { object: 0, offset: 0 };
    }),
    ("shared memory at /etc/shadow", |d| d.shared = vec![named("/etc/shadow")]),
    ("shared memory at /dev/shm/../x", |d| d.shared = vec![named("/dev/shm/../x")]),
    ("shared memory at /dev/shm/", |d| d.shared = vec![named("/dev/shm/")]),
    ("leaves its VMAs", |d| d.vmas[0].backing = Backing::Vdso),
    ("leaves its VMAs", |d| d.vmas.clear()),
    ("leaves its VMAs", |d| {
        d.pages = PageIndex::from_sorted([run(0x100, 2, 0, 0x100)]).expect("one run");
    }),
    ("leaves its VMAs", |d| {
        d.vmas.push(vma(0x10_2000, 1, ANON));
        d.pages = PageIndex::from_sorted([run(0x100, 3, 0, 0x100)]).expect("one run");
    }),
    ("no owner 1", |d| {
        d.pages = PageIndex::from_sorted([run(0x100, 1, 1, 0x100)]).expect("one run");
    }),
    ("entry 0", |d| d.owners.clear()),
    ("address of an owner", |d| d.owners[0].address = "x".repeat(256)),
    ("over the limit", |d| d.open_files.push(open_file(1 << 20))),
    ("no fd names", |d| d.open_files = vec![OpenFile { fds: Vec::new(), ..open_file(3) }]),
    ("two open files", |d| d.open_files = vec![open_file(3), open_file(3)]),
    ("guard region", |d| d.rare.guards = vec![(0x1000, 0x1001)]),
    ("guard region", |d| d.rare.guards = vec![(0x2000, 0x3000), (0x1000, 0x2000)]),
    ("memory policy", |d| d.rare.policies = vec![(0x1000, 1 << 48, MemoryPolicy::default())]),
    ("protection key", |d| d.rare.keys = vec![(0x1000, 0x2000, 16)]),
    ("protection key", |d| d.rare.keys = vec![(0x1000, 0x2000, 1), (0x1000, 0x3000, 2)]),
    ("memory nodes", |d| {
        let policy = MemoryPolicy { mode: 2, nodes: vec![1; 17] };
        d.rare.policies = vec![(0x1000, 0x2000, policy)];
    }),
    ("thread 1 of a list", |d| d.rare.confined = vec![confined(&[1], 0, false)]),
    ("named twice", |d| {
        d.rare.confined = vec![confined(&[0], 0, true), confined(&[0], 1, false)];
        d.threads.push(thread(43, vec![0; 832]));
    }),
    ("strict mode", |d| d.rare.confined = vec![confined(&[0], 1, true)]),
    ("threads [] of a list", |d| d.rare.confined = vec![confined(&[], 1, false)]),
    ("threads [1, 0] of a list", |d| {
        d.rare.confined = vec![confined(&[1, 0], 1, false)];
        d.threads.push(thread(43, vec![0; 832]));
    }),
    ("all seccomp", |d| d.rare.confined = vec![confined(&[0], 32769, false)]),
    ("of the first thread", |d| {
        let creds = Creds::default();
        d.rare.other_creds = vec![OtherCreds { threads: vec![0], creds }];
    }),
    ("no other one", |d| d.rare.ended_leader = Some(0)),
    ("values of 2 threads", |d| d.rare.threads = vec![ThreadValues::usual(); 2]),
    ("System V segment", |d| {
        let segment = Segment {
            ipc: IpcObject::default(),
            object: 0,
            size: 1,
            removed: false,
            locked: false,
        };
        d.shared.clear();
        d.rare.ipc.segments = vec![segment];
    }),
    ("System V object", |d| {
        let ipc = IpcObject { id: -1, ..IpcObject::default() };
        d.rare.ipc.semaphores = vec![Semaphores { ipc, values: vec![1] }];
    }),
    ("System V message queue", |d| {
        let (ipc, messages) = (IpcObject::default(), vec![(0, Vec::new())]);
        d.rare.ipc.queues = vec![MessageQueue { ipc, bytes_max: 1, messages }];
    }),
    ("open shared memory", |d| d.rare.open_objects = vec![OpenObject { object: 0, file: (1, 2) }]),
    ("ranges of user ids", |d| d.rare.user_namespace = Some(id_map(1, (0, u32::MAX, 1)))),
    ("ranges of group ids", |d| {
        let (uids, gids) = (Vec::new(), id_map(1, (7, 7, 0)).uids);
        d.rare.user_namespace = Some(UserNamespace { uids, gids, setgroups: true });
    }),
    ("ranges of user ids", |d| d.rare.user_namespace = Some(id_map(341, (0, 0, 1)))),
    ("owner of an open file", |d| {
        let signals = FileSignals { kind: 1, id: -1, signal: 0, armed: true, other: false };
        d.open_files = vec![OpenFile { signals: Some(signals), ..open_file(3) }];
    }),
    ("an open file that tells", |d| {
        let signals = FileSignals { kind: 3, id: 7, signal: 0, armed: true, other: false };
        d.open_files = vec![OpenFile { signals: Some(signals), ..open_file(3) }];
    }),
];

fn open_file(fd: u32) -> OpenFile {
    OpenFile { kind: 0, flags: 0, fds: vec![(fd, false)], body: Vec::new(), signals: None }
}

#[test]
fn contradictions_are_named() {
    for (number, (what, change)) in CONTRADICTIONS.iter().enumerate() {
        let mut d = minimal();
        change(&mut d);
        let bytes = encode(&d).expect("all but order can be encoded");
        let error = decode(&bytes, &limits()).expect_err(what).to_string();
        assert!(error.contains(what), "case {number}: wanted {what:?}, got {error:?}");
    }
}

#[test]
fn what_has_no_order_cannot_be_encoded() {
    let overlapping = vec![vma(0x10_0000, 2, ANON), vma(0x10_1000, 1, ANON)];
    let descending = vec![vma(0x20_0000, 1, ANON), vma(0x10_0000, 1, ANON)];
    let unaligned = vec![Vma { start: 0x10_0001, ..vma(0x10_0000, 2, ANON) }];
    for vmas in [overlapping, descending, unaligned] {
        let d = Descriptor { vmas, pages: PageIndex::default(), ..minimal() };
        assert!(matches!(encode(&d), Err(DescriptorError::Invalid(_))));
        assert!(matches!(d.validate(&limits()), Err(DescriptorError::Invalid(_))));
    }
}

#[test]
fn an_index_refuses_runs_without_order() {
    let bad = [
        vec![run(5, 0, 0, 5)],
        vec![run(5, 3, 0, 5), run(7, 1, 0, 7)],
        vec![run(5, 1, 0, 5), run(4, 1, 0, 4)],
        vec![run(u64::MAX, 1, 0, 5)],
        vec![run((1 << 35) - 1, 2, 0, 5)],
        vec![run(5, 2, 0, (1 << 35) - 1)],
    ];
    for runs in bad {
        assert!(PageIndex::from_sorted(runs).is_err());
    }
    let joined = PageIndex::from_sorted([run(5, 1, 0, 5), run(6, 2, 0, 6), run(8, 1, 1, 8)]);
    assert_eq!(joined.expect("ascending").runs(), [run(5, 3, 0, 5), run(8, 1, 1, 8)]);
}

#[test]
fn clipping_moves_the_source_along() {
    let index = PageIndex::from_sorted([run(10, 10, 0, 110), run(30, 5, 1, 30)]).expect("runs");
    let parts: Vec<PageRun> = index.within(Vpn(15), Vpn(31)).collect();
    assert_eq!(parts, [run(15, 5, 0, 115), run(30, 1, 1, 30)]);
    assert_eq!(index.within(Vpn(20), Vpn(30)).count(), 0);
    assert_eq!(index.pages(), 15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn noise_is_an_error(body in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(decode(&body, &limits()).is_err());
        prop_assert!(decode(&seal(&body), &limits()).is_err());
    }

    /// A body altered under a correct checksum: it may still be a descriptor, and then it must be
    /// one that survives the round trip.
    #[test]
    fn altered_bodies_never_panic(
        which in 0usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let samples = [minimal(), cpython(832), three_hops(), tree(&[0, 1, 0])];
        let mut body = encode(&samples[which]).expect("encodes").split_off(HEADER_BYTES);
        for (at, byte) in edits {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(d) = decode(&seal(&body), &limits()) {
            let again = encode(&d).expect("what was decoded can be encoded");
            prop_assert_eq!(decode(&again, &limits()), Ok(d));
        }
    }
}

fn named(path: &str) -> SharedObject {
    let at = SharedName { path: path.to_owned(), mode: 0o600, uid: 0, gid: 0 };
    SharedObject { name: String::new(), size: 4096, at: Some(at) }
}

fn timer(id: u32, signal: u32) -> PosixTimer {
    let (clock, notify, value, tid) = (1, 0, 0, 0);
    PosixTimer { id, clock, notify, signal, value, tid, interval_ns: 0, value_ns: 0 }
}

/// Not in a descriptor, where the codec looks: between daemon and pager.
#[test]
fn an_index_out_of_order_is_not_read() {
    let run = |start, count| PageRun { start: Vpn(start), count, owner: 0, source: Vpn(start) };
    let read = |runs: &[PageRun]| {
        postcard::from_bytes::<PageIndex>(&postcard::to_stdvec(runs).expect("bytes"))
    };
    assert_eq!(read(&[run(4, 2), run(9, 1)]).expect("an index").pages(), 3);
    for wrong in [[run(9, 1), run(4, 2)], [run(4, 6), run(9, 1)], [run(4, 0), run(9, 1)]] {
        assert!(read(&wrong).is_err(), "{wrong:?}");
    }
}
