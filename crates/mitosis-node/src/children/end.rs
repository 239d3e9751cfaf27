//! How a child ends, and what is left to do then.

use super::Start;
use rustix::process::{Signal, pidfd_send_signal};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// The end of a child.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Raw wait status of the main process, if it exited by itself.
    pub status: Option<i32>,
    /// Why it was ended.
    pub reason: Option<String>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, self.status) {
            (Some(reason), _) => f.write_str(reason),
            (None, Some(raw)) if raw & 0x7f == 0 => {
                write!(f, "exited with status {}", (raw >> 8) & 0xff)
            }
            (None, Some(raw)) => write!(f, "ended by signal {}", raw & 0x7f),
            (None, None) => f.write_str("ended"),
        }
    }
}

/// Exit status as a shell has it.
pub(crate) fn shell_status(end: &End) -> i32 {
    match end.status {
        Some(raw) if raw & 0x7f == 0 => (raw >> 8) & 0xff,
        Some(raw) => 128 + (raw & 0x7f),
        // Whoever is ended by its node is ended by SIGKILL.
        None => 128 + 9,
    }
}

/// The guard of a running child: pid 1 of its namespace.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// Readable when the namespace is empty.
    pub pidfd: OwnedFd,
}

impl Guarded {
    /// Ends the guard, and with it everything in its namespace, and reaps it.
    pub fn end(self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}

/// What is left to do when everything of a child has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The child.
    pub start: Start,
    /// How it ended, unless that was told when its main process exited.
    pub news: Option<End>,
    /// Its guard, if there is one to be reaped.
    pub guard: Option<Guarded>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_a_shells() {
        let end = |status| End { status, reason: None };
        assert_eq!(shell_status(&end(Some(3 << 8))), 3);
        assert_eq!(shell_status(&end(Some(15))), 143);
        assert_eq!(shell_status(&end(Some(11 | 0x80))), 139);
        assert_eq!(shell_status(&end(None)), 137);
    }
}
