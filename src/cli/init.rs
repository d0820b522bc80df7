//! `watchbell init`: writes a configuration and the shipped rules to start from.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use watchbell::rule::SHIPPED;

use super::{CliError, Context, output};

/// The configuration that `init` writes. It explains every key.
pub(super) const TEMPLATE: &str = include_str!("../../examples/watchbell.toml");

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Directory to write to
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

impl Init {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = self.directory.join("watchbell.toml");
        let mut written = Vec::new();
        let mut kept = Vec::new();
        let mut put = |path: &Path, text: &str| -> Result<(), CliError> {
            let list =
                if write_new(path, text).map_err(|error| unwritable(path, &error))? { &mut written } else { &mut kept };
            list.push(path.display().to_string());
            Ok(())
        };
        put(&config, TEMPLATE)?;
        write_rules(&self.directory.join("rules"), &mut put)?;
        if context.is_json() {
            return Ok(context.output.json(&serde_json::json!({ "written": written, "kept": kept }))?);
        }
        let out = &context.output;
        for path in &kept {
            out.note(&format!("kept {path}: it already exists"));
        }
        out.line(&format!("wrote {} in {}", output::count(written.len() as u64, "file"), self.directory.display()))?;
        let argument =
            if self.directory == Path::new(".") { String::new() } else { format!(" --config {}", config.display()) };
        out.line(&format!("\nPut your organization's ID into {}, then run:\n", config.display()))?;
        out.line("  export ATLASSIAN_API_KEY=…      # create it at admin.atlassian.com > Settings > API keys")?;
        out.line(&format!("  watchbell check{argument}"))?;
        Ok(out.line(&format!("  watchbell run{argument}"))?)
    }
}

/// Writes the shipped rules into a directory.
pub(super) fn write_rules(
    directory: &Path,
    put: &mut dyn FnMut(&Path, &str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    for file in SHIPPED {
        put(&directory.join(file.path), file.text)?;
    }
    Ok(())
}

/// Writes a new file. Returns false if the file already exists.
pub(super) fn write_new(path: &Path, text: &str) -> std::io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::File::create_new(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Usage(format!("cannot write `{}`: {error}", path.display()))
}
