//! `bench core`: the promises of the primitive, each beside its peer, in one run.

mod copies;
mod fault;
mod freeze;
mod response;
mod start;
mod stream;

pub(crate) use freeze::{Gaps, SPINNER, longest};

use crate::RUNS;
use crate::cluster::Member;
use crate::error::BenchError;
use crate::quiet::Quiet;
use crate::report::Section;
use mitosis_lab::Lab;
use std::time::Duration;

/// How long the runs of one part wait, all together, for a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same with fewer runs.
const PATIENCE_QUICK: Duration = Duration::from_secs(5);

/// One part of it: adds its figures to the section.
type Part = fn(&mut Bed<'_>, &mut Section) -> Result<(), BenchError>;

const PARTS: [(&str, Part); 6] = [
    ("freeze", freeze::run),
    ("start", start::run),
    ("response", response::run),
    ("fault", fault::run),
    ("stream", stream::run),
    (COPIES, copies::run),
];

/// The part that is not of `core`.
const COPIES: &str = "copies";

/// What every part works on: the owner of the parents, and the node of the children.
pub(crate) struct Bed<'lab> {
    /// The node of the parents.
    pub owner: Member<'lab>,
    /// The node of the children.
    pub host: Member<'lab>,
    /// Samples of each figure.
    pub runs: usize,
    /// Asked before each run.
    pub quiet: Quiet,
}

/// The names of the parts, each a benchmark of its own too.
pub fn parts() -> impl Iterator<Item = &'static str> {
    PARTS.iter().map(|(name, _)| *name)
}

/// Runs the part of that name, or all for `core`; a part that fails says so in the notes of the
/// section and in `failures`, and the others still run.
pub fn run(name: &str, runs: usize, failures: &mut Vec<BenchError>) -> Result<Section, BenchError> {
    let mut section = Section::new(name);
    for (part, work) in
        PARTS.iter().filter(|(part, _)| name == *part || (name == "core" && *part != COPIES))
    {
        eprintln!("bench {part}: {runs} runs");
        // A lab for each part: what one leaves in memory or caches is not the next one's.
        let lab = Lab::new("bench", 2)?;
        let mut bed = Bed {
            owner: Member::start(&lab, 0)?,
            host: Member::start(&lab, 1)?,
            runs,
            quiet: Quiet::new(if runs < RUNS { PATIENCE_QUICK } else { PATIENCE }),
        };
        if let Err(error) = work(&mut bed, &mut section) {
            section.notes.push(format!("{part} could not be measured: {error}"));
            failures.push(error);
        }
        section.notes.extend(bed.quiet.note(part));
        for mut member in [bed.host, bed.owner] {
            if let Err(error) = member.stop() {
                failures.push(error);
            }
        }
    }
    Ok(section)
}
