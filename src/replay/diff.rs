//! Compares two replays of the same events: alerts that only one of them has, and alerts that changed.
//!
//! Two alerts belong together if they have the same id, which is derived from rule, source, dedup key and opening
//! event; next if they are from the same rule and opened by the same event, so that their keys differ; and last if they
//! are from the same rule with the same key and opened within a day of each other.

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

/// Alerts of a rule with the same key that opened less than this apart are the same alert with another start.
const SAME_STORY: Duration = Duration::from_secs(86_400);

/// The differences between two replays.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Diff {
    /// The rules with any difference, even if it is only their file.
    pub rules: BTreeMap<RuleId, RuleDiff>,
    /// The number of rules without any difference.
    pub same: u64,
    /// Alerts that only the second replay has.
    pub added: Vec<Alert>,
    /// Alerts that only the first replay has.
    pub gone: Vec<Alert>,
    /// Alerts that changed.
    pub changed: Vec<ChangedAlert>,
    /// The number of alerts of either replay that were not kept and are not compared.
    pub not_compared: u64,
    /// The numbers of events, if the two replays are not of the same events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_events: Option<(u64, u64)>,
}

/// The differences of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleDiff {
    /// How the rule itself changed.
    pub rule: RuleChange,
    /// The rule's results in the first replay.
    pub before: Found,
    /// The rule's results in the second replay.
    pub after: Found,
    /// The number of alerts that only the second replay has.
    pub added: u64,
    /// The number of alerts that only the first replay has.
    pub gone: u64,
    /// The number of alerts that changed.
    pub changed: u64,
}

/// How a rule changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleChange {
    /// Only the second replay has it.
    Added,
    /// Only the first replay has it.
    Removed,
    /// Its file changed.
    Edited,
    /// Its file is the same: lists, overrides, exceptions or rules that it subscribes to changed.
    Same,
}

/// The results of a rule in a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The number of events that it matched.
    pub matches: u64,
    /// The number of alerts that it raised.
    pub alerts: u64,
    /// The number of calls that failed.
    pub errors: u64,
}

/// An alert that changed.
#[derive(Debug, Clone, Serialize)]
pub struct ChangedAlert {
    /// The alert in the second replay.
    pub alert: Alert,
    /// The id in the first replay, if it is different.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<AlertId>,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// A difference in one property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The name of the property.
    pub what: &'static str,
    /// The value in the first replay.
    pub before: String,
    /// The value in the second replay.
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
    /// Compares two replays.
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
            let difference = RuleDiff {
                rule,
                before: Found::of(old),
                after: Found::of(new),
                added: of(&self.added),
                gone: of(&self.gone),
                changed,
            };
            let alerts_differ = difference.added + difference.gone + difference.changed > 0;
            if rule == RuleChange::Same && difference.before == difference.after && !alerts_differ {
                self.same += 1;
            } else {
                self.rules.insert(id.clone(), difference);
            }
        }
    }
}

/// Alerts of two replays, and the pairs found so far.
struct Pairing<'a> {
    gone: Vec<&'a Alert>,
    added: Vec<&'a Alert>,
    pairs: Vec<(&'a Alert, &'a Alert)>,
}

impl<'a> Pairing<'a> {
    fn new(before: &'a [Alert], after: &'a [Alert]) -> Self {
        Self { gone: before.iter().collect(), added: after.iter().collect(), pairs: Vec::new() }
    }

    /// Pairs alerts with the same key for which `fits` returns true, in order.
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
    /// The differences between two alerts, if any.
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
        let shadow = |alert: &Alert| if alert.shadow { "shadow" } else { "active" }.to_owned();
        compare("stage", shadow(before), shadow(after));
        if differences.is_empty() {
            return None;
        }
        let id = (before.id != after.id).then_some(before.id);
        Some(Self { alert: after.clone(), before: id, differences })
    }
}
