//! `lockkeeper generate`, for packages: what the command line has is written once, here.

#![expect(clippy::disallowed_methods, reason = "no file of a lock is written")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::exit::Failure;
use super::{Cli, Generate};

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

pub(super) fn generate(arguments: &Generate) -> Result<u8, Failure> {
    let Generate { directory } = arguments;
    let failed = |error| Failure::system(&format!("writing into {}", directory.display()), &error);
    write(directory).map_err(failed)?;
    Ok(0)
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    manual(&command, directory)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Cli::command(), "lockkeeper", directory)?;
    }
    Ok(())
}

/// The page of a command, and those of its subcommands.
fn manual(command: &Command, directory: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        manual(verb, directory)?;
    }
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // `None` leaves it as it was.
    let man = Man::new(command.clone().after_help(""));
    let mut file = File::create(directory.join(man.get_filename()))?;
    man.render(&mut file)?;
    file.write_all(as_it_stands(&text).as_bytes())
}

/// In roff, with lines and columns as they are.
fn as_it_stands(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        let is_request = line.starts_with(['.', '\'']);
        format!("{}{line}\n", if is_request { "\\&" } else { "" })
    });
    format!(".SH MORE\n.nf\n{}.fi\n", lines.collect::<String>())
}
