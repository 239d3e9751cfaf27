//! `inspect`: a descriptor for people.

use super::Done;
use crate::args::Inspect;
use crate::error::CliError;
use crate::{output, reference};
use mitosis_descriptor::{Descriptor, Limits, decode};
use mitosis_node::view::View;
use mitosis_transport::Want;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

/// `mitosis inspect`.
pub fn run(args: &Inspect) -> Done {
    let bytes = bytes(&args.what)?;
    let descriptor: Descriptor =
        decode(&bytes, &Limits::default()).map_err(|e| CliError::Failed(e.to_string()))?;
    if let Some(path) = &args.save {
        save(path, &bytes)
            .map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))?;
    }
    if args.plan {
        let text = mitosis_node::view::plan(&descriptor)?;
        match args.output.json() {
            true => output::json(&serde_json::json!({ "plan": text }))?,
            false => output::line(text.trim_end())?,
        }
        return Ok(0);
    }
    let view = View::of(&descriptor, bytes.len());
    match args.output.json() {
        true => output::json(&view)?,
        false => output::line(view.to_string().trim_end())?,
    }
    Ok(0)
}

fn bytes(what: &str) -> Result<Vec<u8>, CliError> {
    if what == "-" || what.starts_with('@') || what.starts_with("mitosis://") {
        let from = reference::parse(what)?;
        let nodes = mitosis_transport::ControlClient::new();
        return nodes
            .fork(&from.address, (from.seed, &from.secret), Want::default(), None, TIMEOUT)
            .map(|fetched| fetched.descriptor)
            .map_err(|e| CliError::Failed(e.to_string()));
    }
    let limit = Limits::default().bytes_max as u64;
    let file = std::fs::File::open(what)
        .map_err(|e| CliError::Failed(format!("cannot read {what}: {e}")))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, limit + 1), &mut bytes)
        .map_err(|e| CliError::Failed(format!("cannot read {what}: {e}")))?;
    Ok(bytes)
}

/// Only the owner may read it: it holds the capability.
fn save(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}
