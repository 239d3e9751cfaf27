//! Which node? The one at `--socket`, or the only one there is.

use crate::args::Socket;
use crate::error::CliError;
use mitosis_proto::Client;
use std::path::{Path, PathBuf};

const RUN: &str = "/run/mitosis";

/// The control socket that the caller means.
pub fn path(socket: &Socket) -> Result<PathBuf, CliError> {
    match &socket.path {
        Some(path) => Ok(path.clone()),
        None => only(Path::new(RUN)),
    }
}

/// Connects to the node that the caller means.
pub fn connect(socket: &Socket) -> Result<Client, CliError> {
    Ok(Client::connect(&path(socket)?)?)
}

fn only(run: &Path) -> Result<PathBuf, CliError> {
    let mut found: Vec<PathBuf> = match std::fs::read_dir(run) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(CliError::Failed(format!("cannot list {}: {e}", run.display()))),
    };
    found.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".sock") && !name.ends_with(".pager.sock")
    });
    match found.as_slice() {
        [path] => Ok(path.clone()),
        [] => Err(CliError::Failed(format!(
            "no node in {}: start one, or name its --socket",
            run.display()
        ))),
        _ => Err(CliError::Usage(format!(
            "{} nodes in {}: say which by --socket",
            found.len(),
            run.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_socket_is_found_and_the_pagers_is_not_it() {
        let run = std::env::temp_dir().join(format!("mitosis-run-{}", std::process::id()));
        std::fs::create_dir_all(&run).unwrap();
        assert_eq!(only(&run).unwrap_err().status(), 1);
        std::fs::write(run.join("a.sock"), "").unwrap();
        std::fs::write(run.join("a.pager.sock"), "").unwrap();
        let one = only(&run);
        std::fs::write(run.join("b.sock"), "").unwrap();
        let two = only(&run);
        std::fs::remove_dir_all(&run).unwrap();
        assert_eq!(one.unwrap(), run.join("a.sock"));
        assert_eq!(two.unwrap_err().status(), 2);
    }
}
