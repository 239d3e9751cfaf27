//! What a caller asks of its node.

use serde::{Deserialize, Serialize};

/// One line from the caller to the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Who is there? Answered by [`Reply::Node`](crate::Reply::Node).
    Node,
    /// Make a seed of a running process.
    Prepare(PrepareRequest),
    /// Start children of a seed. With `attach`, fds 0, 1 and 2 of the child come along.
    Fork(ForkRequest),
    /// Seeds of this node.
    Seeds,
    /// One seed of this node, by its reference or its public id.
    Seed {
        /// Reference with secret, or the 16 digits of the seed.
        seed: String,
    },
    /// Revoke a seed of this node, by its reference or its public id.
    RemoveSeed {
        /// Reference with secret, or the 16 digits of the seed.
        seed: String,
    },
    /// Children of this node.
    Children,
    /// Answer when the child has ended.
    Wait {
        /// Pid, as the node's host sees it.
        pid: i32,
    },
    /// Send a signal to a child.
    Kill {
        /// Pid, as the node's host sees it.
        pid: i32,
        /// Signal number.
        signal: i32,
    },
    /// The log of a child; the open file comes with the reply.
    Logs {
        /// Pid, as the node's host sees it.
        pid: i32,
    },
    /// End every child, every seed, the pager and the daemon.
    Stop,
}

/// Make a seed of a running process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PrepareRequest {
    /// Process id, as the node's host sees it.
    pub pid: i32,
    /// A name for people, shown by `seed ls`.
    #[serde(default)]
    pub name: Option<String>,
    /// Lifetime of the seed in milliseconds; `None` means until it is removed.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
    /// The whole process tree below `pid`.
    #[serde(default)]
    pub tree: bool,
    /// Also a process that asked not to be read: set-uid, or not dumpable.
    #[serde(default)]
    pub privileged: bool,
    /// Bytes of files without a path that are taken along; `None` for 16 MiB.
    #[serde(default)]
    pub content_max: Option<u64>,
}

/// Start children of a seed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForkRequest {
    /// `mitosis://HOST:PORT/SEED#SECRET`.
    pub reference: String,
    /// Number of children, 1 to 1024.
    #[serde(default = "one")]
    pub count: u32,
    /// The children's stdio is the three fds that come with the request; the daemon sends one
    /// [`Reply::Exited`](crate::Reply::Exited) at the end of each, and kills them when the caller
    /// goes away. Otherwise stdio goes to a log.
    #[serde(default)]
    pub attach: bool,
    /// Fetch everything in the background, then need no other node.
    #[serde(default)]
    pub independent: bool,
    /// Give the child any free pid of the node instead of its parent's.
    #[serde(default)]
    pub new_pid: bool,
    /// Host name in a UTS namespace of the child's own.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Network namespace.
    #[serde(default)]
    pub net: Net,
    /// When pages are fetched.
    #[serde(default)]
    pub paging: Paging,
    /// How the child is made.
    #[serde(default)]
    pub via: Via,
    /// How pages are fetched.
    #[serde(default)]
    pub transport: Transport,
    /// What the program is told to call before it goes on.
    #[serde(default)]
    pub hooks: Hooks,
}

fn one() -> u32 {
    1
}

impl ForkRequest {
    /// One detached child with the default of every choice.
    pub fn new(reference: impl Into<String>) -> ForkRequest {
        ForkRequest {
            reference: reference.into(),
            count: 1,
            attach: false,
            independent: false,
            new_pid: false,
            hostname: None,
            net: Net::default(),
            paging: Paging::default(),
            via: Via::default(),
            transport: Transport::default(),
            hooks: Hooks::default(),
        }
    }
}

/// The child's network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Net {
    /// The node's. Children of one seed share its listening sockets.
    #[default]
    Node,
    /// One of the child's own.
    Own,
}

/// When pages are fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// When they are touched, and a little ahead.
    #[default]
    Lazy,
    /// All of them at once, from the start.
    Eager,
}

/// What a child calls of its program before it goes on, so that it draws other random numbers than
/// its siblings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hooks {
    /// All that its program and runtime have.
    #[default]
    Auto,
    /// Nothing.
    None,
}

/// How the child is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// The best way that there is; the reply says which.
    #[default]
    Auto,
    /// Fork of the shadow, on the seed's own node.
    Shadow,
    /// Fork of a template on this node.
    Template,
    /// Built from the descriptor.
    Direct,
}

impl Via {
    /// The name used on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Via::Auto => "auto",
            Via::Shadow => "shadow",
            Via::Template => "template",
            Via::Direct => "direct",
        }
    }
}

/// How pages are fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// `local` for pages that this very daemon owns, else `rdma` where both nodes have it, else
    /// `tcp`.
    #[default]
    Auto,
    /// One-sided RDMA reads.
    Rdma,
    /// TCP, even to this node.
    Tcp,
    /// Only pages that this very daemon owns; an error when there are others.
    Local,
}
