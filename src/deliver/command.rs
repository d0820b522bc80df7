//! Runs a program for each message, with the message as JSON on its standard input.
//!
//! No shell is involved: the items of `command` are the program and its arguments. The program gets only the
//! environment variables of `env` and a fixed `PATH`.

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

/// Maximum number of bytes kept from standard error: enough to see what is wrong.
const OUTPUT: usize = 4 * 1024;
/// How long to keep reading standard error after the program has ended.
const STDERR_TIMEOUT: Duration = Duration::from_millis(500);
/// `PATH` of the program. Fixed, because the agent's own may be anything.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Settings of a program to run (`kind = "command"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// - `command`: The program to run, and its arguments. A name with a slash is relative to the configuration file; one
    ///   without is searched in `PATH`. Required.
    pub program: PathBuf,
    /// The remaining items of `command`. Not a key.
    pub arguments: Vec<String>,
    /// - `env`: Environment variables, each a string or a secret. The program gets no others, except for `PATH`.
    pub environment: Vec<(String, SecretOrText)>,
    /// How long the program may run before it is killed, from `1s` to `10m`. Default: `30s`.
    pub timeout: Duration,
    /// JSON format of the message: `native` or `ocsf`. Default: `native`.
    pub format: JsonFormat,
    /// Working directory of the program: the directory of the configuration file. Not a key.
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
            table.problem("command", "`command` must name a program", Some(help));
            return None;
        };
        Some(Self {
            // With a slash it is relative to the configuration, without one it is searched in `PATH`.
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
            // Its own process group, so that its child processes can be killed with it.
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
        let mut child = program.spawn().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let mut stdin = child.stdin.take();
        let mut stderr = child.stderr.take();
        let work = async {
            let write = async {
                if let Some(mut stdin) = stdin.take() {
                    // A program that does not read its input may still succeed.
                    stdin.write_all(&input).await.ok();
                }
            };
            let output = Arc::new(Mutex::new(Vec::new()));
            let shared = Arc::clone(&output);
            let read = async move {
                let Some(mut stderr) = stderr.take() else { return };
                let mut bytes = [0; 1024];
                // Output beyond the limit is read and discarded, so that the program does not block on a full pipe.
                while let Ok(count @ 1..) = stderr.read(&mut bytes).await {
                    let mut output = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    if output.len() < OUTPUT {
                        output.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    }
                }
            };
            let all = async { tokio::join!(write, read) };
            tokio::pin!(all);
            // Child processes may keep standard error open, so wait for the program itself.
            let ended = tokio::select! {
                _ = &mut all => child.wait().await,
                ended = child.wait() => {
                    tokio::time::timeout(STDERR_TIMEOUT, &mut all).await.ok();
                    ended
                }
            };
            let output = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
            (ended, output)
        };
        let Ok((ended, output)) = tokio::time::timeout(settings.timeout, work).await else {
            if let Some(group) = group {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
            }
            return Err(format!("`{shown}` did not finish within {:?}", settings.timeout));
        };
        let status = ended.map_err(|error| format!("`{shown}`: {error}"))?;
        let mut output = String::from_utf8_lossy(&output).into_owned();
        for secret in &secrets {
            output = output.replace(secret.expose_secret(), "…");
        }
        let output: String = crate::model::text::printable(output.trim()).chars().take(300).collect();
        let output = if output.is_empty() { output } else { format!(": {output}") };
        if status.success() {
            Ok(SendOutcome::delivered(format!("{status}{output}")))
        } else {
            Err(format!("`{shown}` failed with {status}{output}"))
        }
    }
}
