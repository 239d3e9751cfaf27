//! What does not fit between two machines is refused with a word that says what differs.

#![allow(clippy::expect_used)]

use mitosis_capture::{NoInheritance, Options, Seeded, prepare};
use mitosis_descriptor::{Backing, Descriptor, MappedFile};
use mitosis_restore::{NodeFacts, ProvenFiles, Request, plan};
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
    assert!(said.ends_with("register state that this node's lacks: AVX"), "{said}");
    let mut more = descriptor.clone();
    more.origin.xcr0 |= 7 << 5 | 1 << 19 | 1 << 40;
    let said = refusal(&more, &node);
    assert!(said.ends_with("lacks: AVX-512, APX, XCR0 bits 0x10000000000"), "{said}");

    let mut parts = node.vdso_parts.clone();
    parts.iter_mut().for_each(|part| part.2 += 4096);
    let said = refusal(descriptor, &NodeFacts { vdso_parts: parts, ..node });
    assert!(said.contains("another size"), "{said}");
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
