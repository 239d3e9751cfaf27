//! Lab nodes with daemons, parents on them, and clocks beside them.

use crate::error::BenchError;
use mitosis_lab::{Daemon, Lab, LabProcess, Node};
use mitosis_proto::{
    ChildRow, Client, ForkRequest, ForkedChild, Net, NodeInfo, PrepareRequest, Prepared, Via,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The interpreter of every Python process here: Debian's, the same on all nodes.
pub const PYTHON: &str = "/usr/bin/python3";

/// Longest time that anything here may take to answer for the first time.
pub const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// What a new daemon gets before it is asked for anything: a fresh node is not a booting one.
const SETTLE: Duration = Duration::from_millis(400);

/// This program: the product is measured as the very binary that measures.
pub fn own_binary() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io("start", "/proc/self/exe"))
}

/// A node with its daemon.
pub struct Member<'lab> {
    /// The node.
    pub node: &'lab Node,
    /// Its daemon.
    pub daemon: Daemon<'lab>,
}

impl<'lab> Member<'lab> {
    /// Starts the daemon of node `index`, which is told where the others will be.
    pub fn start(lab: &'lab Lab, index: usize) -> Result<Self, BenchError> {
        Self::start_with(lab, index, &[])
    }

    /// The same with more arguments.
    pub fn start_with(lab: &'lab Lab, index: usize, more: &[&str]) -> Result<Self, BenchError> {
        let node = lab.node(index);
        let others = lab.nodes().iter().enumerate().filter(|(other, _)| *other != index);
        let peers: Vec<String> =
            others.map(|(_, other)| format!("--peer={}", other.listens_at())).collect();
        let args: Vec<&str> =
            peers.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Ok(Member { node, daemon: node.start_daemon_with(&own_binary()?, &args)? })
    }

    /// A connection to the control socket; no process is started for it.
    pub fn client(&self) -> Result<Client, BenchError> {
        let path = self.node.host_path(self.daemon.socket());
        Client::connect(&path).map_err(BenchError::node("connect"))
    }

    /// Who answers there.
    pub fn info(&self) -> Result<NodeInfo, BenchError> {
        self.client()?.node().map_err(BenchError::node("node"))
    }

    /// Makes a seed of the process that the node calls `pid`.
    pub fn prepare(&self, pid: u32) -> Result<Prepared, BenchError> {
        let pid = i32::try_from(pid).map_err(|error| BenchError::wrong("prepare", error))?;
        let request = PrepareRequest { pid, ..PrepareRequest::default() };
        self.client()?.prepare(request).map_err(BenchError::node("prepare"))
    }

    /// Starts one child.
    pub fn fork(&self, reference: &str, net: Net) -> Result<ForkedChild, BenchError> {
        let request = ForkRequest { net, ..ForkRequest::new(reference) };
        let mut forked = self.client()?.fork(request).map_err(BenchError::node("fork"))?;
        forked.children.pop().ok_or_else(|| BenchError::wrong("fork", "no child"))
    }

    /// One child that is built from nothing, and after which no template is made.
    pub fn fork_direct(&self, reference: &str) -> Result<ForkedChild, BenchError> {
        let request = ForkRequest { via: Via::Direct, ..ForkRequest::new(reference) };
        let mut forked = self.client()?.fork(request).map_err(BenchError::node("fork"))?;
        forked.children.pop().ok_or_else(|| BenchError::wrong("fork", "no child"))
    }

    /// The command line that starts one child.
    pub fn fork_command(&self, reference: &str, net: &str) -> Command {
        self.silent(&["fork", reference, "--detach", "--net", net])
    }

    /// One that only starts and ends.
    pub fn version_command(&self) -> Command {
        self.silent(&["--version"])
    }

    fn silent(&self, args: &[&str]) -> Command {
        let mut command = self.daemon.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Children, ended ones too.
    pub fn children(&self) -> Result<Vec<ChildRow>, BenchError> {
        self.client()?.children().map_err(BenchError::node("ps"))
    }

    /// Ends a child and waits for its end.
    pub fn end(&self, pid: i32) -> Result<(), BenchError> {
        let mut client = self.client()?;
        client.kill(pid, 9).map_err(BenchError::node("kill"))?;
        client.wait(pid).map_err(BenchError::node("wait"))?;
        Ok(())
    }

    /// Ends every child that still runs.
    pub fn end_all(&self) -> Result<(), BenchError> {
        let running = |row: &&ChildRow| row.state == mitosis_proto::ChildState::Running;
        let pids: Vec<i32> = self.children()?.iter().filter(running).map(|row| row.pid).collect();
        pids.into_iter().try_for_each(|pid| self.end(pid))
    }

    /// Revokes a seed.
    pub fn remove(&self, seed: &str) -> Result<(), BenchError> {
        self.client()?.remove_seed(seed).map_err(BenchError::node("seed rm"))
    }

    /// Ends everything of the product on this node.
    pub fn stop(&mut self) -> Result<(), BenchError> {
        self.client()?.stop().map_err(BenchError::node("stop"))?;
        self.daemon.process().wait(ANSWER_BOUND)?;
        Ok(())
    }

    /// Ends everything of the product on this node and starts it anew, with time to settle.
    pub fn renew(&mut self) -> Result<(), BenchError> {
        self.stop()?;
        self.daemon.restart()?;
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Nanoseconds of processor time that the node's process `pid` has used, all threads.
    pub fn cpu_ns(&self, pid: u32) -> Result<u64, BenchError> {
        cpu_ns(&self.node.proc_dir(pid))
    }
}

/// Nanoseconds of processor time of the process whose `/proc` directory is `dir`.
pub fn cpu_ns(dir: &Path) -> Result<u64, BenchError> {
    let failed = || BenchError::io("cpu time", dir.display());
    let mut total = 0;
    for task in std::fs::read_dir(dir.join("task")).map_err(failed())? {
        let path = task.map_err(failed())?.path().join("schedstat");
        // A thread may end between the listing and the reading; its time is then lost.
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        total += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// A process on a node that answers at a port.
pub struct Parent {
    /// Killed on drop.
    process: LabProcess,
    /// Its pid as the node sees it.
    pub pid: u32,
    /// Its port on every address of the node.
    pub port: u16,
}

impl Parent {
    /// Stops it, so that it takes no processor from other nodes: they would not share one with it.
    pub fn pause(&self) -> Result<(), BenchError> {
        Ok(self.process.signal(rustix::process::Signal::STOP)?)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<(), BenchError> {
        Ok(self.process.signal(rustix::process::Signal::CONT)?)
    }
}

/// Runs Python `code` with `args` on `node`; it has to listen at `port`.
pub fn python(node: &Node, code: &str, port: u16, args: &[&str]) -> Result<Parent, BenchError> {
    let process = node.spawn(python_command(code, port, args))?;
    ready(node, process, port)
}

/// The command line of it.
pub fn python_command(code: &str, port: u16, args: &[&str]) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-c", code, &port.to_string()]).args(args);
    quiet(&mut command);
    command
}

/// Runs a helper of this program on `node`; it has to listen at `port`.
pub fn helper(node: &Node, name: &str, port: u16, args: &[&str]) -> Result<Parent, BenchError> {
    let mut command = Command::new(own_binary()?);
    command.args(["bench", name, &port.to_string()]).args(args);
    quiet(&mut command);
    let process = node.spawn(command)?;
    ready(node, process, port)
}

/// Runs `command` on `node`; it has to listen at `port`.
pub fn process(node: &Node, command: Command, port: u16) -> Result<Parent, BenchError> {
    ready(node, node.spawn(command)?, port)
}

fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

fn ready(node: &Node, mut process: LabProcess, port: u16) -> Result<Parent, BenchError> {
    let to = SocketAddr::new(node.ip(), port);
    let end = Instant::now() + ANSWER_BOUND;
    while node.connect(to, Duration::from_secs(1)).is_err() {
        if !process.is_running() || Instant::now() > end {
            return Err(BenchError::wrong("start", format!("nothing listens at {to}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = process.node_pid()?;
    Ok(Parent { process, pid, port })
}

/// Connects from `node` to its own `port`, sends `request`, and reads to the end.
pub fn ask(node: &Node, port: u16, request: &[u8]) -> Result<Vec<u8>, BenchError> {
    let to = SocketAddr::new(node.ip(), port);
    let stream = node.connect(to, ANSWER_BOUND)?;
    exchange(stream, request).map_err(BenchError::io("ask", to))
}

/// Sends `request` and reads to the end of the connection.
pub fn exchange(mut stream: TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.set_nodelay(true)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// As [`exchange`], over a unix socket whose other side does not close it: until `end` has come.
pub fn exchange_unix(path: &Path, request: &[u8], end: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.write_all(request)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.windows(end.len()).any(|window| window == end) {
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    Ok(answer)
}

/// As [`ask`], the answer being JSON.
pub fn ask_json<T: serde::de::DeserializeOwned>(
    node: &Node,
    port: u16,
    request: &[u8],
) -> Result<T, BenchError> {
    let answer = ask(node, port, request)?;
    serde_json::from_slice(&answer).map_err(|error| {
        BenchError::wrong("answer", format!("{error}: {}", String::from_utf8_lossy(&answer)))
    })
}

/// CLOCK_MONOTONIC in nanoseconds: one clock for all nodes of a lab, parents included.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
