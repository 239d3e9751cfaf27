//! `node run` and `node stop`.

use super::Done;
use crate::args::{Node, NodeRun, duration};
use crate::error::CliError;
use crate::socket;
use mitosis_node::Config;
use std::path::Path;

/// `mitosis node`.
pub fn run(args: Node) -> Done {
    match args {
        Node::Run(args) => start(*args),
        Node::Stop { socket } => {
            socket::connect(&socket)?.stop()?;
            Ok(0)
        }
    }
}

fn start(mut args: NodeRun) -> Done {
    if let Some(path) = args.config.clone() {
        let text = std::fs::read_to_string(&path)
            .map_err(|e| CliError::Failed(format!("cannot read {}: {e}", path.display())))?;
        merge(&mut args, &text, &path)?;
    }
    let missing =
        |flag: &str| CliError::Usage(format!("{flag} is needed (or its line in --config)"));
    let name = args.name.ok_or_else(|| missing("--name"))?;
    let listen = args.listen.ok_or_else(|| missing("--listen"))?;
    let mut config = Config::new(&name, listen);
    config.advertise = args.advertise.or(config.advertise);
    config.peers = args.peers;
    config.socket = args.socket.unwrap_or(config.socket);
    config.state_dir = args.state_dir.unwrap_or(config.state_dir);
    config.page_timeout = args.page_timeout.unwrap_or(config.page_timeout);
    config.linger = args.linger.unwrap_or(config.linger);
    config.stop_timeout = args.stop_timeout.unwrap_or(config.stop_timeout);
    config.pool = args.pool.unwrap_or(config.pool);
    config.transport = args.transport.map_or(config.transport, Into::into);
    config.rdma_device = args.rdma_device.or(config.rdma_device);
    config.memory_min = args.memory_min_mib.map(|mib| mib.saturating_mul(1 << 20));
    config.children_max = args.children_max.map_or(0, |most| most as usize);
    config.limits = mitosis_node::Limits {
        memory: args.child_memory_mib.map(|mib| mib.saturating_mul(1 << 20)),
        pids: args.child_pids,
    };
    config.rdma_limit = args.rdma_limit_mib.map_or(config.rdma_limit, |mib| mib << 20);
    config.rdma_memory = args.rdma_memory.unwrap_or(config.rdma_memory);
    config.rdma_networks = args.rdma_networks.unwrap_or(config.rdma_networks);
    if let Some(level) = args.log_level {
        config.log_level = level.parse().map_err(CliError::Usage)?;
    }
    mitosis_node::run(config)?;
    Ok(0)
}

/// Fills what flags and environment left open from `key = value` lines.
fn merge(args: &mut NodeRun, text: &str, path: &Path) -> Result<(), CliError> {
    let open = args.peers.is_empty();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let at =
            |what: String| CliError::Usage(format!("{}:{}: {what}", path.display(), number + 1));
        let (key, value) = line.split_once('=').ok_or_else(|| at("want `flag = value`".into()))?;
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        match key {
            // The only one that may have several lines.
            "peer" if open => args.peers.extend(value.split(',').map(|one| one.trim().to_owned())),
            "peer" => {}
            _ => set(args, key, value).map_err(at)?,
        }
    }
    Ok(())
}

fn set(args: &mut NodeRun, key: &str, value: &str) -> Result<(), String> {
    fn or<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
        let value = value?;
        slot.get_or_insert(value);
        Ok(())
    }
    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
        value.parse().map_err(|e| format!("{value:?}: {e}"))
    }
    match key {
        "name" => or(&mut args.name, Ok(value.to_owned())),
        "listen" => or(&mut args.listen, parse(value)),
        "advertise" => or(&mut args.advertise, Ok(value.to_owned())),
        "socket" => or(&mut args.socket, Ok(value.into())),
        "state-dir" => or(&mut args.state_dir, Ok(value.into())),
        "page-timeout" => or(&mut args.page_timeout, duration(value)),
        "linger" => or(&mut args.linger, duration(value)),
        "stop-timeout" => or(&mut args.stop_timeout, duration(value)),
        "pool" => or(&mut args.pool, parse(value)),
        "transport" => or(&mut args.transport, clap::ValueEnum::from_str(value, true)),
        "rdma-device" => or(&mut args.rdma_device, Ok(value.to_owned())),
        "memory-min-mib" => or(&mut args.memory_min_mib, parse(value)),
        "children-max" => or(&mut args.children_max, parse(value)),
        "child-memory-mib" => or(&mut args.child_memory_mib, parse(value)),
        "child-pids" => or(&mut args.child_pids, parse(value)),
        "rdma-limit-mib" => or(&mut args.rdma_limit_mib, parse(value)),
        "rdma-memory" => or(&mut args.rdma_memory, parse(value)),
        "rdma-networks" => or(&mut args.rdma_networks, parse(value)),
        "log-level" => or(&mut args.log_level, Ok(value.to_owned())),
        _ => Err(format!("unknown setting {key:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let mut args = NodeRun { name: Some("flag".into()), ..NodeRun::default() };
        let text = "# a node\nname = file\nlisten = \"127.0.0.1:7000\"\npool=9\n\
                    peer = a:1, b:2\npeer = c:3\n";
        merge(&mut args, text, Path::new("f")).unwrap();
        assert_eq!(args.name.as_deref(), Some("flag"));
        assert_eq!(args.pool, Some(9));
        assert_eq!(args.listen.unwrap().port(), 7000);
        assert_eq!(args.peers, ["a:1", "b:2", "c:3"]);
        let mut args = NodeRun { peers: vec!["d:4".into()], ..NodeRun::default() };
        merge(&mut args, text, Path::new("f")).unwrap();
        assert_eq!(args.peers, ["d:4"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let mut args = NodeRun::default();
        let error = merge(&mut args, "pool = 1\nnope = 2\n", Path::new("f")).unwrap_err();
        assert_eq!(error.to_string(), "f:2: unknown setting \"nope\"");
        assert_eq!(error.status(), 2);
        assert!(merge(&mut args, "page-timeout = soon", Path::new("f")).is_err());
    }
}
