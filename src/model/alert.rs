//! Alerts: matches of one rule with the same dedup key within one dedup period, and how an alert changes.
//!
//! The store keeps alerts, and detection decides how they change ([`AlertChange`]). [`Alert::apply`] is the only
//! function that applies a change: in the store, in replay and in tests.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::model::{
    event::Evidence,
    name::{AlertId, DedupKey, EventId, RuleId, Sequence, SilenceId, SourceName},
    time::Timestamp,
};

/// How much an alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Look at it when there is time.
    Low,
    /// Look at it today.
    Medium,
    /// Look at it now.
    High,
    /// Wake someone up.
    Critical,
}

impl Severity {
    /// All severities, from the lowest to the highest.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The name in rules and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Severity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|severity| severity.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a severity: write `info`, `low`, `medium`, `high` or `critical`"))
    }
}

/// The state of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertStatus {
    /// Not yet handled.
    Open,
    /// Someone is working on it.
    Acknowledged,
    /// It has ended: its cause is gone, or someone resolved it.
    Resolved,
}

impl AlertStatus {
    /// All statuses.
    pub const ALL: [Self; 3] = [Self::Open, Self::Acknowledged, Self::Resolved];

    /// The name in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
        }
    }
}

impl FromStr for AlertStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a status: write `open`, `acknowledged` or `resolved`"))
    }
}

impl fmt::Display for AlertStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// What an alert turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// The activity that the rule looks for did happen.
    TruePositive,
    /// It did not happen, or it was allowed.
    FalsePositive,
}

impl fmt::Display for Disposition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::TruePositive => "true positive",
            Self::FalsePositive => "false positive",
        })
    }
}

/// What a user does with an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertAction {
    /// Acknowledge it.
    Acknowledge,
    /// Resolve it.
    Resolve(Option<Disposition>),
    /// Reopen it.
    Reopen,
    /// Comment on it.
    Comment,
}

/// Who did something with an alert, when, and their comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Who did it.
    pub author: String,
    /// When, by the system clock.
    pub at: Timestamp,
    /// The comment, if any.
    pub comment: Option<String>,
}

/// What raised an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// A rule matched events.
    Detection,
    /// A rule failed on an event.
    RuleError,
    /// A check rule reported a problem with the agent, a source, a rule or a destination.
    Health,
}

/// An error in one of a rule's optional functions. The alert uses the fallback instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionError {
    /// The name of the function.
    pub function: String,
    /// The error message.
    pub error: String,
}

/// An alert as it is stored, delivered and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Derived from rule, source, dedup key and opening event.
    pub id: AlertId,
    /// The number of changes since it opened, from 1.
    pub revision: u32,
    /// What raised it.
    pub kind: AlertKind,
    /// The rule that raised it.
    pub rule: RuleId,
    /// One line: who did what to whom.
    pub title: String,
    /// The highest severity of its matches.
    pub severity: Severity,
    /// Whether it is open, acknowledged or resolved.
    pub status: AlertStatus,
    /// The source of its events; absent if the alert is about the agent itself.
    pub source: Option<SourceName>,
    /// Event time of the opening match.
    pub opened_at: Timestamp,
    /// Event time of the newest match.
    pub last_seen: Timestamp,
    /// When the agent recorded it, by the system clock; absent in a replay.
    pub raised_at: Option<Timestamp>,
    /// When it was resolved, if it was.
    pub resolved_at: Option<Timestamp>,
    /// The number of matches so far.
    pub count: u64,
    /// The ids of the first events, at most [`Alert::FIRST_EVENTS`].
    pub first_events: Vec<EventId>,
    /// The ids of the newest events after the first ones, at most [`Alert::NEWEST_EVENTS`], the newest last.
    pub newest_events: Vec<EventId>,
    /// What the matches have in common.
    pub dedup_key: DedupKey,
    /// Who did it and from where, according to the opening event.
    pub evidence: Evidence,
    /// Additional evidence from the rule's `context` function.
    pub context: serde_json::Map<String, serde_json::Value>,
    /// What the alert means.
    pub description: Option<String>,
    /// What to do about it.
    pub runbook: Option<String>,
    /// A link to further reading.
    pub reference: Option<String>,
    /// The rule's tags.
    pub tags: Vec<String>,
    /// MITRE ATT&CK ids.
    pub attack: Vec<String>,
    /// The destinations that the rule names; absent: routed as configured.
    pub destinations: Option<Vec<String>>,
    /// The optional functions that failed.
    pub errors: Vec<FunctionError>,
    /// The hash of the rule's file.
    pub rule_hash: String,
    /// The generation of the rule set that raised it.
    pub generation: u64,
    /// True if its opening event was already old when it arrived.
    pub late: bool,
    /// When it was acknowledged, if it was.
    #[serde(default)]
    pub acknowledged_at: Option<Timestamp>,
    /// What it turned out to be, if the user who resolved it said so.
    #[serde(default)]
    pub disposition: Option<Disposition>,
    /// The last thing that a user did with it or said about it.
    #[serde(default)]
    pub remark: Option<Remark>,
    /// The silence that kept it from being delivered when it opened.
    #[serde(default)]
    pub silenced_by: Option<SilenceId>,
    /// True if its rule is in shadow mode: no destination is notified.
    #[serde(default)]
    pub shadow: bool,
    /// The named lists that its rule read, each with its version at that time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lists: BTreeMap<String, String>,
    /// When the matches that reached the threshold occurred; absent if one match was enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

/// The distribution of matches over time: how many in each of equal parts of a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The time of the first match.
    pub from: Timestamp,
    /// The time of the last match.
    pub to: Timestamp,
    /// The number of matches in each part.
    pub counts: Vec<u32>,
}

impl Histogram {
    /// The number of parts of a histogram.
    const PARTS: usize = 12;

    /// The histogram of these times, in milliseconds since 1970, in order. `None` if there are fewer than two.
    pub fn of(times: &[i64]) -> Option<Self> {
        let (first, last) = (*times.first()?, *times.last()?);
        if times.len() < 2 {
            return None;
        }
        let span = last.saturating_sub(first).max(1);
        let mut counts = vec![0_u32; Self::PARTS];
        for time in times {
            let part = i128::from(time.saturating_sub(first)) * Self::PARTS as i128 / (i128::from(span) + 1);
            if let Some(count) = usize::try_from(part).ok().and_then(|part| counts.get_mut(part)) {
                *count += 1;
            }
        }
        Some(Self { from: crate::model::time::from_millis(first), to: crate::model::time::from_millis(last), counts })
    }

    /// The histogram as a line of bars: `▂▁▁▅█`.
    pub fn bars(&self) -> String {
        bars(self.counts.iter().map(|count| u64::from(*count)))
    }
}

/// Counts as a line of bars, each as high as its share of the highest: `▂▁▁▅█`. A count that is not zero always shows.
pub fn bars(counts: impl Iterator<Item = u64> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.clone().max().unwrap_or(0).max(1);
    let bar = |count: u64| {
        let height = (u128::from(count) * (BARS.len() as u128 - 1)).div_ceil(u128::from(most));
        usize::try_from(height).ok().and_then(|height| BARS.get(height)).copied().unwrap_or('█')
    };
    counts.map(bar).collect()
}

/// How an alert changed. Plain data, applied by [`Alert::apply`].
#[derive(Debug, Clone, PartialEq)]
pub enum AlertChange {
    /// A new alert.
    Opened(Box<Alert>),
    /// An alert got one more match.
    Joined {
        /// The alert it belongs to.
        alert: AlertId,
        /// The matching event.
        event: EventId,
        /// The event's sequence number.
        sequence: Sequence,
        /// The event's time.
        time: Timestamp,
        /// The new severity, if this match raised it.
        raised_to: Option<Severity>,
        /// The destinations that the rule asks for because of that; they are added.
        destinations: Vec<String>,
    },
    /// A health alert has a new description of its cause.
    Restated {
        /// The alert.
        alert: AlertId,
        /// The new title.
        title: String,
        /// The new description.
        description: Option<String>,
        /// The new evidence.
        context: serde_json::Map<String, serde_json::Value>,
        /// When it changed.
        time: Timestamp,
        /// The new severity, if it went up.
        raised_to: Option<Severity>,
    },
    /// The cause of a health alert is gone.
    Resolved {
        /// The alert.
        alert: AlertId,
        /// When it was resolved.
        time: Timestamp,
        /// The new title.
        title: String,
    },
    /// A user acted on the alert.
    Handled {
        /// The alert.
        alert: AlertId,
        /// What they did.
        action: AlertAction,
        /// Who did it, when, and their comment.
        remark: Remark,
    },
}

/// Why people are notified about an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notice {
    /// It opened.
    Opened,
    /// Its severity went up.
    Escalated,
    /// A user acknowledged it.
    Acknowledged,
    /// It was resolved.
    Resolved,
    /// A user reopened it.
    Reopened,
    /// A user commented on it.
    Commented,
    /// Many more events joined it: ten, a hundred, a thousand …
    Grew,
}

impl Notice {
    /// The name in JSON and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Escalated => "escalated",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
            Self::Reopened => "reopened",
            Self::Commented => "commented",
            Self::Grew => "grew",
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// An entry of the change log: what happened to an alert, when, and who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedChange {
    /// The position in the log: 1, 2, 3 …
    pub number: u64,
    /// When it happened, by the system clock.
    pub at: Timestamp,
    /// The alert.
    pub alert: AlertId,
    /// The alert's revision after the change.
    pub revision: u32,
    /// What happened.
    pub what: Notice,
    /// The alert's severity after the change.
    pub severity: Severity,
    /// The user who did it; absent if the agent did.
    pub author: Option<String>,
    /// The comment, if any.
    pub comment: Option<String>,
    /// What the alert turned out to be, if the user said so.
    pub disposition: Option<Disposition>,
    /// The last event evaluated before the change, so that a replay applies it at the same position.
    #[serde(rename = "mark")]
    pub checkpoint: Sequence,
}

impl AlertChange {
    /// The alert that changes.
    pub fn alert(&self) -> AlertId {
        match self {
            Self::Opened(alert) => alert.id,
            Self::Joined { alert, .. }
            | Self::Restated { alert, .. }
            | Self::Resolved { alert, .. }
            | Self::Handled { alert, .. } => *alert,
        }
    }

    /// Why people are notified of this change, if they are.
    pub fn notice(&self) -> Option<Notice> {
        match self {
            Self::Opened(_) => Some(Notice::Opened),
            Self::Joined { raised_to, .. } | Self::Restated { raised_to, .. } => raised_to.map(|_| Notice::Escalated),
            Self::Resolved { .. } => Some(Notice::Resolved),
            Self::Handled { action, .. } => Some(match action {
                AlertAction::Acknowledge => Notice::Acknowledged,
                AlertAction::Resolve(_) => Notice::Resolved,
                AlertAction::Reopen => Notice::Reopened,
                AlertAction::Comment => Notice::Commented,
            }),
        }
    }
}

impl Alert {
    /// A new alert with one match at `time`, without what its rule adds. Its dedup key is empty.
    pub fn new(id: AlertId, kind: AlertKind, rule: RuleId, title: String, severity: Severity, time: Timestamp) -> Self {
        Self {
            id,
            revision: 1,
            kind,
            rule,
            title,
            severity,
            status: AlertStatus::Open,
            source: None,
            opened_at: time,
            last_seen: time,
            raised_at: None,
            resolved_at: None,
            count: 1,
            first_events: Vec::new(),
            newest_events: Vec::new(),
            dedup_key: DedupKey::clipped(""),
            evidence: Evidence::default(),
            context: serde_json::Map::new(),
            description: None,
            runbook: None,
            reference: None,
            tags: Vec::new(),
            attack: Vec::new(),
            destinations: None,
            errors: Vec::new(),
            rule_hash: String::new(),
            generation: 0,
            late: false,
            acknowledged_at: None,
            disposition: None,
            remark: None,
            silenced_by: None,
            shadow: false,
            lists: BTreeMap::new(),
            histogram: None,
        }
    }

    /// The number of first event ids that an alert keeps.
    pub const FIRST_EVENTS: usize = 10;
    /// The number of newest event ids that an alert keeps.
    pub const NEWEST_EVENTS: usize = 20;

    /// Checks whether a user can do this with the alert in its present state; the error says why not.
    pub fn allows(&self, action: AlertAction) -> Result<(), String> {
        let id = self.id.short();
        match (action, self.status) {
            (AlertAction::Acknowledge, AlertStatus::Acknowledged) => Err(format!("alert {id} is already acknowledged")),
            (AlertAction::Acknowledge, AlertStatus::Resolved) => {
                Err(format!("alert {id} is resolved; reopen it with `watchbell alerts reopen {id}`"))
            }
            (AlertAction::Resolve(_), AlertStatus::Resolved) => Err(format!("alert {id} is already resolved")),
            (AlertAction::Reopen, AlertStatus::Open) => Err(format!("alert {id} is already open")),
            _ => Ok(()),
        }
    }

    /// Applies a change. [`AlertChange::Opened`] has no effect, because it contains the alert itself.
    pub fn apply(&mut self, change: &AlertChange) {
        match change {
            AlertChange::Opened(_) => return,
            AlertChange::Joined { event, time, raised_to, destinations, .. } => {
                if let Some(asked_for) = &mut self.destinations {
                    let more = destinations.iter().filter(|name| !asked_for.contains(name)).cloned();
                    asked_for.extend(more.collect::<Vec<_>>());
                }
                self.count = self.count.saturating_add(1);
                self.last_seen = self.last_seen.max(*time);
                self.severity = raised_to.map_or(self.severity, |raised| raised.max(self.severity));
                if self.first_events.len() < Self::FIRST_EVENTS {
                    self.first_events.push(event.clone());
                } else {
                    if self.newest_events.len() >= Self::NEWEST_EVENTS {
                        self.newest_events.remove(0);
                    }
                    self.newest_events.push(event.clone());
                }
            }
            AlertChange::Restated { title, description, context, time, raised_to, .. } => {
                self.title.clone_from(title);
                self.description.clone_from(description);
                self.context.clone_from(context);
                self.last_seen = self.last_seen.max(*time);
                self.severity = raised_to.map_or(self.severity, |raised| raised.max(self.severity));
            }
            AlertChange::Resolved { time, title, .. } => {
                self.status = AlertStatus::Resolved;
                self.resolved_at = Some(*time);
                self.title.clone_from(title);
            }
            AlertChange::Handled { action, remark, .. } => {
                match action {
                    AlertAction::Acknowledge => {
                        self.status = AlertStatus::Acknowledged;
                        self.acknowledged_at = Some(remark.at);
                    }
                    AlertAction::Resolve(disposition) => {
                        self.status = AlertStatus::Resolved;
                        self.resolved_at = Some(remark.at);
                        self.disposition = *disposition;
                    }
                    AlertAction::Reopen => {
                        self.status = AlertStatus::Open;
                        self.acknowledged_at = None;
                        self.resolved_at = None;
                        self.disposition = None;
                    }
                    AlertAction::Comment => {}
                }
                self.remark = Some(remark.clone());
            }
        }
        self.revision = self.revision.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_are_ordered_and_named() {
        assert!(Severity::Info < Severity::Critical);
        for severity in Severity::ALL {
            assert_eq!(severity.as_str().parse(), Ok(severity));
        }
        assert!("HIGH".parse::<Severity>().is_err());
    }
}
