//! Reading `/proc`: the host's, and a node's own through its pid 1.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::LabError;

/// Memory of a process as `smaps_rollup` gives it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Memory {
    /// Resident pages.
    pub rss: u64,
    /// Resident pages, each divided by the number of processes that map it.
    pub pss: u64,
    /// Pages that no other process maps.
    pub private: u64,
}

/// Reads [`Memory`] of the process whose directory of a `/proc` is `dir`.
pub(crate) fn memory(dir: &Path) -> Result<Memory, LabError> {
    let path = dir.join("smaps_rollup");
    let text = read(&path)?;
    let field = |name: &str| -> Result<u64, LabError> {
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
        let object = path.display().to_string();
        kib.map(|kib| kib * 1024).ok_or_else(|| LabError::format("memory", object, name))
    };
    let private = field("Private_Clean:")? + field("Private_Dirty:")?;
    Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")?, private })
}

/// The pid that the process with host pid `pid` has one pid namespace further in.
pub(crate) fn inner_pid(pid: u32) -> Result<u32, LabError> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let pids = namespace_pids(&dir)?;
    let object = dir.display().to_string();
    pids.get(1).copied().ok_or_else(|| LabError::format("pid", object, "not in a node"))
}

/// The pids of a process, from the namespace of this `/proc` inwards.
pub(crate) fn namespace_pids(dir: &Path) -> Result<Vec<u32>, LabError> {
    let path = dir.join("status");
    let text = read(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let line = line.ok_or_else(|| LabError::format("pid", path.display().to_string(), "NSpid"))?;
    Ok(line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// The pids that a `/proc` mounted at `root` lists, in ascending order.
pub(crate) fn pids(root: &Path) -> Result<Vec<u32>, LabError> {
    let object = || root.display().to_string();
    let entries = fs::read_dir(root).map_err(|error| LabError::io("pids", object(), error))?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    let mut pids: Vec<u32> =
        names.filter_map(|name| name.to_str().and_then(|name| name.parse().ok())).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Reads a small file, naming it in the error.
pub(crate) fn read(path: &Path) -> Result<String, LabError> {
    fs::read_to_string(path)
        .map_err(|error| LabError::io("read", path.display().to_string(), error))
}
