//! A set of nodes and the switch that joins them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::enter::Namespaces;
use crate::error::LabError;
use crate::node::Node;
use crate::process::{LabProcess, tail};

const SWITCH_SCRIPT: &str = include_str!("scripts/switch.sh");

/// How long a shell of the lab may take to end after its pipe was closed.
const END_BOUND: Duration = Duration::from_secs(10);

/// The most nodes of one lab; each has one address of 10.77.0.0/24.
const NODES_MAX: usize = 200;

/// Nodes in namespaces of their own, joined by a private switch. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    // Order matters: the nodes go before the switch, which clears up after them.
    nodes: Vec<Node>,
    name: String,
    _switch: Switch,
}

impl Lab {
    /// Makes `count` nodes named `PREFIX-xxxxxxxx-1` and so on, unique on this machine.
    ///
    /// The running executable and the working directory stay visible in the nodes even if they
    /// lie below `/tmp` or another directory that each node has for itself.
    pub fn new(prefix: &str, count: usize) -> Result<Self, LabError> {
        Self::with_shares(prefix, count, &[])
    }

    /// As [`Lab::new`], with further host paths that stay visible, read-only, in every node.
    pub fn with_shares(prefix: &str, count: usize, shares: &[&Path]) -> Result<Self, LabError> {
        if count > NODES_MAX {
            return Err(LabError::format("new", prefix, format!("more than {NODES_MAX} nodes")));
        }
        let mut random = [0_u8; 4];
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|error| LabError::io("name", prefix, error))?;
        let name = format!("{prefix}-{:08x}", u32::from_ne_bytes(random));
        let shares = all_shares(shares)?;
        let switch = Switch::start(&name)?;
        let mut nodes = Vec::with_capacity(count);
        for index in 0..count {
            nodes.push(Node::start(&switch, &name, index, &shares)?);
        }
        Ok(Self { nodes, name, _switch: switch })
    }

    /// The lab's unique name; the name of each of its nodes starts with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes, in the order of their addresses.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `index`, from 0 on.
    ///
    /// # Panics
    ///
    /// If the lab has no such node: its number was the caller's choice.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

/// The shared paths, canonical, none of them below another.
fn all_shares(extra: &[&Path]) -> Result<Vec<PathBuf>, LabError> {
    let own = std::env::current_exe();
    let own = own.map_err(|error| LabError::io("shares", "/proc/self/exe", error))?;
    let here = std::env::current_dir().map_err(|error| LabError::io("shares", ".", error))?;
    let mut shares: Vec<PathBuf> = Vec::new();
    for path in [own.as_path(), here.as_path()].iter().chain(extra) {
        let object = path.display().to_string();
        let path = path.canonicalize().map_err(|error| LabError::io("shares", object, error))?;
        if !shares.iter().any(|share| path.starts_with(share)) {
            shares.retain(|share| !share.starts_with(&path));
            shares.push(path);
        }
    }
    Ok(shares)
}

/// The network namespace with the bridge, held by a shell.
#[derive(Debug)]
pub(crate) struct Switch {
    _shell: Shell,
    network: Namespaces,
}

impl Switch {
    fn start(lab: &str) -> Result<Self, LabError> {
        let mut command = Command::new("unshare");
        command.args(["--net", "bash", "-c", SWITCH_SCRIPT, "lab-switch", lab]);
        let (shell, _) = Shell::start(command, lab)?;
        let network = Namespaces::of_network(shell.process.host_pid())
            .map_err(|error| LabError::io("switch", lab, error))?;
        Ok(Self { _shell: shell, network })
    }

    /// Plugs in the node whose pid 1 is `pid`: its end of the pair is called `eth0`.
    pub(crate) fn plug(&self, index: usize, pid: u32) -> Result<(), LabError> {
        self.ip(&format!(
            "link add port{index} type veth peer name eth0 netns {pid}\n\
             link set port{index} master br0\nlink set port{index} up"
        ))
    }

    /// A further handle on the switch's network, for a node to cut its own link.
    pub(crate) fn network(&self) -> Result<Namespaces, LabError> {
        Namespaces::of_network(self._shell.process.host_pid())
            .map_err(|error| LabError::io("switch", "network", error))
    }

    fn ip(&self, batch: &str) -> Result<(), LabError> {
        ip_batch(&self.network, batch)
    }
}

/// Takes port `index` of the switch up or down.
pub(crate) fn set_port(network: &Namespaces, index: usize, up: bool) -> Result<(), LabError> {
    let state = if up { "up" } else { "down" };
    ip_batch(network, &format!("link set port{index} {state}"))
}

/// Runs `ip -batch` inside `namespaces`.
pub(crate) fn ip_batch(namespaces: &Namespaces, batch: &str) -> Result<(), LabError> {
    let mut command = Command::new("bash");
    command.args(["-c", "ip -batch - <<<\"$1\"", "lab-ip", batch]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = namespaces
        .spawn(command)
        .and_then(Child::wait_with_output)
        .map_err(|error| LabError::io("network", batch, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        phase: "network",
        command: format!("ip {batch}"),
        status: output.status.to_string(),
        stderr: tail(&String::from_utf8_lossy(&output.stderr), 1000),
    })
}

/// A shell that lives until the lab closes the pipe to its standard input.
#[derive(Debug)]
pub(crate) struct Shell {
    // Closed first on drop, which is what tells the shell to end.
    input: Option<ChildStdin>,
    pub(crate) process: LabProcess,
}

impl Shell {
    /// Starts the shell and waits until it prints its line `ready...`, which is returned.
    pub(crate) fn start(mut command: Command, label: &str) -> Result<(Self, String), LabError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| LabError::io("start", label, error))?;
        let mut process = LabProcess::new(child, label.to_owned())?;
        let shell = process.take_stdin();
        let (stdout, stderr) = (process.take_stdout(), process.take_stderr());
        let mut line = String::new();
        if let Some(stdout) = stdout {
            // Has an end: the script is `set -e`, so it prints the line or ends.
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(|error| LabError::io("start", label, error))?;
        }
        if line.starts_with("ready") {
            return Ok((Self { input: shell, process }, line));
        }
        let status = process.kill()?.to_string();
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            std::io::Read::read_to_string(&mut stderr, &mut text)
                .map_err(|error| LabError::io("start", label, error))?;
        }
        Err(LabError::Command {
            phase: "start",
            command: label.to_owned(),
            status,
            stderr: tail(&text, 1000),
        })
    }

    /// Closes the pipe and waits for the end of the shell.
    pub(crate) fn end(&mut self) {
        drop(self.input.take());
        // If it has not ended by itself within the bound, dropping the process kills it.
        let _ = self.process.wait(END_BOUND);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.end();
    }
}
