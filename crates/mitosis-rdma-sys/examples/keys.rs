//! What a peer can read of memory that is not meant for it: nothing.
//!
//! Both sides in one process, over the device that is named (or the first that is active). Two peers with
//! a queue pair each, and two seeds in the one protection domain, as at a node: the first peer has the
//! capability of the first seed, the second one that of the second. Each READ that must fail must complete
//! with an error. Prints a line for each, and ends with status 1 when one is wrong. Run by the RDMA suite.

use mitosis_rdma_sys::{
    Completions, Device, Exported, Exposed, Landing, Opener, Queue, RdmaError, Read, Window,
};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const LIMIT: Duration = Duration::from_secs(30);

/// A peer, and the owner's side of its queue pair.
struct Peer {
    queue: Queue,
    owner: Opener,
    completions: Completions,
    landing: Landing,
}

impl Peer {
    fn new(device: &Device) -> Result<Peer, RdmaError> {
        let completions = Completions::new(device, 1)?;
        let queue = Queue::new(device, &completions, 1)?;
        let owner = Opener::new(device, 2)?;
        queue.connect(&owner.local())?;
        owner.connect(&queue.local())?;
        Ok(Peer { queue, owner, completions, landing: Landing::new(device, 1)? })
    }

    fn open(&mut self, seed: &Arc<Exposed>) -> Result<Window, RdmaError> {
        let mut windows = self.owner.open(&[Arc::clone(seed)], LIMIT)?;
        windows.pop().ok_or(verb("no window"))
    }

    /// Reads a page. The first byte that landed, or what the completion says.
    fn read(&mut self, address: u64, rkey: u32) -> Result<Result<u8, String>, RdmaError> {
        let slot = self.landing.slot(1).ok_or(verb("no landing memory"))?;
        self.queue.post(vec![Read { id: 1, address, rkey, len: PAGE as u32, slot }])?;
        let start = Instant::now();
        let mut done = Vec::new();
        while start.elapsed() < LIMIT {
            self.completions.poll(&mut done)?;
            for completion in done.drain(..) {
                if let Some((_, slot)) = self.queue.complete(&completion) {
                    let first = slot.bytes()[0];
                    return Ok(completion.failed.map_or(Ok(first), Err));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(verb("no completion"))
    }
}

fn verb(cause: &str) -> RdmaError {
    RdmaError::Verb { verb: "READ", cause: cause.into() }
}

fn seed(device: &Device, byte: u8) -> Result<(Arc<Exposed>, u32), RdmaError> {
    let made = Exported::new(device, 4 * PAGE, |out| {
        out.fill(byte);
        Ok::<(), RdmaError>(())
    })?;
    let key = made.rkey();
    Ok((Arc::new(Exposed::Own(made)), key))
}

/// What a peer of its own, who has a window on `own`, reads with the key and address that `wrong` makes of
/// that window's. An error ends a queue pair, so each attempt has another.
fn attempt(
    device: &Device,
    own: &Arc<Exposed>,
    wrong: impl Fn(u64, u32) -> (u64, u32),
) -> Result<Result<u8, String>, RdmaError> {
    let mut peer = Peer::new(device)?;
    let window = peer.open(own)?;
    let (address, rkey) = wrong(own.place().0, window.key());
    let said = peer.read(address, rkey);
    // It is the owner's side that is held until here.
    drop(window);
    said
}

fn run() -> Result<bool, RdmaError> {
    let wanted = std::env::var("MITOSIS_RDMA_DEVICE").ok();
    let device = Device::open(wanted.as_deref())?;
    let ((own, own_key), (other, other_key)) = (seed(&device, 0x11)?, seed(&device, 0x22)?);
    let (at, other_at) = (own.place().0, other.place().0);
    let mut good = true;
    let mut see = |what: &str, said: Result<u8, String>, data: Option<u8>| {
        let right = match (&said, data) {
            (Err(why), None) => why.contains("remote access error"),
            (said, data) => said.as_ref().ok().copied() == data,
        };
        good &= right;
        println!("keys: {what}: {said:?}{}", if right { "" } else { " WRONG" });
    };
    let start = Instant::now();
    let mut first = Peer::new(&device)?;
    let window = first.open(&own)?;
    see("own key", first.read(at, window.key())?, Some(0x11));
    println!("keys: two queue pairs, a window and one READ: {:?}", start.elapsed());
    let mut second = Peer::new(&device)?;
    let other_window = second.open(&other)?;
    see("the other seed, by who may", second.read(other_at, other_window.key())?, Some(0x22));
    for bit in [0, 7, 8, 31] {
        see("forged key", attempt(&device, &own, |at, key| (at, key ^ (1 << bit)))?, None);
    }
    let theirs = other_window.key();
    see(
        "another peer's key of another seed",
        attempt(&device, &own, |_, _| (other_at, theirs))?,
        None,
    );
    let same = window.key();
    see("another peer's key of the same seed", attempt(&device, &own, |at, _| (at, same))?, None);
    see("the registration's own key", attempt(&device, &own, |at, _| (at, own_key))?, None);
    see("another registration's key", attempt(&device, &own, |_, _| (other_at, other_key))?, None);
    let past = at + 4 * PAGE as u64;
    see("own key, behind its end", attempt(&device, &own, |_, key| (past - 8, key))?, None);
    see("own key, another seed's address", attempt(&device, &own, |_, key| (other_at, key))?, None);
    // Both on one queue pair, as of a peer that has both capabilities: one ends, the other one stays.
    let both = first.open(&other)?;
    let revoked = window.key();
    drop(window);
    see("another seed after one was revoked", first.read(other_at, both.key())?, Some(0x22));
    let again = first.open(&own)?;
    see("a revoked one, opened anew", first.read(at, again.key())?, Some(0x11));
    see("revoked key", first.read(at, revoked)?, None);
    see("the other peer's", second.read(other_at, other_window.key())?, Some(0x22));
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
