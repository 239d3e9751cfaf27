//! The command line. Help, completions and man pages all come from these definitions.

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Remote fork: a running process continues on another node.
#[derive(Parser, Debug)]
#[command(name = "mitosis", version, max_term_width = 100)]
#[command(after_help = "Data goes to standard output, logs to standard error. \
    Exit status: 0 done, 1 failed, 2 wrong usage.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Show everything on this machine: nodes in namespaces, a Python function, cold start beside
    Demo(Demo),
    /// Say what this machine can do, each with its reason and the knob to turn
    Check(Check),
    /// Run or stop the daemon of a node
    #[command(subcommand)]
    Node(Node),
    /// Make a seed of a running process and print its reference
    Prepare(Prepare),
    /// Start children of a seed on the node behind the socket
    Fork(Fork),
    /// Seeds of this node
    #[command(subcommand)]
    Seed(Seed),
    /// Children of this node, ended ones too for a bounded time
    Ps(List),
    /// Wait for the end of a child and print its exit status
    Wait(Wait),
    /// Send a signal to a child
    Kill(Kill),
    /// Print the log of a child
    Logs(Logs),
    /// Show a descriptor, or what restore would do with it here
    Inspect(Inspect),
    /// Run benchmarks, each side by side with its peers
    Bench(Bench),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each verb into a directory
    #[command(hide = true)]
    Man {
        /// Directory to write to
        #[arg(long, value_name = "DIR", env = "MITOSIS_MAN_DIR")]
        dir: Option<PathBuf>,
    },
    /// The pager of a node; started by its daemon
    #[command(hide = true)]
    Pager(Pager),
}

/// How data is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// `-o`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// How to print
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        env = "MITOSIS_OUTPUT",
        default_value = "text"
    )]
    pub format: Format,
}

impl Output {
    /// Whether JSON was asked for.
    pub fn json(self) -> bool {
        self.format == Format::Json
    }
}

/// `--socket`.
#[derive(Args, Clone, Debug)]
pub struct Socket {
    /// Control socket of the node [default: the only one in /run/mitosis]
    #[arg(long = "socket", value_name = "PATH", env = "MITOSIS_SOCKET")]
    pub path: Option<PathBuf>,
}

/// `demo`.
#[derive(Args, Debug)]
pub struct Demo {
    /// Nodes: the first has the parent, the others the children
    #[arg(long, env = "MITOSIS_DEMO_NODES", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(2..=16))]
    pub nodes: u64,
    /// Children in all
    #[arg(long, env = "MITOSIS_DEMO_CHILDREN", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub children: u64,
    #[command(flatten)]
    pub output: Output,
}

/// `check`.
#[derive(Args, Debug)]
pub struct Check {
    #[command(flatten)]
    pub output: Output,
}

/// `node`.
#[derive(Subcommand, Debug)]
pub enum Node {
    /// Run the daemon of one node in the foreground
    Run(Box<NodeRun>),
    /// End all children and seeds of a node, its pager and its daemon
    Stop {
        #[command(flatten)]
        socket: Socket,
    },
}

/// `node run`. Everything can also stand in the file of `--config`, as `flag = value` lines.
#[derive(Args, Debug, Default)]
pub struct NodeRun {
    /// Name of the node
    #[arg(long, env = "MITOSIS_NODE_NAME")]
    pub name: Option<String>,
    /// Where to serve pages to other nodes
    #[arg(long, value_name = "ADDR:PORT", env = "MITOSIS_NODE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address that references name, where other nodes find this one [default: --listen]
    #[arg(long, value_name = "HOST:PORT", env = "MITOSIS_NODE_ADVERTISE")]
    pub advertise: Option<String>,
    /// A node whose seeds are forked here; a connection to it stands before it is needed. Several times, or
    /// with commas
    #[arg(
        long = "peer",
        value_name = "HOST:PORT",
        env = "MITOSIS_NODE_PEERS",
        value_delimiter = ','
    )]
    pub peers: Vec<String>,
    /// Control socket [default: /run/mitosis/NAME.sock]
    #[arg(long, value_name = "PATH", env = "MITOSIS_SOCKET")]
    pub socket: Option<PathBuf>,
    /// State: seeds and logs [default: /var/lib/mitosis/NAME]
    #[arg(long, value_name = "DIR", env = "MITOSIS_NODE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// File with settings; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "MITOSIS_NODE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Longest time a touched page may be missing before the child is killed [default: 5s]
    #[arg(long, value_name = "TIME", env = "MITOSIS_NODE_PAGE_TIMEOUT", value_parser = duration)]
    pub page_timeout: Option<Duration>,
    /// How long children outlive their daemon [default: 60s]
    #[arg(long, value_name = "TIME", env = "MITOSIS_NODE_LINGER", value_parser = duration)]
    pub linger: Option<Duration>,
    /// Longest time the threads of a parent may take to stop [default: 2s]
    #[arg(long, value_name = "TIME", env = "MITOSIS_NODE_STOP_TIMEOUT", value_parser = duration)]
    pub stop_timeout: Option<Duration>,
    /// MiB of memory that must be available for another child; with less than twice that there are no
    /// templates [default: 1/32 of the memory]
    #[arg(long, value_name = "MIB", env = "MITOSIS_NODE_MEMORY_MIN_MIB")]
    pub memory_min_mib: Option<u64>,
    /// Most children at a time [default: any number]
    #[arg(long, value_name = "N", env = "MITOSIS_NODE_CHILDREN_MAX",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub children_max: Option<u64>,
    /// MiB of memory that each child may use, in a control group of its own [default: any]
    #[arg(long, value_name = "MIB", env = "MITOSIS_NODE_CHILD_MEMORY_MIB",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub child_memory_mib: Option<u64>,
    /// Processes and threads that each child may have, its guard included [default: any]
    #[arg(long, value_name = "N", env = "MITOSIS_NODE_CHILD_PIDS",
          value_parser = clap::value_parser!(u64).range(2..))]
    pub child_pids: Option<u64>,
    /// Guards held ready for children [default: 4]
    #[arg(long, value_name = "N", env = "MITOSIS_NODE_POOL")]
    pub pool: Option<usize>,
    /// How children get their pages unless their fork says otherwise; tcp forbids RDMA to and from
    /// this node [default: auto]
    #[arg(long, env = "MITOSIS_NODE_TRANSPORT")]
    pub transport: Option<Transport>,
    /// RDMA device [default: the first with an active port]
    #[arg(long, value_name = "NAME[:PORT[:GID]]", env = "MITOSIS_RDMA_DEVICE")]
    pub rdma_device: Option<String>,
    /// Most MiB pinned for other nodes' RDMA reads [default: 1024]
    #[arg(long, value_name = "MIB", env = "MITOSIS_NODE_RDMA_LIMIT_MIB")]
    pub rdma_limit_mib: Option<u64>,
    /// What to log: error, warn, info or debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "MITOSIS_NODE_LOG_LEVEL")]
    pub log_level: Option<String>,
}

/// `prepare`.
#[derive(Args, Debug)]
pub struct Prepare {
    /// The process, as the node's host numbers it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// The whole process tree below it, as one seed
    #[arg(long, env = "MITOSIS_PREPARE_TREE", value_parser = FalseyValueParser::new())]
    pub tree: bool,
    /// A name for people
    #[arg(long, env = "MITOSIS_PREPARE_NAME")]
    pub name: Option<String>,
    /// Lifetime of the seed, such as 90s, 10m or 2h [default: until removed]
    #[arg(long, value_name = "TIME", env = "MITOSIS_PREPARE_TTL", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Also a process that asked not to be read: set-uid, or not dumpable
    #[arg(long, env = "MITOSIS_PREPARE_PRIVILEGED", value_parser = FalseyValueParser::new())]
    pub privileged: bool,
    /// MiB of each file without a path (deleted, memfd) that are taken along, up to 56 [default: 16]
    #[arg(long, value_name = "MIB", env = "MITOSIS_PREPARE_CONTENT_MAX",
          value_parser = clap::value_parser!(u64).range(..=56))]
    pub content_max: Option<u64>,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub output: Output,
}

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
        Shadow = "Fork of the shadow (not available yet)",
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

/// `seed`.
#[derive(Subcommand, Debug)]
pub enum Seed {
    /// List the seeds of this node, without their secrets
    Ls(List),
    /// Show one seed of this node
    Inspect(SeedOne),
    /// Revoke a seed: no new child, no further page
    Rm(SeedOne),
}

/// One seed of this node.
#[derive(Args, Debug)]
pub struct SeedOne {
    /// Reference of the seed, or its 16 digits; `-` reads standard input, `@FILE` a file
    #[arg(value_name = "REF")]
    pub reference: String,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub output: Output,
}

/// A list.
#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub output: Output,
}

/// `wait`.
#[derive(Args, Debug)]
pub struct Wait {
    /// The child, as the node's host numbers it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub output: Output,
}

/// `kill`.
#[derive(Args, Debug)]
pub struct Kill {
    /// The child, as the node's host numbers it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// Signal, by number or name
    #[arg(short, long, env = "MITOSIS_KILL_SIGNAL", default_value = "KILL", value_parser = signal)]
    pub signal: i32,
    #[command(flatten)]
    pub socket: Socket,
}

/// `logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// The child, as the node's host numbers it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    #[command(flatten)]
    pub socket: Socket,
}

/// `inspect`.
#[derive(Args, Debug)]
pub struct Inspect {
    /// File with a descriptor, or reference of a seed (`-` reads it from standard input, `@FILE`
    /// from a file)
    #[arg(value_name = "FILE|REF")]
    pub what: String,
    /// Show what restore would do on this machine
    #[arg(long, env = "MITOSIS_INSPECT_PLAN", value_parser = FalseyValueParser::new())]
    pub plan: bool,
    /// Write the encoded descriptor to a file; it contains the seed's capability
    #[arg(long, value_name = "FILE", env = "MITOSIS_INSPECT_SAVE")]
    pub save: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// `bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// Benchmarks of BENCHMARKS.md
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Fewer runs
    #[arg(long, env = "MITOSIS_BENCH_QUICK", value_parser = FalseyValueParser::new())]
    pub quick: bool,
    /// Parents of 4 GiB too
    #[arg(long, env = "MITOSIS_BENCH_LARGE", value_parser = FalseyValueParser::new())]
    pub large: bool,
    /// Directory for plots
    #[arg(long, value_name = "DIR", env = "MITOSIS_BENCH_PLOT")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// `pager`.
#[derive(Args, Debug)]
pub struct Pager {
    /// Socket to listen on
    #[arg(long = "listen-unix", value_name = "PATH", env = "MITOSIS_PAGER_SOCKET")]
    pub listen: PathBuf,
    /// Longest time a touched page may be missing, in milliseconds
    #[arg(long, env = "MITOSIS_PAGER_PAGE_TIMEOUT_MS")]
    pub page_timeout_ms: u64,
    /// How long children outlive the daemon, in milliseconds
    #[arg(long, env = "MITOSIS_PAGER_LINGER_MS")]
    pub linger_ms: u64,
    /// RDMA device
    #[arg(long, value_name = "NAME[:PORT[:GID]]", env = "MITOSIS_RDMA_DEVICE")]
    pub rdma_device: Option<String>,
}

/// A time such as `250ms`, `90s`, `10m`, `2h` or `1d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "want a time such as 90s, 10m or 2h")?;
    let unit_ms: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => return Err(format!("unknown unit {unit:?}: want ms, s, m, h or d")),
    };
    match number.checked_mul(unit_ms) {
        Some(0) => Err("the time must not be zero".into()),
        Some(ms) if ms <= 366 * 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err("more than a year".into()),
    }
}

/// A signal by number, `NAME` or `SIGNAME`.
fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err("want 1 to 64".into()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let names = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("WINCH", 28),
    ];
    let found = names.iter().find(|(known, _)| *known == name);
    found.map(|(_, number)| *number).ok_or_else(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        fn walk(command: &clap::Command) {
            for arg in command.get_arguments() {
                let built_in = ["help", "version"].contains(&arg.get_id().as_str());
                if !arg.is_positional() && !built_in {
                    let env = arg.get_env().and_then(|e| e.to_str()).unwrap_or_default();
                    assert!(env.starts_with("MITOSIS_"), "{} {}", command.get_name(), arg.get_id());
                }
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn times() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "m", "-1s", "1w", "0s", "99999999999999999999s", "400d", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals() {
        assert_eq!(signal("SIGTERM"), Ok(15));
        assert_eq!(signal("hup"), Ok(1));
        assert_eq!(signal("9"), Ok(9));
        assert!(signal("0").is_err() && signal("65").is_err() && signal("NOPE").is_err());
    }
}
