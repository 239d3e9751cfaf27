//! The phases of a remote fork, named once: errors, timings, metrics and docs use these names.

use serde::{Deserialize, Serialize};

/// A step on the way of the data. The order is the order in which a fork passes them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the parent before it is stopped.
    Inspect,
    /// Placing the helper that will fork in the parent, which stops shortly for it.
    Plant,
    /// Stopping every thread of the parent.
    Stop,
    /// Reading registers and per-thread state.
    Registers,
    /// Recording open files while the parent is stopped.
    Files,
    /// The injected fork.
    Shadow,
    /// Letting the parent run on, and taking the helper away.
    Resume,
    /// Reading the shadow's page tables and identity; building the descriptor.
    Describe,
    /// Fetching the descriptor from the seed's node.
    Fetch,
    /// Computing the restore plan.
    Plan,
    /// Namespaces, cgroup and guard of the child.
    Sandbox,
    /// Building the child from inside.
    Build,
    /// Serving pages to the child.
    Paging,
    /// The control API.
    Control,
}

impl Phase {
    /// The name used in errors, timings and the docs.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Inspect => "inspect",
            Phase::Plant => "plant",
            Phase::Stop => "stop",
            Phase::Registers => "registers",
            Phase::Files => "files",
            Phase::Shadow => "shadow",
            Phase::Resume => "resume",
            Phase::Describe => "describe",
            Phase::Fetch => "fetch",
            Phase::Plan => "plan",
            Phase::Sandbox => "sandbox",
            Phase::Build => "build",
            Phase::Paging => "paging",
            Phase::Control => "control",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
