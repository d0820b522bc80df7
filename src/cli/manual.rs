//! `watchbell completions` and `watchbell man`: what packages install next to the binary.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, CliError, Context};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
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
    /// Where to write the pages; the directory is created if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let unwritable =
            |error| CliError::Usage(format!("`{}` cannot be written to: {error}", self.directory.display()));
        std::fs::create_dir_all(&self.directory).map_err(unwritable)?;
        clap_mangen::generate_to(Arguments::command(), &self.directory).map_err(unwritable)?;
        context.output.note(&format!("man pages written to {}", self.directory.display()));
        Ok(())
    }
}
