//! The product's daemon on a node.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::LabError;
use crate::node::Node;
use crate::proc;
use crate::process::{LabProcess, Output, tail};

/// The port on which every daemon of a lab listens.
pub(crate) const PORT: u16 = 7000;

/// How long a daemon may take until its socket answers.
const START_BOUND: Duration = Duration::from_secs(20);

/// A running `mitosis node run` inside a node. Dropping it kills the daemon, and only it.
#[derive(Debug)]
pub struct Daemon<'lab> {
    node: &'lab Node,
    binary: PathBuf,
    args: Vec<String>,
    process: LabProcess,
}

impl<'lab> Daemon<'lab> {
    pub(crate) fn start(node: &'lab Node, binary: &Path, args: &[&str]) -> Result<Self, LabError> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let process = launch(node, binary, &args)?;
        Ok(Self { node, binary: binary.to_owned(), args, process })
    }

    /// The node it runs on.
    pub fn node(&self) -> &'lab Node {
        self.node
    }

    /// The daemon's process.
    pub fn process(&mut self) -> &mut LabProcess {
        &mut self.process
    }

    /// The daemon's pid as its node sees it.
    pub fn pid(&self) -> Result<u32, LabError> {
        self.process.node_pid()
    }

    /// The control socket, as a path of the node.
    pub fn socket(&self) -> String {
        socket(self.node)
    }

    /// A command line of the product, set up to speak to this daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("MITOSIS_SOCKET", self.socket()).env("NO_COLOR", "1");
        command
    }

    /// Runs the product's command line on the node, against this daemon.
    pub fn mitosis(&self, args: &[&str]) -> Result<Output, LabError> {
        self.node.run(self.command(args))
    }

    /// As [`Daemon::mitosis`] with `-o json`; a failure is an error.
    pub fn mitosis_json(&self, args: &[&str]) -> Result<serde_json::Value, LabError> {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        self.mitosis(&args)?.json()
    }

    /// What the daemon and its pager have written to standard error so far.
    pub fn log(&self) -> Result<String, LabError> {
        proc::read(&self.node.host_path(log(self.node)))
    }

    /// Kills the daemon with SIGKILL, leaving all other processes of the product alone.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.process.kill().map(drop)
    }

    /// Asks the daemon to end, and waits for it.
    pub fn terminate(&mut self, bound: Duration) -> Result<(), LabError> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(bound).map(drop)
    }

    /// Starts the daemon anew with the same arguments, after it has ended.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.kill()?;
        self.process = launch(self.node, &self.binary, &self.args)?;
        Ok(())
    }
}

fn socket(node: &Node) -> String {
    format!("/run/mitosis/{}.sock", node.name())
}

fn log(node: &Node) -> String {
    format!("/run/lab/{}.log", node.name())
}

fn launch(node: &Node, binary: &Path, args: &[String]) -> Result<LabProcess, LabError> {
    let failed = |error| LabError::io("daemon", node.name(), error);
    let log_path = node.host_path(log(node));
    let log = File::options().create(true).append(true).open(&log_path).map_err(failed)?;
    let listen = node.listens_at().to_string();
    let mut command = Command::new(binary);
    command.args(["node", "run", "--name", node.name(), "--listen", &listen]);
    command.args(["--socket", &socket(node)]).args(args).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let mut process = node.spawn(command)?;
    let host_socket = node.host_path(socket(node));
    let began = Instant::now();
    while UnixStream::connect(&host_socket).is_err() {
        if !process.is_running() {
            let status = process.wait(Duration::ZERO)?.to_string();
            let stderr = tail(&proc::read(&log_path)?, 2000);
            let command = format!("{} node run", binary.display());
            return Err(LabError::Command { phase: "daemon", command, status, stderr });
        }
        if began.elapsed() > START_BOUND {
            let object = format!("{}: {}", node.name(), tail(&proc::read(&log_path)?, 2000));
            return Err(LabError::Timeout { phase: "daemon", object, bound: START_BOUND });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}
