//! Memory windows of type 2: what one peer may read, on the queue pair that it has, and for how long.
//!
//! Registered memory has no key of its own that a peer could use. A window is opened on it by a request on
//! the peer's queue pair, and its key works on that queue pair alone. Closing it is one call, from any
//! thread and whatever becomes of the queue pair: a READ after it completes with *remote access error*.

use crate::completions::Completions;
use crate::ffi::{Bind, Mr, Mw, SendWr, value};
use crate::queue::{DEPTH, Pair, empty};
use crate::{Device, EndPoint, Exported, Foreign, Queue, RdmaError};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Registered memory.
pub enum Exposed {
    /// Of this process.
    Own(Exported),
    /// Of another one.
    Foreign(Foreign),
}

impl Exposed {
    /// Where its first byte is, for peers, and how many bytes there are.
    pub fn place(&self) -> (u64, u64) {
        match self {
            Exposed::Own(own) => (own.address(), own.len()),
            Exposed::Foreign(foreign) => foreign.place(),
        }
    }

    /// Whether it is this process's own.
    pub fn is_own(&self) -> bool {
        matches!(self, Exposed::Own(_))
    }
}

/// An open window; dropping it closes it.
pub struct Window {
    raw: NonNull<Mw>,
    key: u32,
    /// What must outlive it: memory and queue pair. `None` never, but while it is dropped.
    held: Option<(Arc<Exposed>, Arc<Pair>)>,
    device: Device,
}

// SAFETY: verbs are thread-safe.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn new(pair: &Arc<Pair>, memory: &Arc<Exposed>) -> Result<Window, RdmaError> {
        let device = pair.device().clone();
        // SAFETY: an open context with its table, and its own domain.
        let raw = unsafe {
            match device.0.context.as_ref().ops.alloc_mw {
                Some(alloc) => alloc(device.pd(), value::MW_TYPE_2),
                None => return Err(RdmaError::code("ibv_alloc_mw", libc::ENOSYS)),
            }
        };
        let raw = NonNull::new(raw).ok_or_else(|| RdmaError::last("ibv_alloc_mw"))?;
        // SAFETY: just made.
        let key = next_key(unsafe { raw.as_ref().rkey });
        Ok(Window { raw, key, held: Some((Arc::clone(memory), Arc::clone(pair))), device })
    }

    /// The key a peer needs, on the queue pair that it was opened for.
    pub fn key(&self) -> u32 {
        self.key
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by us and not given back yet.
        let code = unsafe {
            match self.device.0.context.as_ref().ops.dealloc_mw {
                Some(dealloc) => dealloc(self.raw.as_ptr()),
                None => libc::ENOSYS,
            }
        };
        if code != 0 {
            // The device may still use it: what it opens is never given back.
            std::mem::forget(self.held.take());
        }
    }
}

/// `ibv_inc_rkey`: the part of a key that its user chooses is the last byte.
fn next_key(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}

/// The owner's side of a connection: a queue pair that opens windows for its peer, and reads nothing.
pub struct Opener {
    queue: Queue,
    completions: Completions,
}

impl Opener {
    /// A queue pair that is not connected; `psn` is any number.
    ///
    /// # Errors
    /// [`RdmaError`] when the device has no room for another.
    pub fn new(device: &Device, psn: u32) -> Result<Opener, RdmaError> {
        let completions = Completions::new(device, 1)?;
        Ok(Opener { queue: Queue::new(device, &completions, psn)?, completions })
    }

    /// What the other side must know.
    pub fn local(&self) -> EndPoint {
        self.queue.local()
    }

    /// Connects, as [`Queue::connect`] does.
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, peer: &EndPoint) -> Result<(), RdmaError> {
        self.queue.connect(peer)
    }

    /// Opens a window on each of these memories; waits until all are open, no longer than `within` for
    /// each part that the queue pair takes at a time.
    ///
    /// # Errors
    /// [`RdmaError`]: none is open; drop this.
    pub fn open(
        &mut self,
        memories: &[Arc<Exposed>],
        within: Duration,
    ) -> Result<Vec<Window>, RdmaError> {
        let mut windows = Vec::with_capacity(memories.len());
        for part in memories.chunks(DEPTH) {
            self.open_part(part, &mut windows, Instant::now() + within)?;
        }
        Ok(windows)
    }

    fn open_part(
        &mut self,
        memories: &[Arc<Exposed>],
        windows: &mut Vec<Window>,
        deadline: Instant,
    ) -> Result<(), RdmaError> {
        let pair = &self.queue.0;
        let before = windows.len();
        for memory in memories {
            windows.push(Window::new(pair, memory)?);
        }
        let mut regions: Vec<Option<Mr>> = memories.iter().map(|m| own_region(m)).collect();
        let first = pair.numbers(memories.len());
        let parts = windows[before..].iter().zip(memories.iter().zip(&mut regions));
        let list = (first..).zip(parts).map(|(number, (window, (memory, region)))| {
            let mr = match (&**memory, region) {
                (Exposed::Own(own), _) => own.region(),
                (Exposed::Foreign(_), Some(region)) => region,
                (Exposed::Foreign(_), None) => std::ptr::null_mut(),
            };
            let ((addr, length), access) = (memory.place(), value::ACCESS_REMOTE_READ as u32);
            let (mw, rkey) = (window.raw.as_ptr(), window.key);
            let bind = Bind { mw, rkey, mr, addr, length, access };
            SendWr { bind, ..empty(number, value::WR_BIND_MW) }
        });
        // SAFETY: regions live until the end of this function; windows hold memory and queue pair, and the
        // device writes nowhere.
        unsafe { pair.post(list.collect())? };
        self.wait((first..first + memories.len() as u64).collect(), deadline)
    }

    fn wait(&self, mut open: HashSet<u64>, deadline: Instant) -> Result<(), RdmaError> {
        let failed = |cause: String| RdmaError::Verb { verb: "IBV_WR_BIND_MW", cause };
        let mut done = Vec::new();
        while !open.is_empty() {
            self.completions.poll(&mut done)?;
            for completion in done.drain(..) {
                if let Some(why) = completion.failed {
                    return Err(failed(why));
                }
                open.remove(&completion.wr);
            }
            if open.is_empty() {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed("the device does not answer".into()));
            }
            let (fd, ms) = (self.completions.as_fd().as_raw_fd(), left.as_millis() as i32 + 1);
            let mut fds = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives until the call returns. Whatever it says, the queue is looked
            // at again.
            unsafe { libc::poll(&mut fds, 1, ms) };
        }
        Ok(())
    }
}

/// What the library would know of memory that it has not registered itself.
fn own_region(memory: &Exposed) -> Option<Mr> {
    match memory {
        Exposed::Own(_) => None,
        Exposed::Foreign(foreign) => Some(foreign.region()),
    }
}

#[cfg(test)]
mod tests {
    use super::next_key;

    #[test]
    fn a_new_key_differs_in_its_last_byte_only() {
        assert_eq!(next_key(0x0012_3400), 0x0012_3401);
        assert_eq!(next_key(0xffff_ffff), 0xffff_ff00);
    }
}
