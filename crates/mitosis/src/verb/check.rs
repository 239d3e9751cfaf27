//! `check`: what this machine can do.

use super::Done;
use crate::args::Check;
use crate::output;
use mitosis_node::check::{Verdict, check};

/// `mitosis check`: status 1 when something needed is missing.
pub fn run(args: &Check) -> Done {
    let found = check();
    if args.output.json() {
        output::json(&found)?;
    } else {
        let rows = found.iter().map(|item| {
            vec![
                item.verdict.to_string(),
                item.name.clone(),
                item.reason.clone(),
                item.knob.clone(),
            ]
        });
        output::table(&["", "WHAT", "WHY", "KNOB"], &rows.collect::<Vec<_>>())?;
    }
    Ok(u8::from(found.iter().any(|item| item.verdict == Verdict::Missing && item.needed)))
}
