//! The codec keeps its promises: what goes in comes out, small, and always in the same bytes.

mod common;

use common::*;
use mitosis_descriptor::*;
use proptest::prelude::*;

fn round_trip(d: &Descriptor) -> Vec<u8> {
    let bytes = encode(d).expect("encodes");
    let back = decode(&bytes, &Limits::default()).expect("decodes");
    assert_eq!(*d, back);
    bytes
}

#[test]
fn samples_survive_the_round_trip() {
    for d in [minimal(), cpython(2696), three_hops()] {
        round_trip(&d);
    }
}

#[test]
fn cpython_fits_24_kib_even_with_a_dense_amx_image() {
    let bytes = round_trip(&cpython(11_008));
    assert!(bytes.len() <= 24 << 10, "{} bytes", bytes.len());
}

/// The worst runs there can be: far apart, long, of ever another owner, and moved.
#[test]
fn a_further_run_costs_16_bytes_at_most() {
    let mut d = minimal();
    d.owners = (0..200).map(|n| owner(n as u8)).collect();
    d.vmas = vec![vma(0, USER_PAGES, ANON)];
    let runs = |n: u64| {
        (0..n).map(|i| {
            let moved = if i % 2 == 0 { 0x7_0000_0000 - i } else { 0 };
            run(0x1000 + i * 0x400_0000, 0x3ff_0000, (i * 131 % 200) as u16, moved)
        })
    };
    let size = |d: &mut Descriptor, n: u64| {
        d.pages = PageIndex::from_sorted(runs(n)).expect("ascending");
        round_trip(d).len()
    };
    let few = size(&mut d, 200);
    let many = size(&mut d, 504);
    assert!(many - few <= 304 * 16, "{} bytes for 304 runs", many - few);
}

/// Ordinary runs: same owner, never moved.
#[test]
fn an_ordinary_run_costs_4_bytes_at_most() {
    let mut d = minimal();
    d.vmas = vec![vma(0x10_0000, 1 << 20, ANON)];
    let runs = (0..1000).map(|i| run(0x100 + i * 900, 100, 0, 0x100 + i * 900));
    d.pages = PageIndex::from_sorted(runs).expect("ascending");
    let with = round_trip(&d).len();
    d.pages = PageIndex::default();
    let without = round_trip(&d).len();
    assert!(with - without <= 4002, "{} bytes for 1000 runs", with - without);
}

const USER_PAGES: u64 = 1 << 35;

/// Bytes that were written once are read for ever: a change of the format must change
/// [`VERSION`] too. `MITOSIS_GOLDEN=write cargo test -p mitosis-descriptor` rewrites the files.
#[test]
fn golden_files_are_read_and_written_as_ever() {
    let samples = [
        ("minimal", minimal()),
        ("cpython", cpython(2696)),
        ("three-hops", three_hops()),
        ("family", family()),
    ];
    for (name, d) in samples {
        let path = format!("{}/tests/golden/{name}.bin", env!("CARGO_MANIFEST_DIR"));
        let bytes = encode(&d).expect("encodes");
        if std::env::var_os("MITOSIS_GOLDEN").is_some_and(|v| v == "write") {
            std::fs::write(&path, &bytes).expect("golden file is writable");
        }
        let golden = std::fs::read(&path).expect("golden file exists");
        assert!(bytes == golden, "{name}: encodes to other bytes than {path}");
        assert_eq!(decode(&golden, &Limits::default()).as_ref(), Ok(&d), "{name}");
    }
}

fn image() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0usize..40, prop::collection::vec(any::<u8>(), 0..40));
    prop::collection::vec(piece, 0..12).prop_map(|pieces| {
        pieces
            .into_iter()
            .flat_map(|(zeros, bytes)| std::iter::repeat_n(0, zeros).chain(bytes))
            .collect()
    })
}

/// Gap, length, owner, and how far it was moved.
fn run_steps() -> impl Strategy<Value = Vec<(u32, u32, u16, Option<u32>)>> {
    let step = (0u32..1 << 20, 1u32..1 << 16, 0u16..5, prop::option::of(0u32..1 << 30));
    prop::collection::vec(step, 0..60)
}

fn index_of(steps: &[(u32, u32, u16, Option<u32>)]) -> PageIndex {
    let mut at = 0x10u64;
    let mut runs = Vec::new();
    for &(gap, count, owner, moved) in steps {
        at += u64::from(gap);
        let source = moved.map_or(at, u64::from);
        runs.push(run(at, count, owner, source));
        at += u64::from(count);
    }
    PageIndex::from_sorted(runs).expect("ascending")
}

/// Gap, pages, protection, flags, and the file with a page in it.
type VmaStep = (u32, u32, u8, u16, Option<(u32, u32)>);

fn vma_steps() -> impl Strategy<Value = Vec<VmaStep>> {
    let file = prop::option::of((0u32..3, 0u32..1 << 20));
    let step = (0u32..1 << 16, 1u32..1 << 16, 0u8..8, any::<u16>(), file);
    prop::collection::vec(step, 1..60)
}

fn vmas_of(steps: &[VmaStep]) -> Vec<Vma> {
    let mut at = 0u64;
    let mut vmas = Vec::new();
    for &(gap, pages, prot, flags, file) in steps {
        at += u64::from(gap) * PAGE_SIZE;
        let backing = file.map_or(ANON, |(file, page)| Backing::File {
            file,
            offset: u64::from(page) * PAGE_SIZE,
        });
        vmas.push(Vma { prot, flags, ..vma(at, pages.into(), backing) });
        at += u64::from(pages) * PAGE_SIZE;
    }
    vmas
}

proptest! {
    #[test]
    fn any_runs_survive(steps in run_steps()) {
        let mut d = minimal();
        d.owners = (0..5).map(owner).collect();
        d.vmas = vec![vma(0, USER_PAGES, ANON)];
        d.pages = index_of(&steps);
        round_trip(&d);
    }

    #[test]
    fn any_vmas_survive(steps in vma_steps()) {
        let mut d = minimal();
        d.files = cpython(0).files;
        d.vmas = vmas_of(&steps);
        d.pages = PageIndex::default();
        round_trip(&d);
    }

    #[test]
    fn any_xsave_images_survive(images in prop::collection::vec(image(), 1..5)) {
        let mut d = minimal();
        d.threads = images.into_iter().zip(42..).map(|(x, tid)| thread(tid, x)).collect();
        round_trip(&d);
    }
}
