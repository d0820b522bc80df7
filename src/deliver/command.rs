//! A program of the user's, run for each message with the message as JSON on its standard input. No shell: the words of
//! `command` are the program and its arguments. It sees nothing of the agent's environment but what `env` gives it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command as Program,
};

use super::{Destination, JsonFormat, Message, OpenError, SendOutcome, Sending, json, json_format};
use crate::{
    config::{secret::SecretOrText, settings::TableReader},
    model::time::Clock,
};

/// Enough of what a program says to see what is wrong.
const OUTPUT: usize = 4 * 1024;
/// How long its last words may take once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Where programs are looked for that programs call: the agent's own search path may be anything.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which program, and what it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, SecretOrText)>,
    /// How long it may take.
    pub timeout: Duration,
    /// Native or OCSF.
    pub format: JsonFormat,
    /// Where it runs: beside the configuration.
    pub directory: PathBuf,
}

impl Settings {
    pub(super) fn read(table: &mut TableReader<'_>, base: &Path) -> Option<Self> {
        let words = table.texts("command", |word| Ok(word.to_owned())).unwrap_or_default();
        let environment = table.texts_or_secrets("env", base);
        let timeout = table.duration("timeout", Duration::from_secs(1)..=Duration::from_secs(600));
        let format = json_format(table);
        let Some((program, arguments)) = words.split_first() else {
            let help = "add `command = [\"/usr/local/bin/on-alert\", \"--argument\"]`".to_owned();
            table.problem("command", "`command` names no program", Some(help));
            return None;
        };
        Some(Self {
            // With a slash it is relative to the configuration, without one it is looked for.
            program: if program.contains('/') { base.join(program) } else { PathBuf::from(program) },
            arguments: arguments.to_vec(),
            environment,
            timeout: timeout.unwrap_or(Duration::from_secs(30)),
            format,
            directory: if base == Path::new("") { PathBuf::from(".") } else { base.to_owned() },
        })
    }

    pub(super) fn open(&self, _clock: &Clock) -> Result<Command, OpenError> {
        for (_, value) in &self.environment {
            value.load()?;
        }
        Ok(Command { settings: self.clone() })
    }
}

#[derive(Debug)]
pub(super) struct Command {
    settings: Settings,
}

impl Destination for Command {
    fn send<'a>(&'a mut self, message: &'a Message, _reference: Option<&'a str>) -> Sending<'a> {
        Box::pin(async move { self.run(message).await.unwrap_or_else(SendOutcome::retry) })
    }
}

impl Command {
    async fn run(&self, message: &Message) -> Result<SendOutcome, String> {
        let settings = &self.settings;
        let shown = settings.program.display();
        let mut input = Vec::new();
        for value in json(message, settings.format).map_err(|error| error.to_string())? {
            input.extend_from_slice(value.as_bytes());
            input.push(b'\n');
        }
        let mut program = Program::new(&settings.program);
        program
            .args(&settings.arguments)
            .current_dir(&settings.directory)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own, so that what it started ends with it.
            .process_group(0)
            .kill_on_drop(true);
        let mut secrets = Vec::new();
        for (name, origin) in &settings.environment {
            let value = origin.load().map_err(|error| error.to_string())?;
            program.env(name, value.expose_secret());
            if matches!(origin, SecretOrText::Secret(_)) {
                secrets.push(value);
            }
        }
        let mut child = program.spawn().map_err(|error| format!("`{shown}` cannot be run: {error}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let mut stdin = child.stdin.take();
        let mut stderr = child.stderr.take();
        let work = async {
            let write = async {
                if let Some(mut stdin) = stdin.take() {
                    // A program that does not read its input may still do its work.
                    stdin.write_all(&input).await.ok();
                }
            };
            let said = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&said);
            let read = async move {
                let Some(mut stderr) = stderr.take() else { return };
                let mut bytes = [0; 1024];
                // What is more than enough is read and forgotten, so that it does not hang on a full pipe.
                while let Ok(count @ 1..) = stderr.read(&mut bytes).await {
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    if heard.len() < OUTPUT {
                        heard.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    }
                }
            };
            let all = async { tokio::join!(write, read) };
            tokio::pin!(all);
            // What it leaves running may keep its standard error open: its own end is what counts.
            let ended = tokio::select! {
                _ = &mut all => child.wait().await,
                ended = child.wait() => {
                    tokio::time::timeout(LAST_WORDS, &mut all).await.ok();
                    ended
                }
            };
            let said = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
            (ended, said)
        };
        let Ok((ended, said)) = tokio::time::timeout(settings.timeout, work).await else {
            if let Some(group) = group {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
            }
            return Err(format!("`{shown}` did not end within {:?}", settings.timeout));
        };
        let status = ended.map_err(|error| format!("`{shown}`: {error}"))?;
        let mut said = String::from_utf8_lossy(&said).into_owned();
        for secret in &secrets {
            said = said.replace(secret.expose_secret(), "…");
        }
        let said: String = crate::model::text::printable(said.trim()).chars().take(300).collect();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        if status.success() {
            Ok(SendOutcome::delivered(format!("{status}{said}")))
        } else {
            Err(format!("`{shown}` ended with {status}{said}"))
        }
    }
}
