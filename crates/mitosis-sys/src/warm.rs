//! What a process has ready before somebody waits for it.
//!
//! A program that has just started touches each page of its text and of its heap for the first time on
//! the path of the first request: some hundred faults, and a system call for each growth of a heap.

use crate::procfs;
use std::hint::black_box;

/// Bytes of heap that are there from the start.
const HEAP: usize = 2 << 20;
/// By how much the heap grows at a time, and how much of what is free is kept.
const GROW: i32 = 4 << 20;
/// Largest block that comes from the heap and not from a mapping of its own, which would be made and
/// filled with zeros each time.
const FROM_HEAP: i32 = 8 << 20;

/// Maps the program's own files and makes one heap for all threads that does not shrink at once.
/// Whatever of it fails leaves the process as it was: only slower.
pub fn up() {
    let settings = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TOP_PAD, GROW),
        (libc::M_TRIM_THRESHOLD, 4 * GROW),
        (libc::M_MMAP_THRESHOLD, FROM_HEAP),
    ];
    for (name, value) in settings {
        // SAFETY: plain integers; only tunes the allocator (mallopt(3)).
        unsafe { libc::mallopt(name, value) };
    }
    drop(black_box(vec![1u8; HEAP]));
    for map in procfs::ranges(std::process::id() as i32).unwrap_or_default() {
        if map.name.starts_with('/') {
            let (start, len) = (map.start as *mut libc::c_void, (map.end - map.start) as usize);
            // SAFETY: only makes page table entries of pages that are mapped; nothing is written
            // (madvise(2), Linux 5.14). A range that is gone meanwhile gives ENOMEM.
            unsafe { libc::madvise(start, len, libc::MADV_POPULATE_READ) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on() {
        super::up();
        assert_eq!(vec![7u8; 1 << 20].iter().map(|byte| u64::from(*byte)).sum::<u64>(), 7 << 20);
    }
}
