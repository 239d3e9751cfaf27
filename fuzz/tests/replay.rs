//! The fuzz targets without a fuzzer: every seed, then blind mutations of the seeds.
//!
//! The mutations are the same in every run, so a failure repeats. `MITOSIS_FUZZ_ROUNDS` sets how
//! many there are for each target; `MITOSIS_GOLDEN=write` writes the seeds anew.

use mitosis_descriptor::{HEADER_BYTES, Owner, PageIndex, PageRun, Reference, Secret, SeedId, Vpn};
use mitosis_proto::{ErrorCode, ForkRequest, PrepareRequest, Reply, Request};
use mitosis_transport::wire::{self, Access, Header, Hello, Kind, Pages, Pong};
use mitosis_transport::{ReadError, SeedState};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const ROUNDS: u64 = 200_000;
/// Most memory that decoding may need above what the test needs itself. The seeds are at most a
/// few kilobytes, so an allocation sized by a number in the input would stand out.
const GROWTH_MAX_KIB: u64 = 64 << 10;

/// xorshift64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Numbers at which decoders break: sign bits, all ones, page and length boundaries.
const EDGES: [u64; 8] =
    [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), random.next() as u8),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            5 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            _ => {
                let from = random.below(other.len());
                let len = random.below(64).min(other.len() - from);
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read_all(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("seeds are in the repository");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

/// Highest memory use of this process so far, in KiB.
fn high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The memory of all tests is one: they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn replay(name: &str, seeds: &[Vec<u8>], target: fn(&[u8]) -> bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(!seeds.is_empty(), "{name}: no seeds");
    for (number, seed) in seeds.iter().enumerate() {
        assert!(target(seed), "{name}: seed {number} is refused");
    }
    let before = high_water();
    let rounds = std::env::var("MITOSIS_FUZZ_ROUNDS").ok().and_then(|v| v.parse().ok());
    let mut random = Random(0x6d69_746f_7369_7321);
    let mut accepted = 0u64;
    for _ in 0..rounds.unwrap_or(ROUNDS) {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut bytes, other, &mut random);
        accepted += u64::from(target(&bytes));
    }
    let growth = high_water() - before;
    assert!(growth < GROWTH_MAX_KIB, "{name}: {growth} KiB allocated");
    println!("{name}: {accepted} mutants accepted, {growth} KiB");
}

#[test]
fn descriptors() {
    let seeds = read_all(&root().join("../crates/mitosis-descriptor/tests/golden"));
    for (number, golden) in seeds.iter().enumerate() {
        let body = &golden[HEADER_BYTES..];
        assert_eq!(mitosis_fuzz::seal(body), *golden, "golden file {number}");
    }
    replay("descriptor", &seeds, mitosis_fuzz::descriptor);
}

#[test]
fn wire_frames() {
    write_seeds("wire", frames().into_iter().map(|(n, b)| (n.to_owned(), b)));
    replay("wire", &read_all(&root().join("seeds/wire")), mitosis_fuzz::wire);
}

#[test]
fn pager_messages() {
    write_seeds("pager", messages());
    replay("pager", &read_all(&root().join("seeds/pager")), mitosis_fuzz::pager);
}

#[test]
fn control_lines() {
    write_seeds("control", lines());
    replay("control", &read_all(&root().join("seeds/control")), mitosis_fuzz::control);
}

#[test]
fn vdso_images() {
    write_seeds("vdso", [("time".to_owned(), vdso())]);
    replay("vdso", &read_all(&root().join("seeds/vdso")), mitosis_fuzz::vdso);
}

/// The smallest image that exports a function, see elf(5): three sections, two symbols, their names.
fn vdso() -> Vec<u8> {
    let mut image = vec![0; 336];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x28, &[64]); // where the table of sections is
    put(0x3a, &[64, 0, 3]);
    for (section, kind, from, bytes, link) in [(1, 11, 256u16, 48, 2), (2, 3, 304, 13, 0)] {
        let at = 64 + 64 * section;
        put(at + 4, &[kind]);
        put(at + 0x18, &from.to_le_bytes());
        put(at + 0x20, &[bytes]);
        put(at + 0x28, &[link]);
    }
    put(280, &[1, 0, 0, 0, 0x12, 0, 2]); // the second symbol: its name, a function, of section 2
    put(288, &320u16.to_le_bytes());
    put(296, &[16]);
    put(304, b"\0__vdso_time\0");
    put(320, &[0x90; 16]);
    image
}

/// A few files of each kind. The bodies are the kinds' own business, so they are written out here
/// as bytes: postcard writes small numbers as themselves.
#[test]
fn kinds() {
    let inode = [200, 1]; // 200
    let bodies: [(&str, Vec<u8>); 8] = [
        ("stdio", vec![1, 0, 1, 0, 1, 1, 1, 1]),
        ("file", [&[2, 0, 11, 9][..], b"/dev/zero", &[5]].concat()),
        ("eventfd", vec![3, 0, 2, 7, 1]),
        ("epoll", vec![4, 0, 5, 1, 0, 1, 5, 0]),
        // An epoll instance that member 1 of a tree makes, in which this one registers an eventfd.
        ("gift", vec![40, 0, 6, 1, 1, 1, 1, 5, 1, 3, 0, 2, 7, 1]),
        (
            "terminal",
            [
                [35, 2, 11, 3, 1, 0, 5, 16, 0, 0, 0, 0, 0, 0],
                [35, 2, 11, 3, 0, 0, 5, 16, 0, 0, 0, 0, 0, 1],
            ]
            .concat(),
        ),
        ("listener", vec![5, 0, 17, 9, 0, 127, 0, 0, 1, 144, 63, 1, 128, 32, 0, 1, 0, 0, 0, 0]),
        (
            "pipe",
            [
                &[6, 0, 8][..],
                &inode,
                &[0, 128, 128, 4, 1, 65, 6, 1, 7],
                &inode,
                &[1, 128, 128, 4, 0],
            ]
            .concat(),
        ),
    ];
    write_seeds("kinds", bodies.map(|(name, body)| (name.to_owned(), body)));
    replay("kinds", &read_all(&root().join("seeds/kinds")), mitosis_fuzz::kinds);
}

fn write_seeds(dir: &str, seeds: impl IntoIterator<Item = (String, Vec<u8>)>) {
    if std::env::var_os("MITOSIS_GOLDEN").is_none_or(|v| v != "write") {
        return;
    }
    for (name, bytes) in seeds {
        let path = root().join("seeds").join(dir).join(name);
        std::fs::write(path, bytes).expect("seeds are writable");
    }
}

/// One frame of each kind, and a conversation.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let body = |kind, bytes: Result<Vec<u8>, wire::WireError>| (kind, bytes.expect("a frame"));
    let access = Access { seed: SeedId([7; 8]), secret: Secret([9; 32]) };
    let changed = vec![(1, SeedState::Expiring), (2, SeedState::Revoked), (3, SeedState::Lost)];
    let trail = Pages { pages: vec![0x7fff_1234, 0x7fff_1235, 0x5555] };
    let end = wire::RdmaEnd { qpn: 17, psn: 0xabcdef, gid: [9; 16], lid: 0, mtu: 5 };
    let connect = wire::RdmaAsk::Connect(end);
    let rdma = Header { a: 1, ..Header::new(Kind::Rdma) };
    let region = wire::RdmaRegion { page: 0x7fff_1234, pages: 3, address: 1 << 46, rkey: 0x99 };
    let regions = wire::RdmaSaid::Regions { regions: vec![region], complete: true };
    let ending = wire::RdmaSaid::Ending("seed revoked".into());
    let unlinked = wire::RdmaSaid::Unlinked("ibv_create_qp: no room".into());
    let place = wire::RdmaPlace { address: 1 << 46, rkey: 0x99, length: 7000, linked: false };
    let read = Header { tag: 5, a: 1, b: 16, c: 0x7fff_1234, ..Header::new(Kind::Read) };
    let data = Header { length: 4096, b: 1, ..Header::new(Kind::Data) };
    let mut page = data.encode().to_vec();
    page.extend_from_slice(&[0xaa; 4096]);
    let mut frames = vec![
        body("hello", wire::control(Header::new(Kind::Hello), &Hello { version: 1 })),
        body("fork", wire::control(Header { tag: 1, ..Header::new(Kind::Fork) }, &access)),
        body("vdso", wire::control(Header { tag: 1, ..Header::new(Kind::Vdso) }, &access)),
        body("open", wire::control(Header { a: 1, ..Header::new(Kind::Open) }, &access)),
        body("pong", wire::control(Header::new(Kind::Pong), &Pong { changed })),
        body("learn", wire::control(Header { a: 1, ..Header::new(Kind::Learn) }, &trail)),
        body("trail", wire::control(Header { a: 1, ..Header::new(Kind::Trail) }, &trail)),
        body("rdma", wire::control(rdma, &connect)),
        body("rdma-regions", wire::control(rdma, &wire::RdmaAsk::Regions { from: 300 })),
        body("rdma-ended", wire::control(rdma, &wire::RdmaAsk::Ended)),
        body("rdma-ending", wire::control(Header::new(Kind::RdmaAnswer), &ending)),
        body("rdma-unlinked", wire::control(Header::new(Kind::RdmaAnswer), &unlinked)),
        body("descriptor-at", wire::control(Header::new(Kind::DescriptorAt), &place)),
        body("rdma-answer", wire::control(Header::new(Kind::RdmaAnswer), &regions)),
        body("error", wire::error_frame(5, &ReadError::Lost("the shadow died".into()))),
        ("read", read.encode().to_vec()),
        ("data", page),
        ("ping", Header::new(Kind::Ping).encode().to_vec()),
        ("close", Header { a: 1, ..Header::new(Kind::Close) }.encode().to_vec()),
        ("refused", Header { tag: 1, ..Header::new(Kind::Refused) }.encode().to_vec()),
    ];
    let talk = ["hello", "open", "read", "read", "ping", "close"]
        .iter()
        .flat_map(|want| frames.iter().find(|(n, _)| n == want).map(|(_, b)| b.clone()))
        .flatten()
        .collect();
    frames.push(("conversation", talk));
    frames
}

/// Messages between daemon and pager that carry more than a number.
fn messages() -> Vec<(String, Vec<u8>)> {
    use mitosis_pager::{AddChild, Area, ChildId, OwnerSource, Reply, Request, Snapshot};
    let owner = Owner {
        address: "10.0.0.1:7000".to_owned(),
        seed: SeedId([7; 8]),
        secret: Secret([9; 32]),
    };
    let area = Area { start: Vpn(16), count: 64, grows_down: false, wipe_on_fork: true };
    let run = |start, count| PageRun { start: Vpn(start), count, owner: 0, source: Vpn(start) };
    let index = PageIndex::from_sorted([run(16, 3), run(20, 8), run(60, 20)]).expect("sorted");
    let owners = vec![OwnerSource {
        owner: owner.clone(),
        address: Some("10.0.0.1:7000".parse().expect("an address")),
        local: None,
        rdma: false,
    }];
    let shape = Request::AddShape {
        shape: 5,
        areas: vec![area],
        index: index.clone(),
        owners: owners.clone(),
    };
    let child = Request::AddChild(AddChild {
        child: ChildId(9),
        seed: "0707070707070707".to_owned(),
        areas: vec![area],
        index: index.clone(),
        owners,
        placed: vec![16, 17],
        placed_bytes: 8192,
        held: 0,
        shape: None,
        main: Some(ChildId(8)),
        member: (1, 2),
        eager: false,
        independent: true,
    });
    let snapshot = Reply::Snapshot(Snapshot { areas: vec![area], index, owners: vec![owner] });
    let bytes = |name: &str, message: Result<Vec<u8>, postcard::Error>| {
        (name.to_owned(), message.expect("a message"))
    };
    vec![
        bytes("shape", postcard::to_stdvec(&shape)),
        bytes("child", postcard::to_stdvec(&child)),
        bytes("snapshot", postcard::to_stdvec(&snapshot)),
        bytes("stats", postcard::to_stdvec(&Request::Stats { ended: true })),
        bytes("failed", postcard::to_stdvec(&Reply::Failed("no hello".to_owned()))),
    ]
}

/// One line of each kind that carries anything, and a reference.
fn lines() -> Vec<(String, Vec<u8>)> {
    let reference = Reference {
        address: "10.0.0.1:7000".to_owned(),
        seed: SeedId([7; 8]),
        secret: Secret([9; 32]),
    };
    let reference = reference.reveal();
    let requests = [
        Request::Prepare(PrepareRequest { pid: 42, ttl_ms: Some(1), ..Default::default() }),
        Request::Fork(ForkRequest::new(reference.clone())),
        Request::Kill { pid: 42, signal: 9 },
        Request::RemoveSeed { seed: reference.clone() },
        Request::Children,
    ];
    let mut lines: Vec<(String, Vec<u8>)> = requests
        .iter()
        .enumerate()
        .map(|(n, r)| (format!("request-{n}"), serde_json::to_vec(r).expect("a line")))
        .collect();
    let reply =
        serde_json::to_vec(&Reply::Error { code: ErrorCode::Failed, message: "cause".to_owned() })
            .expect("a line");
    lines.push(("reply".to_owned(), reply));
    lines.push(("reference".to_owned(), reference.into_bytes()));
    lines
}
