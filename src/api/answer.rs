//! The items of answers that are neither values of the model nor records of the store.

use serde::{Deserialize, Serialize};

use crate::{
    detect::{ExceptionRecord, RuleRecord},
    model::{
        action::ActionRecord,
        alert::{Alert, LoggedChange},
        category::Category,
        name::{EventId, ExceptionId, RuleId, Sequence, SourceName},
        outcome::LoggedRules,
        time::Timestamp,
    },
    source::Refreshed,
};

/// An alert with its history and its events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlertDetails {
    pub alert: Alert,
    /// Its changes, in order.
    pub changes: Vec<LoggedChange>,
    /// The first of its events, by arrival.
    pub events: Vec<EventId>,
}

/// A change with the current state of its alert.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeLine {
    pub change: LoggedChange,
    /// Absent if retention has removed the alert.
    pub alert: Option<Alert>,
}

/// The number of stored events.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EventTotals {
    pub events: u64,
    /// The sequence number of the last event.
    pub last: u64,
}

/// How far evaluation has progressed, and with which rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The last evaluated event.
    pub checkpoint: Sequence,
    /// The number of the last logged change of an alert.
    pub change: u64,
    /// Ranges of stored events that were not evaluated: the first and the last number of each.
    pub skipped: Vec<(Sequence, Sequence)>,
    /// The rules that ran, each with the event from which it ran, in order.
    pub rules: Vec<LoggedRules>,
}

/// What is known about an action of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionEntry {
    pub source: SourceName,
    /// The action's ID.
    pub id: String,
    pub category: Category,
    #[serde(flatten)]
    pub record: ActionRecord,
}

/// The result of fetching a source's list of actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAnswer {
    pub source: SourceName,
    /// Counts of the fetched list.
    pub refreshed: Option<Refreshed>,
    /// Why it could not be fetched.
    pub error: Option<String>,
}

/// A part of the log that will be fetched again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchAnswer {
    pub source: SourceName,
    /// The start time.
    pub since: Timestamp,
    /// True if fetching begins now, false if the next agent does it.
    pub now: bool,
}

/// How many items a request affected.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
}

/// The stored record of a rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuleEntry {
    pub rule: RuleId,
    pub record: RuleRecord,
}

/// The stored record of an exception.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExceptionEntry {
    pub exception: ExceptionId,
    pub record: ExceptionRecord,
}

/// A part of a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupPart {
    /// Bytes, as base64.
    pub bytes: String,
}
