//! `pager`: the process that serves page faults.

use super::Done;
use crate::args::Pager;
use crate::error::CliError;
use std::time::Duration;

/// `mitosis pager`, started by the daemon.
pub fn run(args: &Pager) -> Done {
    // A session of its own: a signal to the daemon's terminal is not meant for its children.
    let _ = rustix::process::setsid();
    let mut config = mitosis_pager::PagerConfig::new(&args.listen);
    config.page_timeout = Duration::from_millis(args.page_timeout_ms);
    config.linger = Duration::from_millis(args.linger_ms);
    config.connect_rdma =
        std::sync::Arc::new(mitosis_transport::rdma::connector(args.rdma_device.clone()));
    mitosis_pager::run(config).map_err(|e| CliError::Failed(e.to_string()))?;
    Ok(0)
}
