//! Real programs, forked while idle: CPython's http.server, numpy, and the Fn project's own kit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use mitosis_lab::Node;

use crate::support::*;

/// The virtual environment that `scripts/setup.sh` makes.
pub fn venv(program: &str) -> PathBuf {
    let path = root().join("target/venv/bin").join(program);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh", path.display());
    path
}

fn get(node: &Node, path: &str) -> String {
    let to = SocketAddr::new(node.ip(), PORT);
    let mut stream = node.connect(to, SOON).unwrap();
    request(&mut stream, path)
}

fn request(stream: &mut TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    answer.split("\r\n\r\n").nth(1).unwrap().to_owned()
}

#[test]
fn http_server() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let script = fixture("web.py").display().to_string();
    let python = std::path::Path::new("/usr/bin/python3");
    let parent = Parent::start(a.node(), python, &[&script, &PORT.to_string()]);
    assert_eq!(get(a.node(), "/one"), r#"{"path": "/one", "count": 1}"#);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(get(b.node(), "/two"), r#"{"path": "/two", "count": 2}"#);
    assert_eq!(get(b.node(), "/three"), r#"{"path": "/three", "count": 3}"#);
    assert_eq!(get(a.node(), "/two"), r#"{"path": "/two", "count": 2}"#);
}

#[test]
fn numpy() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let mut command = Command::new(venv("python"));
    command.arg(fixture("matrix.py")).arg(PORT.to_string());
    let parent = Parent::spawn(a.node(), command);
    let answer = parent.ask("compute");
    assert!(answer.ends_with("True"), "{answer}");
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "compute"), answer);
    assert_eq!(parent.ask("compute"), answer);
}

/// Calls the function on a node over its unix socket, as the Fn agent does.
fn call(node: &Node, text: &str) -> String {
    let line = format!(
        "curl -s --max-time 20 --unix-socket /tmp/fn/l.sock -X POST -d '{text}' \
         -H 'Fn-Call-Id: 1' -H 'Fn-Deadline: 2099-01-01T00:00:00Z' http://localhost/call"
    );
    node.sh(&line).unwrap().stdout
}

#[test]
fn fn_development_kit() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    for node in [a.node(), b.node()] {
        node.sh("mkdir -p /tmp/fn").unwrap();
    }
    let mut command = Command::new(venv("fdk"));
    command.arg(fixture("func.py")).arg("handler");
    command.env("FN_LISTENER", "unix:/tmp/fn/l.sock").env("FN_FORMAT", "http-stream");
    command.env("FN_FN_ID", "f").env("FN_APP_ID", "a").env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    let process = a.node().spawn(command).unwrap();
    let socket = a.node().host_path("/tmp/fn/l.sock");
    until("the function listens", SOON, || socket.symlink_metadata().is_ok().then_some(()));
    assert_eq!(call(a.node(), "one"), r#"{"said": "one", "count": 1}"#);
    let seed = prepare(&a, process.node_pid().unwrap(), &[]);
    // The kit listens on a path of its own choice and links the promised one to it.
    b.node().sh("ln -s phonyl.sock /tmp/fn/l.sock").unwrap();
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(call(b.node(), "two"), r#"{"said": "two", "count": 2}"#);
    assert_eq!(call(a.node(), "three"), r#"{"said": "three", "count": 2}"#);
}
