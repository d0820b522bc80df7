//! The asking side: through the socket where an agent runs, of the store itself where none does. Whoever asks need not know.

use std::{path::Path, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    DeskError, DeskSettings, Service, socket,
    wire::{Line, Request},
};
use crate::{
    config::Config,
    dispatch::{Recorder, Router},
    model::time::Clock,
    store::{Block, SentBlock, Store, StoreError},
};

/// An agent sends a line every 15 seconds at least, and waits for news for half a minute at most: one that is silent for longer hangs.
const SILENCE: Duration = Duration::from_secs(45);
/// How long another process may take to let go of the store, or to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A line longer than this is nonsense.
const MAX_LINE: usize = 256 * 1024 * 1024;

/// Somebody to ask.
#[derive(Debug)]
pub enum Client {
    /// An agent that runs, through its socket.
    Agent(Remote),
    /// The store, opened by this process.
    Store(Box<Service>),
}

/// The connection to an agent.
#[derive(Debug)]
pub struct Remote {
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing has been stored yet.
    #[error("there is no store in `{0}` yet: `watchbell run` makes it")]
    NoStore(String),
    /// The question cannot be answered as it is.
    #[error("{0}")]
    Wrong(String),
    /// The store is not to be had, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent did not answer, or not as it should.
    #[error("the agent does not answer: {0}")]
    Agent(String),
    /// What an answer was written to cannot be written.
    #[error("output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl From<DeskError> for ClientError {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Wrong(message) => Self::Wrong(message),
            DeskError::Store(error) => Self::Store(error),
            DeskError::Gone => Self::Output(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// What becomes of an item of an answer.
type Each<'a> = &'a mut dyn FnMut(&str) -> Result<(), ClientError>;

impl Client {
    /// Finds whom to ask: the agent that holds the store, or the store.
    pub fn open(config: &Config, clock: &Clock) -> Result<Self, ClientError> {
        let path = socket(&config.data_dir);
        let began = std::time::Instant::now();
        loop {
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                return Remote::new(&path).map(Self::Agent);
            }
            if !config.data_dir.join("store").exists() {
                return Err(ClientError::NoStore(config.data_dir.display().to_string()));
            }
            match Store::open(&config.data_dir) {
                Ok(store) => return Ok(Self::Store(Box::new(service(store, config, clock)))),
                // An agent that starts or stops, or another verb: it will be over in a moment.
                Err(StoreError::Locked { .. }) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether a running agent is asked.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// Asks, and hands on each item of the answer.
    pub fn each<T: DeserializeOwned>(
        &self,
        request: Request,
        mut each: impl FnMut(T) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut parse = |item: &str| {
            let item = serde_json::from_str(item).map_err(|error| {
                ClientError::Agent(format!(
                    "its answer is not understood ({error}); is it as old or new as this program?"
                ))
            })?;
            each(item)
        };
        match self {
            Self::Agent(remote) => remote.ask(&request, &mut parse),
            Self::Store(service) => {
                let mut failed = None;
                let answered = service.answer(request, &mut |item| match parse(&item) {
                    Ok(()) => true,
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                });
                match failed {
                    Some(error) => Err(error),
                    None => Ok(answered?),
                }
            }
        }
    }

    /// Hands on all stored events, packed; `false` ends it.
    pub fn blocks(&self, mut each: impl FnMut(Block) -> bool) -> Result<(), ClientError> {
        match self {
            Self::Store(service) => {
                for block in service.store.reader().blocks() {
                    if !each(block?) {
                        break;
                    }
                }
                Ok(())
            }
            Self::Agent(_) => {
                let ended = || ClientError::Output(std::io::ErrorKind::Interrupted.into());
                let mut more = true;
                let sent = self.each(Request::Blocks {}, |block: SentBlock| {
                    more = each(block.block()?);
                    if more { Ok(()) } else { Err(ended()) }
                });
                if more { sent } else { Ok(()) }
            }
        }
    }

    /// Asks, and collects the items of the answer.
    pub fn all<T: DeserializeOwned>(&self, request: Request) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        self.each(request, |item| {
            items.push(item);
            Ok(())
        })?;
        Ok(items)
    }

    /// Asks for one thing; none if the answer is empty.
    pub fn one<T: DeserializeOwned>(&self, request: Request) -> Result<Option<T>, ClientError> {
        Ok(self.all(request)?.into_iter().next())
    }
}

/// A service without an agent.
fn service(store: Store, config: &Config, clock: &Clock) -> Service {
    let recorder = Recorder::new(store.clone(), Router::new(config.destinations.clone()));
    let settings = DeskSettings { sources: config.sources.clone(), destinations: config.destinations.clone() };
    Service::new(store, recorder, settings, clock.clone(), None)
}

impl Remote {
    fn new(path: &Path) -> Result<Self, ClientError> {
        let failed = |error: String| ClientError::Agent(error);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder()
            .unix_socket(path.to_owned())
            .read_timeout(SILENCE)
            .no_proxy()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, runtime })
    }

    fn ask<T: Serialize>(&self, request: &T, each: Each<'_>) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let failed = |error: reqwest::Error| ClientError::Agent(crate::http::failure(&error).1);
            let mut response = self.client.post("http://agent/v1/ask").json(request).send().await.map_err(failed)?;
            let status = response.status();
            if !status.is_success() {
                let text = response.text().await.unwrap_or_default();
                return Err(ClientError::Agent(format!("{status}: {}", text.trim())));
            }
            let mut buffer: Vec<u8> = Vec::new();
            let mut count = 0;
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                let mut start = 0;
                // Only what is new can end a line.
                let mut search = buffer.len();
                buffer.extend_from_slice(&chunk);
                while let Some(end) = buffer.get(search..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
                {
                    let end = search + end;
                    let line = buffer.get(start..end).unwrap_or_default();
                    start = end + 1;
                    search = start;
                    // It takes long.
                    if line.is_empty() {
                        continue;
                    }
                    let line: Line<'_> =
                        serde_json::from_slice(line).map_err(|error| ClientError::Agent(error.to_string()))?;
                    match line {
                        Line::Item(item) => {
                            count += 1;
                            each(item.get())?;
                        }
                        Line::End(all) if all == count => return Ok(()),
                        Line::End(_) => return Err(ClientError::Agent("the answer is not whole".to_owned())),
                        Line::Error(error) if error.wrong => return Err(ClientError::Wrong(error.message)),
                        Line::Error(error) => return Err(ClientError::Agent(error.message)),
                    }
                }
                buffer.drain(..start);
                if buffer.len() > MAX_LINE {
                    return Err(ClientError::Agent("the answer is too large".to_owned()));
                }
            }
            Err(ClientError::Agent("the answer broke off".to_owned()))
        })
    }
}
