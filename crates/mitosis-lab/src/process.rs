//! A process of a node, held by the lab.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::LabError;

/// A running process inside a node. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct LabProcess {
    child: Child,
    pidfd: OwnedFd,
    label: String,
}

impl LabProcess {
    pub(crate) fn new(mut child: Child, label: String) -> Result<Self, LabError> {
        match pidfd_of(child.id()) {
            Ok(pidfd) => Ok(Self { child, pidfd, label }),
            Err(error) => {
                // Not ours to lose: without a pidfd nobody would end it later. Both calls can
                // only fail if it has gone by itself.
                let _ = child.kill();
                let _ = child.wait();
                Err(LabError::io("spawn", label, error))
            }
        }
    }

    /// The pid as the host sees it.
    pub fn host_pid(&self) -> u32 {
        self.child.id()
    }

    /// The pid as the node sees it.
    pub fn node_pid(&self) -> Result<u32, LabError> {
        crate::proc::inner_pid(self.host_pid())
    }

    /// The standard input, once, if it was piped.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The standard output, once, if it was piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The standard error, once, if it was piped.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; one to a process that has already ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(LabError::io("signal", &self.label, error)),
        }
    }

    /// Waits for the end, at most `bound`.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus, LabError> {
        let end = Instant::now() + bound;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = rustix::event::Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut polled, Some(&wait)) {
                Ok(0) => {
                    let object = self.label.clone();
                    return Err(LabError::Timeout { phase: "wait", object, bound });
                }
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LabError::io("wait", &self.label, error)),
            }
        }
        self.child.wait().map_err(|error| LabError::io("wait", &self.label, error))
    }

    /// Kills the process with SIGKILL and reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(30))
    }
}

impl Drop for LabProcess {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the node's end takes the process anyway.
        let _ = self.kill();
    }
}

fn pidfd_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// What a finished command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are no UTF-8 are replaced.
    pub stderr: String,
    /// From before the spawn until after the end.
    pub wall: Duration,
}

impl Output {
    /// The exit code; 128 + N after signal N.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(127))
    }

    /// The output, if the command succeeded.
    pub fn success(self) -> Result<Self, LabError> {
        if self.status.success() {
            return Ok(self);
        }
        Err(LabError::Command {
            phase: "run",
            status: format!("exit {}", self.code()),
            stderr: tail(&self.stderr, 2000),
            command: self.command,
        })
    }

    /// Standard output as JSON, if the command succeeded.
    pub fn json(self) -> Result<serde_json::Value, LabError> {
        let output = self.success()?;
        serde_json::from_str(&output.stdout).map_err(|error| {
            let cause = format!("{error}: {}", tail(&output.stdout, 400));
            LabError::format("json", output.command, cause)
        })
    }
}

/// The last `limit` bytes of `text`, from a character boundary on.
pub(crate) fn tail(text: &str, limit: usize) -> String {
    let text = text.trim_end();
    let from = text.len().saturating_sub(limit);
    let from = (from..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    text[from..].to_owned()
}

/// All that was written to `file`, whose offset its writer moved.
pub(crate) fn contents(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
