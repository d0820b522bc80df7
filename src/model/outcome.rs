//! The outcome of evaluating an event: plain data, and the only thing that detection hands on. The store applies it and
//! replay collects it, without knowing what it means to detection.

use std::collections::BTreeMap;

use crate::model::{
    alert::AlertChange,
    name::{AlertId, DedupKey, EventId, ExceptionId, RuleId, RuleVersion, Sequence, SourceName},
    time::Timestamp,
};

/// A rule that matched an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The id of the rule.
    pub rule: RuleId,
    /// The id of the event.
    pub event: EventId,
    /// The event's sequence number.
    pub sequence: Sequence,
    /// The event's time.
    pub time: Timestamp,
    /// The dedup key; absent if an exception suppressed the match.
    pub key: Option<DedupKey>,
    /// Who acted, see [`crate::model::event::Evidence::who`]; absent if an exception suppressed the match.
    pub actor: Option<String>,
    /// The alert that the match opened or joined; absent while the rule's threshold is not reached.
    pub alert: Option<AlertId>,
    /// The exception that suppressed the match.
    pub exception: Option<ExceptionId>,
}

/// The time up to which a source's log is known to be complete although no event shows it. Recorded only where it had
/// an effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Watermark {
    /// The source.
    pub source: SourceName,
    /// The log is complete up to this time.
    pub until: Timestamp,
}

/// A watermark and its position among the events and the alert changes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoggedWatermark {
    /// The last event evaluated before it.
    #[serde(rename = "mark")]
    pub checkpoint: Sequence,
    /// The number of the last logged alert change before it.
    pub change: u64,
    /// The watermark.
    #[serde(rename = "pass")]
    pub watermark: Watermark,
}

/// The rules that ran from a position among the events and the alert changes up to the next such entry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoggedRules {
    /// The last event evaluated before it.
    #[serde(rename = "mark")]
    pub checkpoint: Sequence,
    /// The number of the last logged alert change before it.
    pub change: u64,
    /// The rules, each with its version: see [`crate::rule::RuleSet::versions`].
    pub rules: BTreeMap<RuleId, RuleVersion>,
}

/// What followed from an event, or from the absence of events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The rules that matched.
    pub matches: Vec<Match>,
    /// The alerts that opened or changed, in order.
    pub alerts: Vec<AlertChange>,
    /// The rules that failed, with the error message.
    pub failures: Vec<(RuleId, String)>,
    /// How many rules evaluated the event.
    pub rules_run: u32,
    /// What followed from the absence of events. The store keeps these so that a replay can do the same.
    pub watermarks: Vec<Watermark>,
}

impl Outcome {
    /// Appends the outcome of a later event.
    pub fn append(&mut self, mut later: Self) {
        self.matches.append(&mut later.matches);
        self.alerts.append(&mut later.alerts);
        self.failures.append(&mut later.failures);
        self.rules_run += later.rules_run;
        self.watermarks.append(&mut later.watermarks);
    }
}

/// Changes of the detection state: keys and encoded values that only `detect` understands. `None` deletes the key.
pub type StateChanges = Vec<(String, Option<Vec<u8>>)>;
