//! The pager of this node: found or started, watched, started again.

use crate::config::Config;
use crate::error::NodeError;
use crate::log::Log;
use mitosis_descriptor::Phase;
use mitosis_pager::{PagerClient, PagerEvents};
use mitosis_sandbox::{Groups, Pool, PoolConfig};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a pager may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end, once told to.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running pager, with the guards that watch it.
pub(crate) struct Pager {
    /// Talks to it.
    pub client: PagerClient,
    /// Guards for its children.
    pub pool: Pool,
    pidfd: OwnedFd,
    /// Present when this very daemon started it, and so reaps it.
    process: Mutex<Option<Child>>,
}

impl Pager {
    /// Finds the pager that an earlier daemon of this node left, or starts one.
    pub fn start(config: &Config) -> Result<Pager, NodeError> {
        let path = config.run_path("pager.sock");
        let (client, process) = match PagerClient::connect(&path, REQUEST_TIMEOUT) {
            Ok(client) => (client, None),
            Err(_) => {
                let (client, process) = spawn(config)?;
                (client, Some(process))
            }
        };
        let pid = i32::try_from(client.pid()).ok().and_then(Pid::from_raw);
        let step = |cause: String| NodeError::step(Phase::Paging, "pager", cause);
        let pid = pid.ok_or_else(|| step(format!("answers with pid {}", client.pid())))?;
        let open = || pidfd_open(pid, PidfdFlags::empty()).map_err(|e| step(format!("pidfd: {e}")));
        let (pidfd, for_guards) = (open()?, open()?);
        let groups = Groups::new(&config.name, config.limits)?;
        let size = PoolConfig { node_net: config.pool, own_net: config.pool, groups };
        let pool = Pool::new(size, for_guards)?;
        Ok(Pager { client, pool, pidfd, process: Mutex::new(process) })
    }

    /// Kills it (its guards kill its children) and reaps it.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.reap();
    }

    /// Reaps it, once it is ending. One that does not end in time is killed.
    pub fn reap(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec { tv_sec: END_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&limit)), Ok(n) if n > 0) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut process) = process {
            let _ = process.wait();
        }
    }
}

fn spawn(config: &Config) -> Result<(PagerClient, Child), NodeError> {
    let path = config.run_path("pager.sock");
    let step = |cause: String| NodeError::step(Phase::Paging, "start the pager", cause);
    // A file, not our own standard error: the pager outlives whoever reads that.
    let log = config.state_dir.join("pager.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let log = log.map_err(|e| step(format!("its log: {e}")))?;
    let mut command = Command::new(&config.program);
    command.arg0("mitosis").arg("pager").arg("--listen-unix").arg(&path);
    command.arg("--page-timeout-ms").arg(config.page_timeout.as_millis().to_string());
    command.arg("--linger-ms").arg(config.linger.as_millis().to_string());
    if let Some(device) = &config.rdma_device {
        command.arg("--rdma-device").arg(device);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    let mut process = command.spawn().map_err(|e| step(e.to_string()))?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match PagerClient::connect(&path, REQUEST_TIMEOUT) {
            Ok(client) => return Ok((client, process)),
            Err(error) if Instant::now() > deadline => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(step(error.to_string()));
            }
            Err(_) => {}
        }
        if let Ok(Some(status)) = process.try_wait() {
            let log = config.state_dir.join("pager.log");
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(step(format!("{status}: {last}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The present pager; absent for a moment while a dead one is replaced.
#[derive(Default)]
pub(crate) struct PagerSlot {
    current: Mutex<Option<Arc<Pager>>>,
    changed: Condvar,
}

impl PagerSlot {
    /// The present pager; waits (bounded) while one is being started.
    pub fn get(&self) -> Result<Arc<Pager>, NodeError> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(current, START_TIMEOUT, |c| c.is_none());
        let (current, _) = waited.unwrap_or_else(PoisonError::into_inner);
        current.clone().ok_or_else(|| NodeError::step(Phase::Paging, "pager", "there is none"))
    }

    /// The present pager, if there is one right now.
    pub fn now(&self) -> Option<Arc<Pager>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it; returns the one before.
    pub fn set(&self, pager: Option<Arc<Pager>>) -> Option<Arc<Pager>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, pager);
        self.changed.notify_all();
        before
    }
}

/// Subscribes to the events of a pager, or says that it is gone.
pub(crate) fn events(pager: &Pager, log: Log) -> Option<PagerEvents> {
    pager.client.subscribe().map_err(|e| log.warn(format_args!("pager: {e}"))).ok()
}
