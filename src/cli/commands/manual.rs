//! `completions` and `man`, made from the definitions of the command line.

use crate::cli::args::Args;
use crate::cli::failure::Failure;
use crate::cli::screen::output::Output;
use crate::run::RunError;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "zfs-backup", &mut text);
    output.raw(&text);
    Ok(())
}

/// Prints the manual page, or writes one for each command into a folder.
pub(crate) fn man(folder: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let failed = |source| RunError::File {
        operation: "write",
        path: folder.map_or_else(
            || "the manual page".to_owned(),
            |folder| folder.display().to_string(),
        ),
        source,
    };
    let command = Args::command();
    match folder {
        Some(folder) => clap_mangen::generate_to(command, folder).map_err(failed)?,
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut text)
                .map_err(failed)?;
            output.raw(&text);
        }
    }
    Ok(())
}
