//! Where and when figures were taken: they mean nothing without it.

use serde::Serialize;
use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine, as far as figures depend on it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu: String,
    /// Processors online.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Seconds since 1970, UTC.
    pub unix_time: u64,
    /// Version of this program.
    pub version: &'static str,
}

impl Machine {
    /// This machine, now. What cannot be read is called unknown; it decides nothing.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or_else(|| "unknown".into(), |(_, v)| v.trim().to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Machine {
            cpu: after(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: kib.unwrap_or(0) / 1024,
            unix_time: now.map_or(0, |now| now.as_secs()),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, kernel, memory_mib, unix_time, version } = self;
        write!(f, "{cpu}, {cores} cores, Linux {kernel}, {memory_mib} MiB; ")?;
        write!(f, "unix time {unix_time}, mitosis {version}")
    }
}
