//! A child, as it was started.

use mitosis_proto::PhaseTime;
use std::path::PathBuf;

/// A child, as it was started. Written to a file so that a restarted daemon knows it again.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Start {
    /// Name between daemon and pager.
    pub id: u64,
    /// Pid, as the host sees it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: with the pid, the identity of the process.
    pub start_ticks: u64,
    /// Public id of the seed.
    pub seed: String,
    /// How it was made.
    pub via: String,
    /// How its pages come.
    pub transport: String,
    /// Why that way.
    #[serde(default)]
    pub transport_why: String,
    /// Path of its own network namespace.
    pub netns: Option<String>,
    /// Its generation number.
    #[serde(default)]
    pub generation: String,
    /// Microseconds from the request to the first instruction.
    pub start_us: u64,
    /// Where that time went.
    pub phases: Vec<PhaseTime>,
    /// When, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Its log.
    pub log: PathBuf,
    /// The range that its restore left mapped, which is no part of its own image.
    pub resident: Option<(u64, u64)>,
    /// Its control groups.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
    /// Of a process of a tree that is not its root: the root's id.
    #[serde(default)]
    pub main: Option<u64>,
    /// Functions that a child of it may have to call.
    #[serde(default)]
    pub functions: Vec<mitosis_descriptor::Function>,
}
