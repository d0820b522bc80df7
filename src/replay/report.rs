//! What rules found in a history, and how reports of parts of the rules are put together.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    model::{
        alert::Alert,
        name::{AlertId, ExceptionId, RuleId, Sequence},
        time::{self, Timestamp},
    },
    rule::RuleSet,
};

/// Failures that are told one by one.
const MAX_FAILURES: usize = 20;
/// Different dedup keys, and actors, that are counted of one rule.
const MAX_COUNTED: usize = 10_000;
/// How many of them are shown.
const SHOWN: usize = 5;

/// What rules found in a history. As JSON it can be kept, read again, and compared with another.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Events that were looked at.
    pub events: u64,
    /// Events that could not be read from the store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// It was interrupted: what follows is what was found until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// What was only learned from, before the events that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Time of the earliest.
    pub earliest: Option<Timestamp>,
    /// Time of the latest.
    pub latest: Option<Timestamp>,
    /// What each rule found, in the order of their ids.
    pub rules: BTreeMap<RuleId, RuleReport>,
    /// The alerts as they would have looked, in the order of the events that opened them, then of their rules. Those of a rule
    /// that makes very many are kept without their evidence, or not at all.
    pub alerts: Vec<Alert>,
    /// Alerts that are counted and not kept: rules that flood must not fill the memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_kept: u64,
    /// Failures of rules, the first of them, each told once.
    #[serde(skip)]
    pub failures: Vec<String>,
    /// Matches that exceptions took out of alerting, by exception.
    pub excepted: BTreeMap<ExceptionId, u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Events that rules learned from, and whose alerts are not reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    /// How many.
    pub events: u64,
    /// Time of the earliest.
    pub earliest: Timestamp,
}

/// What one rule found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RuleReport {
    /// Hash of the rule's file.
    #[serde(default)]
    pub hash: String,
    /// Events it said true for.
    pub matches: u64,
    /// Alerts these made.
    pub alerts: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Text of the first failure.
    pub first_error: Option<String>,
    /// It exceeded its limits three times in a row, and looked at no event after that.
    pub suspended: bool,
    /// Matches by the hour, counted from 1970.
    #[serde(default, with = "hours")]
    pub hours: BTreeMap<i64, u64>,
    /// Matches by dedup key; the most frequent.
    pub keys: Tally,
    /// Matches by actor; the most frequent.
    pub actors: Tally,
    /// What running it has cost; absent where nobody measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<RuleCost>,
}

/// What running a rule has cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCost {
    /// How long its functions ran, in microseconds, over all threads.
    pub microseconds: u64,
    /// Events of which it was known without running it that it says false: by their action, or the conditions it begins with.
    pub avoided: u64,
    /// Its functions that were called.
    pub functions: BTreeMap<String, FunctionCost>,
}

/// What running a function has cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCost {
    /// How often it was called.
    pub calls: u64,
    /// How long that took, in microseconds.
    pub microseconds: u64,
}

/// How long the functions of rules ran so far, to tell later what was added. Several sets of the same rules count as one.
#[derive(Debug)]
pub(super) struct Costs(BTreeMap<RuleId, BTreeMap<&'static str, (u64, Duration)>>);

impl Costs {
    pub(super) fn of<'a>(sets: impl IntoIterator<Item = &'a RuleSet>) -> Self {
        let mut costs: BTreeMap<RuleId, BTreeMap<&'static str, (u64, Duration)>> = BTreeMap::new();
        for rule in sets.into_iter().flat_map(|set| &set.detections) {
            let functions = costs.entry(rule.id().clone()).or_default();
            for (function, calls, time) in rule.cost.by_function() {
                let cost = functions.entry(function).or_default();
                cost.0 += calls;
                cost.1 += time;
            }
        }
        Self(costs)
    }

    /// Writes into a report what was added since `before`.
    pub(super) fn tell(self, before: &Self, report: &mut Report) {
        let events = report.events + report.warm_up.as_ref().map_or(0, |warm_up| warm_up.events);
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (rule, functions) in self.0 {
            let Some(found) = report.rules.get_mut(&rule) else {
                continue;
            };
            let (mut cost, mut took) = (RuleCost::default(), Duration::ZERO);
            for (function, (calls, time)) in functions {
                let earlier = before.0.get(&rule).and_then(|known| known.get(function)).copied().unwrap_or_default();
                let (calls, time) = (calls.saturating_sub(earlier.0), time.saturating_sub(earlier.1));
                took += time;
                if calls > 0 {
                    cost.functions.insert(function.to_owned(), FunctionCost { calls, microseconds: whole(time) });
                }
            }
            cost.microseconds = whole(took);
            cost.avoided = events.saturating_sub(cost.functions.get("rule").map_or(0, |cost| cost.calls));
            found.cost = Some(cost);
        }
    }
}

/// Hours, as JSON, are told by the time at which they begin.
mod hours {
    use super::{BTreeMap, Deserialize, Deserializer, Serializer, Timestamp, time};

    pub(super) fn serialize<S: Serializer>(hours: &BTreeMap<i64, u64>, serializer: S) -> Result<S::Ok, S::Error> {
        let begins = |hour: i64| time::from_millis(hour.saturating_mul(3_600_000)).to_string();
        serializer.collect_map(hours.iter().map(|(hour, matches)| (begins(*hour), matches)))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<BTreeMap<i64, u64>, D::Error> {
        let hours = BTreeMap::<Timestamp, u64>::deserialize(deserializer)?;
        Ok(hours.into_iter().map(|(begins, matches)| (begins.as_second().div_euclid(3_600), matches)).collect())
    }
}

/// How often each of some texts came up. What comes up after very many others did is not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub(super) fn add(&mut self, text: &str) {
        if let Some(count) = self.0.get_mut(text) {
            *count += 1;
        } else if self.0.len() < MAX_COUNTED {
            self.0.insert(text.to_owned(), 1);
        }
    }

    /// The most frequent, the first of them first.
    pub fn top(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<(&str, u64)> = self.0.iter().map(|(text, count)| (text.as_str(), *count)).collect();
        all.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        all.truncate(SHOWN);
        all
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.top())
    }
}

/// A report on part of the rules, with what is needed to put it together with others.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) report: Report,
    /// Which event opened each alert, in the order of [`Report::alerts`].
    pub(super) opened: Vec<Sequence>,
    /// Which event each of [`Report::failures`] came up with, and in which rule.
    pub(super) failed: Vec<(Sequence, RuleId, String)>,
}

impl Part {
    pub(super) fn fail(&mut self, sequence: Sequence, rule: &RuleId, error: &str) {
        let known = self.failed.iter().any(|(_, _, known)| known == error);
        if !known && self.failed.len() < MAX_FAILURES {
            self.failed.push((sequence, rule.clone(), error.to_owned()));
        }
    }

    /// One report of all parts, which are about different rules and the same events.
    pub(super) fn join(parts: Vec<Self>) -> Report {
        let mut whole = Report::default();
        let mut alerts: Vec<(Sequence, Alert)> = Vec::new();
        let mut failed: Vec<(Sequence, RuleId, String)> = Vec::new();
        for Self { report, opened, failed: some } in parts {
            alerts.extend(opened.into_iter().zip(report.alerts));
            failed.extend(some);
            for (rule, found) in report.rules {
                // Only one part has something to say of it.
                if found.matches + found.alerts + found.errors > 0
                    || found.suspended
                    || !whole.rules.contains_key(&rule)
                {
                    whole.rules.insert(rule, found);
                }
            }
            for (exception, count) in report.excepted {
                *whole.excepted.entry(exception).or_default() += count;
            }
            // The same in each.
            whole.events = report.events;
            whole.not_kept += report.not_kept;
            whole.warm_up = report.warm_up;
            whole.earliest = report.earliest;
            whole.latest = report.latest;
        }
        alerts.sort_by(|(one, alert), (other, second)| {
            let key = |sequence: Sequence, alert: &Alert| -> (Sequence, RuleId, AlertId) {
                (sequence, alert.rule.clone(), alert.id)
            };
            key(*one, alert).cmp(&key(*other, second))
        });
        whole.alerts = alerts.into_iter().map(|(_, alert)| alert).collect();
        failed.sort();
        for (_, _, error) in failed {
            if !whole.failures.contains(&error) && whole.failures.len() < MAX_FAILURES {
                whole.failures.push(error);
            }
        }
        whole
    }
}
