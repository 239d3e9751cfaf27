//! A seed's memory, as the owner's side registers it: copied, or where it is.

use super::plan::{Ranges, pages};
use crate::ReadError;
use crate::wire::{PAGE, RdmaRegion};
use mitosis_descriptor::Vpn;
use mitosis_rdma_sys::{Device, Exported, Foreign, RdmaError, foreign};
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

/// Pages copied at a time.
const STEP: u64 = 256;

/// Where pages are when peers read them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pinning {
    /// What children are known to touch is copied; of the rest, what nobody shares with the seed's own
    /// process is registered there, for that costs no copy, and what is shared is copied.
    #[default]
    Auto,
    /// All is copied.
    Copy,
    /// All that can be is registered in the seed's own process. What that shares with the parent the
    /// kernel copies for it.
    Shadow,
}

impl FromStr for Pinning {
    type Err = String;
    fn from_str(text: &str) -> Result<Pinning, String> {
        match text {
            "auto" => Ok(Pinning::Auto),
            "copy" => Ok(Pinning::Copy),
            "shadow" => Ok(Pinning::Shadow),
            _ => Err(format!("{text:?} is not auto, copy or shadow")),
        }
    }
}

/// Calls `ioctl(file, request, argument)` for the process that has a seed's memory to make.
pub struct Calls<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The request.
    pub request: u64,
    /// Bytes of each argument.
    pub size: usize,
    /// How many calls.
    pub count: usize,
    /// Writes the n-th argument, which will be at this address in that process.
    pub argument: &'a (dyn Fn(usize, u64, &mut [u8]) + Sync),
}

/// The memory of one seed.
pub trait SeedMemory: Send + Sync {
    /// Reads pages, as [`crate::OpenSeed::read`] does.
    ///
    /// # Errors
    /// As there.
    fn read(&self, page: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError>;

    /// The pages that are in a process of their own which can be made to register them, ascending, each
    /// range within one mapping; `exclusive`: only those that nobody shares with it.
    fn in_place(&self, exclusive: bool) -> Vec<(u64, u64)>;

    /// The pages of mapped files in `[start, end)` that are not owned, ascending: a node without the
    /// files asks for them.
    fn mapped(&self, start: u64, end: u64) -> Vec<(u64, u64)>;

    /// Most calls at a time.
    fn calls_max(&self, size: usize) -> usize;

    /// Has that process make calls; result (a negative errno where it failed) and argument of each.
    ///
    /// # Errors
    /// Why it cannot be made to.
    fn calls(&self, calls: &Calls<'_>) -> Result<Vec<(i64, Vec<u8>)>, String>;
}

/// Pages in registered memory: the first, how many, and where a READ finds them. The key is that of a
/// window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub page: u64,
    pub pages: u32,
    pub address: u64,
}

impl Part {
    /// As it is told to who has a window with this key.
    pub fn region(self, rkey: u32) -> RdmaRegion {
        let Part { page, pages, address } = self;
        RdmaRegion { page, pages, address, rkey }
    }
}

/// Copies pages into memory made for it and registers that.
pub(super) fn copy(
    device: &Device,
    chunk: &[(u64, u64)],
    memory: &dyn SeedMemory,
) -> Result<(Exported, Vec<Part>), String> {
    let made = Exported::new(device, pages(chunk) as usize * PAGE, |out| {
        fill(chunk, memory, out).map_err(|e| Stop(e.to_string()))
    });
    let made = made.map_err(|Stop(why)| why)?;
    let mut address = made.address();
    let mut parts = Vec::with_capacity(chunk.len());
    for &(page, end) in chunk {
        let pages = (end - page) as u32;
        parts.push(Part { page, pages, address });
        address += u64::from(pages) * PAGE as u64;
    }
    Ok((made, parts))
}

/// Why a copy was given up.
struct Stop(String);

impl From<RdmaError> for Stop {
    fn from(error: RdmaError) -> Stop {
        Stop(error.to_string())
    }
}

fn fill(chunk: &[(u64, u64)], memory: &dyn SeedMemory, out: &mut [u8]) -> Result<(), ReadError> {
    let mut rest = out;
    for &(start, end) in chunk {
        let mut at = start;
        while at < end {
            let count = STEP.min(end - at);
            let (part, tail) = rest.split_at_mut(count as usize * PAGE);
            memory.read(Vpn(at), count as u32, part)?;
            (at, rest) = (at + count, tail);
        }
    }
    Ok(())
}

/// What was registered where it is.
#[derive(Default)]
pub(super) struct InPlace {
    pub memory: Vec<(Foreign, Part)>,
    /// What the kernel would not register, and its last reason.
    pub refused: Ranges,
    pub why: Option<String>,
}

/// Has the seed's own process register ranges of its memory in our protection domain.
pub(super) fn in_place(
    device: &Device,
    driver: u32,
    ranges: &[(u64, u64)],
    memory: &dyn SeedMemory,
) -> Result<InPlace, String> {
    let bytes = |pages: u64| pages * PAGE as u64;
    let argument = |n: usize, address: u64, out: &mut [u8]| {
        let (start, end) = ranges[n];
        Foreign::order(device, driver, (bytes(start), bytes(end - start)), address, out);
    };
    let calls = Calls {
        file: device.as_fd(),
        request: foreign::REQUEST,
        size: foreign::CALL,
        count: ranges.len(),
        argument: &argument,
    };
    let mut done = InPlace::default();
    for (&(page, end), (result, argument)) in ranges.iter().zip(memory.calls(&calls)?) {
        if result < 0 {
            let e = std::io::Error::from_raw_os_error(-result as i32);
            done.why = Some(format!("registering {} pages of the shadow: {e}", end - page));
            done.refused.push((page, end));
            continue;
        }
        let place = (bytes(page), bytes(end - page));
        let one = Foreign::registered(device, driver, place, &argument);
        done.memory.push((one, Part { page, pages: (end - page) as u32, address: bytes(page) }));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each page is full of its number; none past 100.
    struct Numbers;

    impl SeedMemory for Numbers {
        fn read(&self, page: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
            for (n, bytes) in out.chunks_mut(PAGE).enumerate() {
                bytes.fill(page.0 as u8 + n as u8);
            }
            assert_eq!(out.len(), count as usize * PAGE);
            if page.0 > 100 { Err(ReadError::Revoked) } else { Ok(()) }
        }
        fn in_place(&self, _exclusive: bool) -> Vec<(u64, u64)> {
            Vec::new()
        }
        fn mapped(&self, _start: u64, _end: u64) -> Vec<(u64, u64)> {
            Vec::new()
        }
        fn calls_max(&self, _size: usize) -> usize {
            0
        }
        fn calls(&self, _calls: &Calls<'_>) -> Result<Vec<(i64, Vec<u8>)>, String> {
            Err("none".into())
        }
    }

    #[test]
    fn a_copy_lays_ranges_side_by_side_and_ends_with_the_first_error() {
        let mut out = vec![0; 4 * PAGE];
        assert_eq!(fill(&[(1, 3), (9, 11)], &Numbers, &mut out), Ok(()));
        let firsts: Vec<u8> = out.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(firsts, [1, 2, 9, 10]);
        assert_eq!(fill(&[(101, 102)], &Numbers, &mut out), Err(ReadError::Revoked));
    }
}
