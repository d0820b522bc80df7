//! What evaluating one event means: the only thing that detection hands on. Plain data, which the store applies and replay
//! collects without understanding it.

use std::collections::BTreeMap;

use crate::model::{
    alert::AlertChange,
    name::{AlertId, DedupKey, EventId, ExceptionId, RuleId, RuleVersion, Sequence, SourceName},
    time::Timestamp,
};

/// One event for which one rule said true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The rule.
    pub rule: RuleId,
    /// The event.
    pub event: EventId,
    /// Its number.
    pub sequence: Sequence,
    /// Its time.
    pub time: Timestamp,
    /// Its dedup key; absent where an exception took it.
    pub key: Option<DedupKey>,
    /// Who did it: see [`crate::model::event::Evidence::who`]; absent where an exception took it.
    pub actor: Option<String>,
    /// The alert it opened or joined; none while the rule's threshold is not reached.
    pub alert: Option<AlertId>,
    /// The exception that took it out of alerting.
    pub exception: Option<ExceptionId>,
}

/// Up to when the log of a source is known to be whole although no event says so, where something followed from that.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Watermark {
    /// The source.
    pub source: SourceName,
    /// Up to when.
    pub until: Timestamp,
}

/// A pass with its place among the events and what people did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoggedWatermark {
    /// The last event that had been evaluated.
    #[serde(rename = "mark")]
    pub checkpoint: Sequence,
    /// The number of the last logged change of an alert before it.
    pub change: u64,
    /// What was taken note of.
    #[serde(rename = "pass")]
    pub watermark: Watermark,
}

/// Which rules ran from some place among the events and what people did on, until the next of these.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoggedRules {
    /// The last event that had been evaluated.
    #[serde(rename = "mark")]
    pub checkpoint: Sequence,
    /// The number of the last logged change of an alert before it.
    pub change: u64,
    /// The rules, each with what makes it find what it finds: see [`crate::rule::RuleSet::versions`].
    pub rules: BTreeMap<RuleId, RuleVersion>,
}

/// What followed from an event, or from there being none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Rules that said true.
    pub matches: Vec<Match>,
    /// Alerts that opened or changed, in order.
    pub alerts: Vec<AlertChange>,
    /// Rules that failed, with the error's text.
    pub failures: Vec<(RuleId, String)>,
    /// How many rules looked at the event.
    pub rules_run: u32,
    /// What followed from there being no events; kept, so that a replay can follow.
    pub watermarks: Vec<Watermark>,
}

impl Outcome {
    /// Appends what followed from a later event.
    pub fn append(&mut self, mut later: Self) {
        self.matches.append(&mut later.matches);
        self.alerts.append(&mut later.alerts);
        self.failures.append(&mut later.failures);
        self.rules_run += later.rules_run;
        self.watermarks.append(&mut later.watermarks);
    }
}

/// Detection state that changed: keys and bytes that mean something to `detect` only. `None` deletes.
pub type StateChanges = Vec<(String, Option<Vec<u8>>)>;
