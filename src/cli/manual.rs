//! `watchbell completions` and `watchbell man`: files that packages install with the binary.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, CliError, Context};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to generate the script for
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "watchbell", &mut script);
        Ok(context.output.raw(&String::from_utf8_lossy(&script))?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Directory to write the pages to; created if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let unwritable = |error| CliError::Usage(format!("cannot write to `{}`: {error}", self.directory.display()));
        std::fs::create_dir_all(&self.directory).map_err(unwritable)?;
        clap_mangen::generate_to(Arguments::command(), &self.directory).map_err(unwritable)?;
        context.output.note(&format!("man pages written to {}", self.directory.display()));
        Ok(())
    }
}
