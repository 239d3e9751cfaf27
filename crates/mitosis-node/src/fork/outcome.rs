//! Whether a child came to run: what its guard and the pager say of one that did not, and of one that
//! crashed in what it had to call first.

use super::Batch;
use crate::error::NodeError;
use mitosis_descriptor::Phase;
use mitosis_pager::ChildId;
use mitosis_proto::ForkedChild;
use std::time::Duration;

/// How long the news of the end of a child that is seen to be gone may take.
const HOOKS_CRASHED: Duration = Duration::from_millis(200);

impl Batch<'_> {
    /// Ends a child that was never complete. Its guard's words went to whoever read them first, us
    /// or the pager.
    pub(crate) fn not_started(&self, id: u64, error: mitosis_restore::RestoreError) -> NodeError {
        let said = match &error {
            mitosis_restore::RestoreError::Silent(_) => self.guard_said(id),
            _ => None,
        };
        // Fails for one that the pager saw end.
        let _ = self.pager.client.end(ChildId(id), "it could not be built");
        match said {
            Some(reason) => NodeError::step(Phase::Sandbox, "child", reason),
            None => error.into(),
        }
    }

    /// Waits until the hooks of a child are done; gives the microseconds that it took.
    pub(super) fn await_hooks(&self, id: u64, child: &ForkedChild) -> Result<u64, NodeError> {
        let mut us = 0;
        let pids = std::iter::once(&child.pid).chain(&child.tree);
        let recipes = std::iter::once(&self.recipe).chain(&self.members);
        for (recipe, pid) in recipes.zip(pids) {
            us += match mitosis_restore::await_hooks(&recipe.plan, *pid)? {
                Some(us) => us,
                None => self.hooks_crashed(id).map(|()| 0)?,
            };
        }
        Ok(us)
    }

    /// Whether a child that ended before it was seen to go on crashed in its hooks. One that went on
    /// and ended by itself at once is none of our business.
    fn hooks_crashed(&self, id: u64) -> Result<(), NodeError> {
        match self.node.children.exit_status(id, HOOKS_CRASHED).map(|status| status & 0x7f) {
            None | Some(0) => Ok(()),
            Some(signal) => {
                let cause = format!("signal {signal} ended it there, or right afterwards");
                Err(NodeError::step(Phase::Build, "hook of the child", cause))
            }
        }
    }

    /// What the pager heard of a guard that could not make the child.
    fn guard_said(&self, id: u64) -> Option<String> {
        for _ in 0..20 {
            let stats = self.pager.client.stats().ok()?;
            let child = stats.into_iter().find(|one| one.child == ChildId(id))?;
            if let Some(reason) = child.reason {
                return Some(reason).filter(|reason| reason.contains("guard could"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}
