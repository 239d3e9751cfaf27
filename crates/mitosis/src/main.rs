//! `mitosis`: the command line, the daemon of a node and its pager, in one binary.
//!
//! Every verb is a thin file under `verb/`: it turns flags into a typed request, and a reply into
//! text or JSON. What is worth knowing lives in the libraries, which other programs can use alike.

#![forbid(unsafe_code)]

mod args;
mod error;
mod output;
mod reference;
mod socket;
mod verb;

use args::{Cli, Verb};
use clap::Parser;
use error::CliError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Demo(args) => verb::bench::demo(&args),
        Verb::Check(args) => verb::check::run(&args),
        Verb::Node(args) => verb::node::run(args),
        Verb::Prepare(args) => verb::prepare::run(args),
        Verb::Fork(args) => verb::fork::run(&args),
        Verb::Seed(args) => verb::seed::run(&args),
        Verb::Ps(args) => verb::children::ps(&args),
        Verb::Wait(args) => verb::children::wait(&args),
        Verb::Kill(args) => verb::children::kill(&args),
        Verb::Logs(args) => verb::children::logs(&args),
        Verb::Inspect(args) => verb::inspect::run(&args),
        Verb::Bench(args) => verb::bench::bench(args),
        Verb::Completions { shell } => verb::meta::completions(shell),
        Verb::Man { dir } => verb::meta::man(dir.as_deref()),
        Verb::Pager(args) => verb::pager::run(&args),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        // A reader that has seen enough (`| head`) is no failure of ours.
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mitosis: {error}");
            ExitCode::from(error.status())
        }
    }
}
