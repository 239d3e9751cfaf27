//! The logs of children, which may write what they like: each has a bound. What is over it is cut off
//! at the beginning, by a hole, so that a child that goes on writing does not notice.

use crate::node::Node;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a log may take of the disk until somebody looks again, a moment later.
const BYTES_MAX: u64 = 64 << 20;
/// What is left of one that was longer.
const BYTES_KEPT: u64 = 32 << 20;
/// Of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;
/// Holes are whole blocks of the file system.
const ALIGNED: u64 = 4096;

/// Cuts the logs of running children.
pub(crate) fn trim(node: &Node) {
    for path in node.children.logs() {
        match trim_one(&path, BYTES_MAX, BYTES_KEPT) {
            // A child on its caller's terminal has none.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            trimmed => node.note("cut a child's log", trimmed),
        }
    }
}

fn trim_one(path: &Path, most: u64, kept: u64) -> io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.blocks() * BLOCK <= most {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    match meta.len().saturating_sub(kept) / ALIGNED * ALIGNED {
        // It was reserved behind the end (fallocate(2)).
        0 => file.set_len(meta.len()),
        end => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&file, flags, 0, end) {
                // It is appended to, so it simply begins anew.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(0),
                cut => Ok(cut?),
            }
        }
    }
}

/// Goes to the first byte that a log still has; tells how many follow.
///
/// # Errors
/// Of stat(2).
pub(crate) fn begin(file: &File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    // None: it is empty, or the file system knows no holes.
    let first = seek(file, SeekFrom::Data(0)).unwrap_or(0);
    Ok(len.saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_long_log_loses_its_beginning_and_a_reserved_one_its_reserve() {
        let path = std::env::temp_dir().join(format!("mitosis-log-{}", std::process::id()));
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let line = |n: u32| format!("{n:015}\n");
        let text: String = (0..65_536).map(line).collect();
        log.write_all(text.as_bytes()).unwrap();
        trim_one(&path, 2 << 20, 1 << 18).unwrap();
        let mut whole = File::open(&path).unwrap();
        assert_eq!(begin(&whole).unwrap(), 1 << 20, "short enough");
        trim_one(&path, 1 << 19, 1 << 18).unwrap();
        log.write_all(line(65_536).as_bytes()).unwrap();
        let mut left = String::new();
        assert_eq!(begin(&whole).unwrap(), (1 << 18) + 16);
        whole.read_to_string(&mut left).unwrap();
        assert!(left.starts_with(&line(49_152)) && left.ends_with(&line(65_536)));
        let taken = || std::fs::metadata(&path).unwrap().blocks() * BLOCK;
        assert!(taken() <= 1 << 19, "{}", taken());
        fallocate(&log, FallocateFlags::KEEP_SIZE, 0, 4 << 20).unwrap();
        assert!(taken() > 1 << 19);
        for _ in 0..2 {
            trim_one(&path, 1 << 19, 2 << 20).unwrap();
        }
        assert!(taken() <= 1 << 21, "{}", taken());
        std::fs::remove_file(&path).unwrap();
    }
}
