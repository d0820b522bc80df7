//! What differs between two replays of the same events: alerts that one has and the other does not, and alerts that look
//! otherwise.
//!
//! Alerts belong together that have the same id, which is made of rule, source, dedup key and opening event; then those of a rule
//! that the same event opened: their keys differ; then those of a rule with the same key that opened within a day of each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use serde::Serialize;

use super::{Report, RuleReport};
use crate::model::{
    alert::Alert,
    name::{AlertId, RuleId},
    time,
};

/// Alerts of a rule about the same thing, so far apart at most, are taken to be the same that begins earlier or later.
const SAME_STORY: Duration = Duration::from_secs(86_400);

/// What differs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Diff {
    /// Rules of which anything differs, be it their text alone.
    pub rules: BTreeMap<RuleId, RuleDiff>,
    /// Rules of which nothing differs.
    pub same: u64,
    /// Alerts that only the second replay has.
    pub added: Vec<Alert>,
    /// Alerts that only the first replay has.
    pub gone: Vec<Alert>,
    /// Alerts that look otherwise.
    pub changed: Vec<ChangedAlert>,
    /// Alerts of either that were not kept, and are not compared.
    pub not_compared: u64,
    /// The two replays are not about the same events: how many each had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_events: Option<(u64, u64)>,
}

/// What differs of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleDiff {
    /// What became of the rule itself.
    pub rule: RuleChange,
    /// What it found before.
    pub before: Found,
    /// What it finds now.
    pub after: Found,
    /// Alerts that it raises only now.
    pub added: u64,
    /// Alerts that it raises no more.
    pub gone: u64,
    /// Alerts that look otherwise.
    pub changed: u64,
}

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleChange {
    /// It is new.
    Added,
    /// It is no more.
    Removed,
    /// Its file differs.
    Edited,
    /// Its file is the same: lists, overrides, exceptions or rules that it listens to differ.
    Same,
}

/// What a rule found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Events it said true for.
    pub matches: u64,
    /// Alerts these made.
    pub alerts: u64,
    /// Calls that failed.
    pub errors: u64,
}

/// An alert that looks otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct ChangedAlert {
    /// As it is now.
    pub alert: Alert,
    /// The id that it had before, where that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<AlertId>,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which.
    pub what: &'static str,
    /// What it was.
    pub before: String,
    /// What it is.
    pub after: String,
}

impl Found {
    fn of(report: Option<&RuleReport>) -> Self {
        report.map_or_else(Self::default, |report| Self {
            matches: report.matches,
            alerts: report.alerts,
            errors: report.errors,
        })
    }
}

impl Diff {
    /// What the second replay has otherwise than the first.
    pub fn of(before: &Report, after: &Report) -> Self {
        let mut diff = Self {
            not_compared: before.not_kept + after.not_kept,
            other_events: (before.events != after.events
                || before.earliest != after.earliest
                || before.latest != after.latest)
                .then_some((before.events, after.events)),
            ..Self::default()
        };
        let mut pairing = Pairing::new(&before.alerts, &after.alerts);
        pairing.pair(|alert| Some(alert.id), |_, _| true);
        pairing.pair(|alert| Some((&alert.rule, alert.first_events.first()?)), |_, _| true);
        pairing.pair(
            |alert| Some((&alert.rule, &alert.source, &alert.dedup_key)),
            |one, other| time::distance(one.opened_at, other.opened_at) < SAME_STORY,
        );
        let Pairing { gone, added, pairs } = pairing;
        diff.gone = gone.into_iter().cloned().collect();
        diff.added = added.into_iter().cloned().collect();
        diff.changed = pairs.into_iter().filter_map(|(before, after)| ChangedAlert::of(before, after)).collect();
        diff.changed.sort_by_key(|changed| (changed.alert.opened_at, changed.alert.id));
        diff.count(before, after);
        diff
    }

    fn count(&mut self, before: &Report, after: &Report) {
        let ids: BTreeSet<&RuleId> = before.rules.keys().chain(after.rules.keys()).collect();
        for id in ids {
            let (old, new) = (before.rules.get(id), after.rules.get(id));
            let rule = match (old, new) {
                (None, _) => RuleChange::Added,
                (_, None) => RuleChange::Removed,
                (Some(old), Some(new)) if old.hash != new.hash => RuleChange::Edited,
                _ => RuleChange::Same,
            };
            let of = |alerts: &[Alert]| alerts.iter().filter(|alert| alert.rule == *id).count() as u64;
            let changed = self.changed.iter().filter(|changed| changed.alert.rule == *id).count() as u64;
            let found = RuleDiff {
                rule,
                before: Found::of(old),
                after: Found::of(new),
                added: of(&self.added),
                gone: of(&self.gone),
                changed,
            };
            let alerts_differ = found.added + found.gone + found.changed > 0;
            if rule == RuleChange::Same && found.before == found.after && !alerts_differ {
                self.same += 1;
            } else {
                self.rules.insert(id.clone(), found);
            }
        }
    }
}

/// Alerts of two replays, as far as it is known which belong together.
struct Pairing<'a> {
    gone: Vec<&'a Alert>,
    added: Vec<&'a Alert>,
    pairs: Vec<(&'a Alert, &'a Alert)>,
}

impl<'a> Pairing<'a> {
    fn new(before: &'a [Alert], after: &'a [Alert]) -> Self {
        Self { gone: before.iter().collect(), added: after.iter().collect(), pairs: Vec::new() }
    }

    /// Takes those together that have something in common, in their order.
    fn pair<K: Eq + Hash>(&mut self, key: impl Fn(&'a Alert) -> Option<K>, fits: impl Fn(&Alert, &Alert) -> bool) {
        let mut waiting: HashMap<K, VecDeque<&'a Alert>> = HashMap::new();
        for alert in &self.gone {
            if let Some(key) = key(alert) {
                waiting.entry(key).or_default().push_back(alert);
            }
        }
        let mut paired: HashSet<AlertId> = HashSet::new();
        let (pairs, added) = (&mut self.pairs, &mut self.added);
        added.retain(|alert| {
            let Some(waiting) = key(alert).and_then(|key| waiting.get_mut(&key)) else {
                return true;
            };
            let Some(other) = waiting.iter().position(|other| fits(other, alert)).and_then(|at| waiting.remove(at))
            else {
                return true;
            };
            paired.insert(other.id);
            pairs.push((other, alert));
            false
        });
        self.gone.retain(|alert| !paired.contains(&alert.id));
    }
}

impl ChangedAlert {
    /// What differs of an alert, if anything does.
    pub(super) fn of(before: &Alert, after: &Alert) -> Option<Self> {
        let mut differences = Vec::new();
        let mut compare = |what: &'static str, before: String, after: String| {
            if before != after {
                differences.push(Difference { what, before, after });
            }
        };
        compare("opened", before.opened_at.to_string(), after.opened_at.to_string());
        compare("title", before.title.clone(), after.title.clone());
        compare("severity", before.severity.to_string(), after.severity.to_string());
        compare("key", before.dedup_key.to_string(), after.dedup_key.to_string());
        compare("count", before.count.to_string(), after.count.to_string());
        let names =
            |alert: &Alert| alert.destinations.as_ref().map_or_else(|| "as routed".to_owned(), |to| to.join(", "));
        compare("destinations", names(before), names(after));
        let shadow = |alert: &Alert| if alert.shadow { "on trial" } else { "told" }.to_owned();
        compare("stage", shadow(before), shadow(after));
        if differences.is_empty() {
            return None;
        }
        let id = (before.id != after.id).then_some(before.id);
        Some(Self { alert: after.clone(), before: id, differences })
    }
}
