//! The requests of the control API. Each is a type and names the type of its answer's items, so a wrong pair does not
//! compile. Absent fields are not sent, so an older agent understands a request that uses no new fields.

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
    /// The name in the path: `POST /v1/NAME`.
    const NAME: &'static str;
    /// An item of the answer.
    type Item: Serialize + DeserializeOwned;
}

/// Calls the macro `$callback` with the list of requests: name, type, and type of an item.
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
    /// The earliest event time, inclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The latest event time, exclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// A pattern of action IDs; `*` matches any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
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
    /// Return the events in reverse order of storage.
    pub newest_first: bool,
    /// With `after`: how long to wait for the first event, in seconds, at most 30.
    pub wait: u64,
}

/// The event with this ID; no item if there is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub id: EventId,
}

/// The number of stored events: one item.
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

/// Stores events that did not come from polling: one item.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The source to store them under.
    pub source: SourceName,
    /// The events, each as JSON text; stored byte for byte.
    pub entries: Vec<String>,
    /// Whether rules run on them.
    pub evaluate: bool,
}

/// Fetches a part of the log again: one item per source.
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
    /// The earliest opening time, inclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The latest opening time, exclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The lowest severity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// A pattern of rule IDs; `*` matches any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// Part of the actor's name, email address or IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<AlertStatus>,
    /// The most alerts to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The alert whose ID begins with these digits, with its history. It is an error if several alerts match.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// The beginning of the alert's ID, in hexadecimal digits.
    pub id: String,
}

/// Changes of alerts, in order.
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

/// Acknowledges, resolves, reopens or comments on an alert; the item is the alert after the change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handle {
    pub alert: AlertId,
    pub action: AlertAction,
    /// The name of the user.
    pub author: String,
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
    pub id: SilenceId,
}

/// Deliveries that were given up, of one destination or all.
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

/// The stored record of each rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {}

/// The stored record of each exception.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exceptions {}

/// Matches that an exception suppressed, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excepted {
    pub exception: ExceptionId,
    /// The most matches to return.
    pub limit: usize,
}

/// The state of rules: one item per key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// A rule's ID, or `common/NAME`; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
}

/// Clears the state of a rule; the item is the number of keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearMemory {
    /// A rule's ID, or `common/NAME`.
    pub space: String,
}

/// What is known about each action.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actions {}

/// Makes the agent fetch the sources' lists of actions: one item per source.
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

/// Changes of alerts that users made, in order, for replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandledChanges {}

/// The watermarks that had an effect, in order, for replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watermarks {}

/// How far evaluation has progressed, and with which rules, for replays: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {}

/// Reads the whole store and checks that it is consistent: one item.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {}

/// A consistent copy of the store, in parts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {}
