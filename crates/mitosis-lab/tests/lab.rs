//! The lab itself: nodes reach each other by TCP and by nothing else, and nothing outlives them.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use mitosis_lab::Lab;

const BOUND: Duration = Duration::from_secs(10);

fn echo_server(lab: &Lab) -> mitosis_lab::LabProcess {
    let script = "import socket
s = socket.create_server(('0.0.0.0', 9000))
print('up', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(c.recv(100)); c.close()";
    let mut command = Command::new("python3");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = lab.node(1).spawn(command).unwrap();
    let mut line = String::new();
    BufReader::new(server.take_stdout().unwrap()).read_line(&mut line).unwrap();
    server
}

#[test]
fn nodes_speak_tcp_over_counted_links() {
    let lab = Lab::new("labt", 2).unwrap();
    let server = echo_server(&lab);
    let before = lab.node(0).link_bytes().unwrap();
    let to = SocketAddr::new(lab.node(1).ip(), 9000);
    let mut stream = lab.node(0).connect(to, BOUND).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ping");
    let after = lab.node(0).link_bytes().unwrap();
    assert!(after.tx > before.tx && after.rx > before.rx, "{before:?} {after:?}");
    assert_eq!(lab.node(1).host_pid(server.node_pid().unwrap()).unwrap(), server.host_pid());

    lab.node(1).cut_link().unwrap();
    assert!(lab.node(0).connect(to, Duration::from_millis(300)).is_err());
    lab.node(1).restore_link().unwrap();
    lab.node(0).connect(to, BOUND).unwrap();
}

#[test]
fn nodes_do_not_share_processes_or_files() {
    let lab = Lab::new("labt", 2).unwrap();
    lab.node(0).sh("echo one > /tmp/x && echo one > /run/x").unwrap();
    assert!(lab.node(1).sh("cat /tmp/x").is_err());
    assert!(!lab.node(1).host_path("/run/x").exists());
    let seen = lab.node(1).sh("ls -d /proc/[0-9]* | wc -l; hostname").unwrap().stdout;
    assert!(seen.ends_with(&format!("{}\n", lab.node(1).name())), "{seen}");
    lab.node(0).sh("cp /etc/hostname /tmp/other && echo other > /tmp/other").unwrap();
    lab.node(0).overlay("/etc/hostname", "/tmp/other").unwrap();
    assert_eq!(lab.node(0).sh("cat /etc/hostname").unwrap().stdout, "other\n");
    assert_ne!(lab.node(1).sh("cat /etc/hostname").unwrap().stdout, "other\n");
}

#[test]
fn shared_paths_stay_visible_below_private_directories() {
    let outer = std::env::temp_dir().join(format!("lab-share-{}", std::process::id()));
    let inner = outer.join("inner");
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::write(inner.join("file"), "shared").unwrap();
    let lab = Lab::with_shares("labt", 1, &[&inner.join("file"), &outer, &inner]).unwrap();
    let seen = lab.node(0).sh(&format!("cat {}", inner.join("file").display())).unwrap().stdout;
    let written = lab.node(0).sh(&format!("touch {}", inner.join("new").display()));
    drop(lab);
    std::fs::remove_dir_all(&outer).unwrap();
    assert_eq!(seen, "shared");
    assert!(written.is_err(), "shared paths are read-only");
}

#[test]
fn orphans_are_reaped_and_the_census_sees_what_is_left() {
    let lab = Lab::new("labt", 1).unwrap();
    let node = lab.node(0);
    let before = node.census().unwrap();
    node.sh("for i in 1 2 3; do (sleep 0.05 &) ; done").unwrap();
    let end = std::time::Instant::now() + BOUND;
    while node.census().unwrap() != before && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(before.differences(&node.census().unwrap()), Vec::<String>::new());
    node.sh("touch /tmp/left; sleep 1000 >/dev/null 2>&1 &").unwrap();
    let end = std::time::Instant::now() + BOUND;
    loop {
        let differences = before.differences(&node.census().unwrap());
        let seen = |what: &str| differences.iter().any(|line| line.contains(what));
        if seen("files: ") && seen("process sleep: 0 -> 1") {
            break;
        }
        assert!(std::time::Instant::now() < end, "{differences:?}");
    }
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let mut lab = Lab::new("labt", 2).unwrap();
    let stray = lab.node(0).sh("sleep 1000 >/dev/null 2>&1 & echo $!").unwrap().stdout;
    let stray = lab.node(0).host_pid(stray.trim().parse().unwrap()).unwrap();
    let inits: Vec<u32> = lab.nodes().iter().map(|node| node.init_pid()).collect();
    let group = format!("/sys/fs/cgroup/{}-group", lab.name());
    let made = std::fs::create_dir(&group).is_ok();
    drop(std::mem::replace(&mut lab, Lab::new("labt", 1).unwrap()));
    for pid in inits.into_iter().chain([stray]) {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is left");
    }
    assert!(!made || !std::path::Path::new(&group).exists());
}

/// Not a test of its own: the body of the process that the next test kills.
#[test]
fn holds_a_lab_when_told_to() {
    let Some(path) = std::env::var_os("LAB_TEST_HOLD") else { return };
    let lab = Lab::new("labk", 2).unwrap();
    let inits: Vec<String> = lab.nodes().iter().map(|node| node.init_pid().to_string()).collect();
    std::fs::write(path, inits.join(" ") + "\n").unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_killed_lab_leaves_nothing() {
    let path = std::env::temp_dir().join(format!("lab-test-{}", std::process::id()));
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_lab_when_told_to"])
        .env("LAB_TEST_HOLD", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let end = std::time::Instant::now() + BOUND;
    let inits = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.ends_with('\n') {
            break text;
        }
        assert!(std::time::Instant::now() < end, "no lab within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    std::fs::remove_file(&path).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    for pid in inits.split_whitespace() {
        let dir = std::path::PathBuf::from(format!("/proc/{pid}"));
        while dir.exists() {
            assert!(std::time::Instant::now() < end, "{pid} is left");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
