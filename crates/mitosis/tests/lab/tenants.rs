//! Programs that mean harm, as parents and as children: they harm nobody but themselves.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::support::*;

/// A Python program that runs `code` in a child, and nothing in its parent.
#[track_caller]
fn tenant(node: &mitosis_lab::Node, code: &str) -> mitosis_lab::LabProcess {
    tenant_with(node, "", code)
}

/// The same of one that does something before it is forked.
#[track_caller]
fn tenant_with(node: &mitosis_lab::Node, before: &str, code: &str) -> mitosis_lab::LabProcess {
    let text = format!(
        "{before}import ctypes, os, sys, time\nhere = os.readlink('/proc/self/ns/pid')\n\
         print('ready', flush=True)\n\
         while os.readlink('/proc/self/ns/pid') == here: time.sleep(0.01)\n{code}"
    );
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", &text]);
    ready(node, command)
}

/// A child of root's can stop its guard, which is to reap it: with a signal of ptrace(2)'s, from which
/// it can be woken, or by holding it.
#[test]
fn a_child_that_stops_its_guard_ends_all_the_same() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let code = "libc = ctypes.CDLL(None)
if os.uname().nodename == 'hold':
    done, told = os.pipe()
    if os.fork() == 0:
        libc.ptrace(16, 1, 0, 0)
        os.write(told, b'x')
        time.sleep(1000)
    os.read(done, 1)
else:
    libc.ptrace(16, 1, 0, 0)
os._exit(7)";
    let parent = tenant(a.node(), code);
    let seed = prepare(&a, parent.node_pid().unwrap(), &[]);
    for (name, status) in [("let-go", "7"), ("hold", "137")] {
        let child = fork_one(&b, &seed.reference, &["--hostname", name]);
        ended(&b, child.pid, SOON);
        let waited = b.mitosis(&["wait", &child.pid.to_string()]).unwrap();
        assert_eq!(waited.stdout.trim(), status, "{name}: {waited:?}");
    }
}

#[test]
fn a_child_that_fills_its_log_does_not_fill_the_disk() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let code = "for n in range(200):
    os.write(1, b'x' * ((1 << 20) - 1) + b'\\n')
    time.sleep(0.005)
os.write(1, b'that was all\\n')
time.sleep(1000)";
    let parent = tenant(a.node(), code);
    let seed = prepare(&a, parent.node_pid().unwrap(), &[]);
    let child = fork(&a, &seed.reference, &[])[0].clone();
    let logs = || a.mitosis(&["logs", &child.pid.to_string()]).unwrap().stdout;
    until("the child has written all of it, and most is cut off", SOON, || {
        let logs = logs();
        (logs.ends_with("that was all\n") && logs.len() <= 64 << 20).then_some(())
    });
    let dir = a.node().host_path(format!("/var/lib/mitosis/{}/logs", a.node().name()));
    let files = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap());
    assert!(files.map(|meta| meta.blocks() * 512).sum::<u64>() <= 65 << 20);
}

/// Looked at for minutes, and not forked at all, when each descriptor was compared with each.
#[test]
fn a_parent_with_thousands_of_equal_descriptors_is_forked_as_any() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let code = "print('again', len(os.listdir('/proc/self/fd')) > 12000, flush=True)
time.sleep(1000)";
    let more = "import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.open('/dev/null', 0) for n in range(6100)] + [os.eventfd(0) for n in range(6100)]
";
    let parent = tenant_with(a.node(), more, code);
    let seed = prepare(&a, parent.node_pid().unwrap(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    until("the child has them all", SOON, || {
        let logs = b.mitosis(&["logs", &child.pid.to_string()]).unwrap();
        logs.stdout.contains("again True").then_some(())
    });
}
