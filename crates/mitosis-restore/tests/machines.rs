//! What does not fit between two machines is refused with a word that says what differs.

#![allow(clippy::expect_used)]

use mitosis_capture::{NoInheritance, Options, Seeded, prepare};
use mitosis_descriptor::{Backing, Descriptor, MappedFile, PosixTimer, vma_flags};
use mitosis_restore::{NodeFacts, ProvenFiles, Request, plan};
use mitosis_sys::kernel::Kernel;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

struct Unproven;

impl ProvenFiles for Unproven {
    fn proven(&self, _: &MappedFile) -> bool {
        false
    }
}

/// Ended and reaped, whatever happens.
struct Parent(Child);

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Seed(Seeded);

impl Drop for Seed {
    fn drop(&mut self) {
        self.0.shadow.end();
    }
}

fn seed() -> (Parent, Seed) {
    let mut command = Command::new("/bin/sleep");
    command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let parent = Parent(command.spawn().expect("sleep"));
    std::thread::sleep(Duration::from_millis(100)); // It is to be in its program already.
    let options = Options {
        node: "a".into(),
        stop_timeout: Duration::from_secs(2),
        resident: None,
        functions: Vec::new(),
        privileged: false,
        content_max: 16 << 20,
    };
    let seeded = prepare(parent.0.id() as i32, &options, &mut NoInheritance).expect("prepare");
    (parent, Seed(seeded))
}

fn refusal(descriptor: &Descriptor, node: &NodeFacts) -> String {
    let planned = plan(descriptor, node, &Request::default(), &Unproven);
    planned.map(|_| "it was planned".to_owned()).unwrap_or_else(|e| e.to_string())
}

#[test]
fn what_differs_between_machines_is_named() {
    let (_parent, seed) = seed();
    let descriptor = &seed.0.descriptor;
    let node = NodeFacts::read().expect("facts");
    assert_eq!(refusal(descriptor, &node), "it was planned");

    let no_avx = NodeFacts { xcr0: node.xcr0 & !(1 << 2), ..node.clone() };
    let said = refusal(descriptor, &no_avx);
    assert!(said.ends_with("CPU has what this node's lacks: AVX"), "{said}");
    let mut more = descriptor.clone();
    more.origin.xcr0 |= 7 << 5 | 1 << 19 | 1 << 40;
    let plain = NodeFacts { xcr0: node.xcr0 & !(7 << 5 | 1 << 19 | 1 << 40), ..node.clone() };
    let said = refusal(&more, &plain);
    assert!(said.ends_with("lacks: AVX-512, APX, XCR0 bits 0x10000000000"), "{said}");

    let mut older = node.clone();
    older.cpuid[1] &= !(1 << 5 | 1 << 8);
    let said = refusal(descriptor, &older);
    assert!(said.ends_with("CPU has what this node's lacks: AVX2, BMI2"), "{said}");

    let mut few = node.clone();
    few.hard_limits[7] = 1000;
    assert_eq!(refusal(descriptor, &few), "it was planned");
    let mut many = descriptor.clone();
    many.open_files[0].fds.push((999, false));
    assert_eq!(refusal(&many, &node), "it was planned");
    let said = refusal(&many, &few);
    assert!(said.contains("descriptor 999") && said.contains("below 1000 only"), "{said}");

    let mut parts = node.vdso_parts.clone();
    parts.iter_mut().for_each(|part| part.2 += 4096);
    let said = refusal(descriptor, &NodeFacts { vdso_parts: parts, ..node });
    assert!(said.contains("another size"), "{said}");
}

/// The name of something, a change of a kernel that lacks it, one of a parent that has it.
type Lack = (&'static str, fn(&mut Kernel), fn(&mut Descriptor));

#[test]
fn what_a_kernel_lacks_is_named() {
    let (_parent, seed) = seed();
    let node = NodeFacts { kernel: Kernel::FULL, ..NodeFacts::read().expect("facts") };
    let lacks: [Lack; 6] = [
        ("mseal", |k| k.seals = false, |d| d.vmas[0].flags |= vma_flags::SEALED),
        ("guard regions", |k| k.guards = false, |d| d.rare.guards = vec![(0x1000, 0x2000)]),
        ("PR_SET_MDWE", |k| k.mdwe = false, |d| d.rare.values.mdwe = 1),
        ("PR_SET_MEMORY_MERGE", |k| k.merge = false, |d| d.rare.values.merge = true),
        ("rseq area of 64 bytes", |k| k.rseq_bytes = 32, |d| d.threads[0].rseq.1 = 64),
        ("id above 4095", |k| k.timer_ids = false, |d| d.process.timers = vec![timer(4096)]),
    ];
    for (word, lack, have) in lacks {
        let (mut older, mut descriptor) = (node.clone(), seed.0.descriptor.clone());
        lack(&mut older.kernel);
        assert_eq!(refusal(&descriptor, &older), "it was planned", "{word}");
        have(&mut descriptor);
        assert_eq!(refusal(&descriptor, &node), "it was planned", "{word}");
        let said = refusal(&descriptor, &older);
        assert!(said.contains(word), "{word}: {said}");
    }
}

fn timer(id: u32) -> PosixTimer {
    PosixTimer { id, clock: 1, notify: 1, signal: 0, value: 0, tid: 0, interval_ns: 0, value_ns: 0 }
}

#[test]
fn memory_that_may_be_dropped_is_kept_where_the_kernel_drops_none() {
    const MAP_DROPPABLE: u64 = 8;
    let (_parent, seed) = seed();
    let node = NodeFacts::read().expect("facts");
    let mut descriptor = seed.0.descriptor.clone();
    let heap = descriptor.vmas.iter_mut().find(|vma| vma.backing == Backing::Anonymous);
    let heap = heap.expect("memory");
    heap.flags |= vma_flags::DROPPABLE;
    let start = heap.start;
    for droppable in [true, false] {
        let mut node = node.clone();
        node.kernel.droppable = droppable;
        let planned = plan(&descriptor, &node, &Request::default(), &Unproven).expect("plan");
        let mut labels = planned.program.labels();
        let mapped = labels.find(|(_, op, _)| op.nr == 9 && op.args[0] == start);
        let flags = mapped.expect("its mmap").1.args[3];
        assert_eq!(flags & 0xf == MAP_DROPPABLE, droppable, "{flags:#x}");
    }
}

/// A node whose kernel has another vdso, which it has as `mitosis_restore` needs it.
fn other_kernel(node: &NodeFacts) -> NodeFacts {
    NodeFacts { vdso_crc: !node.vdso_crc, ..node.clone() }
}

#[test]
fn the_parents_vdso_is_kept_where_the_kernels_differ() {
    let (_parent, seed) = seed();
    let descriptor = &seed.0.descriptor;
    let node = other_kernel(&NodeFacts::read().expect("facts"));
    let image = mitosis_sys::procfs::vdso(std::process::id() as i32).expect("vdso");
    let with = |image: Option<&[u8]>, descriptor: &Descriptor| {
        let request = Request { vdso: image.map(Arc::from), ..Request::default() };
        plan(descriptor, &node, &request, &Unproven).map_err(|e| e.to_string())
    };

    let planned = with(Some(&image), descriptor).expect("plan").to_string();
    assert!(planned.contains("map-vmas: read the parent's vdso"), "{planned}");
    assert!(!planned.contains("place the vdso"), "{planned}");

    let unknown = with(None, descriptor).expect_err("no image");
    assert!(unknown.contains("another vdso than this node's"), "{unknown}");
    assert!(unknown.contains(&descriptor.origin.kernel), "{unknown}");
    let wrong = with(Some(&image[..4096]), descriptor).expect_err("half an image");
    assert!(wrong.contains("is not the parent's"), "{wrong}");

    let vdso = descriptor.vmas.iter().find(|vma| vma.backing == Backing::Vdso).expect("vdso");
    let mut inside = descriptor.clone();
    inside.threads[0].regs.rip = vdso.start + 0x800;
    let said = with(Some(&image), &inside).expect_err("a thread inside");
    assert!(said.contains("is inside of it: prepare it again"), "{said}");
}

/// A filter with the action `what` for one system call, and 0 (it passes) for all others.
fn filter(call: u64, what: u64) -> Vec<u64> {
    // Load the number; if it is the call, return one, else the other (linux/bpf_common.h).
    vec![0x20, 0x15 | 1 << 24 | call << 32, 0x06 | what << 32, 0x06 | 0x7fff_0000 << 32]
}

#[test]
fn a_call_that_filters_do_not_let_through_is_named() {
    const EPERM: u64 = 0x0005_0001;
    let (_parent, seed) = seed();
    let node = NodeFacts::read().expect("facts");
    let (capset, seccomp, sigreturn, futex) = (126, 317, 15, 202);
    let with = |filters: &[u64], caps: u64, no_new_privs: bool| {
        let mut descriptor = seed.0.descriptor.clone();
        descriptor.process.creds.caps = [0, caps, caps, caps, 0];
        descriptor.process.creds.no_new_privs = no_new_privs;
        descriptor.process.seccomp = filters.iter().map(|call| filter(*call, EPERM)).collect();
        refusal(&descriptor, &node)
    };
    let admin = 1 << 21;
    // A container's, which does not forbid what gives capabilities away; what comes last forbids anything.
    for (filters, caps, no_new_privs) in [
        (&[futex][..], 0, false),
        (&[futex, seccomp], 0, false),
        (&[capset], admin, false),
        (&[capset], 0, true),
    ] {
        assert_eq!(with(filters, caps, no_new_privs), "it was planned", "{filters:?}");
    }
    let named = [("capset", capset), ("seccomp", seccomp), ("rt_sigreturn", sigreturn)];
    for (name, call) in named {
        let said = with(&[call, futex], 0, false);
        assert!(said.contains(&format!("do not let {name}(2) through")), "{said}");
    }
    let nobody = NodeFacts { cap_bounding: 0, ..node.clone() };
    let mut descriptor = seed.0.descriptor.clone();
    descriptor.process.creds.caps = [0; 5];
    descriptor.process.seccomp = vec![filter(futex, EPERM)];
    let said = refusal(&descriptor, &nobody);
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
}
