//! Where events come from. A source fetches a page at a position. The poll loop ([`Poller`]) does the rest: storing
//! pages, waiting, backing off, and tracking the source's status.

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

/// A position in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// The position of a cursor from an earlier page.
    Cursor(String),
    /// Events that Atlassian processed at or after this time.
    From(Timestamp),
}

/// A page as a source returned it.
#[derive(Debug, Clone, Default)]
pub struct FetchedPage {
    /// The events, in the order of the page.
    pub events: Vec<IncomingEvent>,
    /// Entries that are not events, with the reason.
    pub rejected: Vec<RejectedEntry>,
    /// The cursor of the next page; `None` if the source returned none.
    pub next: Option<String>,
    /// The server's clock; `None` if the response has no date.
    pub server_time: Option<Timestamp>,
}

impl FetchedPage {
    /// Number of entries, including rejected ones.
    pub fn entries(&self) -> usize {
        self.events.len() + self.rejected.len()
    }
}

/// Error that occurs when fetching a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// The kind of error, which decides about retries.
    pub kind: ErrorKind,
    /// What failed and how the server answered. Never contains a secret or a query.
    pub message: String,
    /// How long the server asked to wait; `None` if it did not.
    pub retry_after: Option<Duration>,
}

impl FetchError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }
}

/// `[[source]]`: the settings that all sources share, and those of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Unique name of the source; events are stored under it. Required.
    pub name: SourceName,
    /// How far back the first poll goes, from `0s` to `180d`, which is how long Atlassian keeps the log. Default: `7d`.
    pub backfill: Duration,
    /// Wait between polls once everything has been read, from `100ms` to `1d`. Default: `30s`.
    pub poll_interval: Duration,
    /// How far before the newest event a poll without a cursor starts, from `0s` to `1d`. Default: `10m`.
    pub overlap: Duration,
    /// Maximum number of requests per minute, from 1 to 6,000; shared by sources with the same API key. Default: 40.
    pub rate_limit: u32,
    /// Silence after which a health alert reports that the log has dropped off, from `1s` to `180d`. Default: `1d`.
    pub drop_off: Duration,
    /// - `ignore`: Patterns of actions, with `*` for any text. Their events are stored, but not evaluated by rules.
    ///   Default: none.
    /// - `drop`: Patterns of actions. Their events are counted, but not stored. Default: none.
    pub unwanted: Unwanted,
    /// The kind of source, with its own settings. Not a key.
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

    /// The configured date on which the API key expires; `None` if it is not configured.
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
    /// Sets up the source: reads its secret and builds its client.
    pub fn new(settings: &Settings) -> Result<Self, SourceSetupError> {
        match &settings.kind {
            SourceKind::Atlassian(atlassian) => Ok(Self::Atlassian(AtlassianSource::new(atlassian.clone())?)),
        }
    }

    /// Fetches the page at a position, with at most `limit` entries.
    pub async fn fetch(&self, position: &Position, limit: usize, now: Timestamp) -> Result<FetchedPage, FetchError> {
        match self {
            Self::Atlassian(source) => source.fetch(position, limit, now).await,
        }
    }

    /// Fetches the organization's list of actions.
    pub async fn actions(&self, now: Timestamp) -> Result<Vec<ListedAction>, FetchError> {
        match self {
            Self::Atlassian(source) => source.actions(now).await,
        }
    }

    /// Reads the secret again, because it may have been replaced.
    pub fn reload_secret(&mut self) -> Result<(), SecretError> {
        match self {
            Self::Atlassian(source) => source.reload_secret(),
        }
    }

    /// True if both sources use the same credential, and so share a rate limit.
    pub fn same_credential(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Atlassian(one), Self::Atlassian(other)) => one.same_credential(other),
        }
    }
}

/// Error that keeps a source from being set up.
#[derive(Debug, thiserror::Error)]
pub enum SourceSetupError {
    /// The secret could not be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The HTTP client could not be built.
    #[error("cannot create an HTTP client: {0}: check the machine's certificate store")]
    Client(String),
}
