//! A sequential touch of 64 MiB, beside a plain TCP stream between the same nodes.

use super::Bed;
use super::fault::{BARE_AT, BLOB_AT, command};
use crate::cluster::{ANSWER_BOUND, Parent, cpu_ns, helper};
use crate::error::BenchError;
use crate::helper::{BLOB, PAGE_BYTES, SERVE, elapsed_ns};
use crate::report::{Figure, Samples, Section, Target};
use mitosis_proto::Net;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

const BYTES: usize = (BLOB_AT.1 as usize) << 20;
const PAGES: f64 = (BYTES / PAGE_BYTES) as f64;

/// One pass: MiB/s, and microseconds of processor time per page on either side.
#[derive(Default)]
struct Passes {
    rate: Vec<f64>,
    sender: Vec<f64>,
    receiver: Vec<f64>,
    reader: Vec<f64>,
}

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let bare = helper(bed.owner.node, SERVE, BARE_AT, &[])?;
    let parent = helper(bed.owner.node, BLOB, BLOB_AT.0, &[&BLOB_AT.1.to_string()])?;
    let seed = bed.owner.prepare(parent.pid)?;
    let (mut plain, mut touch) = (Passes::default(), Passes::default());
    for _ in 0..bed.runs {
        plain_pass(bed, &bare, &mut plain)?;
        touch_pass(bed, &seed.reference, &mut touch)?;
    }
    bed.owner.remove(&seed.seed)?;
    let rate = |values| Samples::new("MiB/s", values);
    let cpu = |values| Samples::new("us", values);
    let peer = section.add(Figure::new("plain TCP stream of 64 MiB", rate(plain.rate)));
    section.add(
        Figure::new("sequential touch of 64 MiB in a child", rate(touch.rate))
            .beside("plain TCP stream", peer)
            .promised(Target::RatioLeast(0.5)),
    );
    let sides = [
        ("plain stream, processor per page, sender", plain.sender),
        ("plain stream, processor per page, receiver", plain.receiver),
        ("touch, processor per page, owner's daemon", touch.sender),
        ("touch, processor per page, pager", touch.receiver),
        ("touch, processor per page, child", touch.reader),
    ];
    for (name, values) in sides {
        section.add(Figure::new(name, cpu(values)));
    }
    Ok(())
}

fn per_page_us(ns: u64) -> f64 {
    ns as f64 / 1000.0 / PAGES
}

fn rate(ns: u64) -> f64 {
    BYTES as f64 / (1 << 20) as f64 / (ns as f64 / 1e9)
}

fn plain_pass(bed: &Bed<'_>, bare: &Parent, passes: &mut Passes) -> Result<(), BenchError> {
    let to = SocketAddr::new(bed.owner.node.ip(), BARE_AT);
    let mut stream = bed.host.node.connect(to, ANSWER_BOUND)?;
    let failed = |error| BenchError::io("stream", to)(error);
    let sender = bed.owner.node.proc_dir(bare.pid);
    let own = Path::new("/proc/self");
    let mut buffer = vec![0_u8; 1 << 20];
    let (sent_before, received_before) = (cpu_ns(&sender)?, cpu_ns(own)?);
    let start = Instant::now();
    stream.write_all(&(BYTES as u64).to_le_bytes()).map_err(failed)?;
    let mut left = BYTES;
    while left > 0 {
        let count = left.min(buffer.len());
        left -= match stream.read(&mut buffer[..count]).map_err(failed)? {
            0 => return Err(BenchError::wrong("stream", format!("ended {left} bytes early"))),
            read => read,
        };
    }
    passes.rate.push(rate(elapsed_ns(start)));
    passes.sender.push(per_page_us(cpu_ns(&sender)?.saturating_sub(sent_before)));
    passes.receiver.push(per_page_us(cpu_ns(own)?.saturating_sub(received_before)));
    Ok(())
}

fn touch_pass(bed: &Bed<'_>, reference: &str, passes: &mut Passes) -> Result<(), BenchError> {
    let child = bed.host.fork(reference, Net::Node)?;
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
    passes.rate.push(rate(ns));
    let spent = |side: usize| per_page_us(after[side].saturating_sub(before[side]));
    passes.sender.push(spent(0));
    passes.receiver.push(spent(1));
    passes.reader.push(spent(2));
    Ok(())
}
