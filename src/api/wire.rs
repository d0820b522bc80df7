//! Questions and answers as they travel: JSON, one line each.

use serde::{Deserialize, Serialize};

use crate::{
    model::{
        action::ActionRecord,
        alert::{Alert, AlertAction, AlertStatus, LoggedChange, Severity},
        category::Category,
        name::{AlertId, DestinationName, EventId, Sequence, SilenceId, SourceName},
        outcome::LoggedRules,
        silence::NewSilence,
        time::Timestamp,
    },
    source::Refreshed,
};

/// A question to the service. What it is answered with stands beside each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`crate::api::Status`].
    Status {},
    /// [`crate::model::event::Event`]s.
    Events(EventQuery),
    /// The [`crate::model::event::Event`] with this id, if there is one.
    Event {
        /// Its id.
        id: EventId,
    },
    /// [`EventTotals`].
    EventTotals {},
    /// [`crate::store::Quarantined`] entries, the newest first.
    Quarantined {
        /// At most so many.
        limit: usize,
    },
    /// [`Alert`]s, the newest first.
    Alerts(AlertQuery),
    /// [`AlertDetails`] of the one alert whose id begins so.
    Alert {
        /// The beginning of its id.
        id: String,
    },
    /// [`ChangeLine`]s: what happened to alerts, in order.
    Changes {
        /// After this number; absent: the last `limit` of them.
        after: Option<u64>,
        /// At most so many.
        limit: usize,
        /// How long to wait for the first, in seconds.
        wait: u64,
    },
    /// What people did with alerts, in order, as [`LoggedChange`]s: for replays.
    HandledChanges {},
    /// All events, in order, as [`crate::store::SentBlock`]s: for replays.
    Blocks {},
    /// What the agent took note of while there were no events, in order, as [`crate::model::outcome::LoggedWatermark`]es: for replays.
    Watermarks {},
    /// [`Evaluated`]: how far evaluation has come, and what it was done with.
    Evaluated {},
    /// The [`Alert`] as it is after this was done.
    Handle {
        /// Its id.
        alert: AlertId,
        /// What to do.
        action: AlertAction,
        /// Who does it.
        author: String,
        /// What they say.
        comment: Option<String>,
    },
    /// [`crate::model::silence::Silence`]s, the newest first.
    Silences {
        /// Those that have ended as well.
        all: bool,
    },
    /// The [`crate::model::silence::Silence`] that was made.
    AddSilence(NewSilence),
    /// The [`crate::model::silence::Silence`] that was ended.
    EndSilence {
        /// Its number.
        id: SilenceId,
    },
    /// [`crate::store::Appended`]: what became of events that come from elsewhere.
    Import {
        /// Under which name they are kept.
        source: SourceName,
        /// The entries, byte for byte.
        entries: Vec<String>,
        /// Whether rules run on them.
        evaluate: bool,
    },
    /// [`FetchAnswer`]s: parts of the log that will be fetched again.
    Fetch {
        /// Of this source; absent: of all.
        source: Option<SourceName>,
        /// From this time of processing on.
        since: Timestamp,
    },
    /// [`crate::store::Delivery`]s that were given up.
    DeadLetters {
        /// Of this destination; absent: of all.
        destination: Option<DestinationName>,
    },
    /// [`Count`] of dead letters that are pending again, or thrown away.
    Settle {
        /// Of this destination; absent: of all.
        destination: Option<DestinationName>,
        /// Throw them away instead of trying again.
        discard: bool,
    },
    /// [`crate::detect::RuleRecord`]s with their rules, as [`RuleEntry`]s.
    Rules {},
    /// [`crate::detect::ExceptionRecord`]s with their exceptions, as [`ExceptionEntry`]s.
    Exceptions {},
    /// [`crate::store::Excepted`] matches of an exception, the newest first.
    Excepted {
        /// Its name.
        exception: crate::model::name::ExceptionId,
        /// At most so many.
        limit: usize,
    },
    /// [`crate::rule::Remembered`] keys: what rules remember.
    Memory {
        /// Of this rule, or `common/NAME`; absent: of all.
        space: Option<String>,
    },
    /// [`Count`] of keys that were forgotten.
    ClearMemory {
        /// Of this rule, or `common/NAME`.
        space: String,
    },
    /// [`ActionEntry`]s: what is known of actions.
    Actions {},
    /// [`ListAnswer`]s: the agent asks the sources for their lists of actions.
    ListActions {
        /// This source; absent: all.
        source: Option<SourceName>,
    },
    /// [`crate::store::StoreCheck`]: everything is read back and held against everything else.
    Verify {},
    /// A copy of the store, as [`BackupPart`]s.
    Backup {},
}

/// Which events are wanted. Absent: all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Event time, this or later.
    pub since: Option<Timestamp>,
    /// Event time, before this.
    pub until: Option<Timestamp>,
    /// Action ids with `*`.
    pub action: Option<String>,
    /// The source.
    pub source: Option<SourceName>,
    /// What part of the organization it is about.
    pub category: Option<Category>,
    /// Part of the actor's name, address or IP.
    pub actor: Option<String>,
    /// Only what arrived after the event of this number.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: Option<usize>,
    /// The newest arrival first.
    pub newest_first: bool,
    /// How long to wait for the first, in seconds.
    pub wait: u64,
}

/// Which alerts are wanted. Absent: all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertQuery {
    /// Opened at this time or later.
    pub since: Option<Timestamp>,
    /// Opened before this.
    pub until: Option<Timestamp>,
    /// At least so severe.
    pub severity: Option<Severity>,
    /// Rule ids with `*`.
    pub rule: Option<String>,
    /// The source.
    pub source: Option<SourceName>,
    /// Part of the actor's name, address or IP.
    pub actor: Option<String>,
    /// Where it stands.
    pub status: Option<AlertStatus>,
    /// At most so many.
    pub limit: Option<usize>,
}

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
    pub rule: crate::model::name::RuleId,
    /// What it has found so far.
    pub record: crate::detect::RuleRecord,
}

/// What is on record of an exception.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExceptionEntry {
    /// Its name.
    pub exception: crate::model::name::ExceptionId,
    /// What it has hidden so far.
    pub record: crate::detect::ExceptionRecord,
}

/// A piece of a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupPart {
    /// Its bytes, as base64.
    pub bytes: String,
}

/// A line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// One item.
    #[serde(borrow)]
    Item(&'a serde_json::value::RawValue),
    /// That was all. Without it, the answer broke off.
    End(u64),
    /// It could not be answered, or not to the end.
    Error(WireError),
}

/// Why a question was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireError {
    pub(super) message: String,
    /// The question was wrong, rather than the store.
    pub(super) wrong: bool,
}
