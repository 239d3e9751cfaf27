//! Parents in a user namespace of their own: see docs/restore.md.

use std::process::Command;

use crate::admission::BREEDER;
use crate::support::*;

/// The C parent as the command that `line` begins with starts it.
fn started<'lab>(lab: &'lab mitosis_lab::Lab, line: &str) -> Parent<'lab> {
    let mut command = Command::new("sh");
    let parent = format!("{} {PORT} dir={FILES} mb=8", c_parent().display());
    command.args(["-c", &format!("exec {line} {parent}")]);
    Parent::spawn(lab.node(0), command)
}

/// As a rootless container is: with namespaces of all kinds, as pid 1, with a `/proc` of its own.
#[test]
fn a_rootless_container() {
    let lab = lab(3);
    let daemons = [0, 1, 2].map(|index| daemon(&lab, index));
    let [a, b, c] = &daemons;
    let flags = "--user --map-root-user --mount --uts --ipc --pid --fork --kill-child --mount-proc";
    let outer = started(&lab, &format!("unshare {flags}"));
    let path = a.node().proc_dir(outer.pid()).join(format!("task/{0}/children", outer.pid()));
    let inner: u32 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
    let seed = prepare(a, inner, &[]);
    let hash = outer.ask("hash");
    for via in ["direct", "template"] {
        let own = ["--net", "own", "--via", via];
        let child = fork(b, &seed.reference, &own)[0].clone();
        assert_eq!(ask_inside(b.node(), &child, "hash"), hash, "{via}");
        let maps = |name: &str| {
            let text = std::fs::read_to_string(b.node().proc_dir(child.pid).join(name)).unwrap();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!((maps("uid_map"), maps("gid_map")), ("0 0 1".into(), "0 0 1".into()));
        assert_eq!(maps("setgroups"), "deny");
        // It may do there what it could in its parent's.
        let pid = child.pid;
        let inside = "mount -t tmpfs none /mnt && hostname inside && mount -t proc none /proc";
        b.node()
            .sh(&format!("nsenter -t {pid} -U -m -u -p --preserve-credentials sh -c '{inside}'"))
            .unwrap();
        assert_ne!(b.node().sh("hostname").unwrap().stdout.trim(), "inside");
        let second = prepare(b, pid, &[]);
        let named = [&own[..], &["--new-pid", "--hostname", "other"]].concat();
        let another = fork(b, &second.reference, &named)[0].clone();
        assert_eq!(ask_inside(b.node(), &another, "hash"), hash, "{via} with another name");
        let name = format!("nsenter -t {} -u hostname", another.pid);
        assert_eq!(b.node().sh(&name).unwrap().stdout.trim(), "other");
        let grandchild = fork(c, &second.reference, &own)[0].clone();
        assert_eq!(ask_inside(c.node(), &grandchild, "hash"), hash, "{via}");
    }
    assert_eq!(outer.ask("hash"), hash);
}

/// Rights of the node's that only a process outside has are not had by its child: the fork fails, says
/// which, and leaves nothing.
#[test]
fn a_priority_that_is_the_nodes_to_give() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = started(&lab, "nice -n -5 unshare --user --map-root-user");
    let seed = prepare(&a, parent.pid(), &[]);
    let fails = |via: &str| {
        let output = b.mitosis(&["fork", &seed.reference, "--detach", "--via", via]).unwrap();
        assert_eq!(output.code(), 1, "{via}: {output:?}");
        assert!(output.stderr.contains("threads: sched_setattr"), "{via}: {}", output.stderr);
    };
    // What guards in user namespaces are made of, and the template, stay.
    fails("direct");
    fails("template");
    let before = settled_pids(b.node());
    fails("direct");
    fails("template");
    same_pids(b.node(), &before);
    assert!(ps(&b).is_empty());
    assert_eq!(parent.ask("count"), "1");
}

/// A node in a container sees only parts of `/proc`, and the kernel mounts no whole one for a user namespace:
/// such forks fail and say so, others do not.
#[test]
fn a_node_that_sees_a_part_of_proc() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    b.node().sh("mount -t tmpfs none /proc/fs").unwrap();
    let parent = started(&lab, "unshare --user --map-root-user");
    let seed = prepare(&a, parent.pid(), &[]);
    for via in ["direct", "template"] {
        let output = b.mitosis(&["fork", &seed.reference, "--detach", "--via", via]).unwrap();
        assert_eq!(output.code(), 1, "{via}: {output:?}");
        assert!(output.stderr.contains("it cannot mount its /proc"), "{via}: {}", output.stderr);
    }
    assert!(ps(&b).is_empty());
    drop(parent);
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "hash"), parent.ask("hash"));
}

/// Whoever makes a child, it is born in its own control group; and so is all of a tree.
#[test]
fn each_child_is_held_to_its_limits() {
    let lab = lab(2);
    let a = daemon(&lab, 0);
    let b = lab.node(1).start_daemon_with(&binary(), &["--child-pids", "9"]).unwrap();
    let born = |program: &[&str], flags: &[&str], via: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]).args(program).arg(BREEDER);
        let parent = Parent::spawn(a.node(), command);
        let seed = prepare(&a, parent.pid(), flags);
        fork_one(&b, &seed.reference, &["--via", via]);
        let born = ask(b.node(), "20");
        end_children(&b);
        born
    };
    let python = ["/usr/bin/python3", "-c"];
    // The guard and the child itself count.
    assert_eq!(born(&python, &[], "direct"), "7");
    assert_eq!(born(&python, &[], "template"), "7");
    let tree = ["sh", "-c", "/usr/bin/python3 -c \"$0\"; true"];
    assert_eq!(born(&tree, &["--tree"], "direct"), "6");
}
