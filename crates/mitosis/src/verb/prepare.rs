//! `prepare`: a seed of a running process.

use super::Done;
use crate::args::Prepare;
use crate::{output, socket};
use mitosis_proto::PrepareRequest;

/// `mitosis prepare`: the reference on standard output, figures on standard error.
pub fn run(args: Prepare) -> Done {
    let request = PrepareRequest {
        pid: args.pid,
        name: args.name,
        ttl_ms: args.ttl.map(|ttl| ttl.as_millis() as u64),
        tree: args.tree,
        privileged: args.privileged,
        content_max: args.content_max.map(|mib| mib << 20),
    };
    let prepared = socket::connect(&args.socket)?.prepare(request)?;
    if args.output.json() {
        output::json(&prepared)?;
        return Ok(0);
    }
    output::line(&prepared.reference)?;
    eprintln!(
        "seed {}: {} pages, {} threads, descriptor {} bytes; frozen {} us of {} us ({})",
        prepared.seed,
        prepared.pages_total,
        prepared.threads,
        prepared.descriptor_bytes,
        prepared.freeze_us,
        prepared.prepare_us,
        output::phases(&prepared.phases),
    );
    Ok(0)
}
