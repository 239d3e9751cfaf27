//! The floors do what they say; their times are nobody's promise.

use mitosis_sys::floors::{
    Backing, DropOutcome, Pages, ReadVia, bulk_place, dropped_page, fault_latency, fork_cost,
    plain_fault_latency, read_shadow, remote_fault_latency,
};

#[test]
fn every_mechanism_fills_pages() {
    for backing in [Backing::Anonymous, Backing::FreshMemfd, Backing::CachedMemfd] {
        for window in [1, 16] {
            assert_eq!(fault_latency(backing, 8, window, None).expect("faults").len(), 8);
            assert!(bulk_place(backing, 64, window).expect("bulk").place_ns > 0.0);
        }
    }
    assert_eq!(plain_fault_latency(8).expect("faults").len(), 8);
}

#[test]
fn a_fault_can_wait_for_a_round_trip() {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    let owner = std::thread::spawn(move || {
        let mut request = [0_u8; 8];
        while far.read_exact(&mut request).is_ok() {
            assert_eq!(u64::from_le_bytes(request), 4096);
            far.write_all(&[9; 4096]).expect("answer");
        }
    });
    assert_eq!(remote_fault_latency(near.as_fd(), 8).expect("faults").len(), 8);
    drop(near);
    owner.join().expect("the owner's thread");
}

#[test]
fn a_dropped_page_of_a_memfd_comes_back_silently_without_minor() {
    let outcome = |backing, minor| dropped_page(backing, minor).expect("dropped page").0;
    assert_eq!(outcome(Backing::Anonymous, false), DropOutcome::Missing);
    assert_eq!(outcome(Backing::CachedMemfd, true), DropOutcome::Minor);
    assert!(matches!(outcome(Backing::CachedMemfd, false), DropOutcome::Silent(1..)));
}

#[test]
fn reading_through_proc_mem_keeps_pages_shared() {
    let mut pages = Pages::anonymous(1024).expect("mmap");
    pages.populate();
    let mem = read_shadow(&pages, ReadVia::ProcMem, 64).expect("pread");
    assert!(mem.pss_after_kib < mem.pss_before_kib + 1024);
    let vm = read_shadow(&pages, ReadVia::VmReadv, 64).expect("process_vm_readv");
    assert!(vm.ns_per_page > 0.0);
    assert_eq!(fork_cost(&pages, 3, true).expect("fork").len(), 3);
}
