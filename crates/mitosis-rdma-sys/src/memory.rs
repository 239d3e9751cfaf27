//! Registered memory: what peers may read, and where reads land.

use crate::ffi::{Mr, value};
use crate::{Device, RdmaError};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Anonymous memory that a forked process does not get.
struct Map {
    at: NonNull<u8>,
    len: usize,
}

impl Map {
    fn new(len: usize) -> Result<Map, RdmaError> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(RdmaError::last("mmap"));
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| RdmaError::last("mmap"))?;
        let map = Map { at, len };
        // SAFETY: our own mapping. Huge pages are a wish; a fork must not share pinned pages.
        let code = unsafe {
            libc::madvise(at.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            libc::madvise(at.as_ptr().cast(), len, libc::MADV_DONTFORK)
        };
        if code != 0 { Err(RdmaError::last("madvise")) } else { Ok(map) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which nothing points any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A registered mapping; deregistered, then unmapped.
struct Registered {
    mr: NonNull<Mr>,
    map: Option<Map>,
    device: Device,
}

// SAFETY: verbs are thread-safe, and the mapping is this type's own.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    fn new(device: &Device, map: Map, access: i32) -> Result<Registered, RdmaError> {
        let at = map.at.as_ptr().cast();
        // SAFETY: the domain lives as long as the result, and so does the mapping.
        let mr = unsafe { (device.0.api.reg_mr)(device.pd(), at, map.len, access) };
        let mr = NonNull::new(mr).ok_or_else(|| RdmaError::last("ibv_reg_mr"))?;
        Ok(Registered { mr, map: Some(map), device: device.clone() })
    }

    fn base(&self) -> NonNull<u8> {
        self.map.as_ref().map_or(NonNull::dangling(), |map| map.at)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered by us and not deregistered yet.
        let code = unsafe { (self.device.0.api.dereg_mr)(self.mr.as_ptr()) };
        if code != 0 {
            // The device may still use it: it is never given back.
            std::mem::forget(self.map.take());
        }
    }
}

/// Memory on which windows can be opened; no key of its own opens it to anybody. Never written after it
/// was filled.
pub struct Exported(Registered);

impl Exported {
    /// Makes `len` bytes, has them filled, and registers them.
    ///
    /// # Errors
    /// What `fill` says, or an [`RdmaError`] when memory or its registration is refused (often
    /// `RLIMIT_MEMLOCK`).
    pub fn new<E: From<RdmaError>>(
        device: &Device,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Exported, E> {
        let map = Map::new(len)?;
        // SAFETY: our own readable and writable mapping of `len` bytes, known to nobody else yet.
        fill(unsafe { std::slice::from_raw_parts_mut(map.at.as_ptr(), len) })?;
        Ok(Exported(Registered::new(device, map, value::ACCESS_MW_BIND)?))
    }

    /// Where its first byte is.
    pub fn address(&self) -> u64 {
        self.0.base().as_ptr() as u64
    }

    /// The key of the registration itself.
    pub fn rkey(&self) -> u32 {
        // SAFETY: registered as long as `self` lives.
        unsafe { self.0.mr.as_ref().rkey }
    }

    pub(crate) fn region(&self) -> *mut Mr {
        self.0.mr.as_ptr()
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.map.as_ref().map_or(0, |map| map.len as u64)
    }
}

/// Registered memory into which READs are made, given out in [`Slot`]s.
#[derive(Clone)]
pub struct Landing(Arc<LandingInner>);

struct LandingInner {
    memory: Registered,
    /// Which pages are taken.
    taken: Mutex<Vec<bool>>,
}

impl Landing {
    /// `pages` pages.
    ///
    /// # Errors
    /// [`RdmaError`] when memory or its registration is refused.
    pub fn new(device: &Device, pages: usize) -> Result<Landing, RdmaError> {
        let memory = Registered::new(device, Map::new(pages * PAGE)?, value::ACCESS_LOCAL_WRITE)?;
        let taken = Mutex::new(vec![false; pages]);
        Ok(Landing(Arc::new(LandingInner { memory, taken })))
    }

    /// Consecutive free pages; `None` when there are not enough.
    pub fn slot(&self, pages: usize) -> Option<Slot> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = first_free(&taken, pages)?;
        taken[first..first + pages].fill(true);
        Some(Slot { landing: self.clone(), first, pages })
    }
}

fn first_free(taken: &[bool], pages: usize) -> Option<usize> {
    let mut from = 0;
    for (at, used) in taken.iter().enumerate() {
        if *used {
            from = at + 1;
        } else if at + 1 - from == pages {
            return Some(from);
        }
    }
    None
}

/// A part of the landing memory, owned by one READ at a time.
pub struct Slot {
    landing: Landing,
    first: usize,
    pages: usize,
}

impl Slot {
    /// What landed. Only a completed READ gives its slot back, so nobody writes to it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, given to nobody else, and written by no device: while it
        // could be, the queue pair owns the slot.
        unsafe {
            let at = self.landing.0.memory.base().as_ptr().add(self.first * PAGE);
            std::slice::from_raw_parts(at, self.pages * PAGE)
        }
    }

    pub(crate) fn place(&self) -> (u64, u32) {
        let memory = &self.landing.0.memory;
        // SAFETY: registered as long as the landing lives.
        let lkey = unsafe { memory.mr.as_ref().lkey };
        (memory.base().as_ptr() as u64 + (self.first * PAGE) as u64, lkey)
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.pages * PAGE
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.landing.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[self.first..self.first + self.pages].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::first_free;

    #[test]
    fn free_pages_are_found_between_taken_ones() {
        let taken = [true, false, true, false, false, true, false];
        assert_eq!(first_free(&taken, 1), Some(1));
        assert_eq!(first_free(&taken, 2), Some(3));
        assert_eq!(first_free(&taken, 3), None);
        assert_eq!(first_free(&[], 1), None);
    }
}
