//! Processes that a child has forked itself are no children of this node's: nobody can say which of their
//! pages are whose while some are still remote. So those are fetched first, when such a process is made a
//! seed.

use crate::error::NodeError;
use crate::node::Node;
use crate::pager::Pager;
use mitosis_capture::CaptureError;
use mitosis_pager::ChildId;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long that may take.
const BOUND: Duration = Duration::from_secs(60);
/// Between two looks.
const TURN: Duration = Duration::from_millis(50);

/// Captures; if what is in the way is that a process of a child's has remote pages, once more when
/// it has none.
///
/// # Errors
/// As `capture`, also when the time was not enough; or the pager is gone.
pub(crate) fn fetched_first<T>(
    node: &Node,
    pager: &Pager,
    pid: i32,
    mut capture: impl FnMut() -> Result<T, CaptureError>,
) -> Result<Result<T, CaptureError>, NodeError> {
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let result = capture();
        let in_the_way = result.as_ref().err().is_some_and(CaptureError::is_of_userfaultfd);
        let others = if in_the_way { children_beside(node, pid) } else { Vec::new() };
        if others.is_empty() || begun.elapsed() >= BOUND {
            return Ok(result);
        }
        if !asked {
            others.iter().try_for_each(|child| pager.client.make_independent(*child))?;
            asked = true;
        }
        loop {
            // They run meanwhile, and lack nothing while they wait.
            std::thread::sleep(TURN);
            let all = pager.client.stats_of_running()?;
            let missing =
                |child: &ChildId| all.iter().any(|one| one.child == *child && !one.independent);
            if !others.iter().any(missing) || begun.elapsed() >= BOUND {
                break;
            }
        }
    }
}

/// The children of this node that are in the pid namespace of a process.
fn children_beside(node: &Node, pid: i32) -> Vec<ChildId> {
    let namespace =
        |pid: i32| -> Option<PathBuf> { std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok() };
    let Some(its) = namespace(pid) else { return Vec::new() };
    let children = node.children.live().into_iter();
    let beside = |id: &u64| {
        let start = node.children.start_of(*id);
        start.is_some_and(|start| namespace(start.pid).as_ref() == Some(&its))
    };
    children.filter(beside).map(ChildId).collect()
}
