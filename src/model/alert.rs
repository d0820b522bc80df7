//! An alert: matches of one rule with one dedup key inside one dedup period, and how it changes.
//!
//! The store keeps alerts, detection says how they change ([`AlertChange`]), and [`Alert::apply`] is the only place that
//! carries a change out: in the store, in replay and in tests alike.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::model::{
    event::Evidence,
    name::{AlertId, DedupKey, EventId, RuleId, Sequence, SilenceId, SourceName},
    time::Timestamp,
};

/// How much it matters.
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
    /// Wake somebody.
    Critical,
}

impl Severity {
    /// All, from the least to the most.
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

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertStatus {
    /// Nobody has dealt with it.
    Open,
    /// Somebody is at it.
    Acknowledged,
    /// It is over: what it was about has passed, or somebody has dealt with it.
    Resolved,
}

impl AlertStatus {
    /// All of them.
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
    /// What the rule looks for had happened.
    TruePositive,
    /// It had not, or it was allowed.
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

/// What a person did with an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertAction {
    /// Took it on.
    Acknowledge,
    /// Dealt with it.
    Resolve(Option<Disposition>),
    /// Took that back: it is open again.
    Reopen,
    /// Said something about it.
    Comment,
}

/// Who did something with an alert, when, and what they said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Who.
    pub author: String,
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// What they said.
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
    /// A check rule found the agent, a source, a rule or a destination unwell.
    Health,
}

/// An error in one of a rule's optional functions: the fallback was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionError {
    /// Name of the function.
    pub function: String,
    /// What went wrong.
    pub error: String,
}

/// An alert as it is stored, delivered and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Derived from rule, source, dedup key and opening event.
    pub id: AlertId,
    /// Counts the changes since it opened, from 1.
    pub revision: u32,
    /// What raised it.
    pub kind: AlertKind,
    /// The rule that raised it.
    pub rule: RuleId,
    /// One line: who did what to whom.
    pub title: String,
    /// The highest severity of its matches.
    pub severity: Severity,
    /// Where it stands.
    pub status: AlertStatus,
    /// The source of its events; absent where the agent itself is meant.
    pub source: Option<SourceName>,
    /// Event time of the opening match.
    pub opened_at: Timestamp,
    /// Event time of the newest match.
    pub last_seen: Timestamp,
    /// When the agent recorded it, by the machine's clock; absent in a replay.
    pub raised_at: Option<Timestamp>,
    /// When it was resolved.
    pub resolved_at: Option<Timestamp>,
    /// Matches so far.
    pub count: u64,
    /// Ids of the first events, at most [`Alert::FIRST_EVENTS`].
    pub first_events: Vec<EventId>,
    /// Ids of the newest events after the first ones, at most [`Alert::NEWEST_EVENTS`], the newest last.
    pub newest_events: Vec<EventId>,
    /// What the matches have in common.
    pub dedup_key: DedupKey,
    /// Who and from where, by the opening event.
    pub evidence: Evidence,
    /// Evidence that the rule put there.
    pub context: serde_json::Map<String, serde_json::Value>,
    /// What it means.
    pub description: Option<String>,
    /// What to do.
    pub runbook: Option<String>,
    /// Where to read more.
    pub reference: Option<String>,
    /// The rule's tags.
    pub tags: Vec<String>,
    /// MITRE ATT&CK ids.
    pub attack: Vec<String>,
    /// Destinations that the rule asked for by name; absent: routed as configured.
    pub destinations: Option<Vec<String>>,
    /// Optional functions that failed.
    pub errors: Vec<FunctionError>,
    /// Hash of the rule's file.
    pub rule_hash: String,
    /// Generation of the rule set that raised it.
    pub generation: u64,
    /// Its opening event was already old when it arrived.
    pub late: bool,
    /// When a person took it on.
    #[serde(default)]
    pub acknowledged_at: Option<Timestamp>,
    /// What it turned out to be, if whoever resolved it said.
    #[serde(default)]
    pub disposition: Option<Disposition>,
    /// The last thing that a person did with it or said about it.
    #[serde(default)]
    pub remark: Option<Remark>,
    /// The silence that kept it from being delivered when it opened.
    #[serde(default)]
    pub silenced_by: Option<SilenceId>,
    /// Its rule is on trial: nobody is told.
    #[serde(default)]
    pub shadow: bool,
    /// The named lists that its rule looked into, each with the version it had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lists: BTreeMap<String, String>,
    /// When the matches came that reached the threshold; absent where one was enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

/// When matches came: how many in each of equal parts of a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The time of the first.
    pub from: Timestamp,
    /// The time of the last.
    pub to: Timestamp,
    /// Matches in each part.
    pub counts: Vec<u32>,
}

impl Histogram {
    /// Parts of a histogram.
    const PARTS: usize = 12;

    /// Of these times, in milliseconds since 1970, in order. None where there are fewer than two.
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

    /// As a line of bars: `▂▁▁▅█`.
    pub fn bars(&self) -> String {
        bars(self.counts.iter().map(|count| u64::from(*count)))
    }
}

/// Counts as a line of bars, each as high as its share of the highest: `▂▁▁▅█`. What is not nothing shows.
pub fn bars(counts: impl Iterator<Item = u64> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.clone().max().unwrap_or(0).max(1);
    let bar = |count: u64| {
        let height = (u128::from(count) * (BARS.len() as u128 - 1)).div_ceil(u128::from(most));
        usize::try_from(height).ok().and_then(|height| BARS.get(height)).copied().unwrap_or('█')
    };
    counts.map(bar).collect()
}

/// How an alert changed. Data: whoever keeps alerts applies it.
#[derive(Debug, Clone, PartialEq)]
pub enum AlertChange {
    /// A new alert.
    Opened(Box<Alert>),
    /// One more match.
    Joined {
        /// The alert it belongs to.
        alert: AlertId,
        /// The matching event.
        event: EventId,
        /// Its number.
        sequence: Sequence,
        /// Its time.
        time: Timestamp,
        /// The new severity, where this match raised it.
        raised_to: Option<Severity>,
    },
    /// A health alert whose cause is told anew.
    Restated {
        /// The alert.
        alert: AlertId,
        /// Its title now.
        title: String,
        /// Its description now.
        description: Option<String>,
        /// Its evidence now.
        context: serde_json::Map<String, serde_json::Value>,
        /// When.
        time: Timestamp,
        /// The new severity, where it went up.
        raised_to: Option<Severity>,
    },
    /// What a health alert was about has passed.
    Resolved {
        /// The alert.
        alert: AlertId,
        /// When.
        time: Timestamp,
        /// What to say about it.
        title: String,
    },
    /// A person dealt with it.
    Handled {
        /// The alert.
        alert: AlertId,
        /// What they did.
        action: AlertAction,
        /// Who, when, and what they said.
        remark: Remark,
    },
}

/// Why people are told about an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notice {
    /// It opened.
    Opened,
    /// Its severity went up.
    Escalated,
    /// A person took it on.
    Acknowledged,
    /// It is over.
    Resolved,
    /// A person opened it again.
    Reopened,
    /// A person said something about it.
    Commented,
    /// Many more events have joined it: ten, a hundred, a thousand …
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

/// An entry of the log of changes: what happened to an alert, when, and through whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedChange {
    /// Its place in the log: 1, 2, 3 …
    pub number: u64,
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// The alert.
    pub alert: AlertId,
    /// The alert's revision after it.
    pub revision: u32,
    /// What happened.
    pub what: Notice,
    /// The alert's severity after it.
    pub severity: Severity,
    /// Who did it, where a person did.
    pub author: Option<String>,
    /// What they said.
    pub comment: Option<String>,
    /// What it turned out to be, where they said.
    pub disposition: Option<Disposition>,
    /// The last event that had been evaluated by then: a replay carries it out at the same place.
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

    /// Whether people are told because of what it is, and why.
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
    /// How many of the first event ids are kept.
    pub const FIRST_EVENTS: usize = 10;
    /// How many of the newest event ids are kept.
    pub const NEWEST_EVENTS: usize = 20;

    /// Whether a person can do this with the alert as it stands; if not, why.
    pub fn allows(&self, action: AlertAction) -> Result<(), String> {
        let id = self.id.short();
        match (action, self.status) {
            (AlertAction::Acknowledge, AlertStatus::Acknowledged) => Err(format!("alert {id} is acknowledged already")),
            (AlertAction::Acknowledge, AlertStatus::Resolved) => {
                Err(format!("alert {id} is resolved: `watchbell alerts reopen {id}` opens it again"))
            }
            (AlertAction::Resolve(_), AlertStatus::Resolved) => Err(format!("alert {id} is resolved already")),
            (AlertAction::Reopen, AlertStatus::Open) => Err(format!("alert {id} is open")),
            _ => Ok(()),
        }
    }

    /// Carries a change out. [`AlertChange::Opened`] changes nothing: the alert is already that.
    pub fn apply(&mut self, change: &AlertChange) {
        match change {
            AlertChange::Opened(_) => return,
            AlertChange::Joined { event, time, raised_to, .. } => {
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
