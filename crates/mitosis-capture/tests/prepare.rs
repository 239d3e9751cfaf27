//! A real process is captured and must not notice.

use mitosis_capture::{CaptureError, NoInheritance, Options, prepare};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn options() -> Options {
    Options { node: "test".into(), stop_timeout: Duration::from_secs(2), resident: None }
}

/// Ends the process even when the test fails.
struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
