//! Large parents: the n-th child beside a local `fork()`, how long the parent does not run, and what
//! its writes cost afterwards.

use super::parent::{self, command};
use crate::cluster::Parent;
use crate::core::{Bed, start_one, warm_seed, watched};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use mitosis_proto::Via;

const PORT: u16 = 7120;
const CHILDREN_MIB: usize = 500;
const FREEZE_MIB: usize = 1024;
/// Percent of the pages that the parent writes.
const WRITES: &str = "write 10";

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    children(bed, section)?;
    let most = [("small", "4 KiB pages", 10_000.0), ("huge", "huge pages", 1000.0)];
    for (kind, name, most_us) in most {
        freeze(bed, section, kind, name, most_us)?;
    }
    Ok(())
}

/// A parent that looks at the clock, and so does its child.
fn children(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let parent = parent::start(bed, PORT, CHILDREN_MIB, &["small", "spin"])?;
    let mut forks = Vec::new();
    for _ in 0..bed.runs {
        bed.quiet.wait(1);
        forks.push(command(bed.owner.node, PORT, "fork 0")?.start_ns);
    }
    let seed = warm_seed(bed, &parent)?;
    parent.pause()?;
    let (mut seen, mut said) = (Vec::new(), Vec::new());
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        let start = start_one(&bed.host, &seed, PORT, Via::Template)?;
        seen.push(start.seen_us);
        said.push(start.said_us);
    }
    parent.resume()?;
    bed.owner.remove(&seed.seed)?;
    let mib = CHILDREN_MIB;
    let name = format!("{mib} MiB: plain fork(), to the child's first look at the clock");
    let peer = section.add(Figure::new(name, Samples::from_ns(&forks)));
    let name = format!("{mib} MiB: n-th child, request to first look at the clock, from outside");
    section.add(
        Figure::new(name, Samples::new("us", seen))
            .beside("plain fork()", peer)
            .promised(Target::RatioMost(0.5)),
    );
    let name = format!("{mib} MiB: n-th child, start_us");
    section.add(Figure::new(name, Samples::new("us", said)).beside("plain fork()", peer));
    Ok(())
}

fn freeze(
    bed: &mut Bed<'_>,
    section: &mut Section,
    kind: &str,
    name: &str,
    most_us: f64,
) -> Result<(), BenchError> {
    let mib = if bed.scale.quick { FREEZE_MIB / 4 } else { FREEZE_MIB };
    let parent = parent::start(bed, PORT, mib, &[kind, "spin"])?;
    let node = bed.owner.node;
    section.notes.push(format!("{mib} MiB, {name}: {}", huge(bed, &parent)?));
    let (mut forks, mut gaps, mut said, mut prepares) = (vec![], vec![], vec![], vec![]);
    let (mut plain, mut copying, mut later) = (vec![], vec![], vec![]);
    for _ in 0..bed.runs {
        bed.quiet.wait(1);
        forks.push(command(node, PORT, "fork 0")?.gap_ns);
        // What the fork left write-protected is written once before it counts.
        command(node, PORT, "write 100")?;
        plain.push(command(node, PORT, WRITES)?.each_us());
        let (seed, gap, _) = watched(node, PORT, || bed.owner.prepare(parent.pid))?;
        gaps.extend(gap);
        said.push(seed.freeze_us as f64);
        prepares.push(seed.prepare_us as f64 / 1000.0);
        copying.push(command(node, PORT, WRITES)?.each_us());
        later.push(command(node, PORT, WRITES)?.each_us());
        bed.owner.remove(&seed.seed)?;
    }
    let of = |what: &str| format!("{mib} MiB, {name}: {what}");
    let us = |values| Samples::new("us", values);
    let figure = Figure::new(of("plain fork(), in the parent"), Samples::from_ns(&forks));
    let peer = section.add(figure);
    let gap = Figure::new(of("longest gap around prepare, from outside"), Samples::from_ns(&gaps));
    let gap = gap.beside("plain fork()", peer);
    section.add(if bed.scale.quick { gap } else { gap.promised(Target::Most(most_us)) });
    section.add(Figure::new(of("freeze_us"), us(said)).beside("plain fork()", peer));
    let prepare = Figure::new(of("prepare_us"), Samples::new("ms", prepares));
    let paper = !bed.scale.quick && kind == "small";
    section.add(if paper { prepare.in_paper(42.0) } else { prepare });
    let peer = section.add(Figure::new(of("a parent's write, before"), us(plain)));
    let write = Figure::new(of("a parent's first write after prepare"), us(copying));
    section.add(write.beside("before", peer).in_paper(2.6));
    let write = Figure::new(of("the same page once more"), us(later));
    section.add(write.beside("before", peer));
    Ok(())
}

/// How much of a parent really lies in huge pages.
fn huge(bed: &Bed<'_>, parent: &Parent) -> Result<String, BenchError> {
    let path = bed.owner.node.proc_dir(parent.pid).join("smaps_rollup");
    let text = std::fs::read_to_string(&path).map_err(BenchError::io("large", path.display()))?;
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:")).unwrap_or_default();
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}
