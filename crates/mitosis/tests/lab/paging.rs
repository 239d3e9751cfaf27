//! Only what is touched is fetched, and what a process does to its own memory stays right.

use crate::support::*;

/// Bytes that came in over the link while a child was made and touched `percent` of its pages.
fn moved_by(how: &str) -> u64 {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let before = b.node().link_bytes().unwrap();
    fork_one(&b, &seed.reference, &[]);
    let looked = ask(b.node(), &format!("touch {how} 5"));
    assert_eq!(looked, format!("right={} wrong=0 zero=0", DATA_PAGES * 5 / 100));
    let moved = b.node().link_bytes().unwrap().rx - before.rx;
    println!("5 % touched {how}: {moved} bytes moved, {:.1} %", moved as f64 / 671_088.64);
    moved
}

#[test]
fn scattered_touches_of_5_percent_move_at_most_15_percent() {
    let moved = moved_by("scatter");
    assert!(moved <= (64 << 20) * 15 / 100, "{moved} bytes");
}

#[test]
fn a_run_of_5_percent_moves_at_most_7_percent() {
    let moved = moved_by("seq");
    assert!(moved <= (64 << 20) * 7 / 100, "{moved} bytes");
}

#[test]
fn dropped_moved_and_unmapped_memory_reads_right() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    for (child_first, command) in [(true, "rearrange"), (true, "alloc")] {
        assert!(child_first);
        let said = ask(b.node(), command);
        assert!(said.starts_with("right"), "{command}: {said}");
    }
    let all = ask(b.node(), "touch seq 100");
    assert_eq!(all, format!("right={DATA_PAGES} wrong=0 zero=0"));
}

#[test]
fn children_of_a_child_page_in_and_leave_no_descriptor() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let descriptors = parent.ask("exec 1");
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    let pager = pager(&b);
    let faultfds = || {
        let fds = std::fs::read_dir(b.node().proc_dir(pager).join("fd")).unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("userfaultfd")).count()
    };
    // It comes from the child itself, which may run before the pager has looked.
    let before = until("the pager holds the child's userfaultfd", SOON, || match faultfds() {
        0 => None,
        some => Some(some),
    });
    assert_eq!(ask(b.node(), "fork 10"), "right forks=10");
    assert_eq!(ask(b.node(), "exec 10"), descriptors, "no descriptor of ours leaks into a program");
    until("the pager has let go of ended processes", SOON, || (faultfds() == before).then_some(()));
    assert_eq!(ask(b.node(), "touch scatter 10"), "right=1638 wrong=0 zero=0");
}

#[test]
fn serving_everything_does_not_unshare_the_shadow() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let shadow = seed_row(&a, &seed.id).unwrap()["shadow_pid"].as_u64().unwrap();
    let shadow = u32::try_from(shadow).unwrap();
    let before = a.node().memory(shadow).unwrap();
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    let after = a.node().memory(shadow).unwrap();
    println!("shadow before {before:?}, after {after:?}");
    assert!(after.pss <= before.pss + (256 << 10), "{before:?} -> {after:?}");
    assert!(before.rss >= 64 << 20 && before.pss < 40 << 20, "shared with the parent: {before:?}");
}
