//! The items that requests are answered with, where they are not values of the model or records of the store.

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

/// An alert with what belongs to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlertDetails {
    /// The alert.
    pub alert: Alert,
    /// What happened to it, in order.
    pub changes: Vec<LoggedChange>,
    /// The first of its events, by arrival.
    pub events: Vec<EventId>,
}

/// A change with the alert as it is now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChangeLine {
    /// What happened.
    pub change: LoggedChange,
    /// To which alert; absent if retention has taken it.
    pub alert: Option<Alert>,
}

/// How much is stored.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EventTotals {
    /// Events.
    pub events: u64,
    /// The number of the last.
    pub last: u64,
}

/// How far evaluation has come, and what it was done with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The last event that was evaluated.
    pub checkpoint: Sequence,
    /// The number of the last logged change of an alert.
    pub change: u64,
    /// Runs of events that are stored and not evaluated: the first number of each, and the last.
    pub skipped: Vec<(Sequence, Sequence)>,
    /// Which rules ran, and from where on, in order.
    pub rules: Vec<LoggedRules>,
}

/// What is known of an action of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionEntry {
    /// The source.
    pub source: SourceName,
    /// The action's id.
    pub id: String,
    /// What part of the organization it is about.
    pub category: Category,
    /// What is kept of it.
    #[serde(flatten)]
    pub record: ActionRecord,
}

/// What came of asking a source for its list of actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAnswer {
    /// The source.
    pub source: SourceName,
    /// How many there are.
    pub refreshed: Option<Refreshed>,
    /// Why it was not had.
    pub error: Option<String>,
}

/// A part of the log that will be fetched again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchAnswer {
    /// Of which source.
    pub source: SourceName,
    /// From when on.
    pub since: Timestamp,
    /// Whether it begins now; otherwise the next agent does it.
    pub now: bool,
}

/// A number of things.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub count: u64,
}

/// What is on record of a rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuleEntry {
    /// Its id.
    pub rule: RuleId,
    /// What it has found so far.
    pub record: RuleRecord,
}

/// What is on record of an exception.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExceptionEntry {
    /// Its name.
    pub exception: ExceptionId,
    /// What it has hidden so far.
    pub record: ExceptionRecord,
}

/// A piece of a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupPart {
    /// Its bytes, as base64.
    pub bytes: String,
}
