//! What the tests share: fixtures, asking a process, and the verbs of the command line.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mitosis_lab::{Daemon, Lab, LabProcess, Node};
use serde_json::Value;

/// Where parents and children listen.
pub const PORT: u16 = 8000;

/// The bound of everything that should happen soon.
pub const SOON: Duration = Duration::from_secs(30);

/// The directory in which each node of a lab keeps the files of its fixtures.
pub const FILES: &str = "/tmp/files";

/// The pages of the C parent's 64 MiB.
pub const DATA_PAGES: u64 = 64 * 256;

/// Lets one heavy test run at a time.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("MITOSIS_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mitosis")), PathBuf::from)
}

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap()
}

/// A fixture that needs no building.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// Compiles C sources into an executable of the test run's own directory.
pub fn compile(name: &str, sources: &[PathBuf]) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-mavx", "-Wall", "-Wextra", "-o"]).arg(&target).args(sources);
    let output = gcc.output().expect("gcc is needed: run scripts/setup.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target
}

/// The C parent, built once.
pub fn c_parent() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let sources = ["parent.c", "hold.c", "commands.c"];
        compile("parent", &sources.map(fixture))
    })
}

/// A lab in which the binary, the fixtures and the source tree can be seen, and in which each node
/// has the same files for the fixtures to open.
pub fn lab(count: usize) -> Lab {
    let (binary, parent) = (binary(), c_parent());
    let lab = Lab::with_shares("mitosis", count, &[&binary, parent, root()]).unwrap();
    for node in lab.nodes() {
        let line = format!(
            "mkdir -p {FILES} && for i in 0 1 2; do seq $i 3 9000 >{FILES}/file$i; done && \
             seq 1 20000 >{FILES}/mapped && touch -d '2020-01-01' {FILES}/mapped"
        );
        node.sh(&line).unwrap();
    }
    lab
}

/// The daemon of node `index`.
pub fn daemon(lab: &Lab, index: usize) -> Daemon<'_> {
    lab.node(index).start_daemon(&binary()).unwrap()
}

/// Waits until `check` gives something; panics with `what` after `bound`.
#[track_caller]
pub fn until<T>(what: &str, bound: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(began.elapsed() < bound, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection to a fixture.
pub struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    /// Connects to `port` of `node` from within the node; the listener may not be there yet.
    #[track_caller]
    pub fn to(node: &Node, port: u16) -> Self {
        let address = SocketAddr::new(node.ip(), port);
        let stream = until(&format!("{} answers", node.name()), SOON, || {
            node.connect(address, Duration::from_secs(2)).ok()
        });
        Self::over(stream)
    }

    /// Speaks over a connection that is there.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a command without waiting for its answer.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line; `None` when the other side has gone.
    #[track_caller]
    pub fn line(&mut self) -> Option<String> {
        let mut text = String::new();
        match self.stream.read_line(&mut text) {
            Ok(0) => None,
            Ok(_) => Some(text.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Asks and waits for the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line().unwrap_or_else(|| panic!("`{line}`: the process went away"))
    }
}

/// Asks what listens on [`PORT`] of `node`, and waits until it has closed the connection too: an
/// open connection cannot be forked.
#[track_caller]
pub fn ask(node: &Node, line: &str) -> String {
    let mut peer = Peer::to(node, PORT);
    let answer = peer.ask(line);
    peer.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.line(), None);
    answer
}

/// Asks a child with a network of its own, from a process that has entered it.
#[track_caller]
pub fn ask_inside(node: &Node, child: &Child, line: &str) -> String {
    let netns = child.netns.as_deref().unwrap();
    let python = "import socket,sys; c = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); \
                  f = c.makefile('rw'); f.write(sys.argv[2] + '\\n'); f.flush(); print(f.readline(), end='')";
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}")).args(["python3", "-c", python, &PORT.to_string(), line]);
    node.run(command).unwrap().success().unwrap().stdout.trim().to_owned()
}

/// A parent on a node.
pub struct Parent<'lab> {
    pub node: &'lab Node,
    pub process: LabProcess,
}

impl<'lab> Parent<'lab> {
    /// Starts a program that listens on [`PORT`], in a process group of its own.
    #[track_caller]
    pub fn start(node: &'lab Node, program: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(node, command)
    }

    /// Starts a command that listens on [`PORT`].
    #[track_caller]
    pub fn spawn(node: &'lab Node, mut command: Command) -> Self {
        use std::os::unix::process::CommandExt;
        let log = std::fs::File::create(node.host_path("/run/lab/parent.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let process = node.spawn(command).unwrap();
        let parent = Self { node, process };
        until("the parent is ready", SOON, || {
            let log = std::fs::read_to_string(node.host_path("/run/lab/parent.log")).ok()?;
            log.contains("ready").then_some(())
        });
        parent
    }

    /// CPython with a program given as text, which says when it is ready.
    #[track_caller]
    pub fn python(node: &'lab Node, program: &str, args: &[&str]) -> Self {
        Self::start(node, Path::new("/usr/bin/python3"), &[&["-c", program], args].concat())
    }

    /// The C parent with everything it can hold.
    #[track_caller]
    pub fn c(node: &'lab Node, args: &[&str]) -> Self {
        let (port, dir) = (PORT.to_string(), format!("dir={FILES}"));
        let all: Vec<&str> =
            [port.as_str(), dir.as_str()].into_iter().chain(args.iter().copied()).collect();
        Self::start(node, c_parent(), &all)
    }

    /// Its pid as its node sees it.
    pub fn pid(&self) -> u32 {
        self.process.node_pid().unwrap()
    }

    /// Asks it.
    #[track_caller]
    pub fn ask(&self, line: &str) -> String {
        ask(self.node, line)
    }
}

/// A seed and what `prepare` said about it.
pub struct Seed {
    pub reference: String,
    pub id: String,
    pub said: Value,
}

/// `prepare`, which must succeed.
#[track_caller]
pub fn prepare(daemon: &Daemon<'_>, pid: u32, args: &[&str]) -> Seed {
    let pid = pid.to_string();
    let all: Vec<&str> =
        ["prepare", pid.as_str()].into_iter().chain(args.iter().copied()).collect();
    let said = daemon.mitosis_json(&all).unwrap_or_else(|e| fail(daemon, &e.to_string()));
    for key in ["freeze_us", "prepare_us", "descriptor_bytes", "pages_total", "threads"] {
        assert!(said[key].is_u64(), "{key} in {said}");
    }
    let text = |key: &str| said[key].as_str().unwrap().to_owned();
    Seed { reference: text("ref"), id: text("seed"), said: said.clone() }
}

/// A child, as `fork` told of it.
#[derive(Debug, Clone)]
pub struct Child {
    pub pid: u32,
    pub transport: String,
    pub netns: Option<String>,
}

/// `fork --detach`, which must succeed.
#[track_caller]
pub fn fork(daemon: &Daemon<'_>, reference: &str, args: &[&str]) -> Vec<Child> {
    let all: Vec<&str> =
        ["fork", reference, "--detach"].into_iter().chain(args.iter().copied()).collect();
    let said = daemon.mitosis_json(&all).unwrap_or_else(|e| fail(daemon, &e.to_string()));
    let children = said["children"].as_array().unwrap();
    let child = |child: &Value| {
        assert!(child["start_us"].is_u64() && child["via"].is_string(), "{child}");
        Child {
            pid: u32::try_from(child["pid"].as_u64().unwrap()).unwrap(),
            transport: child["transport"].as_str().unwrap().to_owned(),
            netns: child["netns"].as_str().map(str::to_owned),
        }
    };
    children.iter().map(child).collect()
}

/// One child over TCP.
#[track_caller]
pub fn fork_one(daemon: &Daemon<'_>, reference: &str, args: &[&str]) -> Child {
    let children = fork(daemon, reference, args);
    assert_eq!(children.len(), 1);
    assert_eq!(children[0].transport, "tcp", "two nodes speak TCP");
    children[0].clone()
}

#[track_caller]
fn fail(daemon: &Daemon<'_>, error: &str) -> Value {
    panic!("{error}\n--- log of {}:\n{}", daemon.node().name(), daemon.log().unwrap_or_default())
}

/// All rows of `ps`.
#[track_caller]
pub fn ps(daemon: &Daemon<'_>) -> Vec<Value> {
    daemon.mitosis_json(&["ps"]).unwrap().as_array().unwrap().clone()
}

/// The newest row of `ps` for a child.
#[track_caller]
pub fn row(daemon: &Daemon<'_>, pid: u32) -> Value {
    let mut rows = ps(daemon);
    rows.retain(|row| row["pid"].as_u64() == Some(pid.into()));
    rows.pop().unwrap_or_else(|| panic!("ps knows no child {pid}"))
}

/// Waits until a child has ended, and gives its row.
#[track_caller]
pub fn ended(daemon: &Daemon<'_>, pid: u32, bound: Duration) -> Value {
    until(&format!("child {pid} has ended"), bound, || {
        let row = row(daemon, pid);
        (row["state"] == "ended").then_some(row)
    })
}

/// Ends all children of a daemon and waits until they are gone.
#[track_caller]
pub fn end_children(daemon: &Daemon<'_>) {
    for row in ps(daemon) {
        if row["state"] != "ended" {
            let pid = row["pid"].to_string();
            daemon.mitosis(&["kill", &pid]).unwrap();
        }
    }
    until("all children have ended", SOON, || {
        ps(daemon).iter().all(|row| row["state"] == "ended").then_some(())
    });
}

/// One row of `seed ls`.
#[track_caller]
pub fn seed_row(daemon: &Daemon<'_>, id: &str) -> Option<Value> {
    let rows = daemon.mitosis_json(&["seed", "ls"]).unwrap();
    rows.as_array().unwrap().iter().find(|row| row["seed"] == id).cloned()
}

/// Pids of a node's processes whose command line has `part` in it.
pub fn pids_with(node: &Node, part: &str) -> Vec<u32> {
    let line = |pid: &u32| {
        let line = std::fs::read(node.proc_dir(*pid).join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(part)
    };
    node.pids().unwrap().into_iter().filter(line).collect()
}

/// A node's processes, once they no longer change: guards are made ahead in the background.
#[track_caller]
pub fn settled_pids(node: &Node) -> Vec<u32> {
    let mut last = node.pids().unwrap();
    until("the node is at rest", SOON, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = node.pids().unwrap();
        let same = now == last;
        last.clone_from(&now);
        same.then_some(now)
    })
}

/// Waits until a node has exactly the processes that it had before.
#[track_caller]
pub fn same_pids(node: &Node, before: &[u32]) {
    let mut last = Vec::new();
    let began = Instant::now();
    while began.elapsed() < SOON {
        last = node.pids().unwrap();
        if last == before {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let extra: Vec<String> = last
        .iter()
        .filter(|pid| !before.contains(pid))
        .map(|pid| std::fs::read_to_string(node.proc_dir(*pid).join("stat")).unwrap_or_default())
        .collect();
    panic!("{} had {before:?} and has {last:?}: {extra:?}", node.name());
}

/// A process on a node that has said `ready`.
#[track_caller]
pub fn ready(node: &Node, mut command: Command) -> LabProcess {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = node.spawn(command).unwrap();
    let mut line = String::new();
    let stdout = process.take_stdout().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    process
}

/// The pager of a node; the process that holds descriptors for it is a child of it.
#[track_caller]
pub fn pager(daemon: &Daemon<'_>) -> u32 {
    let node = daemon.node();
    until("there is one pager", SOON, || {
        let all = pids_with(node, "mitosis pager --listen-unix");
        let first = |pid: &&u32| parent(node, **pid).is_some_and(|parent| !all.contains(&parent));
        match all.iter().filter(first).collect::<Vec<_>>()[..] {
            [pid] => Some(*pid),
            _ => None,
        }
    })
}

/// The parent of a node's process.
pub fn parent(node: &Node, pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(node.proc_dir(pid).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// A field of the fixture's `status` line.
#[track_caller]
pub fn field(line: &str, name: &str) -> u64 {
    let value = line.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
}
