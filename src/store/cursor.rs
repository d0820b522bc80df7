//! What is known of a source: its cursor, and how far it has come.

use serde::{Deserialize, Serialize};

use crate::model::{error_kind::ErrorKind, time::Timestamp};

/// What is kept of a source between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The opaque token of the next page; absent: start from a time.
    pub cursor: Option<String>,
    /// The newest `processedAt` seen.
    pub newest_processed: Option<Timestamp>,
    /// The newest event time seen, none counted later than its arrival.
    pub newest_event: Option<Timestamp>,
    /// When an event last arrived.
    pub newest_arrival: Option<Timestamp>,
    /// When the first poll succeeded.
    pub first_poll: Option<Timestamp>,
    /// When a poll last succeeded.
    pub last_poll: Option<Timestamp>,
    /// When the first page was asked for from.
    pub started_from: Option<Timestamp>,
    /// When an entry was last quarantined.
    pub last_quarantined: Option<Timestamp>,
    /// What went wrong at the last poll; absent if it succeeded.
    pub error: Option<SourceError>,
    /// Failed polls in a row.
    pub failures: u32,
    /// When the failures began.
    pub failing_since: Option<Timestamp>,
    /// Whether the last poll reached the end of the log.
    pub caught_up: bool,
    /// How long, in seconds, the newest event of the last page had taken to arrive; only of pages that came while there was
    /// nothing else to catch up with.
    pub lag: Option<u64>,
    /// Events stored.
    pub stored: u64,
    /// Events that came again.
    pub duplicates: u64,
    /// Entries that were no events.
    pub quarantined: u64,
    /// When the cursor last stood still although there were events behind it, or was refused.
    pub cursor_trouble: Option<Timestamp>,
    /// The organization's list of its actions.
    #[serde(default)]
    pub actions: ActionList,
    /// A part of the log that is being fetched again.
    #[serde(default)]
    pub refetch: Option<Refetch>,
    /// Events that Atlassian processed before this were evaluated before the store lost them: they are stored when they come
    /// again, and not evaluated a second time.
    #[serde(default)]
    pub evaluated_before: Option<Timestamp>,
}

/// How an organization's list of its actions stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionList {
    /// When it was first had.
    pub first: Option<Timestamp>,
    /// When it was last had.
    pub fetched: Option<Timestamp>,
    /// When it was last asked for.
    pub tried: Option<Timestamp>,
    /// How many actions were on it.
    pub listed: u64,
    /// Why it was not had when it was last asked for.
    pub error: Option<SourceError>,
}

/// A part of the log that is being fetched again, beside the usual polls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refetch {
    /// From this time of processing on.
    pub since: Timestamp,
    /// Up to this time, where the usual polls go on.
    pub until: Timestamp,
    /// The token of its next page; absent: it begins at `since`.
    pub cursor: Option<String>,
    /// Entries fetched so far.
    pub fetched: u64,
    /// Events among them that were not there yet.
    pub found: u64,
    /// Failed attempts in a row.
    #[serde(default)]
    pub failures: u32,
    /// What the last attempt failed with, if it did.
    #[serde(default)]
    pub error: Option<String>,
}

impl Refetch {
    /// A part of the log from `since` to `until`.
    pub fn new(since: Timestamp, until: Timestamp) -> Self {
        Self { since, until, cursor: None, fetched: 0, found: 0, failures: 0, error: None }
    }

    /// This and another part, from the beginning of both on.
    pub fn and(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) => Self::new(self.since.min(other.since), self.until.max(other.until)),
        }
    }
}

/// A failed poll, as it is kept and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceError {
    /// Which kind of trouble.
    pub kind: ErrorKind,
    /// What was tried and what came back; never a secret.
    pub message: String,
    /// When.
    pub at: Timestamp,
}
