//! Verifies that a replay yields what the agent did: replays the stored events as the agent evaluated them, and
//! compares the result with the alerts in the store.
//!
//! The agent records which rules it runs from which position on. Rules whose present version ran are run again from
//! that position, with the state from their warm-up. What earlier versions detected is not compared, and the report
//! says so. A rule that replaced an earlier version of itself takes over that version's open alerts, as it did live.
//! The counts and the state of an earlier version are no longer known, so rules with a threshold or with state are
//! compared only if they have not changed.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{ChangedAlert, Difference, Replay};
use crate::{
    detect::{Learning, Settings},
    model::{
        alert::{Alert, AlertAction, AlertKind, LoggedChange, Notice},
        event::Event,
        name::{AlertId, EventId, RuleId, RuleVersion, Sequence, SourceName},
        outcome::{LoggedRules, LoggedWatermark},
        time::{self, Timestamp},
    },
    rule::{CompiledRule, RuleSet},
};

/// What the agent did, according to the store.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The last event that was evaluated.
    pub checkpoint: Sequence,
    /// Ranges of events that are stored but were not evaluated.
    pub skipped: Vec<(Sequence, Sequence)>,
    /// The rules that ran, and from which position on, in order.
    pub rules: Vec<LoggedRules>,
    /// What users did with alerts, in order.
    pub changes: Vec<LoggedChange>,
    /// The watermarks that were recorded while there were no events, in order.
    pub watermarks: Vec<LoggedWatermark>,
    /// The alerts in the store.
    pub alerts: Vec<Alert>,
}

/// A verification in progress.
#[derive(Debug)]
pub struct Verification {
    replay: Replay,
    rules: Arc<RuleSet>,
    versions: BTreeMap<RuleId, RuleVersion>,
    evidence: History,
    /// Changes of the rule set after the present position.
    ahead: VecDeque<LoggedRules>,
    /// Changes of the rule set up to the present position.
    behind: Vec<LoggedRules>,
    /// Warm-ups, each with the position at which its rules were added.
    learning: Vec<(Sequence, Learning)>,
    /// The sequence numbers of the first and the last event of each stored alert, if found so far.
    places: HashMap<(SourceName, EventId), Option<Sequence>>,
    first: Option<(Sequence, Timestamp)>,
    events: u64,
}

/// The result of a verification.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// The number of events replayed.
    pub events: u64,
    /// The number of alerts that are the same.
    pub same: u64,
    /// Alerts in the store that the replay does not raise.
    pub missing: Vec<Alert>,
    /// Alerts that the replay raises and that are not in the store.
    pub extra: Vec<Alert>,
    /// Alerts that differ.
    pub different: Vec<DifferentAlert>,
    /// The number of stored alerts that could not be compared, by reason.
    pub not_compared: BTreeMap<Reason, u64>,
    /// Rules with alerts that could not be compared, each with the first reason.
    pub rules_not_compared: BTreeMap<RuleId, Reason>,
}

/// An alert that differs.
#[derive(Debug, Clone, Serialize)]
pub struct DifferentAlert {
    /// The alert in the store.
    pub alert: Alert,
    /// What differs: before in the store, after in the replay.
    pub differences: Vec<Difference>,
}

/// Why an alert could not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its rule no longer runs.
    RuleGone,
    /// Its rule, or something that the rule reads, has changed since.
    RuleChanged,
    /// Its rule changed before the alert, and had counts or state.
    RuleRemembered,
    /// It is not recorded which rules ran.
    RulesUnknown,
    /// Events that led to it are no longer stored.
    EventsGone,
    /// There are too many alerts to keep.
    TooMany,
}

impl Reason {
    /// The reason for display, as a clause without a final period.
    pub fn text(self) -> &'static str {
        match self {
            Self::RuleGone => "their rule no longer runs",
            Self::RuleChanged => "their rule, or one of its lists, overrides or exceptions, has changed since",
            Self::RuleRemembered => "their rule changed before that and kept its earlier counts or state",
            Self::RulesUnknown => "it was not recorded which rules ran at that time",
            Self::EventsGone => "they may depend on events that are no longer stored",
            Self::TooMany => "there are too many alerts to keep",
        }
    }
}

impl Verified {
    /// Returns true if the replay yields what is stored, as far as it can be compared.
    pub fn agrees(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }

    /// Returns true if there are alerts but none could be compared, so that agreement means nothing.
    pub fn is_empty(&self) -> bool {
        self.agrees() && self.same == 0 && self.not_compared.values().any(|count| *count > 0)
    }
}

impl Verification {
    /// Starts a verification of the present rules.
    pub fn new(rules: Arc<RuleSet>, settings: Settings, evidence: History) -> Self {
        let versions = rules.versions();
        let mut learning = Vec::new();
        let mut known: HashSet<&RuleId> = HashSet::new();
        for (number, note) in evidence.rules.iter().enumerate() {
            let new = |rule: &&Arc<CompiledRule>| {
                rule.remembers && !known.contains(rule.id()) && note.rules.get(rule.id()) == versions.get(rule.id())
            };
            let new: Vec<Arc<CompiledRule>> = rules.detections.iter().filter(new).cloned().collect();
            if number > 0 && !new.is_empty() {
                learning.push((note.checkpoint, Learning::of(&rules, &new, settings.clone())));
            }
            known.extend(note.rules.keys());
        }
        let mut places = HashMap::new();
        for alert in &evidence.alerts {
            if let Some(source) = &alert.source {
                for event in [alert.first_events.first(), newest(alert)].into_iter().flatten() {
                    places.insert((source.clone(), event.clone()), None);
                }
            }
        }
        let replay = Replay::new(RuleSet::only([], Arc::default()), settings)
            .with_changes(evidence.changes.iter().cloned())
            .with_watermarks(evidence.watermarks.iter().cloned());
        let ahead = evidence.rules.iter().cloned().collect();
        Self { replay, rules, versions, evidence, ahead, behind: Vec::new(), learning, places, first: None, events: 0 }
    }

    /// Processes the next stored event.
    pub fn event(&mut self, event: &Event) {
        if event.sequence > self.evidence.checkpoint {
            return;
        }
        self.first.get_or_insert((event.sequence, event.time));
        while self.ahead.front().is_some_and(|note| note.checkpoint < event.sequence) {
            if let Some(note) = self.ahead.pop_front() {
                self.switch_rules(note);
            }
        }
        let key = (event.source.clone(), event.id.clone());
        if let Some(place) = self.places.get_mut(&key) {
            place.get_or_insert(event.sequence);
        }
        for (checkpoint, learning) in &mut self.learning {
            if event.sequence <= *checkpoint {
                learning.event(event);
            }
        }
        let is_skipped = |(first, last): &(Sequence, Sequence)| (*first..=*last).contains(&event.sequence);
        if self.evidence.skipped.iter().any(is_skipped) {
            return;
        }
        self.events += 1;
        self.replay.event(event);
    }

    /// Switches to the rules that ran from this position on.
    fn switch_rules(&mut self, note: LoggedRules) {
        self.replay.follow_while(
            |change| change.number <= note.change,
            |watermark| (watermark.checkpoint, watermark.change) < (note.checkpoint, note.change),
        );
        let runs = |rule: &&Arc<CompiledRule>| note.rules.get(rule.id()) == self.versions.get(rule.id());
        let now: Vec<Arc<CompiledRule>> = self.rules.detections.iter().filter(runs).cloned().collect();
        let before = self.behind.last();
        let changed = |rule: &&Arc<CompiledRule>| {
            let version = before.and_then(|before| before.rules.get(rule.id()));
            version.is_some() && version != self.versions.get(rule.id())
        };
        let changed: Vec<RuleId> = now.iter().filter(changed).map(|rule| rule.id().clone()).collect();
        let of_earlier_versions: Vec<Alert> =
            self.evidence.alerts.iter().filter(|alert| changed.contains(&alert.rule)).cloned().collect();
        for alert in of_earlier_versions {
            let opened = self.place(&alert, alert.first_events.first()).is_some_and(|place| place <= note.checkpoint);
            let last = |change: &&LoggedChange| {
                change.alert == alert.id
                    && change.number <= note.change
                    && matches!(change.what, Notice::Resolved | Notice::Reopened)
            };
            let resolved = self.evidence.changes.iter().rfind(last).is_some_and(|last| last.what == Notice::Resolved);
            if opened && !resolved {
                self.replay.detector.handled(&alert, AlertAction::Reopen);
                self.replay.alerts.entry(alert.id).or_insert(alert);
            }
        }
        self.learning.retain(|(checkpoint, _)| *checkpoint >= note.checkpoint);
        // `part` also adds the rules that these subscribe to, but `now` already has all rules that are to run.
        self.replay.detector.set_rules(self.rules.part(&now));
        if self.replay.detector.learning().is_some() {
            for (_, learning) in self.learning.iter().filter(|(checkpoint, _)| *checkpoint == note.checkpoint) {
                self.replay.detector.learned(learning);
            }
        }
        self.behind.push(note);
    }

    fn place(&self, alert: &Alert, event: Option<&EventId>) -> Option<Sequence> {
        let key = (alert.source.clone()?, event?.clone());
        self.places.get(&key).copied().flatten()
    }

    /// Returns the result.
    pub fn finish(mut self) -> Verified {
        while let Some(note) = self.ahead.pop_front() {
            self.switch_rules(note);
        }
        self.replay.follow_all();
        let opened: HashMap<AlertId, Sequence> = self.replay.order.iter().copied().collect();
        let mut replayed: BTreeMap<AlertId, Alert> = BTreeMap::new();
        for (id, alert) in std::mem::take(&mut self.replay.alerts) {
            if opened.contains_key(&id) {
                replayed.insert(id, alert);
            }
        }
        let mut verified = Verified { events: self.events, ..Verified::default() };
        let not_kept = self.replay.part.report.not_kept > 0;
        let stored: Vec<Alert> =
            self.evidence.alerts.iter().filter(|alert| alert.kind != AlertKind::Health).cloned().collect();
        for alert in stored {
            let counterpart = replayed.remove(&alert.id);
            let place = self.place(&alert, alert.first_events.first());
            if let Some(reason) = self.reason(&alert, place) {
                verified.leave_out(&alert.rule, reason);
                continue;
            }
            match counterpart {
                None if not_kept => verified.leave_out(&alert.rule, Reason::TooMany),
                None => verified.missing.push(alert),
                Some(counterpart) => match differences(&alert, &counterpart) {
                    differences if differences.is_empty() => verified.same += 1,
                    differences => verified.different.push(DifferentAlert { alert, differences }),
                },
            }
        }
        for (id, alert) in replayed {
            match self.reason(&alert, opened.get(&id).copied()) {
                None => verified.extra.push(alert),
                Some(reason) => {
                    verified.rules_not_compared.entry(alert.rule).or_insert(reason);
                }
            }
        }
        verified
    }

    /// The reason why an alert that opened at a position cannot be compared, if any.
    fn reason(&self, alert: &Alert, place: Option<Sequence>) -> Option<Reason> {
        let Some(rule) = self.rules.detections.iter().find(|rule| rule.id() == &alert.rule) else {
            return Some(Reason::RuleGone);
        };
        let (Some(place), Some((first, first_time))) = (place, self.first) else {
            return Some(Reason::EventsGone);
        };
        let reach = self.rules.reach(rule).max(Duration::from_secs(3_600));
        if first > Sequence(1) && alert.opened_at < time::after(first_time, reach) {
            return Some(Reason::EventsGone);
        }
        let before = self.behind.iter().rposition(|note| note.checkpoint < place);
        let Some(note) = before else {
            return Some(Reason::RulesUnknown);
        };
        let version = self.versions.get(&alert.rule);
        let runs = |note: &LoggedRules| note.rules.get(&alert.rule) == version;
        if !self.behind.get(note).is_some_and(runs) {
            return Some(Reason::RuleChanged);
        }
        // Matches of another version may have joined the alert.
        let end = self.place(alert, newest(alert)).unwrap_or(place);
        if self.behind.iter().skip(note).take_while(|note| note.checkpoint < end).any(|note| !runs(note)) {
            return Some(Reason::RuleChanged);
        }
        let counts = rule.metadata.threshold > 1 || rule.remembers || rule.metadata.on.is_some();
        let earlier = |note: &LoggedRules| note.rules.contains_key(&alert.rule) && !runs(note);
        if counts && self.behind.iter().take(note).any(earlier) {
            return Some(Reason::RuleRemembered);
        }
        None
    }
}

impl Verified {
    fn leave_out(&mut self, rule: &RuleId, reason: Reason) {
        *self.not_compared.entry(reason).or_default() += 1;
        self.rules_not_compared.entry(rule.clone()).or_insert(reason);
    }
}

/// The last event that an alert keeps.
fn newest(alert: &Alert) -> Option<&EventId> {
    alert.newest_events.last().or(alert.first_events.last())
}

/// The differences between an alert in the store and in the replay.
fn differences(stored: &Alert, replayed: &Alert) -> Vec<Difference> {
    let mut differences = ChangedAlert::of(stored, replayed).map(|changed| changed.differences).unwrap_or_default();
    let mut compare = |what: &'static str, before: String, after: String| {
        if before != after {
            differences.push(Difference { what, before, after });
        }
    };
    compare("last seen", stored.last_seen.to_string(), replayed.last_seen.to_string());
    compare("late", stored.late.to_string(), replayed.late.to_string());
    // An alert that was kept without its evidence has nothing more to compare.
    if replayed.first_events.len() > 1 || stored.first_events.len() == 1 {
        let events = |alert: &Alert| {
            let all = alert.first_events.iter().chain(&alert.newest_events);
            all.map(|event| event.as_str()).collect::<Vec<_>>().join(" ")
        };
        compare("events", events(stored), events(replayed));
    }
    differences
}
