//! The record of a source: its cursor, and how far it has been read.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    error_kind::ErrorKind,
    time::{self, Timestamp},
};

/// Clocks that differ by more than this are wrong.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// What is kept about a source between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The opaque token of the next page; absent: start from a time.
    pub cursor: Option<String>,
    /// The newest `processedAt` seen.
    pub newest_processed: Option<Timestamp>,
    /// The newest event time seen; times after arrival are limited to the arrival.
    pub newest_event: Option<Timestamp>,
    /// When an event last arrived.
    pub newest_arrival: Option<Timestamp>,
    /// When the first poll succeeded.
    pub first_poll: Option<Timestamp>,
    /// When a poll last succeeded.
    pub last_poll: Option<Timestamp>,
    /// The start time of the first page request.
    pub started_from: Option<Timestamp>,
    /// When an entry was last quarantined.
    pub last_quarantined: Option<Timestamp>,
    /// The error of the last poll; absent if it succeeded.
    pub error: Option<SourceError>,
    /// The number of failed polls in a row.
    pub failures: u32,
    /// When the failures began.
    pub failing_since: Option<Timestamp>,
    /// Whether the last poll reached the end of the log.
    pub caught_up: bool,
    /// How long, in seconds, the newest event of the last page took to arrive. Only measured while there is no backlog
    /// to catch up with.
    pub lag: Option<u64>,
    /// The number of events stored.
    pub stored: u64,
    /// The number of events that arrived again.
    pub duplicates: u64,
    /// The number of entries that were not events.
    pub quarantined: u64,
    /// When the cursor was last rejected, or last did not advance although there were more events.
    pub cursor_trouble: Option<Timestamp>,
    /// How far this machine's clock was ahead of the server's at the last poll, in seconds; negative if it was behind,
    /// absent if the server did not say.
    #[serde(default)]
    pub clock_skew: Option<i64>,
    /// The organization's list of its actions.
    #[serde(default)]
    pub actions: ActionList,
    /// A part of the log that is being fetched again.
    #[serde(default)]
    pub refetch: Option<Refetch>,
    /// Events that Atlassian processed before this were evaluated before the store lost them. When they arrive again,
    /// they are stored but not evaluated a second time.
    #[serde(default)]
    pub evaluated_before: Option<Timestamp>,
}

impl SourceRecord {
    /// A time of this machine's clock by the server's, as far as the last poll shows how the two differ.
    pub fn by_server(&self, local: Timestamp) -> Timestamp {
        let skew = self.clock_skew.unwrap_or(0);
        let distance = Duration::from_secs(skew.unsigned_abs());
        if distance <= MAX_CLOCK_SKEW {
            local
        } else if skew > 0 {
            time::before(local, distance)
        } else {
            time::after(local, distance)
        }
    }
}

/// The state of an organization's list of actions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionList {
    /// When it was first fetched.
    pub first: Option<Timestamp>,
    /// When it was last fetched.
    pub fetched: Option<Timestamp>,
    /// When it was last requested.
    pub tried: Option<Timestamp>,
    /// The number of actions in it.
    pub listed: u64,
    /// Why the last request failed, if it did.
    pub error: Option<SourceError>,
}

/// A part of the log that is being fetched again, in addition to the usual polls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refetch {
    /// The start, as a time of processing.
    pub since: Timestamp,
    /// The end, from which the usual polls continue.
    pub until: Timestamp,
    /// The token of the next page; absent: start at `since`.
    pub cursor: Option<String>,
    /// The number of entries fetched so far.
    pub fetched: u64,
    /// The number of events among them that were new.
    pub found: u64,
    /// The number of failed attempts in a row.
    #[serde(default)]
    pub failures: u32,
    /// The error of the last attempt, if it failed.
    #[serde(default)]
    pub error: Option<String>,
}

impl Refetch {
    /// Creates a refetch from `since` to `until`.
    pub fn new(since: Timestamp, until: Timestamp) -> Self {
        Self { since, until, cursor: None, fetched: 0, found: 0, failures: 0, error: None }
    }

    /// Combines this part with another one into one part that covers both.
    pub fn and(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) => Self::new(self.since.min(other.since), self.until.max(other.until)),
        }
    }
}

/// A failed poll, as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceError {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// What was tried and what the response was; never a secret.
    pub message: String,
    /// When it failed.
    pub at: Timestamp,
}
