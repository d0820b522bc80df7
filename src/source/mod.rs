//! Where events come from. A source fetches a page at a position; the poll loop ([`Poller`]) does the rest: storing, waiting,
//! backing off, and knowing how things stand.

use std::path::Path;
use std::time::Duration;

use crate::{
    config::{secret::SecretError, settings::TableReader},
    model::{
        action::{ActionPatterns, ListedAction, Unwanted},
        error_kind::ErrorKind,
        event::{IncomingEvent, RejectedEntry},
        name::SourceName,
        time::Timestamp,
    },
};

mod action_list;
pub mod atlassian;
pub mod file;
mod poll;
mod rate_limit;

pub use action_list::{Listing, Refresh, Refreshed};
pub use poll::{Poller, SourceStatus, Timing};
pub use rate_limit::Pace;

use atlassian::AtlassianSource;

/// Where in the log to read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// After what this token stands for.
    Cursor(String),
    /// From this time of processing on.
    From(Timestamp),
}

/// A page as a source returned it.
#[derive(Debug, Clone, Default)]
pub struct FetchedPage {
    /// Its events, in order.
    pub events: Vec<IncomingEvent>,
    /// Its entries that are no events.
    pub rejected: Vec<RejectedEntry>,
    /// The token of what follows, if the source gave one.
    pub next: Option<String>,
    /// The server's clock, if it told.
    pub server_time: Option<Timestamp>,
}

impl FetchedPage {
    /// Entries, usable or not.
    pub fn entries(&self) -> usize {
        self.events.len() + self.rejected.len()
    }
}

/// Why a page could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// Which kind of trouble.
    pub kind: ErrorKind,
    /// What was tried and what came back. Never a secret, never a query.
    pub message: String,
    /// How long the server asked to wait.
    pub retry_after: Option<Duration>,
}

impl FetchError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }
}

/// What all sources have in common, and what kind it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its name.
    pub name: SourceName,
    /// How far back the first poll goes.
    pub backfill: Duration,
    /// How long to wait when there is nothing more to read.
    pub poll_interval: Duration,
    /// How far a restart by time goes back behind the newest event.
    pub overlap: Duration,
    /// Requests a minute.
    pub rate_limit: u32,
    /// Silence that is not plausible.
    pub drop_off: Duration,
    /// Which events are not wanted.
    pub unwanted: Unwanted,
    /// What kind of source, and its own settings.
    pub kind: SourceKind,
}

/// The kinds of sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// The audit log of an Atlassian Cloud organization.
    Atlassian(atlassian::Settings),
}

impl Settings {
    /// Reads a `[[source]]` table. File names are relative to `base`.
    pub fn read(mut table: TableReader<'_>, base: &Path) -> Option<Self> {
        const MINUTE: Duration = Duration::from_secs(60);
        const DAY: Duration = Duration::from_secs(86_400);
        let name = table.required_text("name", "\"My Atlassian event logs\"").and_then(|name| {
            SourceName::parse(name).map_err(|error| table.problem("name", error.to_string(), None)).ok()
        });
        // Atlassian keeps the log for 180 days.
        let backfill = table.duration("backfill", Duration::ZERO..=180 * DAY);
        let poll_interval = table.duration("poll_interval", Duration::from_millis(100)..=DAY);
        let overlap = table.duration("overlap", Duration::ZERO..=DAY);
        let rate_limit = table.number("rate_limit", 1..=6_000);
        let drop_off = table.duration("drop_off", Duration::from_secs(1)..=180 * DAY);
        let mut patterns = |key: &'static str| {
            let texts = table.texts(key, |text| Ok(text.to_owned())).unwrap_or_default();
            ActionPatterns::parse(texts).unwrap_or_else(|error| {
                table.problem(key, error, None);
                ActionPatterns::default()
            })
        };
        let unwanted = Unwanted { ignore: patterns("ignore"), drop: patterns("drop") };
        let kind = atlassian::Settings::read(&mut table, base).map(SourceKind::Atlassian);
        table.finish();
        Some(Self {
            name: name?,
            backfill: backfill.unwrap_or(7 * DAY),
            poll_interval: poll_interval.unwrap_or(Duration::from_secs(30)),
            overlap: overlap.unwrap_or(10 * MINUTE),
            rate_limit: rate_limit.and_then(|number| u32::try_from(number).ok()).unwrap_or(40),
            drop_off: drop_off.unwrap_or(DAY),
            unwanted,
            kind: kind?,
        })
    }

    /// The day on which the key expires, as the configuration says.
    pub fn key_expires(&self) -> Option<jiff::civil::Date> {
        match &self.kind {
            SourceKind::Atlassian(settings) => settings.api_key_expires,
        }
    }
}

/// A source that can be read.
#[derive(Debug)]
pub enum Source {
    /// See [`SourceKind::Atlassian`].
    Atlassian(AtlassianSource),
}

impl Source {
    /// Makes the source ready: reads its secret, builds its client.
    pub fn new(settings: &Settings) -> Result<Self, SourceSetupError> {
        match &settings.kind {
            SourceKind::Atlassian(atlassian) => Ok(Self::Atlassian(AtlassianSource::new(atlassian.clone())?)),
        }
    }

    /// Fetches the page at a position. `limit` is the most entries wanted.
    pub async fn fetch(&self, position: &Position, limit: usize, now: Timestamp) -> Result<FetchedPage, FetchError> {
        match self {
            Self::Atlassian(source) => source.fetch(position, limit, now).await,
        }
    }

    /// Fetches the organization's list of its actions.
    pub async fn actions(&self, now: Timestamp) -> Result<Vec<ListedAction>, FetchError> {
        match self {
            Self::Atlassian(source) => source.actions(now).await,
        }
    }

    /// Reads the secret again: it may have been replaced where it is kept.
    pub fn reload_secret(&mut self) -> Result<(), SecretError> {
        match self {
            Self::Atlassian(source) => source.reload_secret(),
        }
    }

    /// Whether the source uses the same credential as another, and so shares its rate limit.
    pub fn same_credential(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Atlassian(one), Self::Atlassian(other)) => one.same_credential(other),
        }
    }
}

/// Why a source could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SourceSetupError {
    /// Its secret is not to be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The HTTP client could not be built.
    #[error("no HTTP client could be made: {0}: check the machine's certificate store")]
    Client(String),
}
