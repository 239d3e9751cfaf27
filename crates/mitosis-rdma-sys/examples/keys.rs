//! What a peer with a queue pair can read of memory that is not meant for it: nothing.
//!
//! Both sides in one process, over the device that is named (or the first that is active). Two seeds
//! are two protection domains, as at a node. Each READ that must fail is made by a queue pair of the
//! first, and must complete with an error. Prints a line for each, and ends with status 1 when one is
//! wrong. Run by the RDMA suite.

use mitosis_rdma_sys::{Completions, Device, Exported, Landing, Pd, Queue, RdmaError, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const LIMIT: Duration = Duration::from_secs(30);

struct Lab {
    device: Device,
    here: Pd,
    landing: Landing,
    ours: Completions,
    theirs: Completions,
}

impl Lab {
    fn new() -> Result<Lab, RdmaError> {
        let wanted = std::env::var("MITOSIS_RDMA_DEVICE").ok();
        let device = Device::open(wanted.as_deref())?;
        let here = device.pd()?;
        let landing = Landing::new(&here, 1)?;
        let (ours, theirs) = (Completions::new(&device)?, Completions::new(&device)?);
        Ok(Lab { device, here, landing, ours, theirs })
    }

    /// Reads a page with a new queue pair whose other side is in `domain`. The first byte that
    /// landed, or what the completion says.
    fn read(&self, domain: &Pd, address: u64, rkey: u32) -> Result<Result<u8, String>, RdmaError> {
        let mut ours = Queue::new(&self.here, &self.ours, 1)?;
        let theirs = Queue::new(domain, &self.theirs, 2)?;
        ours.connect(&theirs.local())?;
        theirs.connect(&ours.local())?;
        let verb = |cause: &str| RdmaError::Verb { verb: "READ", cause: cause.into() };
        let slot = self.landing.slot(1).ok_or_else(|| verb("no landing memory"))?;
        ours.post(vec![Read { id: 1, address, rkey, len: PAGE as u32, slot }])?;
        let start = Instant::now();
        let mut done = Vec::new();
        while start.elapsed() < LIMIT {
            self.ours.poll(&mut done)?;
            for completion in done.drain(..) {
                if let Some((_, slot)) = ours.complete(&completion) {
                    let first = slot.bytes()[0];
                    return Ok(completion.failed.map_or(Ok(first), Err));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(verb("no completion"))
    }
}

fn seed(domain: &Pd, byte: u8) -> Result<Exported, RdmaError> {
    Exported::new(domain, 4 * PAGE, |out| {
        out.fill(byte);
        Ok(())
    })
}

fn run() -> Result<bool, RdmaError> {
    let lab = Lab::new()?;
    let (first, second) = (lab.device.pd()?, lab.device.pd()?);
    let (own, other) = (seed(&first, 0x11)?, seed(&second, 0x22)?);
    let (address, rkey) = (own.address(), own.rkey());
    let mut good = true;
    let mut see = |what: &str, said: Result<u8, String>, data: Option<u8>| {
        let right = said.as_ref().ok().copied() == data;
        good &= right;
        println!("keys: {what}: {said:?}{}", if right { "" } else { " WRONG" });
    };
    let start = Instant::now();
    see("own key", lab.read(&first, address, rkey)?, Some(0x11));
    println!("keys: two queue pairs made, connected, and one READ: {:?}", start.elapsed());
    for bit in [0, 7, 8, 31] {
        see("forged key", lab.read(&first, address, rkey ^ (1 << bit))?, None);
    }
    see("another seed's key", lab.read(&first, other.address(), other.rkey())?, None);
    let past = address + 4 * PAGE as u64;
    see("own key, behind its end", lab.read(&first, past - 8, rkey)?, None);
    see("own key, another seed's address", lab.read(&first, other.address(), rkey)?, None);
    see("the other seed itself", lab.read(&second, other.address(), other.rkey())?, Some(0x22));
    see("own key again", lab.read(&first, address, rkey)?, Some(0x11));
    drop(own);
    see("revoked key", lab.read(&first, address, rkey)?, None);
    Ok(good)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => {
            println!("keys: all as they must be");
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("keys: {error}");
            ExitCode::FAILURE
        }
    }
}
