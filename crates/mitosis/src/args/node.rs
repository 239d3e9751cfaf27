//! `mitosis node`: what a daemon is told. Everything can also stand in its configuration file, so nothing
//! has its default here.

use super::values::duration;
use super::{Socket, Transport};
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// Where pages are when other nodes read them by RDMA: copy (memory of the daemon), shadow (where
    /// they are, even if the kernel has to copy what is shared with the parent), or auto (where they are
    /// if that costs no copy) [default: auto]
    #[arg(long, value_name = "WHERE", env = "MITOSIS_NODE_RDMA_MEMORY")]
    pub rdma_memory: Option<mitosis_transport::rdma::Pinning>,
    /// Networks of the nodes that this one reads from and lets read by RDMA, which neither encrypts nor
    /// authenticates; others get TCP [default: all]
    #[arg(long, value_name = "ADDRESS/BITS,...", env = "MITOSIS_NODE_RDMA_NETWORKS")]
    pub rdma_networks: Option<mitosis_transport::rdma::Networks>,
    /// What to log: error, warn, info or debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "MITOSIS_NODE_LOG_LEVEL")]
    pub log_level: Option<String>,
}
