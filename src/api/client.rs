//! The client of the control API. It uses the socket if an agent runs, else it opens the store. Callers need not know
//! which.

use std::{path::Path, time::Duration};

use super::{
    Request, Service, ServiceError, ServiceSettings,
    request::Blocks,
    respond::Respond,
    socket,
    wire::{self, API_HEADER, API_VERSION, Line, PROGRAM_HEADER},
};
use crate::{
    config::Config,
    dispatch::{Recorder, Router},
    model::time::Clock,
    store::{Block, SentBlock, Store, StoreError},
};

/// An agent sends a line at least every 15 seconds, and waits for news for at most 30. If it is silent for longer, it
/// hangs.
const SILENCE: Duration = Duration::from_secs(45);
/// How long another process may take to close the store or to start answering.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest line of an answer.
const MAX_LINE: usize = 256 * 1024 * 1024;

/// What answers requests.
#[derive(Debug)]
pub enum Client {
    /// A running agent, through its socket.
    Agent(Remote),
    /// This process, which has opened the store.
    Store(Box<Service>),
}

/// The connection to an agent.
#[derive(Debug)]
pub struct Remote {
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no store in the data directory.
    #[error("no store in `{0}`: start the agent with `watchbell run`")]
    NoStore(String),
    /// The request is invalid.
    #[error("{0}")]
    Wrong(String),
    /// The store cannot be opened, or it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent has another version of the control API.
    #[error("the running agent is {agent}, this program is {program}: use the same version, or restart the agent")]
    OtherVersion {
        /// The agent's version.
        agent: String,
        /// The version of this program.
        program: &'static str,
    },
    /// The agent did not answer, or its answer is invalid.
    #[error("the agent does not answer: {0}")]
    Agent(String),
    /// The answer cannot be written to the output.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl From<ServiceError> for ClientError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Wrong(message) => Self::Wrong(message),
            ServiceError::Store(error) => Self::Store(error),
            ServiceError::Gone => Self::Output(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Client {
    /// Connects to the agent that has the store open, or opens the store.
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
                // An agent that starts or stops, or another command, has the store open: wait a moment.
                Err(StoreError::Locked { .. }) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether requests go to a running agent.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// Sends a request, and passes on each item of the answer.
    pub fn each<R: Respond>(
        &self,
        request: R,
        mut each: impl FnMut(R::Item) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        match self {
            Self::Agent(remote) => remote.send(&request, &mut each),
            Self::Store(service) => {
                let mut failed = None;
                let answered = request.respond(service, &mut |item| {
                    each(item).map_err(|error| {
                        failed = Some(error);
                        ServiceError::Gone
                    })
                });
                match failed {
                    Some(error) => Err(error),
                    None => Ok(answered?),
                }
            }
        }
    }

    /// Passes on all stored events, packed, until `each` returns `false`.
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
                let sent = self.each(Blocks {}, |block: SentBlock| {
                    more = each(block.block()?);
                    if more { Ok(()) } else { Err(ended()) }
                });
                if more { sent } else { Ok(()) }
            }
        }
    }

    /// Sends a request, and collects the items of the answer.
    pub fn all<R: Respond>(&self, request: R) -> Result<Vec<R::Item>, ClientError> {
        let mut items = Vec::new();
        self.each(request, |item| {
            items.push(item);
            Ok(())
        })?;
        Ok(items)
    }

    /// Sends a request for one item; `None` if the answer is empty.
    pub fn one<R: Respond>(&self, request: R) -> Result<Option<R::Item>, ClientError> {
        Ok(self.all(request)?.into_iter().next())
    }
}

/// A service for a store that no agent has open.
fn service(store: Store, config: &Config, clock: &Clock) -> Service {
    let recorder = Recorder::new(store.clone(), Router::new(config.destinations.clone()));
    let settings = ServiceSettings { sources: config.sources.clone(), destinations: config.destinations.clone() };
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

    fn send<R: Request>(
        &self,
        request: &R,
        each: &mut dyn FnMut(R::Item) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let failed = |error: reqwest::Error| ClientError::Agent(crate::http::failure(&error).1);
            let url = format!("http://agent{}", wire::path(R::NAME));
            let request = self.client.post(url).header(API_HEADER, API_VERSION).json(request);
            let mut response = request.send().await.map_err(failed)?;
            same_version(response.headers())?;
            let status = response.status();
            if !status.is_success() {
                // An agent of another version may not have this request.
                let agent = text(response.headers(), PROGRAM_HEADER).unwrap_or_default().to_owned();
                if agent != env!("CARGO_PKG_VERSION") {
                    return Err(ClientError::OtherVersion { agent, program: env!("CARGO_PKG_VERSION") });
                }
                let text = response.text().await.unwrap_or_default();
                return Err(ClientError::Wrong(format!("the agent refused the request: {status}: {}", text.trim())));
            }
            let mut buffer: Vec<u8> = Vec::new();
            let mut count = 0;
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                let mut start = 0;
                // Only the new bytes can end a line.
                let mut search = buffer.len();
                buffer.extend_from_slice(&chunk);
                while let Some(end) = buffer.get(search..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
                {
                    let end = search + end;
                    let line = buffer.get(start..end).unwrap_or_default();
                    start = end + 1;
                    search = start;
                    // Keep-alive line.
                    if line.is_empty() {
                        continue;
                    }
                    let line: Line<'_> =
                        serde_json::from_slice(line).map_err(|error| ClientError::Agent(error.to_string()))?;
                    match line {
                        Line::Item(item) => {
                            count += 1;
                            each(serde_json::from_str(item.get()).map_err(|error| {
                                ClientError::Wrong(format!("cannot parse the agent's answer to `{}`: {error}", R::NAME))
                            })?)?;
                        }
                        Line::End(all) if all == count => return Ok(()),
                        Line::End(_) => return Err(ClientError::Agent("the answer is incomplete".to_owned())),
                        Line::Error(error) if error.wrong => return Err(ClientError::Wrong(error.message)),
                        Line::Error(error) => {
                            return Err(ClientError::Wrong(format!("the agent failed: {}", error.message)));
                        }
                    }
                }
                buffer.drain(..start);
                if buffer.len() > MAX_LINE {
                    return Err(ClientError::Agent("the answer is too large".to_owned()));
                }
            }
            Err(ClientError::Agent("the answer was cut off".to_owned()))
        })
    }
}

/// Whether an agent of the same version of the API answered.
fn same_version(headers: &reqwest::header::HeaderMap) -> Result<(), ClientError> {
    if text(headers, API_HEADER).and_then(|version| version.parse().ok()) == Some(API_VERSION) {
        return Ok(());
    }
    let agent = text(headers, PROGRAM_HEADER).unwrap_or("an older version").to_owned();
    Err(ClientError::OtherVersion { agent, program: env!("CARGO_PKG_VERSION") })
}

fn text<'a>(headers: &'a reqwest::header::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
