//! The descriptors that a child's plan asks its node for: standard streams, listening sockets, namespaces,
//! memory.

use super::{Batch, Stdio};
use crate::error::NodeError;
use crate::listeners::Share;
use crate::recipe::{self, Recipe};
use mitosis_descriptor::Phase;
use mitosis_restore::Provided;
use mitosis_sandbox::Guard;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

impl Batch<'_> {
    /// The descriptors that the plan asks for, in its order, and the shares in sockets among them.
    /// What is between the processes of its tree is `of_tree`'s to give.
    pub(crate) fn provide(
        &self,
        recipe: &Recipe,
        (log, filled): (Option<&File>, Option<&OwnedFd>),
        guard: &Guard,
        mut of_tree: impl FnMut(&Provided) -> Option<OwnedFd>,
    ) -> Result<(Vec<OwnedFd>, Vec<Share>), NodeError> {
        let mut shares = Vec::new();
        let mut fds = Vec::with_capacity(recipe.plan.provided.len());
        for wanted in &recipe.plan.provided {
            let object = || format!("{wanted:?}");
            let failed = |e| NodeError::step(Phase::Build, object(), e);
            fds.push(match wanted {
                Provided::Stdio(stream) => self.stdio(*stream, log).map_err(failed)?,
                Provided::Member(_) | Provided::Terminal(_) => of_tree(wanted)
                    .ok_or_else(|| NodeError::step(Phase::Build, object(), "not in its tree"))?,
                Provided::Listener { key, fd, spec } => {
                    let listeners = &self.node.listeners;
                    let siblings = || self.node.children.pids_of_seed(&self.seed);
                    let share = listeners.share(&self.seed, *key, *fd, spec, siblings)?;
                    let copy = share.as_fd().try_clone_to_owned().map_err(failed)?;
                    shares.push(share);
                    copy
                }
                Provided::TimeNamespace => {
                    let gone = || NodeError::step(Phase::Sandbox, "time namespace", "gone");
                    let space = recipe.space.as_ref().ok_or_else(gone)?;
                    space.namespace.as_fd().try_clone_to_owned().map_err(failed)?
                }
                Provided::UserNamespace => {
                    File::open(format!("/proc/{}/ns/user", guard.pid)).map_err(failed)?.into()
                }
                other => recipe::provide_memory(self.node, &recipe.descriptor, other, filled)?
                    .ok_or_else(|| NodeError::step(Phase::Build, object(), "unknown"))?,
            });
        }
        Ok((fds, shares))
    }

    fn stdio(&self, stream: u32, log: Option<&File>) -> std::io::Result<OwnedFd> {
        match (self.stdio, log) {
            (Stdio::Caller(fds), _) => fds[stream.min(2) as usize].try_clone(),
            (Stdio::Log, Some(log)) if stream > 0 => Ok(log.try_clone()?.into()),
            (Stdio::Log, _) => Ok(File::open("/dev/null")?.into()),
        }
    }
}
