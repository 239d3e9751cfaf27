//! `ps`, `wait`, `kill` and `logs`: the children of this node.

use super::Done;
use crate::args::{Kill, List, Logs, Wait};
use crate::error::CliError;
use crate::{output, socket};
use mitosis_proto::{ChildRow, ChildState};

/// `mitosis ps`.
pub fn ps(args: &List) -> Done {
    let children = socket::connect(&args.socket)?.children()?;
    if args.output.json() {
        output::json(&children)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = children.iter().map(row).collect();
    let head = [
        "PID",
        "SEED",
        "STATE",
        "EXIT",
        "VIA",
        "TRANSPORT",
        "PAGES",
        "FETCHED",
        "AHEAD",
        "FAULTS",
        "FREE",
        "START",
        "AGE",
        "REASON",
    ];
    output::table(&head, &rows)?;
    Ok(0)
}

fn row(child: &ChildRow) -> Vec<String> {
    let state = match child.state {
        ChildState::Running => "running",
        ChildState::Ended => "ended",
    };
    vec![
        child.pid.to_string(),
        child.seed.clone(),
        state.to_owned(),
        output::dash(child.exit),
        child.via.clone(),
        child.transport.clone(),
        child.pages_total.to_string(),
        child.pages_fetched.to_string(),
        child.pages_prefetched.to_string(),
        child.faults.to_string(),
        if child.independent { "yes" } else { "no" }.to_owned(),
        format!("{}us", child.start_us),
        output::age(child.age_ms),
        output::dash(child.reason.as_ref()),
    ]
}

/// `mitosis wait`: the exit status of the child on standard output.
pub fn wait(args: &Wait) -> Done {
    let end = socket::connect(&args.socket)?.wait(args.pid)?;
    if args.output.json() {
        output::json(&end)?;
        return Ok(0);
    }
    output::line(end.exit)?;
    if let Some(reason) = end.reason {
        eprintln!("child {}: {reason}", end.pid);
    }
    Ok(0)
}

/// `mitosis kill`.
pub fn kill(args: &Kill) -> Done {
    socket::connect(&args.socket)?.kill(args.pid, args.signal)?;
    Ok(0)
}

/// `mitosis logs`.
pub fn logs(args: &Logs) -> Done {
    let (info, file) = socket::connect(&args.socket)?.logs(args.pid)?;
    // A running child appends meanwhile; what is there now is what was asked for.
    let mut file = std::io::Read::take(file, info.bytes);
    std::io::copy(&mut file, &mut std::io::stdout().lock()).map_err(CliError::Output)?;
    Ok(0)
}
