//! Request to first instruction, seen from outside: the child's clock jumps.

use super::Bed;
use super::freeze::{Gaps, SPINNER};
use crate::cluster::{ANSWER_BOUND, Member, ask_json, monotonic_ns, python};
use crate::error::BenchError;
use crate::peers::{bare_server, first_pages};
use crate::report::{Figure, Samples, Section, Target};
use mitosis_proto::{Net, PhaseTime, Prepared, Via};
use std::time::Instant;

const PORT: u16 = 7102;
/// What a first child waits for: `mitosis_transport::wire::WORKING_SET_FIRST`.
const FIRST_PAGES: usize = 192;

/// Both views of one start, in microseconds, with where the node says the time went.
pub struct Start {
    pub seen_us: f64,
    pub said_us: f64,
    phases: Vec<PhaseTime>,
}

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let _bare = bare_server(bed.owner.node)?;
    let parent = python(bed.owner.node, SPINNER, PORT, &[])?;
    let (mut first, mut nth) = (Vec::new(), Vec::new());
    let (mut forks, mut pages) = (Vec::new(), Vec::new());
    for _ in 0..bed.runs {
        bed.quiet.wait(1);
        let gaps: Gaps = ask_json(bed.owner.node, PORT, b"clone\n")?;
        forks.extend(gaps.iter().map(|gap| gap.1 - gap.0));
        pages.push(first_pages(bed.owner.node, bed.host.node, FIRST_PAGES)?);
        // A new seed and a node that was restarted: it holds nothing of the parent.
        bed.host.renew()?;
        let seed = bed.owner.prepare(parent.pid)?;
        parent.pause()?;
        bed.quiet.wait(0);
        first.push(one(&bed.host, &seed, PORT, Via::Auto)?);
        nth.push(one(&bed.host, &seed, PORT, Via::Auto)?);
        parent.resume()?;
        bed.owner.remove(&seed.seed)?;
    }
    add(section, "first child on a fresh node", &first, Some(Target::Most(2000.0)));
    let name = "bare: fork() into the same namespaces, to the child's first look at the clock";
    let fork = section.add(Figure::new(name, Samples::from_ns(&forks)));
    let name = format!("bare: {FIRST_PAGES} pages asked for, received, and placed one by one");
    let page = section.add(Figure::new(name, Samples::from_ns(&pages)));
    let seen = Samples::new("us", first.iter().map(|start| start.seen_us).collect());
    section.add(
        Figure::new("first child, seen from outside (the same samples)", seen)
            .beside("both", fork + page),
    );
    add(section, "next child on that node", &nth, None);
    Ok(())
}

fn add(section: &mut Section, name: &str, starts: &[Start], target: Option<Target>) {
    let samples = |of: fn(&Start) -> f64| Samples::new("us", starts.iter().map(of).collect());
    let seen = format!("{name}: request to first instruction, seen from outside");
    let figure = Figure::new(seen, samples(|start| start.seen_us));
    section.add(match target {
        Some(target) => figure.promised(target),
        None => figure,
    });
    let said = format!("{name}: start_us, as fork reports it");
    section.add(Figure::new(said, samples(|start| start.said_us)));
    let mut phases: Vec<(&str, Vec<f64>)> = Vec::new();
    for PhaseTime { phase, us } in starts.iter().flat_map(|start| &start.phases) {
        match phases.iter_mut().find(|(name, _)| *name == phase.name()) {
            Some((_, values)) => values.push(*us as f64),
            None => phases.push((phase.name(), vec![*us as f64])),
        }
    }
    for (phase, values) in phases {
        section.add(Figure::new(format!("{name}: phase {phase}"), Samples::new("us", values)));
    }
}

/// Forks one child and asks it when it first looked at the clock.
pub fn one(host: &Member<'_>, seed: &Prepared, port: u16, via: Via) -> Result<Start, BenchError> {
    // The connection stands before the clock starts, as a runner's would.
    let mut client = host.client()?;
    let request = mitosis_proto::ForkRequest {
        net: Net::Node,
        via,
        ..mitosis_proto::ForkRequest::new(&seed.reference)
    };
    let asked = monotonic_ns();
    let mut forked = client.fork(request).map_err(BenchError::node("fork"))?;
    let child = forked.children.pop().ok_or_else(|| BenchError::wrong("fork", "no child"))?;
    let seen = first_look(host, port, asked);
    host.end(child.pid)?;
    Ok(Start {
        seen_us: seen? as f64 / 1000.0,
        said_us: child.start_us as f64,
        phases: child.phases,
    })
}

/// Nanoseconds from `asked` to the child's first look at the clock.
fn first_look(host: &Member<'_>, port: u16, asked: u64) -> Result<u64, BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    loop {
        let gaps: Result<Gaps, BenchError> = ask_json(host.node, port, b"gaps\n");
        match gaps {
            // The jump begins before the request: the parent's last look before it was frozen.
            Ok(gaps) => {
                let jump = gaps.iter().find(|gap| gap.0 < asked && gap.1 > asked);
                let cause = || format!("no jump over {asked} in {} gaps", gaps.len());
                return jump
                    .map(|gap| gap.1 - asked)
                    .ok_or_else(|| BenchError::wrong("start", cause()));
            }
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}
