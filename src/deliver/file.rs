//! Appends messages to a JSON Lines file, one per line, readable only by its owner. The file is opened for each
//! message, so that it can be rotated at any time.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Destination, JsonFormat, Message, OpenError, SendOutcome, Sending, json, json_format};
use crate::{config::settings::TableReader, model::time::Clock};

/// Settings of a file (`kind = "file"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Path of the JSON Lines file to append to, relative to the configuration file. Its directory must exist.
    /// Required.
    pub path: PathBuf,
    /// JSON format of the messages: `native` or `ocsf`. Default: `native`.
    pub format: JsonFormat,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let path = table.required_text("path", "\"alerts.jsonl\"");
        let format = json_format(table);
        Some(Self { path: base.join(path?), format })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<FileDestination, OpenError> {
        Ok(FileDestination { settings: self.clone() })
    }
}

/// A write that takes longer is treated as a failure.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct FileDestination {
    settings: Settings,
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)?;
    if !ends_with_newline(&mut file)? {
        // Terminate a line that a crash cut off; its message is written again below.
        file.write_all(b"\n")?;
    }
    file.write_all(line)?;
    file.sync_data()
}

fn ends_with_newline(file: &mut File) -> std::io::Result<bool> {
    if !file.metadata()?.is_file() || file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

impl Destination for FileDestination {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move {
            let path = self.settings.path.clone();
            let shown = path.display().to_string();
            let values = match json(message, self.settings.format) {
                Ok(values) => values,
                Err(error) => return SendOutcome::Refused(format!("cannot serialize the message: {error}")),
            };
            let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
            // On a separate thread: a hanging disk must not block anything else.
            let writing = tokio::task::spawn_blocking(move || append(&path, lines.as_bytes()));
            match tokio::time::timeout(TIMEOUT, writing).await {
                Ok(Ok(Ok(()))) => SendOutcome::delivered("written"),
                Ok(Ok(Err(error))) => SendOutcome::retry(format!("cannot write `{shown}`: {error}")),
                Ok(Err(error)) => SendOutcome::retry(format!("cannot write `{shown}`: {error}")),
                Err(_) => SendOutcome::retry(format!("cannot write `{shown}`: timed out")),
            }
        })
    }
}
