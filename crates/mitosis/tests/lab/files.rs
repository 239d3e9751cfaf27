//! A file of a node stands in for the owner's only if its bytes are the same.

use crate::support::*;

#[test]
fn another_libc_at_the_same_path_is_not_used() {
    let lab = lab(2);
    let libc = lab.node(1).sh("ldd /bin/true | awk '/libc.so.6/ { print $3 }'").unwrap().stdout;
    let libc = libc.trim();
    // Another build of it as far as any byte can tell: its code is moved by what is in front of
    // its notes, here one changed byte of a message and a longer file.
    let script = format!(
        "cp --preserve=all -L {libc} /tmp/libc && \
         at=$(grep -abo 'Invalid argument' /tmp/libc | head -1 | cut -d: -f1) && \
         printf X | dd of=/tmp/libc bs=1 seek=$at conv=notrunc status=none && \
         head -c 8192 /dev/urandom >>/tmp/libc"
    );
    lab.node(1).sh(&script).unwrap();
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let target = lab.node(1).sh(&format!("readlink -f {libc}")).unwrap().stdout;
    lab.node(1).overlay(target.trim(), "/tmp/libc").unwrap();
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    assert!(ask(b.node(), "alloc").starts_with("right"));
    assert!(ask(b.node(), "fork 3").starts_with("right"));
    assert_eq!(ask(b.node(), "count"), "1");
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
