//! `bench shadow`: the two ways to read a frozen copy of a process, and what they do to it.

use crate::error::BenchError;
use crate::report::{Figure, Samples, Section};
use mitosis_sys::floors::{Pages, ReadVia, read_shadow};

const PAGES: usize = 32 * 256;

/// Measures with `runs` shadows for each way.
pub fn run(runs: usize) -> Result<Section, BenchError> {
    let mut section = Section::new("shadow");
    let failed = |error| BenchError::io("shadow", "32 MiB of a forked copy")(error);
    let mut pages = Pages::anonymous(PAGES).map_err(failed)?;
    pages.populate();
    let ways = [
        (ReadVia::ProcMem, 1, "pread of /proc/PID/mem, 1 page"),
        (ReadVia::ProcMem, 64, "pread of /proc/PID/mem, 64 pages"),
        (ReadVia::VmReadv, 1, "process_vm_readv, 1 page"),
        (ReadVia::VmReadv, 64, "process_vm_readv, 64 pages"),
    ];
    for (via, chunk, name) in ways {
        let (mut cost, mut growth) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let read = read_shadow(&pages, via, chunk).map_err(failed)?;
            cost.push(read.ns_per_page / 1000.0);
            growth.push(read.pss_after_kib as f64 - read.pss_before_kib as f64);
        }
        section.add(Figure::new(format!("{name}: per page"), Samples::new("us", cost)));
        section.add(Figure::new(
            format!("{name}: growth of the shadow's PSS"),
            Samples::new("KiB", growth),
        ));
    }
    Ok(section)
}
