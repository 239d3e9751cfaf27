//! `mitosis fork`, and the choices that the protocol knows too.

use super::{Output, Socket};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

/// `fork`.
#[derive(Args, Debug)]
pub struct Fork {
    /// Reference of the seed; `-` reads it from standard input, `@FILE` from a file
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Number of children
    #[arg(long, env = "MITOSIS_FORK_COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub count: u32,
    /// Do not wait: standard output and error of the children go to their logs
    #[arg(long, env = "MITOSIS_FORK_DETACH", value_parser = FalseyValueParser::new())]
    pub detach: bool,
    /// Fetch the rest in the background, then need no other node
    #[arg(long, env = "MITOSIS_FORK_INDEPENDENT", value_parser = FalseyValueParser::new())]
    pub independent: bool,
    /// A new pid instead of the parent's; always so for a parent that was pid 1
    #[arg(long, env = "MITOSIS_FORK_NEW_PID", value_parser = FalseyValueParser::new())]
    pub new_pid: bool,
    /// Host name of the child
    #[arg(long, value_name = "NAME", env = "MITOSIS_FORK_HOSTNAME")]
    pub hostname: Option<String>,
    /// Network namespace: the node's, or one of the child's own
    #[arg(long, env = "MITOSIS_FORK_NET", default_value = "node")]
    pub net: Net,
    /// Fetch pages when touched, or all at once
    #[arg(long, env = "MITOSIS_FORK_PAGING", default_value = "lazy")]
    pub paging: Paging,
    /// How the child is made
    #[arg(long, env = "MITOSIS_FORK_VIA", default_value = "auto")]
    pub via: Via,
    /// How pages are fetched
    #[arg(long, env = "MITOSIS_FORK_TRANSPORT", default_value = "auto")]
    pub transport: Transport,
    /// What the program calls before it goes on, to draw other random numbers than its siblings
    #[arg(long, env = "MITOSIS_FORK_HOOKS", default_value = "auto")]
    pub hooks: Hooks,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub output: Output,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $help:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
        pub enum $name { $(#[doc = $help] $variant),* }
        impl From<$name> for mitosis_proto::$name {
            fn from(value: $name) -> mitosis_proto::$name {
                match value { $($name::$variant => mitosis_proto::$name::$variant),* }
            }
        }
    };
}

choice! {
    /// `--net`.
    Net { Node = "The node's; children of one seed share its listening sockets", Own = "One of its own" }
}
choice! {
    /// `--paging`.
    Paging { Lazy = "When touched", Eager = "All at once" }
}
choice! {
    /// `--hooks`.
    Hooks { Auto = "All that its program and runtime have", None = "Nothing" }
}
choice! {
    /// `--via`.
    Via {
        Auto = "The best there is",
        Shadow = "Copy of the shadow, on the seed's own node",
        Template = "Copy of a template on this node, made if there is none",
        Direct = "Built from the descriptor",
    }
}
choice! {
    /// `--transport`.
    Transport {
        Auto = "Local for pages of this very daemon, else RDMA where both nodes have it, else TCP",
        Rdma = "One-sided RDMA reads; an error where they cannot be had",
        Tcp = "TCP",
        Local = "Only pages of this very daemon",
    }
}
