//! `bench core`: the promises of the primitive, each beside its peer, in one run.

mod copies;
mod fault;
mod freeze;
mod response;
mod start;
mod stream;

pub(crate) use copies::{FLOOR, brief, loops, seed as warm_seed, sustained};
pub(crate) use freeze::{Gaps, SPINNER, longest, watched};
pub(crate) use start::one as start_one;

use crate::Scale;
use crate::cluster::Member;
use crate::error::BenchError;
use crate::quiet::Quiet;
use crate::report::Section;
use crate::suite;
use mitosis_lab::Lab;
use std::time::Duration;

/// How long the runs of one part wait, all together, for a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same with fewer runs.
const PATIENCE_QUICK: Duration = Duration::from_secs(5);

/// One part of it: adds its figures to the section.
type Part = fn(&mut Bed<'_>, &mut Section) -> Result<(), BenchError>;

const PARTS: [(&str, Part); 13] = [
    ("freeze", freeze::run),
    ("start", start::run),
    ("response", response::run),
    ("fault", fault::run),
    ("stream", stream::run),
    ("copies", copies::run),
    ("sustained", suite::sustained::run),
    ("workloads", suite::workloads::run),
    ("synthetic", suite::synthetic::run),
    ("large", suite::large::run),
    ("learned", suite::learned::run),
    ("fdk", suite::fdk::run),
    ("criu", suite::criu::run),
];

/// So many of the first are `core`.
const OF_CORE: usize = 5;

/// What every part works on: the owner of the parents, and the node of the children.
pub(crate) struct Bed<'lab> {
    /// The node of the parents.
    pub owner: Member<'lab>,
    /// The node of the children.
    pub host: Member<'lab>,
    /// Samples of each figure.
    pub runs: usize,
    /// Smaller parents and fewer of them; or larger ones.
    pub scale: Scale,
    /// Asked before each run.
    pub quiet: Quiet,
}

/// The names of the parts, each a benchmark of its own too.
pub fn parts() -> impl Iterator<Item = &'static str> {
    PARTS.iter().map(|(name, _)| *name)
}

/// Runs the part of that name, or all for `core`; a part that fails says so in the notes of the
/// section and in `failures`, and the others still run.
pub fn run(
    name: &str,
    scale: &Scale,
    failures: &mut Vec<BenchError>,
) -> Result<Section, BenchError> {
    let runs = scale.runs;
    let mut section = Section::new(name);
    let parts = if name == "core" { &PARTS[..OF_CORE] } else { &PARTS[..] };
    let wanted = parts.iter().filter(|(part, _)| name == "core" || name == *part);
    for (index, (part, work)) in wanted.enumerate() {
        if index > 0 && scale.is_over(&mut section, part) {
            continue;
        }
        eprintln!("bench {part}: {runs} runs");
        // A lab for each part: what one leaves in memory or caches is not the next one's.
        let lab = Lab::new("bench", 2)?;
        let mut bed = Bed {
            owner: Member::start(&lab, 0)?,
            host: Member::start(&lab, 1)?,
            runs,
            scale: scale.clone(),
            quiet: Quiet::new(if scale.quick { PATIENCE_QUICK } else { PATIENCE }),
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
