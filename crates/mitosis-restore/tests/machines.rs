//! What does not fit between two machines is refused with a word that says what differs.

#![allow(clippy::expect_used)]

use mitosis_capture::{NoInheritance, Options, Seeded, prepare};
use mitosis_descriptor::{Descriptor, MappedFile};
use mitosis_restore::{NodeFacts, ProvenFiles, Request, plan};
use std::process::{Child, Command, Stdio};
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

    let other_vdso = NodeFacts { vdso_crc: !node.vdso_crc, ..node.clone() };
    let said = refusal(descriptor, &other_vdso);
    assert!(said.contains("vdso") && said.contains(&descriptor.origin.kernel), "{said}");

    let no_avx = NodeFacts { xcr0: node.xcr0 & !(1 << 2), ..node.clone() };
    let said = refusal(descriptor, &no_avx);
    assert!(said.contains("XCR0 bits 0x4"), "{said}");

    let mut parts = node.vdso_parts.clone();
    parts.iter_mut().for_each(|part| part.2 += 4096);
    let said = refusal(descriptor, &NodeFacts { vdso_parts: parts, ..node });
    assert!(said.contains("another size"), "{said}");
}
