//! Forks of forks: every page comes from whoever owns it.

use crate::support::*;

#[test]
fn a_grandchild_of_a_partly_fetched_child_is_right() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &[&format!("map={FILES}/mapped")]);
    let hash = parent.ask("hash");
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "touch seq 20"), "right=3276 wrong=0 zero=0");
    assert_eq!(ask(b.node(), "count"), "1");
    for page in [3, 7000, 16000] {
        assert_eq!(ask(b.node(), &format!("poke {page}")), "poked");
    }
    assert!(ask(b.node(), "rearrange").starts_with("right"));
    let second = prepare(&b, child.pid, &[]);
    let (from_a, from_b) = (a.node().link_bytes().unwrap(), b.node().link_bytes().unwrap());
    fork_one(&c, &second.reference, &[]);
    assert_eq!(ask(c.node(), "count"), "2");
    let third = ask(c.node(), "hash");
    let sent_by_a = a.node().link_bytes().unwrap().tx - from_a.tx;
    let sent_by_b = b.node().link_bytes().unwrap().tx - from_b.tx;
    println!("the grandchild drew {sent_by_a} bytes from A and {sent_by_b} from B");
    assert!(sent_by_a > 40 << 20, "A owns what B never fetched");
    assert!(sent_by_b > 12 << 20, "B owns what it had fetched");
    assert_eq!(third, ask(b.node(), "hash"), "the child agrees, having fetched the rest itself");
    assert_ne!(third, hash, "and both differ from the parent by what the child wrote");
    assert_eq!(parent.ask("hash"), hash);
    let status = ask(c.node(), "status");
    assert_eq!((field(&status, "registers"), field(&status, "stack")), (0, 320), "{status}");
}

#[test]
fn a_python_process_goes_three_hops() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let script = fixture("state.py").display().to_string();
    let python = std::path::Path::new("/usr/bin/python3");
    let parent = Parent::start(a.node(), python, &[&script, &PORT.to_string(), FILES]);
    let first = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &first.reference, &[]);
    assert_eq!(ask(b.node(), "count"), "1");
    assert!(ask(b.node(), "touch 10").ends_with("wrong=0"));
    let second = prepare(&b, child.pid, &[]);
    fork_one(&c, &second.reference, &[]);
    assert_eq!(ask(c.node(), "count"), "2");
    assert_eq!(ask(c.node(), "hash"), parent.ask("hash"));
    assert_eq!(ask(c.node(), "deep"), "right");
}
