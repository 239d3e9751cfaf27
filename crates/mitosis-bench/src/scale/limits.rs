//! When to stop: what this machine must keep for others.

use super::memory::Meminfo;
use crate::error::BenchError;
use std::fs;

/// MiB that stay available.
const KEEP_MIB: u64 = 3 << 10;
/// KiB that a child may take until it has answered: what CPython writes for that, and the rest.
const CHILD_KIB: u64 = 2 << 10;
/// Processes and files that stay free.
const KEEP_PIDS: u64 = 2000;
const KEEP_FILES: u64 = 10_000;
/// Of a child, all included.
const PIDS_EACH: u64 = 2;
const FILES_EACH: u64 = 20;

fn numbers(path: &str) -> Result<Vec<u64>, BenchError> {
    let text = fs::read_to_string(path).map_err(BenchError::io("limits", path))?;
    let words = text.split([' ', '\t', '\n', '/']);
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

/// What would be reached by so many more children, if anything.
pub fn reached(more: usize) -> Result<Option<String>, BenchError> {
    let more = more as u64;
    let available = Meminfo::now(None)?.available_mib();
    if available < KEEP_MIB + more * CHILD_KIB / 1024 {
        return Ok(Some(format!("{available} MiB available, {more} more are to leave {KEEP_MIB}")));
    }
    // runnable/total and the last pid are the integers of proc_loadavg(5).
    let load = numbers("/proc/loadavg")?;
    let tasks = load.get(1).copied().unwrap_or(0);
    let pid_max = numbers("/proc/sys/kernel/pid_max")?.first().copied().unwrap_or(0);
    if tasks + more * PIDS_EACH + KEEP_PIDS > pid_max {
        return Ok(Some(format!("{tasks} threads on this machine, kernel.pid_max {pid_max}")));
    }
    let files = numbers("/proc/sys/fs/file-nr")?;
    if let [open, _, most] = files[..]
        && open + more * FILES_EACH + KEEP_FILES > most
    {
        return Ok(Some(format!("{open} open files, fs.file-max {most}")));
    }
    Ok(None)
}
