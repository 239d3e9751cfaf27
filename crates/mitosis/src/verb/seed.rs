//! `seed`: the seeds of this node.

use super::Done;
use crate::args::{List, Seed, SeedOne};
use crate::{output, reference, socket};
use mitosis_proto::SeedRow;

/// `mitosis seed`.
pub fn run(args: &Seed) -> Done {
    match args {
        Seed::Ls(args) => ls(args),
        Seed::Inspect(args) => inspect(args),
        Seed::Rm(args) => rm(args),
    }
}

fn name<T: serde::Serialize>(value: T) -> String {
    let text = serde_json::to_value(value).ok();
    text.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
}

fn ls(args: &List) -> Done {
    let seeds = socket::connect(&args.socket)?.seeds()?;
    if args.output.json() {
        output::json(&seeds)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = seeds.iter().map(row).collect();
    let head = [
        "SEED", "NAME", "STATE", "BOUND", "PARENT", "PAGES", "READERS", "FORKS", "AGE", "TTL",
        "REASON",
    ];
    output::table(&head, &rows)?;
    Ok(0)
}

fn row(seed: &SeedRow) -> Vec<String> {
    vec![
        seed.seed.clone(),
        output::dash(seed.name.as_ref()),
        name(seed.state),
        name(seed.bound),
        seed.parent_pid.to_string(),
        seed.pages_total.to_string(),
        seed.readers.to_string(),
        seed.forks.to_string(),
        output::age(seed.age_ms),
        output::dash(seed.ttl_left_ms.map(output::age)),
        output::dash(seed.reason.as_ref()),
    ]
}

fn inspect(args: &SeedOne) -> Done {
    let seed = reference::seed(&args.reference)?;
    let row = socket::connect(&args.socket)?.seed(&seed)?;
    if args.output.json() {
        output::json(&row)?;
        return Ok(0);
    }
    let serde_json::Value::Object(fields) = serde_json::to_value(&row)? else { return Ok(0) };
    for (field, value) in fields {
        let value = match value {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => text,
            value => value.to_string(),
        };
        output::line(format_args!("{field:<17} {value}"))?;
    }
    Ok(0)
}

fn rm(args: &SeedOne) -> Done {
    let seed = reference::seed(&args.reference)?;
    socket::connect(&args.socket)?.remove_seed(&seed)?;
    if args.output.json() {
        output::json(&serde_json::json!({ "removed": true }))?;
    }
    Ok(0)
}
