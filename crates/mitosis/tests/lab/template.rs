//! Children that are copies of a template.

use crate::support::*;

/// A child that says it was made from a template.
fn by_template(daemon: &mitosis_lab::Daemon<'_>, seed: &Seed) -> Child {
    let child = fork_one(daemon, &seed.reference, &["--via", "template"]);
    assert_eq!(row(daemon, child.pid)["via"], "template");
    child
}

#[test]
fn copies_of_a_template_are_the_parent_and_not_one_another() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    for _ in 0..3 {
        by_template(&b, &seed);
        assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
        end_children(&b);
    }
}
