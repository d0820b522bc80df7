//! A file of JSON lines, one message a line, readable by its owner only. It is opened anew for each message, so that it can
//! be rotated at any time.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Destination, JsonFormat, Message, OpenError, SendOutcome, Sending, json, json_format};
use crate::{config::settings::TableReader, model::time::Clock};

/// Where the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its path.
    pub path: PathBuf,
    /// Native or OCSF.
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

/// A disk that does not answer in so long is a failing destination.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct FileDestination {
    settings: Settings,
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)?;
    if !ends_with_newline(&mut file)? {
        // A line that a crash tore stays a line of its own; its message is written again below.
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
                Err(error) => return SendOutcome::Refused(format!("a message has no JSON form: {error}")),
            };
            let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
            // On a thread of its own: a disk may hang, and nothing else must wait for it.
            let writing = tokio::task::spawn_blocking(move || append(&path, lines.as_bytes()));
            match tokio::time::timeout(TIMEOUT, writing).await {
                Ok(Ok(Ok(()))) => SendOutcome::delivered("written"),
                Ok(Ok(Err(error))) => SendOutcome::retry(format!("`{shown}` cannot be written: {error}")),
                Ok(Err(error)) => SendOutcome::retry(format!("`{shown}` cannot be written: {error}")),
                Err(_) => SendOutcome::retry(format!("`{shown}` was not written in time")),
            }
        })
    }
}
