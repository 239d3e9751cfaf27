//! One remote fault, beside a bare fault and a bare round trip.

use super::Bed;
use crate::cluster::{Parent, ask_json, helper};
use crate::error::BenchError;
use crate::helper::BLOB;
use crate::peers::{bare_remote_faults, bare_server, round_trips};
use crate::report::{Figure, Samples, Section, Target};
use mitosis_sys::floors::{Backing, fault_latency};
use serde::Deserialize;

const BLOB_PORT: u16 = 7106;
const BLOB_MIB: u16 = 64;

/// Scattered touches in one child.
const TOUCHES: usize = 200;

/// What a blob answers.
#[derive(Deserialize)]
pub(super) struct Touched {
    /// Whether every touched page held the right data.
    pub right: bool,
    /// Nanoseconds.
    pub ns: Vec<u64>,
}

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let _bare = bare_server(bed.owner.node)?;
    let parent = blob(bed)?;
    let (mut bare, mut trips, mut chains) = (vec![], vec![], vec![]);
    let (mut remote, mut pages) = (vec![], vec![]);
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        // One after the other, so that a noisy spell of the machine hits all of them.
        let faults = fault_latency(Backing::Anonymous, TOUCHES, 1, None);
        bare.extend(faults.map_err(BenchError::io("bare fault", "userfaultfd"))?);
        trips.extend(round_trips(bed.owner.node, bed.host.node, TOUCHES)?);
        chains.extend(bare_remote_faults(bed.owner.node, bed.host.node, TOUCHES)?);
        // A new seed on a node that remembers nothing: the next child of this one would follow the trail of
        // the last, and the first of another what children of the program touched.
        bed.owner.renew()?;
        bed.quiet.wait(0);
        let seed = bed.owner.prepare(parent.pid)?;
        // No template is made beside the touches.
        let child = bed.host.fork_direct(&seed.reference)?;
        // First the code paths of the command itself, so that only data is missing.
        let warm = command(bed, "random 1")?;
        // And the rest of the fork: the node makes a guard in place of the one that was used.
        bed.quiet.wait(0);
        let before = fetched(bed, child.pid)?;
        let touched = command(bed, &format!("random {TOUCHES}"))?;
        pages.push((fetched(bed, child.pid)? - before) as f64 / TOUCHES as f64);
        bed.host.end(child.pid)?;
        bed.owner.remove(&seed.seed)?;
        if !(warm.right && touched.right) {
            return Err(BenchError::wrong("fault", "the child read wrong data"));
        }
        remote.extend(touched.ns);
    }
    let bare = section.add(Figure::new("bare uffd fault", Samples::from_ns(&bare)));
    let trip = section.add(Figure::new("bare 4 KiB round trip", Samples::from_ns(&trips)));
    let remote = Samples::from_ns(&remote);
    section.add(
        Figure::new("remote fault over TCP, scattered", remote.clone())
            .beside("(bare fault + bare round trip)", bare + trip)
            .promised(Target::RatioMost(1.5)),
    );
    let chain = Figure::new(
        "bare fault answered after a bare round trip, in one chain",
        Samples::from_ns(&chains),
    );
    let chain = section.add(chain.beside("(bare fault + bare round trip)", bare + trip));
    section.add(
        Figure::new("remote fault over TCP, scattered (the same samples)", remote)
            .beside("the bare chain", chain),
    );
    section.add(Figure::new("pages moved for each scattered touch", Samples::new("", pages)));
    Ok(())
}

/// The parent whose memory is touched, at rest: connections are not forked.
pub(super) fn blob(bed: &Bed<'_>) -> Result<Parent, BenchError> {
    let parent = helper(bed.owner.node, BLOB, BLOB_PORT, &[&BLOB_MIB.to_string()])?;
    // Connections are served in turn, so this answer means that the one of `helper` is closed; the
    // end of this one is seen here only once it is closed there.
    let _: Touched = ask_json(bed.owner.node, BLOB_PORT, b"nothing\n")?;
    Ok(parent)
}

/// Has the child do a command.
pub(super) fn command(bed: &Bed<'_>, line: &str) -> Result<Touched, BenchError> {
    ask_json(bed.host.node, BLOB_PORT, format!("{line}\n").as_bytes())
}

/// Pages that the child has been sent so far.
fn fetched(bed: &Bed<'_>, pid: i32) -> Result<u64, BenchError> {
    let row = bed.host.children()?.into_iter().find(|row| row.pid == pid);
    let row = row.ok_or_else(|| BenchError::wrong("ps", format!("no child {pid}")))?;
    Ok(row.pages_fetched + row.pages_prefetched)
}

/// MiB of the blob, for the sequential touch.
pub(super) const BLOB_SIZE_MIB: u16 = BLOB_MIB;
