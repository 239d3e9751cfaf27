//! Time to first response: from the decision to start a function to its HTTP answer.

use crate::cluster::{ANSWER_BOUND, exchange, python_command};
use crate::error::BenchError;
use mitosis_lab::{LabProcess, Node};
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The function: arguments are the port and the MiB of state.
pub const HELLO: &str = include_str!("python/hello.py");

/// How long to wait before asking again a port at which nobody listens yet.
const RETRY: Duration = Duration::from_micros(200);

/// Asks the function at `to` once.
pub fn get(stream: TcpStream) -> Result<(), BenchError> {
    let request = b"GET /first HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    let answer = exchange(stream, request).map_err(BenchError::io("response", "HTTP"))?;
    let text = String::from_utf8_lossy(&answer);
    if text.starts_with("HTTP/1.1 200") && text.contains("\"hello\": \"/first\"") {
        return Ok(());
    }
    Err(BenchError::wrong("response", format!("{text:?}")))
}

/// Asks as soon as `connect` succeeds.
pub fn first(mut connect: impl FnMut() -> Result<TcpStream, BenchError>) -> Result<(), BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    loop {
        match connect() {
            Ok(stream) => return get(stream),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Asks at `port` of `node` as a process of that node, as soon as somebody listens there.
pub fn answer(node: &Node, port: u16) -> Result<(), BenchError> {
    get(node.connect_soon(SocketAddr::new(node.ip(), port), RETRY, ANSWER_BOUND)?)
}

/// Connects to `port` of `node` as a process of that node.
pub fn local(node: &Node, port: u16) -> Result<TcpStream, BenchError> {
    Ok(node.connect(SocketAddr::new(node.ip(), port), ANSWER_BOUND)?)
}

/// Milliseconds from the spawn of `command` on `node` to the first answer at `port`; the process
/// comes back too.
pub fn timed(node: &Node, command: Command, port: u16) -> Result<(f64, LabProcess), BenchError> {
    let start = Instant::now();
    let process = node.spawn(command)?;
    answer(node, port)?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, process))
}

/// Milliseconds to the first response of the function in a new `python3`.
pub fn python_anew(node: &Node, port: u16, state_mib: &str) -> Result<f64, BenchError> {
    let (ms, mut process) = timed(node, python_command(HELLO, port, &[state_mib]), port)?;
    process.kill()?;
    Ok(ms)
}

/// An OCI bundle with the function on one node.
pub struct Bundle<'lab> {
    node: &'lab Node,
    id: String,
    port: u16,
}

const BUNDLE: &str = "/run/lab/bundle";

impl<'lab> Bundle<'lab> {
    /// Writes the bundle. The file system is the node's `/usr` and `/etc`, the network the node's.
    pub fn new(node: &'lab Node, port: u16, state_mib: &str) -> Result<Self, BenchError> {
        let root = node.host_path(BUNDLE).join("rootfs");
        let failed = |error| BenchError::io("runc", root.display())(error);
        for dir in ["usr", "etc", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(dir)).map_err(failed)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = root.join(name);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(format!("usr/{name}"), link).map_err(failed)?;
            }
        }
        let config = config(port, state_mib).to_string();
        std::fs::write(node.host_path(BUNDLE).join("config.json"), config).map_err(failed)?;
        Ok(Bundle { node, id: format!("{}-function", node.name()), port })
    }

    /// Milliseconds from `runc run` to the first response; the container is then removed.
    pub fn run(&self) -> Result<f64, BenchError> {
        let (ms, mut process) =
            match timed(self.node, self.command(&["run", "--bundle", BUNDLE, &self.id]), self.port)
            {
                Ok(started) => started,
                Err(error) => {
                    let said =
                        self.node.run(self.command(&["run", "--bundle", BUNDLE, &self.id]))?;
                    let said = said.stderr.trim().to_owned();
                    self.node.run(self.command(&["delete", "--force", &self.id]))?;
                    return Err(BenchError::wrong("runc", format!("{error}; runc says: {said}")));
                }
            };
        self.node.run(self.command(&["kill", &self.id, "KILL"]))?.success()?;
        process.wait(ANSWER_BOUND)?;
        // `runc run` in the foreground has removed it already; this is for when it could not.
        self.node.run(self.command(&["delete", "--force", &self.id]))?;
        Ok(ms)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.args(["--root", "/run/lab/runc"]).args(args).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// The bundle's `config.json`.
fn config(port: u16, state_mib: &str) -> serde_json::Value {
    let bind = |path: &str| {
        json!({ "destination": path, "source": path, "type": "bind",
                "options": ["rbind", "ro"] })
    };
    let mount = |to: &str, kind: &str| json!({ "destination": to, "source": kind, "type": kind, "options": ["nosuid"] });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/usr/bin/python3", "-c", HELLO, port.to_string(), state_mib],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "function",
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/tmp", "tmpfs"),
                   bind("/usr"), bind("/etc")],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                           { "type": "mount" }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_lab::Lab;

    #[test]
    fn the_function_answers_from_a_cold_start_of_either_kind() {
        let lab = Lab::new("cold", 1).expect("lab");
        assert!(python_anew(lab.node(0), 7001, "0").expect("python3") > 0.0);
        let bundle = Bundle::new(lab.node(0), 7002, "0").expect("bundle");
        // Twice: the first must have left nothing that the second stumbles over.
        assert!(bundle.run().expect("runc run") > 0.0);
        assert!(bundle.run().expect("runc run") > 0.0);
    }
}
