//! What must hold of a decoder whatever bytes it is given.
//!
//! Descriptors and frames come from other machines, requests from other processes. Each function
//! here gives one decoder arbitrary bytes and panics if a promise is broken. `cargo fuzz` drives
//! them with coverage feedback (nightly); `tests/replay.rs` drives them from the seeds with blind
//! mutations on any toolchain, so that every test run does some of it.

#![forbid(unsafe_code)]

use mitosis_descriptor::{
    Backing, Descriptor, Gift, HEADER_BYTES, Limits, MAGIC, MappedFile, OpenFile, PageRun, Place,
    Reference, Terminal, VERSION, Vpn, XsaveArea, decode, encode,
};
use mitosis_proto::{Reply, Request};
use mitosis_restore::tree::TREE_ENTRY;
use mitosis_restore::{Area, NodeFacts, ProvenFiles};
use mitosis_state::kinds::Files;
use mitosis_state::{Program, Region, code_len};
use mitosis_sys::cpu;
use mitosis_sys::kernel::Kernel;
use mitosis_transport::ReadError;
use mitosis_transport::wire::{self, Access, Header, Hello, Kind, Pages, Pong};

/// Gives `bytes` to the descriptor's decoder, as they are and as a body under a correct header
/// (else the checksum would stop nearly all of them). Returns whether either was a descriptor.
pub fn descriptor(bytes: &[u8]) -> bool {
    let body = bytes.get(HEADER_BYTES..).unwrap_or(bytes);
    check_descriptor(bytes) | check_descriptor(&seal(body))
}

/// Gives `bytes` to what looks for the functions of another kernel's vdso, an ELF image that came from
/// another node. Code will be written over them, so each must lie in the image.
pub fn vdso(bytes: &[u8]) -> bool {
    let Ok(found) = mitosis_restore::vdso_functions(bytes) else { return false };
    for function in &found {
        let end = function.offset.checked_add(function.size);
        assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{function:?} is outside");
    }
    !found.is_empty()
}

/// A descriptor's header before `body`.
pub fn seal(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// What decodes must be encodable again, to the same value; its index must be walkable.
fn check_descriptor(bytes: &[u8]) -> bool {
    let limits = Limits::default();
    let Ok(d) = decode(bytes, &limits) else { return false };
    let again = encode(&d).map(|bytes| decode(&bytes, &limits));
    assert!(matches!(again, Ok(Ok(same)) if same == d), "a descriptor changed on its way");
    for vma in &d.vmas {
        let (start, end) = (Vpn::of(vma.start), Vpn::of(vma.end));
        let inside = d.pages.within(start, end).all(|r| start <= r.start && r.end() <= end);
        assert!(inside, "a run reached out of the VMA it was asked for");
    }
    check_plan(&d);
    check_tree(&d);
    true
}

/// What a node does with a tree: who is born of whom, and the plan of each process.
fn check_tree(d: &Descriptor) {
    if d.rare.tree.is_alone() {
        return;
    }
    let images = d.rare.tree.images(&Limits::default()).expect("checked when it was decoded");
    let members: Vec<&Descriptor> = images.iter().collect();
    let table = mitosis_restore::tree::table(d, &members).expect("a tree that can be made");
    for (index, entry) in table.chunks_exact(TREE_ENTRY).enumerate() {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| entry[4 * at + n])) as usize;
        // The order of `TreeEntry`: its maker and its parent come before it.
        assert!(index == 0 || word(2) < index, "process {index} is made by one that is not there");
        assert!(word(3) <= index, "process {index} is the child of a later one");
    }
    for process in std::iter::once(d).chain(members) {
        let request = mitosis_restore::Request { tree: Some(31_999), ..Default::default() };
        let plan = mitosis_restore::plan(process, &node(process), &request, &Proven(false));
        assert!(plan.is_err() || plan.is_ok_and(|plan| !plan.to_string().is_empty()));
    }
}

/// A node on which any vdso and any register state fit.
fn node(d: &Descriptor) -> NodeFacts {
    NodeFacts {
        vdso_crc: d.origin.vdso_crc,
        vdso_functions: Vec::new(),
        xcr0: u64::MAX,
        // As if it were of another maker.
        xsave: d.origin.xsave.iter().map(moved).collect(),
        cpuid: vec![u32::MAX; 64],
        vdso_parts: vec![(Backing::Vdso, 0, 0x2000), (Backing::Vvar, 0x4000, 0x4000)],
        hard_limits: vec![u64::MAX; 16],
        oom_score_adj: 0,
        cpus: vec![3],
        nice: 0,
        kernel: Kernel::FULL,
        cap_bounding: u64::MAX,
        caps: u64::MAX,
        generic_groups: Vec::new(),
        memory_nodes: vec![u64::MAX],
    }
}

fn moved(area: &XsaveArea) -> cpu::Area {
    cpu::Area { bit: area.bit, offset: area.offset ^ 64, bytes: area.bytes }
}

struct Proven(bool);

impl ProvenFiles for Proven {
    fn proven(&self, _: &MappedFile) -> bool {
        self.0
    }
}

/// What a node does with a descriptor that it believes: plan, in each way there is. A page that
/// the descriptor says holds data must not be missing from what the pager will serve.
fn check_plan(d: &Descriptor) {
    for (own, proven) in [(false, true), (true, false)] {
        let time = match own {
            true => mitosis_restore::Time::Shifted { monotonic: 1 },
            false => mitosis_restore::Time::Same,
        };
        let request = mitosis_restore::Request {
            new_pid: own,
            own_net: own,
            time,
            no_hooks: !own,
            filled: own,
            ..Default::default()
        };
        let Ok(plan) = mitosis_restore::plan(d, &node(d), &request, &Proven(proven)) else {
            continue;
        };
        assert!(plan.index.pages() >= d.pages.pages(), "pages were lost in planning");
        let covered = |run: &PageRun| reach(&plan.areas, run.start.0) >= run.end().0;
        assert!(plan.index.runs().iter().all(covered), "pages outside of what is registered");
        assert!(!plan.to_string().is_empty());
    }
}

/// How far, from page `at` on, areas follow each other without a gap.
fn reach(areas: &[Area], mut at: u64) -> u64 {
    while let Some(area) = areas.iter().find(|a| (a.start.0..a.start.0 + a.count).contains(&at)) {
        at = area.start.0 + area.count;
    }
    at
}

/// Gives `bytes` to the decoder of frames between nodes, as a stream of frames. Returns whether
/// the first of them was one.
pub fn wire(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut frames = 0;
    while let Some((header, tail)) = rest.split_first_chunk::<{ wire::HEADER }>() {
        let Ok(decoded) = Header::decode(header) else { break };
        assert_eq!(decoded.encode(), *header, "a header changed on its way");
        let length = decoded.length as usize;
        assert!(length <= wire::DESCRIPTOR_MAX, "a length beyond every limit was believed");
        let Some(body) = tail.get(..length) else { break };
        check_body(decoded.kind, body);
        rest = &tail[length..];
        frames += 1;
    }
    frames > 0
}

fn check_body(kind: Kind, body: &[u8]) {
    match kind {
        Kind::Hello => same_again(kind, body, wire::body::<Hello>(kind, body)),
        Kind::Fork => same_again(kind, body, wire::body::<wire::ForkAsk>(kind, body)),
        Kind::Open | Kind::Vdso | Kind::Lease | Kind::Begin => {
            same_again(kind, body, wire::body::<Access>(kind, body))
        }
        Kind::Pong => same_again(kind, body, wire::body::<Pong>(kind, body)),
        Kind::Error => same_again(kind, body, wire::body::<ReadError>(kind, body)),
        Kind::Learn | Kind::Trail | Kind::WorkingSet | Kind::Gather => {
            same_again(kind, body, wire::body::<Pages>(kind, body))
        }
        Kind::Rdma => same_again(kind, body, wire::body::<wire::RdmaAsk>(kind, body)),
        Kind::RdmaAnswer => same_again(kind, body, wire::body::<wire::RdmaSaid>(kind, body)),
        Kind::DescriptorAt => same_again(kind, body, wire::body::<wire::RdmaPlace>(kind, body)),
        Kind::Descriptor => {
            check_descriptor(body);
        }
        Kind::VdsoImage => check_vdso(body),
        Kind::Refused | Kind::Close | Kind::Read | Kind::Data | Kind::Ping | Kind::Leased => {}
    }
}

/// A parent that has a vdso.
const VDSO_PARENT: &[u8] =
    include_bytes!("../../crates/mitosis-descriptor/tests/golden/cpython.bin");

/// What a node does with a vdso that it believes: it plans with it.
fn check_vdso(image: &[u8]) {
    let Ok(mut d) = decode(VDSO_PARENT, &Limits::default()) else { return };
    let Some(vdso) = d.vmas.iter_mut().find(|vma| vma.backing == Backing::Vdso) else { return };
    vdso.end = vdso.start + image.len() as u64;
    let facts = NodeFacts { vdso_crc: !crc32fast::hash(image), ..node(&d) };
    d.origin.vdso_crc = crc32fast::hash(image);
    let request = mitosis_restore::Request {
        vdso: Some(image.into()),
        ..mitosis_restore::Request::default()
    };
    let _ = mitosis_restore::plan(&d, &facts, &request, &Proven(false));
}

/// A body that decodes encodes to a body that decodes to the same value. (Not to the same bytes:
/// numbers have longer forms that are read, but not written.)
fn same_again<T>(kind: Kind, body: &[u8], decoded: Result<T, wire::WireError>)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq,
{
    let Ok(value) = decoded else { return };
    let frame = wire::control(Header::new(kind), &value);
    let back = frame.map(|frame| wire::body::<T>(kind, &frame[wire::HEADER..]));
    assert!(matches!(back, Ok(Ok(same)) if same == value), "body of {} bytes", body.len());
}

/// Gives `bytes` to the decoders of what daemon and pager say to each other, as the body of one
/// packet. Returns whether they were a message of either.
pub fn pager(bytes: &[u8]) -> bool {
    fn message<T>(bytes: &[u8]) -> Option<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq,
    {
        let (message, []) = postcard::take_from_bytes::<T>(bytes).ok()? else { return None };
        let back = postcard::to_stdvec(&message).map(|again| postcard::from_bytes::<T>(&again));
        assert!(matches!(back, Ok(Ok(same)) if same == message), "a message changed on its way");
        Some(message)
    }
    let request = message::<mitosis_pager::Request>(bytes);
    let reply = message::<mitosis_pager::Reply>(bytes);
    let event = message::<mitosis_pager::Event>(bytes);
    let told = match &request {
        Some(mitosis_pager::Request::AddChild(child)) => Some(&child.index),
        Some(mitosis_pager::Request::AddShape { index, .. }) => Some(index),
        _ => None,
    };
    let taken = match &reply {
        Some(mitosis_pager::Reply::Snapshot(snapshot)) => Some(&snapshot.index),
        _ => None,
    };
    for index in told.into_iter().chain(taken) {
        let sorted = index.runs().is_sorted_by(|a, b| a.end() <= b.start);
        assert!(sorted, "runs of pages out of order were believed");
    }
    request.is_some() || reply.is_some() || event.is_some()
}

/// Gives `bytes` to the decoders of what callers send: control lines and references. Returns
/// whether they were any of these.
pub fn control(bytes: &[u8]) -> bool {
    let request = serde_json::from_slice::<Request>(bytes).ok();
    if let Some(request) = &request {
        let back = serde_json::to_vec(request).map(|line| serde_json::from_slice::<Request>(&line));
        assert!(matches!(back, Ok(Ok(same)) if same == *request), "a request changed");
    }
    let reply = serde_json::from_slice::<Reply>(bytes).is_ok();
    let reference = std::str::from_utf8(bytes).ok().and_then(|t| t.parse::<Reference>().ok());
    if let Some(reference) = &reference {
        let same = reference.reveal().parse().is_ok_and(|again: Reference| again == *reference);
        assert!(same, "a reference changed");
    }
    request.is_some() || reply || reference.is_some()
}

/// Gives `bytes` to the kinds of open files: a sequence of kind, length and body, each under a
/// descriptor of its own, described and planned together. Returns whether all of it could be.
pub fn kinds(bytes: &[u8]) -> bool {
    let place = Place {
        terminal: Some(Terminal { index: 3, foreground: 7 }),
        gifts: vec![Gift { fd: 0, to: 1 }],
        temporary: vec![1],
        ..Place::default()
    };
    // In a process alone, and in one of several.
    plan_kinds(bytes, None) | plan_kinds(bytes, Some(&place))
}

fn plan_kinds(bytes: &[u8], place: Option<&Place>) -> bool {
    let files = open_files(bytes);
    let described = files.iter().all(|file| mitosis_state::describe(file).is_ok());
    let mut program =
        Program::new(Region { base: 0x1000_0000, code_len: code_len(), frames_len: 4096 });
    let mut context = Files {
        program: &mut program,
        provided: &mut Vec::new(),
        provided_base: 1000,
        high: 2000,
        own_net: bytes.len() % 2 == 1,
        clocks: Some(mitosis_descriptor::Clocks::default()),
        place,
        spare_pid: 32_000,
        new_pid: false,
        own_users: place.is_none(),
        late: Default::default(),
        used: Default::default(),
        objects_of: Default::default(),
        objects: Default::default(),
        all: Vec::new(),
        generic: &[],
        done: Default::default(),
    };
    let planned = mitosis_state::plan(&files, &mut context).is_ok();
    assert!(described || !planned, "a file that cannot be described was planned");
    !files.is_empty() && planned
}

/// The files that `bytes` tell of: kind, flags, length, body, and again.
fn open_files(mut bytes: &[u8]) -> Vec<OpenFile> {
    let mut files = Vec::new();
    while let [kind, flags, length, rest @ ..] = bytes {
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let fds = vec![(files.len() as u32, flags & 1 == 1)];
        let (kind, flags) = (u16::from(*kind), u32::from(*flags));
        files.push(OpenFile { kind, flags, fds, body: body.to_vec(), signals: None });
        bytes = rest;
    }
    files
}
