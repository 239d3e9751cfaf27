//! One node of the lab.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::census::Census;
use crate::daemon::Daemon;
use crate::enter::Namespaces;
use crate::error::LabError;
use crate::lab::{Shell, Switch, ip_batch, set_port};
use crate::proc::{self, Memory};
use crate::process::{LabProcess, Output, contents};

const INIT_SCRIPT: &str = include_str!("scripts/init.sh");

/// How long [`Node::run`] lets a command take.
const RUN_BOUND: Duration = Duration::from_secs(120);

/// Bytes on a node's link since it was plugged in, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct LinkBytes {
    /// Received by the node.
    pub rx: u64,
    /// Sent by the node.
    pub tx: u64,
}

/// A machine, as far as the product can tell.
#[derive(Debug)]
pub struct Node {
    name: String,
    index: usize,
    init: u32,
    namespaces: Namespaces,
    network: Namespaces,
    switch: Namespaces,
    _shell: Shell,
}

impl Node {
    pub(crate) fn start(
        switch: &Switch,
        lab: &str,
        index: usize,
        shares: &[PathBuf],
    ) -> Result<Self, LabError> {
        let name = format!("{lab}-{}", index + 1);
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]);
        command.args(["--kill-child=SIGKILL", "--propagation", "private"]);
        command.args(["bash", "-c", INIT_SCRIPT, "lab-init", &name]).args(shares);
        let (shell, ready) = Shell::start(command, &name)?;
        let init = ready.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        let init: u32 = init.ok_or_else(|| LabError::format("start", &name, &ready))?;
        let failed = |error| LabError::io("enter", &name, error);
        let namespaces = Namespaces::of_node(init).map_err(failed)?;
        let network = Namespaces::of_network(init).map_err(failed)?;
        switch.plug(index, init)?;
        let address = address(index);
        ip_batch(&network, &format!("address add {address}/24 dev eth0\nlink set eth0 up"))?;
        Ok(Self {
            name,
            index,
            init,
            namespaces,
            network,
            switch: switch.network()?,
            _shell: shell,
        })
    }

    /// The node's name, unique on this machine; also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's address, the same during its whole life.
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(address(self.index))
    }

    /// Where a daemon on it serves other nodes.
    pub fn listens_at(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), crate::daemon::PORT)
    }

    /// The host pid of the node's pid 1.
    pub fn init_pid(&self) -> u32 {
        self.init
    }

    /// Where the host reaches a path of this node's file system: files, and unix sockets too.
    pub fn host_path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let inside = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", self.init)).join(inside)
    }

    /// Spawns a command inside the node.
    ///
    /// Its stdio is what the command says; `Command` inherits by default, which is rarely wanted.
    pub fn spawn(&self, command: Command) -> Result<LabProcess, LabError> {
        let label = label(&command);
        let child = self.namespaces.spawn(command);
        let child = child.map_err(|error| LabError::io("spawn", &label, error))?;
        LabProcess::new(child, label)
    }

    /// Runs a command inside the node to its end, for at most two minutes.
    pub fn run(&self, command: Command) -> Result<Output, LabError> {
        self.run_within(command, RUN_BOUND)
    }

    /// Runs a command inside the node; it is killed when it has not ended within `bound`.
    pub fn run_within(&self, mut command: Command, bound: Duration) -> Result<Output, LabError> {
        let label = label(&command);
        let failed = |error: io::Error| LabError::io("run", &label, error);
        // Files, not pipes: a descendant that keeps them open cannot hold up the caller.
        let mut stdout = capture_file().map_err(failed)?;
        let mut stderr = capture_file().map_err(failed)?;
        command.stdout(stdout.try_clone().map_err(failed)?);
        command.stderr(stderr.try_clone().map_err(failed)?);
        command.stdin(Stdio::null());
        let began = Instant::now();
        let status = self.spawn(command)?.wait(bound)?;
        let wall = began.elapsed();
        let stdout = contents(&mut stdout).map_err(failed)?;
        let stderr = contents(&mut stderr).map_err(failed)?;
        Ok(Output { command: label, status, stdout, stderr, wall })
    }

    /// Runs a line of `bash` inside the node; its failure is an error.
    pub fn sh(&self, line: &str) -> Result<Output, LabError> {
        let mut command = Command::new("bash");
        command.args(["-c", line]);
        self.run(command)?.success()
    }

    /// Starts the product's daemon; see [`Daemon`].
    pub fn start_daemon(&self, binary: &Path) -> Result<Daemon<'_>, LabError> {
        Daemon::start(self, binary, &[])
    }

    /// As [`Node::start_daemon`], with further arguments of `node run`.
    pub fn start_daemon_with(&self, binary: &Path, args: &[&str]) -> Result<Daemon<'_>, LabError> {
        Daemon::start(self, binary, args)
    }

    /// Connects to a TCP port as a process of this node would.
    pub fn connect(&self, to: SocketAddr, bound: Duration) -> Result<TcpStream, LabError> {
        self.network
            .run(|| TcpStream::connect_timeout(&to, bound))
            .map_err(|error| LabError::io("connect", format!("{} to {to}", self.name), error))
    }

    /// As [`Node::connect`], tried again every `pause` until somebody listens there, for `bound` in
    /// all. Whoever measures something meanwhile is disturbed by one refused call each time.
    pub fn connect_soon(
        &self,
        to: SocketAddr,
        pause: Duration,
        bound: Duration,
    ) -> Result<TcpStream, LabError> {
        let end = Instant::now() + bound;
        let attempt = || loop {
            match TcpStream::connect_timeout(&to, bound) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    if Instant::now() > end {
                        return Err(error);
                    }
                    std::thread::sleep(pause);
                }
                done => return done,
            }
        };
        self.network
            .run(attempt)
            .map_err(|error| LabError::io("connect", format!("{} to {to}", self.name), error))
    }

    /// Copies a host file into the node.
    pub fn put(&self, from: &Path, to: &str) -> Result<(), LabError> {
        let failed = |error| LabError::io("put", format!("{}:{to}", self.name), error);
        let target = self.host_path(to);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::copy(from, target).map_err(failed)?;
        Ok(())
    }

    /// Puts another file over `path`, for this node only. `with` is a path of the node too.
    pub fn overlay(&self, path: &str, with: &str) -> Result<(), LabError> {
        let mut command = Command::new("mount");
        command.args(["--bind", with, path]);
        self.run(command)?.success().map(drop)
    }

    /// Bytes that went over the node's link.
    pub fn link_bytes(&self) -> Result<LinkBytes, LabError> {
        let path = PathBuf::from(format!("/proc/{}/net/dev", self.init));
        let text = proc::read(&path)?;
        let fields = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let fields: Option<Vec<u64>> =
            fields.map(|line| line.split_whitespace().filter_map(|f| f.parse().ok()).collect());
        match fields.as_deref() {
            Some([rx, _, _, _, _, _, _, _, tx, ..]) => Ok(LinkBytes { rx: *rx, tx: *tx }),
            _ => Err(LabError::format("link", path.display().to_string(), "no eth0")),
        }
    }

    /// Cuts the node's link, as pulling the cable would: nobody is told.
    pub fn cut_link(&self) -> Result<(), LabError> {
        set_port(&self.switch, self.index, false)
    }

    /// Joins a cut link again.
    pub fn restore_link(&self) -> Result<(), LabError> {
        set_port(&self.switch, self.index, true)
    }

    /// Ends the node at once with all its processes; their peers see closed connections.
    ///
    /// Pid 1 has let go of its file system when this returns, which is when the kernel kills the
    /// rest. It has not gone: it stays until all processes of the node are reaped, those too that
    /// the caller holds.
    pub fn power_off(&self) -> Result<(), LabError> {
        let failed = |error| LabError::io("power-off", &self.name, error);
        self.namespaces.kill().map_err(failed)?;
        let root = PathBuf::from(format!("/proc/{}/root", self.init));
        let began = Instant::now();
        while fs::read_link(&root).is_ok() {
            if began.elapsed() > RUN_BOUND {
                let object = self.name.clone();
                return Err(LabError::Timeout { phase: "power-off", object, bound: RUN_BOUND });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The pid on the host of the process that this node calls `pid`.
    pub fn host_pid(&self, pid: u32) -> Result<u32, LabError> {
        let inner = self.proc_dir(pid);
        let object = || format!("{}: pid {pid}", self.name);
        let wanted = proc::namespace_pids(&inner)?;
        let namespace = fs::read_link(inner.join("ns/pid"));
        let namespace = namespace.map_err(|error| LabError::io("pid", object(), error))?;
        for candidate in proc::pids(Path::new("/proc"))? {
            let dir = PathBuf::from(format!("/proc/{candidate}"));
            // Processes come and go while the list is read: one that is gone is not the one.
            let Ok(pids) = proc::namespace_pids(&dir) else { continue };
            let same = fs::read_link(dir.join("ns/pid")).is_ok_and(|link| link == namespace);
            if same && pids.ends_with(&wanted) {
                return Ok(candidate);
            }
        }
        Err(LabError::format("pid", object(), "no such process on the host"))
    }

    /// Memory of the process that this node calls `pid`.
    pub fn memory(&self, pid: u32) -> Result<Memory, LabError> {
        proc::memory(&self.proc_dir(pid))
    }

    /// The directory of the process that this node calls `pid`, in the node's own `/proc`.
    pub fn proc_dir(&self, pid: u32) -> PathBuf {
        self.host_path(format!("/proc/{pid}"))
    }

    /// All processes of the node, by the pids it gives them.
    pub fn pids(&self) -> Result<Vec<u32>, LabError> {
        proc::pids(&self.host_path("/proc"))
    }

    /// Counts what the node holds, to be compared with a later count.
    pub fn census(&self) -> Result<Census, LabError> {
        Census::take(self)
    }
}

fn address(index: usize) -> Ipv4Addr {
    // Bounded by the lab's limit on nodes.
    Ipv4Addr::new(10, 77, 0, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

fn capture_file() -> io::Result<File> {
    Ok(File::from(memfd_create("lab-output", MemfdFlags::CLOEXEC)?))
}

fn label(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
