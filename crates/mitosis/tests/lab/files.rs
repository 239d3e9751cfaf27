//! A file of a node stands in for the owner's only if its bytes are the same.

use crate::support::*;

/// Gives a node another build of libc as far as any byte can tell: one changed byte of a message and a
/// longer file.
fn other_libc(node: &mitosis_lab::Node) {
    let libc = node.sh("ldd /bin/true | awk '/libc.so.6/ { print $3 }'").unwrap().stdout;
    let libc = libc.trim();
    let script = format!(
        "cp --preserve=all -L {libc} /tmp/libc && \
         at=$(grep -abo 'Invalid argument' /tmp/libc | head -1 | cut -d: -f1) && \
         printf X | dd of=/tmp/libc bs=1 seek=$at conv=notrunc status=none && \
         head -c 8192 /dev/urandom >>/tmp/libc"
    );
    node.sh(&script).unwrap();
    let target = node.sh(&format!("readlink -f {libc}")).unwrap().stdout;
    node.overlay(target.trim(), "/tmp/libc").unwrap();
}

#[test]
fn another_libc_at_the_same_path_is_not_used() {
    let lab = lab(2);
    other_libc(lab.node(1));
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    assert!(ask(b.node(), "alloc").starts_with("right"));
    assert!(ask(b.node(), "fork 3").starts_with("right"));
    assert_eq!(ask(b.node(), "count"), "1");
}

#[test]
fn pages_of_a_file_that_a_node_has_not_are_learned() {
    let lab = lab(3);
    other_libc(lab.node(1));
    other_libc(lab.node(2));
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &["mb=1"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let faults = |daemon: &mitosis_lab::Daemon<'_>| {
        let child = fork_one(daemon, &seed.reference, &["--via", "direct"]);
        assert!(ask(daemon.node(), "alloc").starts_with("right"));
        let row = row(daemon, child.pid);
        // What it forks faults for itself.
        assert!(ask(daemon.node(), "fork 3").starts_with("right"));
        ["faults", "pages_fetched"].map(|figure| row[figure].as_u64().unwrap())
    };
    let [alone, touched] = faults(&b);
    // It tells when it has come to rest; no more comes then.
    let mut before = 0;
    until("what it touched is told", SOON, || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = seed_row(&a, &seed.id)?["working_set"].as_u64()?;
        (now > 0 && std::mem::replace(&mut before, now) == now).then_some(())
    });
    // Nothing that the first child touched and had not is left out, pages of libc included.
    assert!(
        before >= touched,
        "{touched} pages were fetched because they were touched, {before} learned"
    );
    let [told, _] = faults(&c);
    println!("{alone} faults, and {told} once it was told");
    // Pages of libc come ahead now. A child that is faster than its trail still touches some before.
    assert!(told * 3 <= alone * 2, "{alone} faults of the first child, {told} of the next");
    assert_eq!(ask(c.node(), "hash"), parent.ask("hash"));
}

#[test]
fn one_different_byte_behind_the_same_name_size_and_time_is_noticed() {
    let lab = lab(3);
    // Node 1 has the other byte; node 2 has the very bytes, and fetches fewer.
    let script = format!(
        "printf X | dd of={FILES}/mapped bs=1 seek=50000 conv=notrunc status=none && \
         touch -d 2020-01-01 {FILES}/mapped && stat -c '%s %Y' {FILES}/mapped"
    );
    let altered = lab.node(1).sh(&script).unwrap().stdout;
    let original = lab.node(0).sh(&format!("stat -c '%s %Y' {FILES}/mapped")).unwrap().stdout;
    assert_eq!(altered, original);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &["mb=1", &format!("map={FILES}/mapped")]);
    let seed = prepare(&a, parent.pid(), &[]);
    let hash = parent.ask("hash");
    for daemon in [&b, &c] {
        fork_one(daemon, &seed.reference, &[]);
        assert_eq!(ask(daemon.node(), "hash"), hash);
    }
    let there = lab.node(1).sh(&format!("sha256sum <{FILES}/mapped")).unwrap().stdout;
    let here = lab.node(0).sh(&format!("sha256sum <{FILES}/mapped")).unwrap().stdout;
    assert_ne!(there, here, "the node's own file was left as it is");
}

#[test]
fn a_file_that_is_not_there_at_all_is_fetched() {
    let lab = lab(2);
    lab.node(1).sh(&format!("rm {FILES}/mapped")).unwrap();
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=1", &format!("map={FILES}/mapped")]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}
