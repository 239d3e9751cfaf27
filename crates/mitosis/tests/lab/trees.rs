//! Process trees: what `prepare --tree` takes, and what it refuses by name.

use std::process::Command;

use crate::support::*;

#[test]
fn a_tree_of_one_process_is_a_seed_like_any_other() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &["--tree"]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

#[test]
fn a_shell_wrapper_is_refused_by_name_and_runs_on() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let mut wrapper = Command::new("sh");
    let line = format!("{} {PORT} dir={FILES} mb=8; true", c_parent().display());
    wrapper.args(["-c", &line]);
    let wrapper = Parent::spawn(a.node(), wrapper);
    let pid = wrapper.pid();
    let children = || {
        let path = a.node().proc_dir(pid).join(format!("task/{pid}/children"));
        std::fs::read_to_string(path).unwrap()
    };
    let before = children();
    let refused = a.mitosis(&["prepare", &pid.to_string(), "--tree"]).unwrap();
    assert_eq!((refused.code(), refused.stdout.as_str()), (1, ""), "{refused:?}");
    let why = format!("process {pid} has the child {}", before.trim());
    assert!(refused.stderr.contains(&why), "{refused:?}");
    assert!(refused.stderr.contains("not available yet"), "{refused:?}");
    assert_eq!(children(), before, "nothing of ours is left");
    assert_eq!(wrapper.ask("count"), "1");
    // Its child alone is a tree of one process.
    prepare(&a, before.trim().parse().unwrap(), &["--tree"]);
    assert_eq!(wrapper.ask("count"), "2");
}
