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
use error::CliError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::of(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
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

/// Help and versions as clap prints them; wrong usage in one line, like every other error.
fn not_parsed(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let status = ExitCode::from(error.exit_code() as u8);
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => match error.print() {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                eprintln!("mitosis: {}", CliError::Output(e));
                ExitCode::FAILURE
            }
            _ => status,
        },
        _ => {
            eprintln!("mitosis: {}", in_one_line(&error.to_string()));
            status
        }
    }
}

/// What clap says before it shows how a command is used.
fn in_one_line(said: &str) -> String {
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let wrong =
        lines.take_while(|line| !["Usage:", "For more"].iter().any(|w| line.starts_with(w)));
    wrong.collect::<Vec<_>>().join(" ").replace(" tip: ", "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_told_in_one_line() {
        let said = |args: &[&str]| {
            let args = [&["mitosis"], args].concat();
            in_one_line(&Cli::of(args.iter().map(Into::into).collect()).unwrap_err().to_string())
        };
        let missing = "the following required arguments were not provided: <PID>";
        assert_eq!(said(&["prepare"]), missing);
        let known = "unrecognized subcommand 'frok'; a similar subcommand exists: 'fork'";
        assert_eq!(said(&["frok"]), known);
        let choice = "invalid value 'x' for '--via <VIA>' \
                      [possible values: auto, shadow, template, direct]";
        assert_eq!(said(&["fork", "-", "--via", "x"]), choice);
    }
}
