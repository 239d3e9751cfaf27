//! What the node answers.

use mitosis_descriptor::Phase;
use serde::{Deserialize, Serialize};

/// One line from the daemon to the caller.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `Node`.
    Node(NodeInfo),
    /// To `Prepare`.
    Prepared(Prepared),
    /// To `Fork`.
    Forked(Forked),
    /// To `Seeds`, and to `Seed` (then exactly one).
    Seeds(Vec<SeedRow>),
    /// To `Children`.
    Children(Vec<ChildRow>),
    /// To `Wait`; after `Forked` one for each child when attached.
    Exited(Exited),
    /// To `Logs`; one fd comes along.
    Log(LogInfo),
    /// Done, nothing to say.
    Done,
    /// Not done.
    Error {
        /// Whose mistake it was.
        code: ErrorCode,
        /// One line for people: phase, object, cause.
        message: String,
    },
}

/// Whose mistake an error was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request makes no sense: exit status 2.
    Usage,
    /// It could not be done: exit status 1.
    Failed,
}

/// Who answers at a control socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name of the node.
    pub name: String,
    /// Address in the references that it makes, `HOST:PORT`.
    pub address: String,
    /// Pid of the daemon, in its own pid namespace.
    pub pid: i32,
    /// Pid of its pager.
    pub pager_pid: Option<i32>,
    /// Version of the program.
    pub version: String,
    /// Children that run.
    #[serde(default)]
    pub children: usize,
}

/// Time spent in one phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Microseconds.
    pub us: u64,
}

/// A seed has been made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// The reference, with its secret.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Public id of the seed.
    pub seed: String,
    /// Name given by the caller.
    pub name: Option<String>,
    /// Microseconds during which the parent did not run.
    pub freeze_us: u64,
    /// Microseconds from the arrival of the request until the seed could be forked.
    pub prepare_us: u64,
    /// Size of the encoded descriptor.
    pub descriptor_bytes: u64,
    /// Pages that hold data.
    pub pages_total: u64,
    /// Threads of the parent; of a tree, of all its processes.
    pub threads: u64,
    /// Processes: 1 without `--tree`.
    #[serde(default = "one")]
    pub processes: u64,
    /// Whether the seed still depends on the parent's pid namespace.
    pub bound: Bound,
    /// Where the time went.
    pub phases: Vec<PhaseTime>,
}

/// A process alone.
fn one() -> u64 {
    1
}

/// Children have been started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forked {
    /// In the order in which they were started.
    pub children: Vec<ForkedChild>,
}

/// A child has been started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForkedChild {
    /// Pid, as the node's host sees it.
    pub pid: i32,
    /// Public id of its seed.
    pub seed: String,
    /// Microseconds from the arrival of the request to the child's first own instruction.
    pub start_us: u64,
    /// Pids of the other processes of its tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tree: Vec<i32>,
    /// How it was made.
    pub via: String,
    /// How its pages come: `rdma`, `tcp`, `local` or `mixed`.
    pub transport: String,
    /// Why that way.
    #[serde(default)]
    pub transport_why: String,
    /// Path of its network namespace, when it has its own.
    pub netns: Option<String>,
    /// Its generation number: what it reads in `/run/mitosis/generation`.
    #[serde(default)]
    pub generation: String,
    /// Microseconds that the program's hooks took then, before it went on.
    #[serde(default)]
    pub hooks_us: u64,
    /// Where the time went.
    pub phases: Vec<PhaseTime>,
}

/// Life of a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedState {
    /// Can be forked.
    Alive,
    /// Its time is over: no new forks, pages until the children are independent.
    Expiring,
    /// Its pages are gone against our will.
    Lost,
}

/// Whether a seed depends on the pid namespace of its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// It does; when the namespace's init exits, the seed is lost.
    Bound,
    /// It does still, while its pages move to memory of the node.
    Moving,
    /// It does not.
    Free,
}

/// A seed, as `seed ls` shows it. Never contains the secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeedRow {
    /// Public id.
    pub seed: String,
    /// Name given by the caller.
    pub name: Option<String>,
    /// Life.
    pub state: SeedState,
    /// Why, when lost.
    pub reason: Option<String>,
    /// Dependence on the parent's pid namespace.
    pub bound: Bound,
    /// Pid the parent had, as the host sees it.
    pub parent_pid: i32,
    /// Pid of the shadow; absent once the pages have moved.
    pub shadow_pid: Option<i32>,
    /// Milliseconds since it was made.
    pub age_ms: u64,
    /// Milliseconds until it expires; absent when it does not.
    pub ttl_left_ms: Option<u64>,
    /// Pages that hold data.
    pub pages_total: u64,
    /// Those of them that this seed itself owns.
    pub pages_owned: u64,
    /// Size of the encoded descriptor.
    pub descriptor_bytes: u64,
    /// Connections of pagers that read from it.
    pub readers: u64,
    /// Times it was forked.
    pub forks: u64,
    /// Pages registered for RDMA reads at present.
    #[serde(default)]
    pub pages_rdma: u64,
    /// Those of them that are registered where they are, in the shadow; the others are copies.
    #[serde(default)]
    pub pages_rdma_shadow: u64,
    /// Registrations that hold them.
    #[serde(default)]
    pub rdma_registrations: u64,
    /// Bytes copied to be registered, since the seed was last registered anew.
    #[serde(default)]
    pub rdma_copied_bytes: u64,
    /// Microseconds that copying and registering took.
    #[serde(default)]
    pub rdma_register_us: u64,
    /// Why pages were copied that could have been registered in the shadow, or not registered at all.
    #[serde(default)]
    pub rdma_note: Option<String>,
    /// Pages that the parent and earlier children are known to have touched since it was made, at
    /// most 2048: the first of them are sent along with the descriptor.
    #[serde(default)]
    pub working_set: u64,
}

/// Life of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildState {
    /// It runs (or is being started).
    Running,
    /// It has ended.
    Ended,
}

/// A child, as `ps` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChildRow {
    /// Pid, as the node's host sees it.
    pub pid: i32,
    /// Public id of its seed.
    pub seed: String,
    /// Life.
    pub state: ChildState,
    /// Exit status as a shell has it (128+N after signal N), once ended and known.
    pub exit: Option<i32>,
    /// Why it was ended, when it did not end by itself.
    pub reason: Option<String>,
    /// Processes of its tree that were started with it, itself included. Figures of pages are those
    /// of all of them.
    #[serde(default = "one")]
    pub processes: u64,
    /// Pages that were remote at the start.
    pub pages_total: u64,
    /// Pages fetched because they were touched.
    pub pages_fetched: u64,
    /// Pages fetched ahead.
    pub pages_prefetched: u64,
    /// Faults served.
    pub faults: u64,
    /// Bytes of pages fetched.
    pub bytes_fetched: u64,
    /// Needs no other node any more.
    pub independent: bool,
    /// How it was made.
    pub via: String,
    /// How its pages come: `rdma`, `tcp`, `local` or `mixed`.
    pub transport: String,
    /// Pages that came by one-sided RDMA reads.
    #[serde(default)]
    pub pages_rdma: u64,
    /// Pages that a sibling on its node had been sent before.
    #[serde(default)]
    pub pages_cached: u64,
    /// Of each 128 pages fetched ahead along the trail, one that was not placed, to see whether it will be
    /// touched: so many.
    #[serde(default)]
    pub pages_held: u64,
    /// So many of these were touched: of what was fetched ahead, this share was needed.
    #[serde(default)]
    pub pages_held_touched: u64,
    /// Pages fetched because they lie around what the first child of a seed touched, and kept on the node:
    /// those of them that it used are among `pages_cached`.
    #[serde(default)]
    pub pages_around: u64,
    /// Pages of its owners that can be read by RDMA now, fetched ones included.
    #[serde(default)]
    pub rdma_reach: u64,
    /// Microseconds that making the queue pairs to its owners took.
    #[serde(default)]
    pub rdma_link_us: u64,
    /// Why pages last came over TCP although RDMA was chosen.
    #[serde(default)]
    pub rdma_note: Option<String>,
    /// Path of its network namespace, when it has its own.
    pub netns: Option<String>,
    /// Its generation number: what it reads in `/run/mitosis/generation`.
    #[serde(default)]
    pub generation: String,
    /// Microseconds from the arrival of the request to its first own instruction.
    pub start_us: u64,
    /// Milliseconds since it was started.
    pub age_ms: u64,
    /// Where the time of the start went.
    pub phases: Vec<PhaseTime>,
}

/// The end of a child.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exited {
    /// Pid it had.
    pub pid: i32,
    /// Exit status as a shell has it (128+N after signal N).
    pub exit: i32,
    /// Why it was ended, when it did not end by itself.
    pub reason: Option<String>,
}

/// A log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogInfo {
    /// The child.
    pub pid: i32,
    /// Bytes in it now.
    pub bytes: u64,
}
