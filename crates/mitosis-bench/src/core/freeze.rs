//! How long the parent does not run: the longest gap that its spinning thread sees.

use super::Bed;
use crate::cluster::{ask_json, monotonic_ns, python};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};

/// The parent that looks at the clock.
pub const SPINNER: &str = include_str!("../python/spinner.py");

/// Pairs of CLOCK_MONOTONIC nanoseconds: last look before, first look after.
pub type Gaps = Vec<(u64, u64)>;

const PORT: u16 = 7101;

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let node = bed.owner.node;
    let parent = python(node, SPINNER, PORT, &[])?;
    let (mut plain, mut frozen, mut said) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.runs {
        let around: Gaps = ask_json(node, PORT, b"fork\n")?;
        plain.extend(longest(&around));
        let _: Gaps = ask_json(node, PORT, b"gaps\n")?;
        let from = monotonic_ns();
        let seed = bed.owner.prepare(parent.pid)?;
        let until = monotonic_ns();
        let gaps: Gaps = ask_json(node, PORT, b"gaps\n")?;
        let during = gaps.iter().filter(|gap| gap.1 >= from && gap.0 <= until);
        frozen.extend(longest(during));
        said.push(seed.freeze_us as f64);
        bed.owner.remove(&seed.seed)?;
    }
    let name = "longest gap around a plain fork()";
    let peer = section.add(Figure::new(name, Samples::from_ns(&plain)));
    section.add(
        Figure::new("longest gap around prepare", Samples::from_ns(&frozen))
            .beside("plain fork()", peer)
            .promised(Target::RatioMost(1.5)),
    );
    section.add(Figure::new("freeze_us, as prepare reports it", Samples::new("us", said)));
    Ok(())
}

/// The longest gap, if there was any.
pub fn longest<'a>(gaps: impl IntoIterator<Item = &'a (u64, u64)>) -> Option<u64> {
    gaps.into_iter().map(|(before, after)| after.saturating_sub(*before)).max()
}
