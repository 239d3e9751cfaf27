//! A real process is captured and must not notice.

use mitosis_capture::{
    CaptureError, IoctlCalls, NoInheritance, Options, calls_max, ioctls, prepare, prepare_again,
    serve,
};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn options() -> Options {
    Options {
        node: "test".into(),
        stop_timeout: Duration::from_secs(2),
        resident: None,
        functions: Vec::new(),
        privileged: false,
        content_max: 16 << 20,
    }
}

/// Ends the process even when the test fails.
struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(script: &str) -> Ended {
    let child = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    Ended(child)
}

fn echo() -> Ended {
    let child =
        Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
    Ended(child)
}

#[test]
fn a_parent_goes_on_and_its_shadow_is_described() {
    let mut parent = echo();
    std::thread::sleep(Duration::from_millis(50));
    let pid = parent.0.id() as i32;
    let maps = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let before = maps(pid);
    let seeded = prepare(pid, &options(), &mut NoInheritance).expect("prepare");
    assert_eq!(before, maps(pid), "nothing of ours is left in the parent");
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    assert_eq!(children.expect("children"), "", "the parent has no child");
    let d = &seeded.descriptor;
    assert_eq!(d.process.pid, pid);
    assert_eq!(d.threads.len(), 1);
    assert!(d.pages.pages() > 10, "{} pages", d.pages.pages());
    // Blocked in read(2): a child makes the call again.
    assert_eq!(d.threads[0].regs.rax, 0, "read is to be restarted");
    println!("freeze {} us, phases {:?}", seeded.freeze_us, seeded.phases);
    // The parent still answers.
    let mut stdin = parent.0.stdin.take().expect("stdin");
    stdin.write_all(b"hello\n").expect("write");
    let mut line = String::new();
    let mut out = BufReader::new(parent.0.stdout.take().expect("stdout"));
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "hello\n");
    // The shadow is asleep and ends when told.
    let shadow = seeded.shadow.pid;
    let fds = std::fs::read_dir(format!("/proc/{shadow}/fd")).expect("fds").count();
    assert_eq!(fds, 0, "the shadow holds no file of the parent");
    seeded.shadow.end();
    for _ in 0..200 {
        let stat = std::fs::read_to_string(format!("/proc/{shadow}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the shadow {shadow} did not end");
}

#[test]
fn what_is_not_a_process_is_refused() {
    let error = prepare(1 << 30, &options(), &mut NoInheritance).expect_err("no such process");
    assert!(matches!(error, CaptureError::NoSuchProcess(_)), "{error}");
    let error = prepare(2, &options(), &mut NoInheritance).expect_err("kernel thread");
    assert!(error.to_string().contains("kernel thread") || error.to_string().contains("no such"));
}

/// The init of a container is the hardest parent: every orphan of its namespace becomes its child.
#[test]
fn an_init_does_not_find_the_shadow_among_its_children() {
    let script = "import os, sys
print('ready', flush=True)
for line in sys.stdin:
    try:
        print(os.waitpid(-1, os.WNOHANG), flush=True)
    except ChildProcessError:
        print('no child', flush=True)
";
    let mut unshare = Ended(
        Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "/usr/bin/python3", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare"),
    );
    let mut out = BufReader::new(unshare.0.stdout.take().expect("stdout"));
    let mut stdin = unshare.0.stdin.take().expect("stdin");
    let mut line = String::new();
    out.read_line(&mut line).expect("ready");
    let outer = unshare.0.id();
    let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
    let init: i32 = children.expect("children").trim().parse().expect("one child");
    let seeded = prepare(init, &options(), &mut NoInheritance).expect("prepare");
    assert!(seeded.bound, "its pid namespace is not ours");
    assert_eq!(seeded.descriptor.process.pid, 1);
    let mut ask = || {
        stdin.write_all(b"x\n").expect("write");
        let mut line = String::new();
        out.read_line(&mut line).expect("read");
        line
    };
    assert_eq!(ask(), "no child\n");
    seeded.shadow.end();
    assert_eq!(ask(), "no child\n");
    let shadow = format!("/proc/{}", seeded.shadow.pid);
    assert!(!std::path::Path::new(&shadow).exists(), "a zombie stayed");
}

/// A filter that kills for every unusual call must not meet ours.
#[test]
fn a_strict_seccomp_filter_is_not_met() {
    // PR_SET_NO_NEW_PRIVS, then SECCOMP_MODE_FILTER: kill the process on everything but read,
    // write, exit_group, sigreturn, restart_syscall, ppoll/select as CPython's input uses read.
    let script = "import ctypes, struct, sys
libc = ctypes.CDLL(None)
allowed = [0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 35, 39, 202, 219, 228, 230, 231, 262, 318]
n = len(allowed)
code = struct.pack('HBBI', 0x20, 0, 0, 0)
for i, nr in enumerate(allowed):
    code += struct.pack('HBBI', 0x15, n - i, 0, nr)
code += struct.pack('HBBI', 0x06, 0, 0, 0x80000000)
code += struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(code)
prog = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(buf)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog, 0, 0) == 0
print('ready', flush=True)
for line in sys.stdin:
    print('alive', flush=True)
";
    let mut parent = python(script);
    let mut out = BufReader::new(parent.0.stdout.take().expect("stdout"));
    let mut stdin = parent.0.stdin.take().expect("stdin");
    let mut line = String::new();
    out.read_line(&mut line).expect("ready");
    assert_eq!(line, "ready\n");
    let pid = parent.0.id() as i32;
    let seeded = prepare(pid, &options(), &mut NoInheritance).expect("prepare");
    assert_eq!(seeded.descriptor.process.seccomp.len(), 1);
    stdin.write_all(b"x\n").expect("write");
    line.clear();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "alive\n");
    let shadow = seeded.shadow.pid;
    assert!(std::path::Path::new(&format!("/proc/{shadow}")).exists());
    let mut byte = [0u8; 4];
    use std::os::unix::fs::FileExt;
    let first = seeded.descriptor.pages.runs()[0].start.addr();
    seeded.shadow.mem.read_exact_at(&mut byte, first).expect("the shadow's memory");
    // A visit does not meet it either, and leaves the shadow stopped.
    for _ in 0..2 {
        asked_for_five_bytes(shadow, 0);
        becomes(shadow, 'T');
    }
    seeded.shadow.end();
}

/// Waits until a process is in this state, for a while.
fn becomes(pid: i32, wanted: char) {
    for _ in 0..500 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        if stat.contains(&format!(") {wanted} ")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{pid} did not come to state {wanted}");
}

/// The shadow asks FIONREAD(2const) of a pipe of ours, and has as many files open then.
fn asked_for_five_bytes(shadow: i32, files: usize) {
    const FIONREAD: u64 = 0x541b;
    let (reader, writer) = rustix::pipe::pipe().expect("pipe");
    rustix::io::write(&writer, b"12345").expect("write");
    let calls = IoctlCalls {
        file: reader.as_fd(),
        request: FIONREAD,
        size: 8,
        count: 3,
        argument: &|n, address, out| {
            assert_eq!(address % 8, 0);
            out.fill(n as u8);
        },
    };
    let said = ioctls(shadow, &calls).expect("calls");
    let fives: Vec<(i64, Vec<u8>)> = (0..3).map(|n| (0, vec![5, 0, 0, 0, n, n, n, n])).collect();
    assert_eq!(said, fives);
    let fds = std::fs::read_dir(format!("/proc/{shadow}/fd")).expect("fds").count();
    assert_eq!(fds, files, "the shadow keeps no file");
}

#[test]
fn a_shadow_makes_calls_and_sleeps_again() {
    let parent = echo();
    std::thread::sleep(Duration::from_millis(50));
    let pid = parent.0.id() as i32;
    let seeded = prepare(pid, &options(), &mut NoInheritance).expect("prepare");
    let shadow = seeded.shadow.pid;
    for _ in 0..3 {
        asked_for_five_bytes(shadow, 0);
        becomes(shadow, 'S');
    }
    // Not of a process that is no shadow.
    let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
    let calls =
        IoctlCalls { file: reader.as_fd(), request: 0, size: 8, count: 1, argument: &|_, _, _| {} };
    let error = ioctls(pid, &calls).expect_err("no shadow");
    assert!(error.to_string().contains("shadow"), "{error}");
    assert!(calls_max(8) > 1000);
    drop(parent);
    asked_for_five_bytes(shadow, 0);
    seeded.shadow.end();
}

/// A shadow that makes children, visited for its node to register its memory, waits for orders again.
#[test]
fn a_shadow_that_takes_orders_makes_calls_and_takes_orders_again() {
    const RECVMSG: &str = "47 0x3 ";
    const RT_SIGSUSPEND: &str = "130 ";
    let parent = echo();
    std::thread::sleep(Duration::from_millis(50));
    let pid = parent.0.id() as i32;
    let seeded = prepare(pid, &options(), &mut NoInheritance).expect("prepare");
    let shadow = seeded.shadow.pid;
    // It may have been visited before it takes orders, too.
    asked_for_five_bytes(shadow, 0);
    let region = (0x10_0000_0000, 48 << 20);
    let process = (shadow, seeded.shadow.pidfd.as_fd());
    let orders = serve(process, &seeded.descriptor, region).expect("orders");
    for _ in 0..3 {
        waits_in(shadow, RECVMSG);
        asked_for_five_bytes(shadow, 1);
    }
    waits_in(shadow, RECVMSG);
    drop(orders);
    waits_in(shadow, RT_SIGSUSPEND);
    seeded.shadow.end();
}

/// Waits until a process is in this system call, for a while.
fn waits_in(pid: i32, call: &str) {
    let now = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).expect("syscall");
    for _ in 0..500 {
        if now().starts_with(call) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{pid} is not in {call} but in {}", now());
}

/// Root's processes can hide from nobody in /proc, but they can say that they want to.
#[test]
fn a_non_dumpable_process_of_root_is_refused_and_goes_on() {
    let script = "import ctypes, sys
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
print('ready', flush=True)
for line in sys.stdin:
    print('alive', flush=True)
";
    let mut parent = python(script);
    let mut out = BufReader::new(parent.0.stdout.take().expect("stdout"));
    let mut stdin = parent.0.stdin.take().expect("stdin");
    let mut line = String::new();
    out.read_line(&mut line).expect("ready");
    let pid = parent.0.id() as i32;
    let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let before = maps();
    let error = prepare(pid, &options(), &mut NoInheritance).expect_err("refused");
    assert!(error.to_string().contains("not dumpable"), "{error}");
    assert_eq!(before, maps(), "nothing of ours is left in it");
    stdin.write_all(b"x\n").expect("write");
    line.clear();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "alive\n");
}

/// What a process keeps from its forks is found when the shadow lacks it; once that is known, it stands
/// still only once.
#[test]
fn a_process_with_memory_that_forks_lack_forks_twice_the_first_time_only() {
    let mut parent = python(
        "import mmap, sys, time\n\
         kept = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
         kept.write(b'x' * (1 << 20)); kept.madvise(mmap.MADV_DONTFORK)\n\
         print('ready', flush=True); time.sleep(1000)",
    );
    let mut line = String::new();
    let stdout = parent.0.stdout.take().expect("stdout");
    BufReader::new(stdout).read_line(&mut line).expect("read");
    let pid = parent.0.id() as i32;
    let mut seen = Vec::new();
    for known in [false, true] {
        let seeded = prepare_again(pid, &options(), known, &mut NoInheritance).expect("prepare");
        seeded.shadow.end();
        seen.push((seeded.forks, seeded.dontfork, seeded.descriptor.pages.pages() >= 256));
    }
    assert_eq!(seen, [(2, true, true), (1, true, true)]);
    let mut other = echo();
    other.0.stdout.take();
    let pid = other.0.id() as i32;
    let seeded = prepare_again(pid, &options(), true, &mut NoInheritance).expect("prepare");
    seeded.shadow.end();
    assert_eq!((seeded.forks, seeded.dontfork), (1, false));
}
