//! The same function in a container: what a platform does without the product.
//!
//! A container has the host's `/usr` and `/etc`, read only, and the node's network; it has no user
//! namespace, no limits and no seccomp filter, all of which would only make it slower.

use crate::cluster::ANSWER_BOUND;
use crate::error::BenchError;
use mitosis_lab::{LabProcess, Node};
use serde_json::json;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What runs in a container.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Its command line.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Directories of the node that it sees, besides `/usr` and `/etc`; `true` if it may write there.
    pub binds: Vec<(PathBuf, bool)>,
}

impl Spec {
    /// The same as a process of the node, without a container.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.args[0]);
        command.args(&self.args[1..]);
        command.envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        silent(&mut command);
        command
    }
}

/// An OCI bundle on one node, and the runtime that runs it.
pub struct Container<'lab> {
    node: &'lab Node,
    runtime: &'static str,
    id: String,
    dir: String,
    mounts: String,
    /// Killed on drop.
    _view: LabProcess,
}

impl<'lab> Container<'lab> {
    /// Writes the bundle for `runtime` (`runc` or `crun`); `name` is free on that node.
    pub fn new(
        node: &'lab Node,
        runtime: &'static str,
        name: &str,
        spec: &Spec,
    ) -> Result<Self, BenchError> {
        let dir = format!("/run/lab/{runtime}-{name}");
        let root = node.host_path(&dir).join("rootfs");
        let failed = |error| BenchError::io("container", root.display())(error);
        for dir in ["usr", "etc", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(dir)).map_err(failed)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = root.join(name);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(format!("usr/{name}"), link).map_err(failed)?;
            }
        }
        let view = view(node)?;
        let mounts = format!("--mount=/proc/{}/ns/mnt", view.node_pid()?);
        let config = config(spec).to_string();
        std::fs::write(node.host_path(&dir).join("config.json"), config).map_err(failed)?;
        Ok(Container {
            node,
            runtime,
            id: format!("{}-{name}", node.name()),
            dir,
            mounts,
            _view: view,
        })
    }

    /// Milliseconds from `run` of the runtime until `ask` succeeded; the container is then removed.
    pub fn run(&self, ask: impl Fn() -> Result<(), BenchError>) -> Result<f64, BenchError> {
        let start = Instant::now();
        let running = self.start(ask)?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        running.end()?;
        Ok(ms)
    }

    /// Starts it and waits until `ask` succeeds.
    pub fn start(
        &self,
        ask: impl Fn() -> Result<(), BenchError>,
    ) -> Result<Running<'_, 'lab>, BenchError> {
        let process = self.node.spawn(self.run_command())?;
        let running = Running { container: self, process };
        match retry(ask) {
            Ok(()) => Ok(running),
            Err(error) => {
                let _ = running.end();
                let said = self.node.run(self.run_command())?;
                let said = said.stderr.trim().to_owned();
                self.node.run(self.verb(&["delete", "--force", &self.id]))?;
                let cause = format!("{error}; {} says: {said}", self.runtime);
                Err(BenchError::wrong("container", cause))
            }
        }
    }

    fn run_command(&self) -> Command {
        self.verb(&["run", "--bundle", &self.dir, &self.id])
    }

    fn verb(&self, args: &[&str]) -> Command {
        // One exec more, about a millisecond.
        let mut command = Command::new("nsenter");
        command.args([&self.mounts, self.runtime]);
        let state = format!("/run/lab/state-{}", self.runtime);
        command.args(["--root", &state]).args(args).current_dir("/");
        silent(&mut command);
        command
    }
}

/// A container that runs; what it was started with removes it when it has ended.
pub struct Running<'a, 'lab> {
    container: &'a Container<'lab>,
    process: LabProcess,
}

impl Running<'_, '_> {
    /// Freezes it, as a platform does with a container that it keeps warm.
    pub fn pause(&self) -> Result<(), BenchError> {
        let Container { node, id, .. } = self.container;
        node.run(self.container.verb(&["pause", id]))?.success()?;
        Ok(())
    }

    /// Milliseconds from the decision to go on until `ask` succeeded.
    pub fn resume(&self, ask: impl Fn() -> Result<(), BenchError>) -> Result<f64, BenchError> {
        let Container { node, id, .. } = self.container;
        let start = Instant::now();
        let mut process = node.spawn(self.container.verb(&["resume", id]))?;
        retry(ask)?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        process.wait(ANSWER_BOUND)?;
        Ok(ms)
    }

    /// Ends and removes it.
    pub fn end(mut self) -> Result<(), BenchError> {
        let Container { node, id, .. } = self.container;
        node.run(self.container.verb(&["kill", id, "KILL"]))?;
        self.process.wait(ANSWER_BOUND)?;
        // `run` in the foreground has removed it already; this is for when it could not.
        node.run(self.container.verb(&["delete", "--force", id]))?;
        Ok(())
    }
}

/// A process of `node` that holds the mounts which runtimes see: the node's, without a second
/// hierarchy of cgroups. Debian's `crun` refuses machines that have both versions, and both runtimes
/// are to do the same work.
fn view(node: &Node) -> Result<LabProcess, BenchError> {
    let line = "! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified; \
                echo; exec sleep infinity";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", line]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = node.spawn(command)?;
    if let Some(mut stdout) = holder.take_stdout() {
        stdout.read_exact(&mut [0]).map_err(BenchError::io("container", "mounts"))?;
    }
    Ok(holder)
}

/// Asks again until it succeeds, for a bounded time.
pub fn retry<T>(ask: impl Fn() -> Result<T, BenchError>) -> Result<T, BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    loop {
        match ask() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(crate::response::RETRY),
        }
    }
}

fn silent(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

/// The bundle's `config.json`.
fn config(spec: &Spec) -> serde_json::Value {
    let bind = |path: &str, writable: bool| {
        json!({ "destination": path, "source": path, "type": "bind",
                "options": ["rbind", if writable { "rw" } else { "ro" }] })
    };
    let mount = |to: &str, kind: &str| json!({ "destination": to, "source": kind, "type": kind, "options": ["nosuid"] });
    let mut mounts = vec![mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/tmp", "tmpfs")];
    mounts.extend([bind("/usr", false), bind("/etc", false)]);
    mounts
        .extend(spec.binds.iter().map(|(path, writable)| bind(&path.to_string_lossy(), *writable)));
    let mut env = vec!["PATH=/usr/bin:/bin".to_owned()];
    env.extend(spec.env.iter().cloned());
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": spec.args,
            "env": env,
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "function",
        "mounts": mounts,
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                           { "type": "mount" }],
        },
    })
}
