//! What a touched page costs in all when it is known beforehand that it will be: from the request for
//! the child until it has touched them, divided by the number of pages.

use super::REST;
use super::parent::{self, command};
use crate::core::Bed;
use crate::error::BenchError;
use crate::peers::{bare_server, placed_stream, plain_stream};
use crate::report::{Figure, Samples, Section, Target};
use mitosis_proto::Net;
use mitosis_sys::floors::{Backing, bulk_place};
use std::time::Instant;

const PORT: u16 = 7121;
const MIB: usize = 256;
const PERCENT: usize = 25;
const PAGES: usize = MIB * 256 * PERCENT / 100;

/// One child that touched its working set.
struct Touch {
    /// Microseconds from the request to the answer, per page.
    whole_us: f64,
    /// What the child itself says of the touches, per page.
    touch_us: f64,
    faults: f64,
    /// Bytes on the link for each byte of a page that the pager reports.
    link: f64,
}

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let parent = parent::start(bed, PORT, MIB, &["small", "idle"])?;
    let bare = bare_server(bed.owner.node)?;
    let seed = bed.owner.prepare(parent.pid)?;
    let (child, unknown) = touch(bed, &seed.reference)?;
    bed.host.end(child)?;
    let (mut streams, mut places, mut both) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first, mut next, mut forks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bed.runs {
        bed.host.renew()?;
        bed.quiet.wait(0);
        let pass = plain_stream(bed.host.node, bed.owner.node, &bare)?;
        streams.push(1e6 / pass.rate / 256.0);
        let bulk = bulk_place(Backing::Anonymous, PAGES, 64);
        let bulk = bulk.map_err(BenchError::io("learned", "userfaultfd"))?;
        places.push(bulk.place_ns / 1000.0);
        let pass = placed_stream(bed.host.node, bed.owner.node, &bare, 100 / PERCENT)?;
        both.push(1e6 / pass.rate / 256.0);
        bed.quiet.wait(0);
        let (child, touched) = touch(bed, &seed.reference)?;
        first.push(touched);
        bed.host.end(child)?;
        bed.quiet.wait(0);
        let (child, touched) = touch(bed, &seed.reference)?;
        next.push(touched);
        // It has the pages that it touched and no others, so its copy is the least that there can be.
        let copy = command(bed.host.node, PORT, &format!("fork {PERCENT}"))?;
        forks.push((copy.start_ns + copy.ns) as f64 / 1000.0 / copy.pages.max(1) as f64);
        bed.host.end(child)?;
    }
    bed.owner.remove(&seed.seed)?;
    let us = |values| Samples::new("us", values);
    let stream = section.add(Figure::new("plain TCP, per page", us(streams)));
    let place = section.add(Figure::new("the kernel's placing of a page", us(places)));
    let name = "plain TCP whose pages are placed one by one, per page";
    let both = section.add(Figure::new(name, us(both)));
    let name = "first child of a seed never forked before: whole cost per touched page";
    section.add(Figure::new(name, us(vec![unknown.whole_us])).in_paper(4.5));
    let of = |touches: &[Touch], of: fn(&Touch) -> f64| touches.iter().map(of).collect();
    let name = "first child on a node, learned working set: whole cost per touched page";
    section.add(
        Figure::new(name, us(of(&first, |touch| touch.whole_us)))
            .beside("the slower of the two", stream.max(place))
            .promised(Target::RatioMost(1.3)),
    );
    let name = "first child on a node (the same samples)";
    section.add(
        Figure::new(name, us(of(&first, |touch| touch.whole_us)))
            .beside("plain TCP, placed one by one", both),
    );
    let name = "first child on a node: a touch, as the child sees it";
    section.add(Figure::new(name, us(of(&first, |touch| touch.touch_us))));
    let name = "first child on a node: remote faults";
    section.add(Figure::new(name, Samples::new("", of(&first, |touch| touch.faults))));
    let name = "first child on a node: bytes on the link for each byte reported";
    section.add(Figure::new(name, Samples::new("", of(&first, |touch| touch.link))));
    let name = "later children: whole cost per touched page";
    let figure = Figure::new(name, us(of(&next, |touch| touch.whole_us)));
    section.add(figure.promised(Target::Most(0.3)));
    let name = "later children: a touch, as the child sees it";
    section.add(Figure::new(name, us(of(&next, |touch| touch.touch_us))));
    let name = "plain fork() of a later child, whose copy touches the same";
    section.add(Figure::new(name, us(forks)));
    section.notes.push(format!("{PAGES} pages, every fourth one of {MIB} MiB"));
    Ok(())
}

/// Starts a child that touches them, which lives on.
fn touch(bed: &Bed<'_>, reference: &str) -> Result<(i32, Touch), BenchError> {
    let link = bed.host.node.link_bytes()?.rx;
    let start = Instant::now();
    let child = bed.host.fork(reference, Net::Node)?;
    let touched = command(bed.host.node, PORT, &format!("touch {PERCENT}"))?;
    let whole = start.elapsed().as_secs_f64() * 1e6;
    std::thread::sleep(REST);
    let row = bed.host.children()?.into_iter().find(|row| row.pid == child.pid);
    let row = row.ok_or_else(|| BenchError::wrong("ps", format!("no child {}", child.pid)))?;
    let link = (bed.host.node.link_bytes()?.rx - link) as f64;
    let touch = Touch {
        whole_us: whole / touched.pages as f64,
        touch_us: touched.each_us(),
        faults: row.faults as f64,
        link: link / row.bytes_fetched.max(1) as f64,
    };
    Ok((child.pid, touch))
}
