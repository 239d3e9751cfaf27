//! The command line. Help, completions and man pages all come from these definitions.

mod fork;
mod node;
mod values;

pub use fork::{Fork, Transport};
pub use node::{Node, NodeRun};
pub use values::duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use values::signal;

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

impl Cli {
    /// What a command line means. To build the definitions of all verbs takes longer than all else that a
    /// command does before it asks the node, so `fork` is tried with its own alone; whatever they do not
    /// understand (`--help`, a mistake) is told by all of them.
    ///
    /// # Errors
    /// What clap says.
    pub fn of(args: Vec<OsString>) -> Result<Cli, clap::Error> {
        if args.get(1).is_some_and(|verb| verb == "fork") {
            let alone = Fork::augment_args(Command::new("fork"));
            let parsed = alone.try_get_matches_from(&args[1..]);
            if let Ok(fork) = parsed.and_then(|found| Fork::from_arg_matches(&found)) {
                return Ok(Cli { verb: Verb::Fork(fork) });
            }
        }
        Cli::try_parse_from(args)
    }
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
    /// Fewer runs; what is not begun within two and a half minutes is left out, and named
    #[arg(long, env = "MITOSIS_BENCH_QUICK", value_parser = FalseyValueParser::new())]
    pub quick: bool,
    /// Parents of 4 GiB too
    #[arg(long, env = "MITOSIS_BENCH_LARGE", value_parser = FalseyValueParser::new())]
    pub large: bool,
    /// Of `workloads` these alone, of `synthetic` parents of these MiB; with commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', env = "MITOSIS_BENCH_ONLY")]
    pub only: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn fork_alone_means_what_all_definitions_say() {
        let line =
            "mitosis fork @ref --count 3 --detach --net own --via template -o json --socket /s";
        let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let alone = format!("{:?}", Cli::of(args.clone()).unwrap());
        assert_eq!(alone, format!("{:?}", Cli::try_parse_from(args).unwrap()));
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
}
