//! Proof that replay is live: the stored events are replayed as the agent evaluated them, and what comes of it is compared with the
//! alerts in the store.
//!
//! The agent notes which rules it runs from where on. Rules whose present version ran are run again from that place, with what they
//! would have learned; what earlier versions found is not compared, and the report says so. A rule that followed on an earlier
//! version of itself takes over that version's open alerts, as it did live. What an earlier version had counted or remembered is not
//! known any more, so rules that count or remember are compared only if they have not changed.

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

/// What the agent did, as far as the store tells.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The last event that was evaluated.
    pub checkpoint: Sequence,
    /// Runs of events that are stored and not evaluated.
    pub skipped: Vec<(Sequence, Sequence)>,
    /// Which rules ran, and from where on, in order.
    pub rules: Vec<LoggedRules>,
    /// What people did with alerts, in order.
    pub changes: Vec<LoggedChange>,
    /// What was taken note of while there were no events, in order.
    pub watermarks: Vec<LoggedWatermark>,
    /// The alerts in the store.
    pub alerts: Vec<Alert>,
}

/// A verification on its way.
#[derive(Debug)]
pub struct Verification {
    replay: Replay,
    rules: Arc<RuleSet>,
    versions: BTreeMap<RuleId, RuleVersion>,
    evidence: History,
    /// Places at which other rules were taken up that have not been reached yet.
    ahead: VecDeque<LoggedRules>,
    /// Places at which they were, up to here.
    behind: Vec<LoggedRules>,
    /// Rules that learn, for the place at which they came.
    learning: Vec<(Sequence, Learning)>,
    /// Numbers of the events at which stored alerts begin and end.
    places: HashMap<(SourceName, EventId), Option<Sequence>>,
    first: Option<(Sequence, Timestamp)>,
    events: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Events that were replayed.
    pub events: u64,
    /// Alerts that are the same.
    pub same: u64,
    /// Alerts in the store that the replay does not raise.
    pub missing: Vec<Alert>,
    /// Alerts that the replay raises and the store does not have.
    pub extra: Vec<Alert>,
    /// Alerts that differ.
    pub different: Vec<DifferentAlert>,
    /// Alerts of the store that could not be compared, by why.
    pub not_compared: BTreeMap<Reason, u64>,
    /// Rules of which some alerts could not be compared.
    pub rules_not_compared: BTreeMap<RuleId, Reason>,
}

/// An alert that differs.
#[derive(Debug, Clone, Serialize)]
pub struct DifferentAlert {
    /// As the store has it.
    pub alert: Alert,
    /// What differs: as it is stored, and as the replay has it.
    pub differences: Vec<Difference>,
}

/// Why an alert could not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its rule does not run any more.
    RuleGone,
    /// Its rule, or something that this looks into, has changed since.
    RuleChanged,
    /// Its rule changed before it, and had counted or remembered things.
    RuleRemembered,
    /// Which rules ran is not noted.
    RulesUnknown,
    /// Events that led to it are no longer stored.
    EventsGone,
    /// There are too many alerts to keep.
    TooMany,
}

impl Reason {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::RuleGone => "their rule does not run any more",
            Self::RuleChanged => "their rule, or a list, override or exception for it, has changed since",
            Self::RuleRemembered => "their rule changed before, and went on with what it had counted or remembered",
            Self::RulesUnknown => "which rules ran was not noted then",
            Self::EventsGone => "events that they may depend on are no longer stored",
            Self::TooMany => "there are too many to keep",
        }
    }
}

impl Verified {
    /// Whether the replay gave what is stored, as far as that could be compared.
    pub fn agrees(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.different.is_empty()
    }

    /// Whether there are alerts, and none of them could be compared: that it agrees then says nothing.
    pub fn is_empty(&self) -> bool {
        self.agrees() && self.same == 0 && self.not_compared.values().any(|count| *count > 0)
    }
}

impl Verification {
    /// Of these rules, the present ones.
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

    /// Goes on to the next stored event.
    pub fn event(&mut self, event: &Event) {
        if event.sequence > self.evidence.checkpoint {
            return;
        }
        self.first.get_or_insert((event.sequence, event.time));
        while self.ahead.front().is_some_and(|note| note.checkpoint < event.sequence) {
            if let Some(note) = self.ahead.pop_front() {
                self.take_up(note);
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

    /// Lets other rules run from here on.
    fn take_up(&mut self, note: LoggedRules) {
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
        // Rules bring what they hear along; all that is to run is named.
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

    /// What came of it.
    pub fn finish(mut self) -> Verified {
        while let Some(note) = self.ahead.pop_front() {
            self.take_up(note);
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
            let found = replayed.remove(&alert.id);
            let place = self.place(&alert, alert.first_events.first());
            if let Some(reason) = self.reason(&alert, place) {
                verified.leave_out(&alert.rule, reason);
                continue;
            }
            match found {
                None if not_kept => verified.leave_out(&alert.rule, Reason::TooMany),
                None => verified.missing.push(alert),
                Some(found) => match differences(&alert, &found) {
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

    /// Why an alert that opened at a place cannot be compared.
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
        // Matches of another version may have joined it.
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

/// The last event that is noted of an alert.
fn newest(alert: &Alert) -> Option<&EventId> {
    alert.newest_events.last().or(alert.first_events.last())
}

/// What a replay has otherwise than the store.
fn differences(stored: &Alert, replayed: &Alert) -> Vec<Difference> {
    let mut differences = ChangedAlert::of(stored, replayed).map(|changed| changed.differences).unwrap_or_default();
    let mut compare = |what: &'static str, before: String, after: String| {
        if before != after {
            differences.push(Difference { what, before, after });
        }
    };
    compare("last seen", stored.last_seen.to_string(), replayed.last_seen.to_string());
    compare("late", stored.late.to_string(), replayed.late.to_string());
    // One that was kept without its evidence has nothing more to compare.
    if replayed.first_events.len() > 1 || stored.first_events.len() == 1 {
        let events = |alert: &Alert| {
            let all = alert.first_events.iter().chain(&alert.newest_events);
            all.map(|event| event.as_str()).collect::<Vec<_>>().join(" ")
        };
        compare("events", events(stored), events(replayed));
    }
    differences
}
