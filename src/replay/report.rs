//! The results of rules over a history, and how reports on parts of the rules are merged.

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

/// The number of failures that are listed.
const MAX_FAILURES: usize = 20;
/// The number of different dedup keys, and of actors, that are counted for one rule.
const MAX_COUNTED: usize = 10_000;
/// The number of dedup keys and actors that are shown.
const SHOWN: usize = 5;

/// The results of rules over a history. As JSON it can be kept, read again, and compared with another.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The number of events evaluated.
    pub events: u64,
    /// The number of events that could not be read from the store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// True if the replay was interrupted: the report has the results up to then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// The warm-up before the reported events, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// The time of the earliest event.
    pub earliest: Option<Timestamp>,
    /// The time of the latest event.
    pub latest: Option<Timestamp>,
    /// The results of each rule, by id.
    pub rules: BTreeMap<RuleId, RuleReport>,
    /// The alerts that would have been raised, in the order of the events that opened them, then of their rules. If a
    /// rule raises very many, they are kept without their evidence, or not at all.
    pub alerts: Vec<Alert>,
    /// The number of alerts that are counted but not kept, so that rules that flood do not fill the memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_kept: u64,
    /// Failures of rules, the first of them, each listed once.
    #[serde(skip)]
    pub failures: Vec<String>,
    /// The number of matches that each exception suppressed.
    pub excepted: BTreeMap<ExceptionId, u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The events over which rules warmed up, whose alerts are not reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    /// The number of events.
    pub events: u64,
    /// The time of the earliest event.
    pub earliest: Timestamp,
}

/// The results of one rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RuleReport {
    /// The hash of the rule's file.
    #[serde(default)]
    pub hash: String,
    /// The number of events that it matched.
    pub matches: u64,
    /// The number of alerts that it raised.
    pub alerts: u64,
    /// The number of calls that failed.
    pub errors: u64,
    /// The message of the first failure.
    pub first_error: Option<String>,
    /// True if it exceeded its limits three times in a row, and did not evaluate any event after that.
    pub suspended: bool,
    /// The number of matches by the hour, counted from 1970.
    #[serde(default, with = "hours")]
    pub hours: BTreeMap<i64, u64>,
    /// The number of matches by dedup key, for the most frequent.
    pub keys: Tally,
    /// The number of matches by actor, for the most frequent.
    pub actors: Tally,
    /// The cost of running it; absent if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<RuleCost>,
}

/// The cost of running a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCost {
    /// How long its functions ran, in microseconds, over all threads.
    pub microseconds: u64,
    /// The number of events that were excluded without running the rule, by their action or by the conditions that it
    /// begins with.
    pub avoided: u64,
    /// The functions that were called.
    pub functions: BTreeMap<String, FunctionCost>,
}

/// The cost of running a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCost {
    /// The number of calls.
    pub calls: u64,
    /// The total time of the calls, in microseconds.
    pub microseconds: u64,
}

/// The time that the functions of rules ran so far, to find out later what was added. Several sets of the same rules
/// count as one.
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

    /// Adds the cost since `before` to a report.
    pub(super) fn report(self, before: &Self, report: &mut Report) {
        let events = report.events + report.warm_up.as_ref().map_or(0, |warm_up| warm_up.events);
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (rule, functions) in self.0 {
            let Some(rule_report) = report.rules.get_mut(&rule) else {
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
            rule_report.cost = Some(cost);
        }
    }
}

/// In JSON, hours are keyed by the time at which they begin.
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

/// Counts how often each text occurs. A text that first occurs after very many others is not counted.
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

    /// The most frequent texts and their counts, in descending order.
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

/// A report on part of the rules, with the data needed to merge it with others.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) report: Report,
    /// The event that opened each alert, in the order of [`Report::alerts`].
    pub(super) opened: Vec<Sequence>,
    /// The event and the rule of each of [`Report::failures`].
    pub(super) failed: Vec<(Sequence, RuleId, String)>,
}

impl Part {
    pub(super) fn fail(&mut self, sequence: Sequence, rule: &RuleId, error: &str) {
        let known = self.failed.iter().any(|(_, _, known)| known == error);
        if !known && self.failed.len() < MAX_FAILURES {
            self.failed.push((sequence, rule.clone(), error.to_owned()));
        }
    }

    /// Merges the reports of all parts, which are about different rules and the same events.
    pub(super) fn join(parts: Vec<Self>) -> Report {
        let mut whole = Report::default();
        let mut alerts: Vec<(Sequence, Alert)> = Vec::new();
        let mut failed: Vec<(Sequence, RuleId, String)> = Vec::new();
        for Self { report, opened, failed: some } in parts {
            alerts.extend(opened.into_iter().zip(report.alerts));
            failed.extend(some);
            for (rule, found) in report.rules {
                // Only one part has results for the rule.
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
            // These are the same in each part.
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
