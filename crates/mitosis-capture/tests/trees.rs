//! Several processes are captured at one moment, and none of them notices.

#![allow(clippy::unwrap_used)]

use mitosis_capture::{
    CaptureError, InheritedOf, Member, NoInheritance, Options, prepare, prepare_tree,
};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

fn options() -> Options {
    Options {
        node: "test".into(),
        stop_timeout: Duration::from_secs(5),
        resident: None,
        functions: Vec::new(),
        privileged: false,
        content_max: 16 << 20,
    }
}

const ALONE: &InheritedOf<'static> = &|_| Box::new(NoInheritance);

/// A python script whose children end with it: each waits for its end of a pipe to close.
struct Tree {
    root: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Tree {
    fn new(script: &str) -> Tree {
        let mut root = Command::new("/usr/bin/python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (root.stdin.take(), root.stdout.take().unwrap());
        Tree { root, input, output: BufReader::new(output) }
    }

    fn pid(&self) -> i32 {
        self.root.id() as i32
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Answers a line with a line.
    fn asked(&mut self, text: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{text}").unwrap();
        self.line()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.root.kill();
        let _ = self.root.wait();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn maps(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

fn end(members: &[Member]) {
    members.iter().for_each(|member| member.seeded.shadow.end());
}

/// A parent and a child count in turns, each in memory of its own: the parent is never behind, and
/// ahead by one at most. Shadows of different moments would differ by thousands.
#[test]
fn members_are_of_one_moment() {
    let mut tree = Tree::new(
        r"
import ctypes, os
n = ctypes.c_ulong(0)
there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(there[1])
    while os.read(there[0], 1):
        n.value += 1
        os.write(back[1], b'.')
    os._exit(0)
os.close(there[0])
print(ctypes.addressof(n), flush=True)
while True:
    n.value += 1
    os.write(there[1], b'.')
    os.read(back[0], 1)
",
    );
    let address: u64 = tree.line().parse().unwrap();
    let count = |member: &Member| {
        let mut bytes = [0; 8];
        member.seeded.shadow.mem.read_exact_at(&mut bytes, address).unwrap();
        u64::from_le_bytes(bytes)
    };
    let mut last = 0;
    for _ in 0..10 {
        let members = prepare_tree(tree.pid(), &|_| options(), 8, ALONE).unwrap().members;
        assert_eq!(members.len(), 2);
        let (parent, child) = (count(&members[0]), count(&members[1]));
        end(&members);
        assert!(parent == child || parent == child + 1, "parent {parent}, child {child}");
        assert!(parent > last, "both go on: {parent} after {last}");
        last = parent;
    }
}

/// Root, two children, a grandchild; all of it is as before.
#[test]
fn all_descendants_are_members_and_keep_nothing_of_ours() {
    let mut tree = Tree::new(
        r"
import os, sys
alive, life = os.pipe()
def wait():
    os.close(life)
    os.read(alive, 1)
    os._exit(7)
if os.fork() == 0:
    wait()
pid = os.fork()
if pid == 0:
    if os.fork() == 0:
        wait()
    print('ready', flush=True)
    wait()
for line in sys.stdin:
    os.close(life)
    print(*sorted(os.waitpid(-1, 0)[1] >> 8 for _ in range(2)), flush=True)
",
    );
    assert_eq!(tree.line(), "ready");
    let root = tree.pid();
    let (first, second) = (children(root)[0], children(root)[1]);
    let pids = [root, first, second, children(second)[0]];
    let before = pids.map(|pid| (maps(pid), children(pid)));
    let members = prepare_tree(root, &|_| options(), 4, ALONE).unwrap().members;
    assert_eq!(before, pids.map(|pid| (maps(pid), children(pid))), "nothing of ours is left");
    let places: Vec<_> = members.iter().map(|member| (member.pid, member.parent)).collect();
    let expected = [(pids[0], None), (pids[1], Some(0)), (pids[2], Some(0)), (pids[3], Some(2))];
    assert_eq!(places, expected);
    for member in &members {
        assert_eq!(member.seeded.descriptor.process.pid, member.pid);
        assert!(member.seeded.descriptor.pages.pages() > 100);
    }
    end(&members);
    assert_eq!(tree.asked("finish"), "7 7", "both children are waited for as ever");
}

#[test]
fn a_member_that_is_refused_is_named_and_all_run_on() {
    let mut tree = Tree::new(
        r"
import ctypes, os, sys
alive, life = os.pipe()
if os.fork() == 0:
    os.close(life)
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    print('ready', flush=True)
    os.read(alive, 1)
    os._exit(0)
for line in sys.stdin:
    print('still here', flush=True)
",
    );
    assert_eq!(tree.line(), "ready");
    let (root, child) = (tree.pid(), children(tree.pid())[0]);
    let before = (maps(root), maps(child));
    let refused = prepare_tree(root, &|_| options(), 8, ALONE);
    let text = refused.map(|captured| captured.end()).unwrap_err().to_string();
    assert!(text.contains(&format!("process {child} is traced by process {root}")), "{text}");
    assert_eq!(before, (maps(root), maps(child)), "nothing of ours is left");
    assert_eq!(children(root), [child]);
    assert_eq!(tree.asked("you?"), "still here");
    let alone = prepare(root, &options(), &mut NoInheritance).unwrap();
    alone.shadow.end();
}

#[test]
fn more_members_than_allowed_are_refused_by_name() {
    let mut tree = Tree::new(
        r"
import os, sys
alive, life = os.pipe()
if os.fork() == 0:
    os.close(life)
    print('ready', flush=True)
    os.read(alive, 1)
    os._exit(0)
sys.stdin.read()
",
    );
    assert_eq!(tree.line(), "ready");
    let root = tree.pid();
    let refused = prepare_tree(root, &|_| options(), 1, ALONE);
    let error = refused.map(|captured| captured.end()).unwrap_err();
    assert!(matches!(error, CaptureError::Refused { pid, .. } if pid == root), "{error}");
    assert!(error.to_string().contains("a tree of more than 1 processes"), "{error}");
}
