//! A child that was made independent needs nobody.

use crate::support::*;

#[test]
fn an_independent_child_outlives_its_parents_node() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[&format!("map={FILES}/mapped")]);
    let hash = parent.ask("hash");
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &["--independent"]);
    until("the child is independent", SOON, || {
        (row(&b, child.pid)["independent"] == true).then_some(())
    });
    a.node().cut_link().unwrap();
    a.node().power_off().unwrap();
    assert_eq!(ask(b.node(), "hash"), hash);
    assert!(ask(b.node(), "fork 3").starts_with("right"));
    assert!(ask(b.node(), "rearrange").starts_with("right"));
    assert_eq!(row(&b, child.pid)["state"], "running");
}

#[test]
fn at_the_ttl_children_become_independent_and_the_seed_goes() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let hash = parent.ask("hash");
    let before = settled_pids(a.node());
    let seed = prepare(&a, parent.pid(), &["--ttl", "3s"]);
    let child = fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "count"), "1");
    until("the child is independent", SOON, || {
        (row(&b, child.pid)["independent"] == true).then_some(())
    });
    until("the seed is gone", SOON, || seed_row(&a, &seed.id).is_none().then_some(()));
    same_pids(a.node(), &before);
    let refused = b.mitosis(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(ask(b.node(), "hash"), hash);
}

#[test]
fn removing_the_seed_does_not_touch_an_independent_child() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &["--independent"]);
    until("the child is independent", SOON, || {
        (row(&b, child.pid)["independent"] == true).then_some(())
    });
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
    assert_eq!(row(&b, child.pid)["state"], "running");
}
