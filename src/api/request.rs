//! The requests of the control API, each a type with the type of its answer's items: a wrong pair does not compile. Absent
//! fields are not sent, so that an older agent understands a request that does not use what is new.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Status as AgentStatus,
    answer::{
        ActionEntry, AlertDetails, BackupPart, ChangeLine, Count, Evaluated, EventTotals as Totals, ExceptionEntry,
        FetchAnswer, ListAnswer, RuleEntry,
    },
};
use crate::{
    model::{
        alert::{Alert as StoredAlert, AlertAction, AlertStatus, LoggedChange, Severity},
        category::Category,
        event::Event as StoredEvent,
        name::{AlertId, DestinationName, EventId, ExceptionId, SilenceId, SourceName},
        outcome::LoggedWatermark,
        silence::{NewSilence, Silence},
        time::Timestamp,
    },
    rule::Remembered,
    store::{Appended, Delivery, Excepted as Suppressed, Quarantined as QuarantinedEntry, SentBlock, StoreCheck},
};

/// A request of the control API.
pub trait Request: Serialize + DeserializeOwned + Send + 'static {
    /// Its name in the path: `POST /v1/NAME`.
    const NAME: &'static str;
    /// What its answer consists of.
    type Item: Serialize + DeserializeOwned;
}

/// Calls the macro `$callback` with the list of requests: name, type, type of an item.
macro_rules! for_each_request {
    ($callback:ident) => {
        $callback! {
            "status" Status -> AgentStatus,
            "events" Events -> StoredEvent,
            "event" Event -> StoredEvent,
            "event-totals" EventTotals -> Totals,
            "quarantined" Quarantined -> QuarantinedEntry,
            "import" Import -> Appended,
            "fetch" Fetch -> FetchAnswer,
            "alerts" Alerts -> StoredAlert,
            "alert" Alert -> AlertDetails,
            "changes" Changes -> ChangeLine,
            "handle" Handle -> StoredAlert,
            "silences" Silences -> Silence,
            "add-silence" AddSilence -> Silence,
            "end-silence" EndSilence -> Silence,
            "dead-letters" DeadLetters -> Delivery,
            "settle" Settle -> Count,
            "rules" Rules -> RuleEntry,
            "exceptions" Exceptions -> ExceptionEntry,
            "excepted" Excepted -> Suppressed,
            "memory" Memory -> Remembered,
            "clear-memory" ClearMemory -> Count,
            "actions" Actions -> ActionEntry,
            "list-actions" ListActions -> ListAnswer,
            "blocks" Blocks -> SentBlock,
            "handled-changes" HandledChanges -> LoggedChange,
            "watermarks" Watermarks -> LoggedWatermark,
            "evaluation" Evaluation -> Evaluated,
            "verify" Verify -> StoreCheck,
            "backup" Backup -> BackupPart,
        }
    };
}

pub(super) use for_each_request;

macro_rules! implement {
    ($($name:literal $request:ident -> $item:ty,)*) => {
        $(impl Request for $request {
            const NAME: &'static str = $name;
            type Item = $item;
        })*

        /// The names of all requests.
        pub const NAMES: &[&str] = &[$($name),*];
    };
}

for_each_request!(implement);

/// The state of the agent, its sources, rules, alerts and deliveries: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// Stored events. An absent field selects all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Event time, this or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Event time, before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// A pattern of action ids: `*` matches any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// The category of the action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Part of the actor's name, email address or IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Only events that were stored after the one with this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// The most events to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Return the events that were stored last first.
    pub newest_first: bool,
    /// With `after`: how long to wait for the first event, in seconds, at most 30.
    pub wait: u64,
}

/// The event with this id; no item if there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The event's id.
    pub id: EventId,
}

/// How many events are stored: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTotals {}

/// Entries of the log that are not events, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    /// The most entries to return.
    pub limit: usize,
}

/// Stores events that come from elsewhere: one item.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The source under which they are stored.
    pub source: SourceName,
    /// The events, each as JSON text; stored byte for byte.
    pub entries: Vec<String>,
    /// Run rules on them.
    pub evaluate: bool,
}

/// Fetches a part of the log again: an item for each source.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// The source; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// The earliest processing time.
    pub since: Timestamp,
}

/// Stored alerts, the newest first. An absent field selects all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// Opened at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Opened before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The lowest severity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// A pattern of rule ids: `*` matches any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// Part of the actor's name, email address or IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<AlertStatus>,
    /// The most alerts to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The one alert whose id begins with these digits, with its history.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// The beginning of its id, in hexadecimal digits.
    pub id: String,
}

/// What happened to alerts, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// Only changes with a higher number; absent: the last `limit` changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// The most changes to return.
    pub limit: usize,
    /// With `after`: how long to wait for the first change, in seconds, at most 30.
    pub wait: u64,
}

/// Acknowledges, resolves, reopens or comments on an alert; the item is the alert as it is then.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handle {
    /// The alert's id.
    pub alert: AlertId,
    /// What to do with it.
    pub action: AlertAction,
    /// Who does it.
    pub author: String,
    /// What they say about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// Silences, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Silences {
    /// Include those that have ended.
    pub all: bool,
}

/// Adds a silence; the item is the silence.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddSilence(pub NewSilence);

/// Ends a silence; the item is the silence.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndSilence {
    /// The silence's number.
    pub id: SilenceId,
}

/// Deliveries that were given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    /// The destination; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<DestinationName>,
}

/// Retries or discards dead letters; the item is their number.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settle {
    /// The destination; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<DestinationName>,
    /// Discard them instead of trying again.
    pub discard: bool,
}

/// What the store has on record about each rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {}

/// What the store has on record about each exception.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exceptions {}

/// Matches that an exception suppressed, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excepted {
    /// The exception's id.
    pub exception: ExceptionId,
    /// The most matches to return.
    pub limit: usize,
}

/// What rules remember: an item for each key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// A rule's id, or `common/NAME`; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
}

/// Makes a rule forget what it remembers; the item is the number of keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearMemory {
    /// A rule's id, or `common/NAME`.
    pub space: String,
}

/// What is known about each action.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actions {}

/// Has the agent fetch the sources' lists of actions: an item for each source.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListActions {
    /// The source; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
}

/// All events in order, packed, for replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {}

/// What people did with alerts, in order, for replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandledChanges {}

/// The watermarks from which something followed, in order, for replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watermarks {}

/// How far evaluation has come, and with which rules, for replays: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {}

/// Reads the whole store and checks that it fits together: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {}

/// A copy of the store as of one moment, in parts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {}
