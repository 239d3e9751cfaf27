//! Doing something inside a node's namespaces.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

/// The namespaces of a process, reached through its pidfd.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pidfd: OwnedFd,
    kinds: ThreadNameSpaceType,
}

impl Namespaces {
    /// All namespaces of a node, by the host pid of its pid 1.
    pub(crate) fn of_node(pid: u32) -> io::Result<Self> {
        let kinds = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        Self::of(pid, kinds)
    }

    /// The network namespace only.
    pub(crate) fn of_network(pid: u32) -> io::Result<Self> {
        Self::of(pid, ThreadNameSpaceType::NETWORK)
    }

    fn of(pid: u32, kinds: ThreadNameSpaceType) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pidfd: pidfd_open(pid, PidfdFlags::empty())?, kinds })
    }

    /// Runs `work` on a thread of its own that has entered the namespaces.
    ///
    /// What `work` makes there stays there: a process it spawns lives in the node, a socket it
    /// opens belongs to the node's network. The thread ends with `work`, so the caller's own
    /// namespaces are never changed.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let entered = || {
            if self.kinds.contains(ThreadNameSpaceType::MOUNT) {
                leave_shared_directories()?;
            }
            move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&self.pidfd), self.kinds)?;
            work()
        };
        thread::scope(|scope| {
            let worker =
                thread::Builder::new().name("lab-enter".into()).spawn_scoped(scope, entered)?;
            worker.join().unwrap_or_else(|_| Err(io::Error::other("the entering thread panicked")))
        })
    }

    /// Kills the process whose namespaces these are.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Spawns `command` inside the namespaces; it is a direct child of the caller.
    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move || command.spawn())
    }
}

/// Gives the calling thread a root and working directory of its own, as joining a mount namespace
/// demands.
fn leave_shared_directories() -> io::Result<()> {
    // The deprecation is about UnshareFlags::FILES, which could pull descriptors from under other
    // threads. FS only copies the root, the working directory and the umask.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::FS)?;
    Ok(())
}
