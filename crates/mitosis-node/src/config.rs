//! How a node is run.

use crate::log::Level;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How a node is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node, for people and for paths.
    pub name: String,
    /// Where pages are served to other nodes.
    pub listen: SocketAddr,
    /// `HOST:PORT` in references; `None` means the address listened on.
    pub advertise: Option<String>,
    /// `HOST:PORT` of the nodes whose seeds are forked here: connections to them stand before they
    /// are needed.
    pub peers: Vec<String>,
    /// Control socket.
    pub socket: PathBuf,
    /// Seeds and logs.
    pub state_dir: PathBuf,
    /// Longest time a touched page may be missing before the child is killed.
    pub page_timeout: Duration,
    /// How long children outlive the daemon.
    pub linger: Duration,
    /// Longest time the threads of a parent may take to stop.
    pub stop_timeout: Duration,
    /// Bytes of memory that must be available for another child; `None` is a thirty-second of it.
    /// With less than twice that there are no templates.
    pub memory_min: Option<u64>,
    /// Most children at a time; 0 is any number.
    pub children_max: usize,
    /// What each child may use.
    pub limits: mitosis_sandbox::Limits,
    /// Guards held ready.
    pub pool: usize,
    /// How children of this node get their pages unless their fork says otherwise; `Tcp` forbids
    /// RDMA, to and from this node.
    pub transport: mitosis_proto::Transport,
    /// RDMA device as `NAME[:PORT[:GID_INDEX]]`; `None` is the first active one.
    pub rdma_device: Option<String>,
    /// Most bytes pinned for other nodes' RDMA reads.
    pub rdma_limit: u64,
    /// Where pages are when other nodes read them by RDMA.
    pub rdma_memory: mitosis_transport::rdma::Pinning,
    /// Networks with which RDMA is allowed.
    pub rdma_networks: mitosis_transport::rdma::Networks,
    /// What is logged.
    pub log_level: Level,
    /// The program whose `pager` verb is the pager.
    pub program: PathBuf,
}

impl Config {
    /// The defaults for a name and an address.
    pub fn new(name: &str, listen: SocketAddr) -> Config {
        Config {
            name: name.to_owned(),
            listen,
            advertise: None,
            peers: Vec::new(),
            socket: PathBuf::from(format!("/run/mitosis/{name}.sock")),
            state_dir: PathBuf::from(format!("/var/lib/mitosis/{name}")),
            page_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(2),
            memory_min: None,
            children_max: 0,
            limits: mitosis_sandbox::Limits::default(),
            pool: 4,
            transport: mitosis_proto::Transport::Auto,
            rdma_device: None,
            rdma_limit: 1 << 30,
            rdma_memory: mitosis_transport::rdma::Pinning::Auto,
            rdma_networks: mitosis_transport::rdma::Networks::default(),
            log_level: Level::Info,
            program: PathBuf::from("/proc/self/exe"),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn mistake(&self) -> Option<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Some(format!("--name {:?}: want 1 to 64 letters, digits, - _ .", self.name));
        }
        if self.name.ends_with(".pager") || self.name.starts_with('.') {
            return Some(format!(
                "--name {:?}: may not start with . or end with .pager",
                self.name
            ));
        }
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            let listen = self.listen;
            return Some(format!("--listen {listen}: nobody finds that address; add --advertise"));
        }
        let named = |address: &str| {
            let port = address.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty() && !host.contains(['/', '#']))
                    .then(|| port.parse::<u16>().ok())?
            });
            port.is_some_and(|port| port != 0)
        };
        let flags = self.advertise.iter().map(|address| ("--advertise", address));
        let mut flags = flags.chain(self.peers.iter().map(|address| ("--peer", address)));
        let wrong = flags.find(|(_, address)| !named(address));
        wrong.map(|(flag, address)| format!("{flag} {address:?}: want HOST:PORT"))
    }

    /// A path beside the control socket, in memory where the socket is.
    pub(crate) fn run_path(&self, suffix: &str) -> PathBuf {
        self.socket.with_file_name(format!("{}.{suffix}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found() {
        let listen: SocketAddr = "10.0.0.1:7000".parse().unwrap();
        assert_eq!(Config::new("a", listen).mistake(), None);
        assert!(Config::new("a/b", listen).mistake().is_some());
        assert!(Config::new("", listen).mistake().is_some());
        let mut config = Config::new("a", "0.0.0.0:7000".parse().unwrap());
        assert!(config.mistake().unwrap().contains("--advertise"));
        config.advertise = Some("node-a:7000".into());
        assert_eq!(config.mistake(), None);
        config.peers = vec!["node-b:7000".into(), "node-c".into()];
        assert!(config.mistake().unwrap().contains("--peer \"node-c\""));
        config.peers.clear();
        config.advertise = Some("node-a".into());
        assert!(config.mistake().is_some());
    }
}
