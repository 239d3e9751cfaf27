//! Bad use: one clear line, exit 1 or 2, nothing left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mitosis_lab::{Daemon, Lab, LabProcess};

use crate::support::*;

/// `prepare` is refused with one line that has one of `words` in it, and leaves no process.
#[track_caller]
fn refused(daemon: &Daemon<'_>, pid: u32, words: &[&str]) {
    let before = settled_pids(daemon.node());
    let output = daemon.mitosis(&["prepare", &pid.to_string()]).unwrap();
    assert_eq!(output.code(), 1, "{output:?}");
    assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    let said = output.stderr.to_lowercase();
    assert!(words.iter().any(|word| said.contains(word)), "{said} has none of {words:?}");
    assert_eq!(output.stdout, "");
    same_pids(daemon.node(), &before);
    assert!(daemon.mitosis_json(&["seed", "ls"]).unwrap().as_array().unwrap().is_empty());
}

/// Runs Python in a node until it prints a line.
#[track_caller]
fn python(lab: &Lab, code: &str) -> LabProcess {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", code]);
    ready(lab.node(0), command)
}

#[test]
fn no_such_process() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    refused(&a, 31999, &["no such process", "no process"]);
}

#[test]
fn a_process_that_another_traces() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let target = python(&lab, "import time; print('ready', flush=True); time.sleep(1000)");
    let code = format!(
        "import ctypes, time; assert ctypes.CDLL(None).ptrace(0x4206, {}, 0, 0) == 0
print('ready', flush=True); time.sleep(1000)",
        target.node_pid().unwrap()
    );
    let _tracer = python(&lab, &code);
    refused(&a, target.node_pid().unwrap(), &["traced", "tracer"]);
}

#[test]
fn a_process_that_cannot_be_stopped() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("vforks.c");
    let code = "#include <unistd.h>\nint main(void) { write(1, \"ready\\n\", 6); \
                if (vfork() == 0) { pause(); _exit(0); } return 0; }\n";
    std::fs::write(&source, code).unwrap();
    lab.node(0).put(&compile("vforks", &[source]), "/tmp/vforks").unwrap();
    let mut command = Command::new("/tmp/vforks");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let parent = lab.node(0).spawn(command).unwrap();
    let pid = parent.node_pid().unwrap();
    let stat = lab.node(0).proc_dir(pid).join("stat");
    until("it waits for its vfork", SOON, || {
        std::fs::read_to_string(&stat).unwrap().contains(") D ").then_some(())
    });
    refused(&a, pid, &["vfork", "stop", "uninterruptible", "shared"]);
}

#[test]
fn a_process_that_is_not_dumpable() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let code = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print('ready', flush=True); time.sleep(1000)";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--clear-groups", "/usr/bin/python3", "-c", code]);
    let target = ready(lab.node(0), command);
    refused(&a, target.node_pid().unwrap(), &["dumpable"]);
}

#[test]
fn a_setuid_process() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    lab.node(0)
        .sh("cp /bin/sleep /tmp/sleep && chown nobody /tmp/sleep && chmod 4755 /tmp/sleep")
        .unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--clear-groups", "/tmp/sleep", "1000"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let target = lab.node(0).spawn(command).unwrap();
    let pid = target.node_pid().unwrap();
    until("it runs", SOON, || {
        let name = std::fs::read_to_string(lab.node(0).proc_dir(pid).join("comm")).unwrap();
        (name == "sleep\n").then_some(())
    });
    refused(&a, pid, &["set-uid"]);
}

#[test]
fn a_socket_that_is_taken() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let before = settled_pids(a.node());
    let args = ["node", "run", "--name", "other", "--listen", "127.0.0.1:7001"];
    let output = a.mitosis(&args).unwrap();
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("already"), "{}", output.stderr);
    same_pids(a.node(), &before);
    assert!(a.mitosis(&["seed", "ls"]).unwrap().status.success(), "the first goes on");
    let port = format!("{}:7000", a.node().ip());
    let socket = "/run/third/node/third.sock";
    let third = ["node", "run", "--name", "third", "--socket", socket, "--state-dir"];
    let args = [&third[..], &["/tmp/third", "--listen", &port]].concat();
    let output = a.mitosis(&args).unwrap();
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("7000"), "names the address: {}", output.stderr);
    same_pids(a.node(), &before);
    for left in ["/run/third", "/tmp/third"] {
        assert!(!a.node().host_path(left).exists(), "{left}");
    }
}

/// The same name beside the same socket means the same pager: it is not to be adopted from a daemon
/// that runs, nor to be ended with one that has no children.
#[test]
fn a_second_daemon_of_a_node_with_another_socket() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let before = settled_pids(a.node());
    let name = a.node().name().to_owned();
    let second = ["node", "run", "--listen", "127.0.0.1:7001", "--socket", "/run/mitosis/2.sock"];
    for args in [["--name", &name, "--state-dir", "/tmp/2"], ["--name", "two", "--state-dir", "-"]]
    {
        let state = format!("/var/lib/mitosis/{name}");
        let args = args.map(|arg| if arg == "-" { &state } else { arg });
        let output = a.mitosis(&[&second[..], &args].concat()).unwrap();
        assert_eq!(output.code(), 1, "{output:?}");
        assert!(output.stderr.contains("already running"), "{}", output.stderr);
        same_pids(a.node(), &before);
    }
    fork(&a, &seed.reference, &["--net", "own"]);
}

#[test]
fn a_full_disk() {
    let lab = lab(1);
    let node = lab.node(0);
    node.sh("mkdir /tmp/state && mount -t tmpfs -o size=64k full /tmp/state").unwrap();
    let a = node.start_daemon_with(&binary(), &["--state-dir", "/tmp/state"]).unwrap();
    node.sh("head -c 1M /dev/zero >/tmp/state/filler 2>/dev/null || true").unwrap();
    let parent = Parent::c(node, &["mb=8"]);
    refused(&a, parent.pid(), &["no space"]);
    assert_eq!(parent.ask("count"), "1");
    node.sh("rm /tmp/state/filler").unwrap();
    prepare(&a, parent.pid(), &[]);
}

#[test]
fn wrong_words_on_the_command_line() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    for (args, code) in [
        (&["prepare", "no-number"][..], 2),
        (&["prepare", "0"], 2),
        (&["fork", "nonsense"], 2),
        (&["fork", "mitosis://10.77.0.1:7000/x"], 2),
        (&["frok"], 2),
        (&["prepare"], 2),
        (&["wait", "31999"], 1),
        (&["kill", "31999"], 1),
        (&["logs", "31999"], 1),
        (&["seed", "rm", "nothing"], 2),
        (&["seed", "rm", "0123456789abcdef"], 1),
        (&["seed", "inspect", "0123456789abcdef"], 1),
    ] {
        let output = a.mitosis(args).unwrap();
        assert_eq!(output.code(), code, "{args:?}: {output:?}");
        assert_eq!(output.stdout, "", "{args:?}: {output:?}");
        let line = output.stderr.strip_prefix("mitosis: ").map(|said| said.lines().count());
        assert_eq!(line, Some(1), "{args:?}: {output:?}");
    }
    let mut command = a.command(&["ps"]);
    command.env("MITOSIS_SOCKET", "/run/nobody.sock");
    let output = a.node().run(command).unwrap();
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("/run/nobody.sock"), "{}", output.stderr);
}

#[test]
fn strategies_that_are_not_available_are_errors() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    for flags in [["--transport", "rdma"], ["--transport", "local"]] {
        let output = b.mitosis(&["fork", &seed.reference, "--detach", flags[0], flags[1]]).unwrap();
        assert_eq!(output.code(), 1, "{flags:?}: {output:?}");
        assert_eq!(output.stderr.trim().lines().count(), 1, "{}", output.stderr);
    }
    assert!(ps(&b).iter().all(|row| row["state"] == "ended"));
}

#[test]
fn a_kernel_thread() {
    // Kernel threads exist in the first pid namespace only, so this node is not one of a lab.
    let dir =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("host-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let Some(thread) = kernel_thread() else {
        println!("no kernel thread can be seen from here");
        return;
    };
    let socket = dir.join("node.sock");
    let mut node = Command::new(binary());
    node.args(["node", "run", "--name", &format!("host-{}", std::process::id())]);
    node.args(["--listen", "127.0.0.1:0", "--socket"]).arg(&socket);
    node.arg("--state-dir").arg(&dir).stdin(Stdio::null());
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut node = node.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let connected = || std::os::unix::net::UnixStream::connect(&socket).ok();
    until("the node answers", SOON, connected);
    let mitosis = |args: &[&str]| {
        Command::new(binary()).args(args).env("MITOSIS_SOCKET", &socket).output().unwrap()
    };
    let output = mitosis(&["prepare", &thread.to_string()]);
    let stopped = mitosis(&["node", "stop"]);
    node.wait().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("kernel thread"), "{said}");
    assert!(stopped.status.success());
}

/// A kernel thread: a process without a command line whose parent is kthreadd.
fn kernel_thread() -> Option<u32> {
    let comm = std::fs::read_to_string("/proc/2/comm").ok()?;
    (comm == "kthreadd\n" && Path::new("/proc/2/exe").read_link().is_err()).then_some(2)
}

#[test]
fn what_is_not_available_is_an_error_and_never_something_else() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let forked = b.mitosis(&["fork", &seed.reference, "--detach", "--via", "shadow"]).unwrap();
    assert_eq!((forked.code(), forked.stdout.as_str()), (1, ""), "{forked:?}");
    assert!(forked.stderr.contains("not of this node"), "{forked:?}");
    let args = ["--via", "shadow", "--transport", "tcp"];
    let forked = a.mitosis(&[&["fork", &seed.reference, "--detach"], &args[..]].concat()).unwrap();
    assert_eq!((forked.code(), forked.stdout.as_str()), (2, ""), "{forked:?}");
    assert!(ps(&b).is_empty());
    assert_eq!(parent.ask("count"), "1");
}

#[test]
fn a_thread_that_is_told_by_a_descriptor_keeps_its_id_or_there_is_no_child() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let code = "import fcntl, os, socket, struct, threading\n\
                s, t = socket.socketpair()\n\
                fcntl.fcntl(s, 15, struct.pack('ii', 0, threading.get_native_id()))\n\
                print('ready', flush=True); import time; time.sleep(1000)";
    let target = python(&lab, code);
    let seed = prepare(&a, target.node_pid().unwrap(), &[]);
    let forked = a.mitosis(&["fork", &seed.reference, "--detach", "--new-pid"]).unwrap();
    assert_eq!(forked.code(), 1, "{forked:?}");
    assert!(forked.stderr.contains("F_SETOWN_EX"), "{forked:?}");
    fork(&a, &seed.reference, &[]);
}

#[test]
fn an_open_file_of_a_kind_that_cannot_fork_is_refused_by_name() {
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let held = [
        ("import ctypes; f = ctypes.CDLL(None).fanotify_init(0, 0)", "fanotify"),
        ("import ctypes; f = ctypes.CDLL(None).syscall(323, 1)", "userfaultfd"),
        ("import os; f = os.memfd_create('held'); os.write(f, b'x' * (17 << 20))", "memfd:held"),
    ];
    for (code, word) in held {
        let code = format!("{code}\nimport time; print('ready', flush=True); time.sleep(1000)");
        let target = python(&lab, &code);
        refused(&a, target.node_pid().unwrap(), &[word]);
    }
}
