//! `completions` and `man`, from the same definitions as the command line itself.

use super::Done;
use crate::args::Cli;
use crate::error::CliError;
use clap::CommandFactory;
use std::path::Path;

/// `mitosis completions SHELL`.
pub fn completions(shell: clap_complete::Shell) -> Done {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mitosis", &mut text);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &text)?;
    Ok(0)
}

/// `mitosis man`: one page to standard output, or a page for each verb into a directory.
pub fn man(dir: Option<&Path>) -> Done {
    match dir {
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout().lock())?,
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|e| CliError::Failed(format!("cannot write to {}: {e}", dir.display())))?,
    }
    Ok(0)
}
