//! Moving the pages of a seed out of a foreign pid namespace.
//!
//! A shadow cannot leave the pid namespace of its parent, and dies with that namespace's init. So
//! the node copies the seed's own pages, in the background, to memory of its own; reads go to the
//! shadow until all is there, then to the copy, and the shadow goes.

use crate::memory::{Memory, Place};
use mitosis_descriptor::{PAGE_SIZE, SeedId, Vpn};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TMPFS_MAGIC: u32 = 0x0102_1994;
/// Pages copied at a time.
const CHUNK_PAGES: u64 = 256;

/// A file in memory for the pages of a seed, and its path if a restarted daemon can find it again.
fn create(run: &Path, seed: SeedId) -> std::io::Result<(File, Option<PathBuf>)> {
    let dir = run.parent().unwrap_or(Path::new("/"));
    // Only there are pages memory and offsets of 2^47 possible.
    let in_memory = rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type as u32 == TMPFS_MAGIC);
    if in_memory {
        let mut path = run.as_os_str().to_owned();
        path.push(format!(".{seed}"));
        let path = PathBuf::from(path);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path)?;
        return Ok((file, Some(path)));
    }
    let fd = rustix::fs::memfd_create("mitosis-spool", MemfdFlags::CLOEXEC)?;
    Ok((File::from(fd), None))
}

/// Copies all owned pages of `memory`. `go_on` is asked between chunks.
///
/// # Errors
/// The cause; nothing is left of the copy then.
pub(crate) fn copy(
    memory: &Memory,
    run: &Path,
    seed: SeedId,
    go_on: impl Fn() -> bool,
) -> Result<(Arc<File>, Option<PathBuf>), String> {
    let (file, path) = create(run, seed).map_err(|e| e.to_string())?;
    match fill(memory, &file, go_on) {
        Ok(()) => Ok((Arc::new(file), path)),
        Err(cause) => {
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
            Err(cause)
        }
    }
}

fn fill(memory: &Memory, file: &File, go_on: impl Fn() -> bool) -> Result<(), String> {
    let mut buffer = vec![0; (CHUNK_PAGES * PAGE_SIZE) as usize];
    for (start, end) in memory.owned() {
        let mut at = *start;
        while at < *end {
            if !go_on() || matches!(memory.place(), Place::Gone(_)) {
                return Err("given up".into());
            }
            let pages = CHUNK_PAGES.min(end - at);
            let part = &mut buffer[..(pages * PAGE_SIZE) as usize];
            memory.read(Vpn(at), pages as u32, part).map_err(|e| e.to_string())?;
            file.write_all_at(part, at * PAGE_SIZE).map_err(|e| format!("spool: {e}"))?;
            at += pages;
        }
    }
    Ok(())
}
