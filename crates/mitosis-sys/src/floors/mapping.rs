//! Memory to measure on: owned mappings that are touched through volatile accesses only.

use super::last_error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

/// Bytes of a page on x86-64.
pub const PAGE_BYTES: usize = 4096;

/// An owned mapping of whole pages, private to this process; unmapped on drop.
pub struct Pages {
    start: *mut u8,
    count: usize,
}

impl Pages {
    /// Maps `count` pages of private anonymous memory, 4 KiB pages only, none present.
    ///
    /// # Errors
    /// What mmap says.
    pub fn anonymous(count: usize) -> io::Result<Self> {
        Self::map(count, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Maps the first `count` pages of `file` privately.
    ///
    /// # Errors
    /// What mmap says.
    pub fn private_of(file: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        Self::map(count, libc::MAP_PRIVATE, file.as_raw_fd())
    }

    /// Maps the first `count` pages of `file` shared: the way its pages are filled.
    ///
    /// # Errors
    /// What mmap says.
    pub fn shared_of(file: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        Self::map(count, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(count: usize, flags: i32, fd: i32) -> io::Result<Self> {
        let len = count * PAGE_BYTES;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_error("mmap"));
        }
        let pages = Pages { start: start.cast(), count };
        // SAFETY: exactly our own mapping. Huge pages would hide the cost per page; a kernel
        // without them answers EINVAL, which is just as good.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        Ok(pages)
    }

    /// The address of page `index`.
    ///
    /// # Panics
    /// If `index` is not a page of this mapping.
    pub fn addr(&self, index: usize) -> usize {
        assert!(index < self.count, "page {index} of {}", self.count);
        self.start as usize + index * PAGE_BYTES
    }

    /// How many pages it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Reads the first byte of page `index`: one fault at most.
    pub fn read(&self, index: usize) -> u8 {
        let at = self.addr(index) as *const u8;
        // SAFETY: `addr` checked that the byte lies in our own live mapping.
        unsafe { ptr::read_volatile(at) }
    }

    /// Writes the first byte of page `index`: one fault at most.
    pub fn write(&mut self, index: usize, value: u8) {
        let at = self.addr(index) as *mut u8;
        // SAFETY: `addr` checked that the byte lies in our own live, writable mapping.
        unsafe { ptr::write_volatile(at, value) };
    }

    /// Writes to every page, so that each is present and private.
    pub fn populate(&mut self) {
        for index in 0..self.count {
            self.write(index, (index % 251) as u8 + 1);
        }
    }

    /// Drops `count` pages from page `first` on (`MADV_DONTNEED`).
    ///
    /// # Errors
    /// What madvise says.
    pub fn drop_pages(&mut self, first: usize, count: usize) -> io::Result<()> {
        assert!(first + count <= self.count, "pages {first}+{count} of {}", self.count);
        let start = self.addr(first) as *mut libc::c_void;
        // SAFETY: the range lies in our own mapping, which nothing borrows.
        let done = unsafe { libc::madvise(start, count * PAGE_BYTES, libc::MADV_DONTNEED) };
        if done == 0 { Ok(()) } else { Err(last_error("madvise DONTNEED")) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.count * PAGE_BYTES) };
    }
}

/// `count` pages of a memfd that holds them all, mapped privately, each present and none written:
/// how a template has the node's page cache mapped.
///
/// # Errors
/// What memfd_create or mmap says.
pub fn cached_private(count: usize) -> io::Result<Pages> {
    let fd = super::fork::memfd(count * PAGE_BYTES)?;
    Pages::shared_of(fd.as_fd(), count)?.populate();
    let pages = Pages::private_of(fd.as_fd(), count)?;
    for index in 0..count {
        pages.read(index);
    }
    Ok(pages)
}
