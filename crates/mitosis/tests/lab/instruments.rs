//! The instruments themselves, without the product: what a fixture says when nobody forked it.

use crate::support::*;

#[test]
fn the_c_parent_finds_itself_right() {
    let lab = lab(1);
    let node = lab.node(0);
    let parent = Parent::c(node, &["mb=8", "mode=watch", &format!("map={FILES}/mapped")]);
    let hash = parent.ask("hash");
    assert_eq!(parent.ask("pid"), parent.pid().to_string());
    for right in ["fds", "fds", "alloc", "rearrange", "fork 2"] {
        assert!(parent.ask(right).starts_with("right"), "{right}");
    }
    assert_eq!(parent.ask("touch scatter 5"), "right=102 wrong=0 zero=0");
    assert_eq!(parent.ask("hash"), hash);
    assert_eq!(parent.ask("files").split(' ').count(), 3);
    let status = parent.ask("status");
    assert_eq!((field(&status, "registers"), field(&status, "stack")), (0, 320), "{status}");
    assert_eq!(field(&status, "waits_bad"), 0, "{status}");
    assert_eq!(parent.ask("poke 3"), "poked");
    assert_ne!(parent.ask("hash"), hash);
    assert_eq!(parent.ask("touch seq 100"), "right=2047 wrong=1 zero=0");
    let mut peer = Peer::to(node, PORT);
    peer.tell("loop 0");
    let wrong = std::iter::from_fn(|| peer.line()).find(|line| line != ".");
    assert_eq!(wrong.as_deref(), Some("WRONG page=3 kind=1"));
}

#[test]
fn a_filter_that_kills_does_kill() {
    let lab = lab(1);
    let mut parent = Parent::c(lab.node(0), &["mb=1", "mode=seccomp"]);
    assert_eq!(parent.ask("count"), "1");
    let mut peer = Peer::to(lab.node(0), PORT);
    peer.tell("fds");
    assert_eq!(peer.line(), None);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(parent.process.wait(SOON).unwrap().signal(), Some(31));
}
