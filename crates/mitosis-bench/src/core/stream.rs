//! A sequential touch of 64 MiB, beside a plain TCP stream between the same nodes.

use super::Bed;
use super::fault::{BLOB_SIZE_MIB, blob, command};
use crate::error::BenchError;
use crate::peers::{Pass, STREAM_MIB, bare_server, per_page_us, placed_stream, plain_stream, rate};
use crate::report::{Figure, Samples, Section, Target};

// Both sides move the same number of bytes.
const _: () = assert!(BLOB_SIZE_MIB as usize == STREAM_MIB);

/// What passes gave: MiB/s, and microseconds of processor time per page on either side.
#[derive(Default)]
struct Passes {
    rate: Vec<f64>,
    sender: Vec<f64>,
    receiver: Vec<f64>,
    reader: Vec<f64>,
}

impl Passes {
    fn push(&mut self, pass: Pass) {
        self.rate.push(pass.rate);
        self.sender.push(pass.sender_us);
        self.receiver.push(pass.receiver_us);
    }
}

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let bare = bare_server(bed.owner.node)?;
    let parent = blob(bed)?;
    let (mut plain, mut touch) = (Passes::default(), Passes::default());
    let mut placed = Passes::default();
    for _ in 0..bed.runs {
        bed.quiet.wait(0);
        plain.push(plain_stream(bed.host.node, bed.owner.node, &bare)?);
        placed.push(placed_stream(bed.host.node, bed.owner.node, &bare, 1)?);
        // A new seed on a node that remembers nothing: the child is to be the first that goes this way.
        bed.owner.renew()?;
        bed.quiet.wait(0);
        let seed = bed.owner.prepare(parent.pid)?;
        touch_pass(bed, &seed.reference, &mut touch)?;
        bed.owner.remove(&seed.seed)?;
    }
    let rate = |values| Samples::new("MiB/s", values);
    let cpu = |values| Samples::new("us", values);
    let peer = section.add(Figure::new("plain TCP stream of 64 MiB", rate(plain.rate)));
    section.add(
        Figure::new("sequential touch of 64 MiB in a child", rate(touch.rate))
            .beside("plain TCP stream", peer)
            .promised(Target::RatioLeast(0.5)),
    );
    let name = "plain TCP stream whose pages are placed, 64 at a time";
    section.add(Figure::new(name, rate(placed.rate)).beside("plain TCP stream", peer));
    let sides = [
        ("plain stream, processor per page, sender", plain.sender),
        ("plain stream, processor per page, receiver", plain.receiver),
        ("plain stream placed, processor per page, receiver", placed.receiver),
        ("touch, processor per page, owner's daemon", touch.sender),
        ("touch, processor per page, pager", touch.receiver),
        ("touch, processor per page, child", touch.reader),
    ];
    for (name, values) in sides {
        section.add(Figure::new(name, cpu(values)));
    }
    Ok(())
}

fn touch_pass(bed: &Bed<'_>, reference: &str, passes: &mut Passes) -> Result<(), BenchError> {
    let child = bed.host.fork_direct(reference)?;
    // First the code paths of the command itself, so that only data is missing.
    command(bed, "nothing")?;
    let pager = bed.host.info()?.pager_pid.and_then(|pid| u32::try_from(pid).ok());
    let pager = pager.ok_or_else(|| BenchError::wrong("stream", "the node has no pager"))?;
    let pid = u32::try_from(child.pid).map_err(|error| BenchError::wrong("stream", error))?;
    let (owner, host) = (&bed.owner, &bed.host);
    let daemon = owner.daemon.pid()?;
    let clocks = || -> Result<[u64; 3], BenchError> {
        Ok([owner.cpu_ns(daemon)?, host.cpu_ns(pager)?, host.cpu_ns(pid)?])
    };
    let before = clocks()?;
    let touched = command(bed, "walk")?;
    let after = clocks()?;
    bed.host.end(child.pid)?;
    let ns = touched.ns.first().copied().filter(|_| touched.right);
    let ns = ns.ok_or_else(|| BenchError::wrong("stream", "the child read wrong data"))?;
    let spent = |side: usize| per_page_us(after[side].saturating_sub(before[side]));
    let (sender_us, receiver_us) = (spent(0), spent(1));
    passes.push(Pass { rate: rate(ns), sender_us, receiver_us });
    passes.reader.push(spent(2));
    Ok(())
}
