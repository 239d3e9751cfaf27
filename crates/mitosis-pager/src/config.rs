//! How a pager is run.

use crate::peer::Connect;
use mitosis_transport::{PageSource, TcpSource, rdma};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How a pager is run.
#[derive(Clone)]
pub struct PagerConfig {
    /// Unix socket to listen on (`SOCK_SEQPACKET`, mode 0600).
    pub socket: PathBuf,
    /// Longest time a touched page may be missing before the child is killed.
    pub page_timeout: Duration,
    /// How long children outlive the last connection of a daemon.
    pub linger: Duration,
    /// How often an owner is asked whether it is there.
    pub ping_interval: Duration,
    /// Most ended children remembered.
    pub ended_max: usize,
    /// How long an ended child is remembered.
    pub ended_for: Duration,
    /// Whether a second process keeps the userfaultfds when this one is killed.
    pub holder: bool,
    /// How owners are reached: TCP, unless a test or another transport says otherwise.
    pub connect: Connect,
    /// How owners are reached that are to be read by RDMA.
    pub connect_rdma: Connect,
}

impl PagerConfig {
    /// The defaults, with a socket path.
    pub fn new(socket: impl Into<PathBuf>) -> PagerConfig {
        PagerConfig {
            socket: socket.into(),
            page_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(60),
            ping_interval: Duration::from_millis(250),
            ended_max: 1000,
            ended_for: Duration::from_secs(600),
            holder: true,
            connect: Arc::new(|address| {
                Ok(Box::new(TcpSource::connect(address)?) as Box<dyn PageSource>)
            }),
            connect_rdma: Arc::new(rdma::connector(None)),
        }
    }
}
