//! Runs the tests of rules: each case is a small replay in virtual time, whose alerts are compared with the expected
//! ones.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::Value;

use super::{Replay, Report};
use crate::{
    detect::{Detector, Settings},
    model::{
        alert::{Alert, AlertKind},
        name::RuleId,
    },
    rule::{Case, CompiledRule, Expected, ExpectedAlert, RuleInput, RuleSet, Trace, Tracer},
};

/// The results of the cases of one rule.
#[derive(Debug, Serialize)]
pub struct RuleResult {
    /// The id of the rule.
    pub rule: RuleId,
    /// The rule's file.
    pub file: PathBuf,
    /// The test file, if there is one.
    pub tests: Option<PathBuf>,
    /// The results of its cases, in the order of the file.
    pub cases: Vec<CaseResult>,
    /// Problems with the cases as a whole.
    pub problems: Vec<String>,
}

impl RuleResult {
    /// Returns true if all cases passed and there are no problems.
    pub fn passed(&self) -> bool {
        self.problems.is_empty() && self.cases.iter().all(|case| case.differences.is_empty())
    }
}

/// The result of a case.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// The name of the case.
    pub name: String,
    /// Its line in the test file.
    pub line: usize,
    /// The differences between the expected and the actual results.
    pub differences: Vec<Mismatch>,
    /// What the rule read, if the case failed.
    pub read: Vec<Read>,
    /// How long the rule's functions ran.
    #[serde(serialize_with = "microseconds")]
    pub took: Duration,
}

fn microseconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_micros())
}

/// A difference between an expected and an actual result.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// What differs, such as `title of alert 1`.
    pub what: String,
    /// The expected result.
    pub expected: String,
    /// The actual result.
    pub found: String,
}

/// A value that a rule read.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Read {
    /// The line in the rule's file.
    pub line: usize,
    /// The expression as it is written there.
    pub text: String,
    /// The value of the expression.
    pub value: String,
}

/// The environment that cases run in.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The limits and the other settings of detection.
    pub settings: Settings,
    /// If set, every rule of this set also runs on every case, to find unintended matches.
    pub others: Option<Arc<RuleSet>>,
    /// The set that contains the rules that a rule subscribes to.
    pub all: Arc<RuleSet>,
}

impl Suite {
    /// Runs a case of a rule.
    pub fn run(&self, rule: &Arc<CompiledRule>, case: &Case) -> CaseResult {
        let begun = rule.cost.time();
        let mut report = replay(&self.alone(rule, case), &self.settings, case);
        report.alerts.retain(|alert| alert.rule == *rule.id());
        let mut differences = Vec::new();
        compare(&report, rule.id(), case, &mut differences);
        if let Some(others) = &self.others {
            let everything = replay(&known(others, case), &self.settings, case);
            for alert in everything.alerts.iter().filter(|alert| alert.rule != *rule.id()) {
                differences.push(Mismatch {
                    what: format!("rule {}", alert.rule),
                    expected: "no alert".to_owned(),
                    found: format!("alert: {}", alert.title),
                });
            }
        }
        let read = if differences.is_empty() { Vec::new() } else { self.what_it_read(rule, case) };
        let took = rule.cost.time().saturating_sub(begun);
        CaseResult { name: case.name.clone(), line: case.line, differences, read, took }
    }

    /// A set of the rule and the rules that it subscribes to.
    fn alone(&self, rule: &Arc<CompiledRule>, case: &Case) -> Arc<RuleSet> {
        let mut rules = self.all.with_what_it_hears(rule);
        // The set may contain another version of the rule.
        rules.retain(|other| other.id() != rule.id());
        rules.push(Arc::clone(rule));
        known(&RuleSet::only(rules, Arc::clone(&self.all.context.catalog)), case)
    }

    /// What the rule read in the last event that it evaluates: most cases have only one event.
    fn what_it_read(&self, rule: &Arc<CompiledRule>, case: &Case) -> Vec<Read> {
        let alone = self.alone(rule, case);
        let catalog = Arc::clone(&alone.context.catalog);
        let Some(event) = case.events.iter().rev().find(|event| alone.wants(event)) else {
            let flagged = rule.metadata.flagged;
            let wanted = rule.metadata.actions.iter().chain(&rule.metadata.activities).flatten();
            let wanted = wanted.map(String::as_str).collect::<Vec<_>>().join(", ");
            let seen: Vec<&str> = case.events.iter().map(|event| &*event.action).collect();
            let value = match (flagged, wanted.is_empty()) {
                (true, true) => "the rule evaluates only events with flags, and never ran".to_owned(),
                (true, false) => format!("the rule evaluates only {wanted} with flags, and never ran"),
                (false, _) => format!("the rule evaluates only {wanted}, and never ran"),
            };
            return vec![Read { line: 0, text: seen.first().copied().unwrap_or_default().to_owned(), value }];
        };
        let mut before = Detector::new(alone, self.settings.clone());
        for earlier in case.events.iter().take_while(|earlier| earlier.id != event.id) {
            before.evaluate(earlier);
        }
        let tracer = Tracer::new(&self.settings.limits);
        tracer.set_memory(before.memory());
        let input = RuleInput::new(event, &catalog);
        let mut traces: Vec<Trace> = tracer.run(rule, "rule", &input).into_iter().collect();
        // The other functions only run if `rule` returns true.
        if traces.iter().any(|trace| trace.result.as_deref() == Ok("true")) {
            let others = ["title", "severity", "dedup", "context"];
            traces.extend(others.into_iter().filter_map(|function| tracer.run(rule, function, &input)));
        }
        // In the order of the file, with an enclosing expression after its parts.
        let mut read: BTreeMap<(usize, usize, usize, String), Read> = BTreeMap::new();
        for note in traces.iter().flat_map(|trace| &trace.notes) {
            let entry = Read { line: note.line, text: note.text.clone(), value: note.value.clone() };
            read.insert((note.line, note.column, note.text.len(), note.text.clone()), entry);
        }
        read.into_values().collect()
    }
}

fn replay(rules: &Arc<RuleSet>, settings: &Settings, case: &Case) -> Report {
    let mut replay = Replay::new(Arc::clone(rules), settings.clone());
    for event in &case.events {
        replay.event(event);
    }
    if let (Some(until), Some(event)) = (case.until, case.events.last()) {
        replay.advance(&event.source, until);
    }
    replay.finish()
}

/// The rules with the actions that a case defines.
fn known(rules: &Arc<RuleSet>, case: &Case) -> Arc<RuleSet> {
    rules.with_actions(case.actions.iter().cloned())
}

fn compare(report: &Report, rule: &RuleId, case: &Case, differences: &mut Vec<Mismatch>) {
    let alerts: Vec<&Alert> = report.alerts.iter().filter(|alert| alert.kind == AlertKind::Detection).collect();
    let titles = || {
        let titles: Vec<String> = alerts.iter().map(|alert| format!("\"{}\"", alert.title)).collect();
        format!("{} alert{}: {}", titles.len(), if titles.len() == 1 { "" } else { "s" }, titles.join(", "))
    };
    let mut differ = |what: String, expected: String, found: String| {
        differences.push(Mismatch { what, expected, found });
    };
    let found = if alerts.is_empty() { "no alert".to_owned() } else { titles() };
    match &case.expected {
        Expected::Any(true) if alerts.is_empty() => differ("alert".to_owned(), "an alert".to_owned(), found),
        Expected::Any(false) if !alerts.is_empty() => differ("alert".to_owned(), "no alert".to_owned(), found),
        Expected::Count(count) if *count != alerts.len() => differ("alerts".to_owned(), count.to_string(), found),
        Expected::Alerts(expected) if expected.len() != alerts.len() => {
            differ("alerts".to_owned(), expected.len().to_string(), found);
        }
        _ => {}
    }
    let matched = report.rules.get(rule).is_some_and(|rule| rule.matches > 0);
    if let Some(expected) = case.matches.filter(|expected| *expected != matched) {
        let word = |matched| if matched { "a match" } else { "no match" };
        differ("match".to_owned(), word(expected).to_owned(), word(matched).to_owned());
    }
    if let Expected::Alerts(expected) = &case.expected {
        for (number, (expected, alert)) in expected.iter().zip(&alerts).enumerate() {
            compare_alert(number + 1, expected, alert, &mut differ);
        }
    }
    // Errors of functions that are expected on an alert are compared there; all others fail the case.
    let on_alerts: Vec<&str> = match &case.expected {
        Expected::Alerts(expected) => {
            expected.iter().filter_map(|alert| alert.errors.as_ref()).flatten().map(String::as_str).collect()
        }
        _ => Vec::new(),
    };
    let errors = &report.failures;
    for error in errors {
        let expected = case.errors.iter().map(String::as_str).chain(on_alerts.iter().copied());
        if !expected.clone().any(|part| error.contains(part)) {
            differ(format!("rule {rule}"), "no error".to_owned(), error.clone());
        }
    }
    for part in &case.errors {
        if !errors.iter().any(|error| error.contains(part)) {
            differ("errors".to_owned(), format!("an error with \"{part}\""), "none".to_owned());
        }
    }
}

fn compare_alert(
    number: usize,
    expected: &ExpectedAlert,
    alert: &Alert,
    differ: &mut impl FnMut(String, String, String),
) {
    let mut text = |name: &str, expected: Option<String>, found: Option<String>| {
        if let Some(expected) = expected
            && found.as_ref() != Some(&expected)
        {
            differ(format!("{name} of alert {number}"), expected, found.unwrap_or_else(|| "nothing".to_owned()));
        }
    };
    text("title", expected.title.clone(), Some(alert.title.clone()));
    text("severity", expected.severity.map(|severity| severity.to_string()), Some(alert.severity.to_string()));
    text("dedup", expected.dedup.clone(), Some(alert.dedup_key.to_string()));
    text("count", expected.count.map(|count| count.to_string()), Some(alert.count.to_string()));
    text("description", expected.description.clone(), alert.description.clone());
    text("runbook", expected.runbook.clone(), alert.runbook.clone());
    text("reference", expected.reference.clone(), alert.reference.clone());
    let joined = |names: &Vec<String>| names.join(", ");
    text("destinations", expected.destinations.as_ref().map(joined), alert.destinations.as_ref().map(joined));
    for (key, value) in expected.context.iter().flatten() {
        let found = alert.context.get(key);
        if !found.is_some_and(|found| includes(found, value)) {
            let found = found.map_or_else(|| "nothing".to_owned(), ToString::to_string);
            text(&format!("context.{key}"), Some(value.to_string()), Some(found));
        }
    }
    for part in expected.errors.iter().flatten() {
        if !alert.errors.iter().any(|error| error.error.contains(part)) {
            let found: Vec<&str> = alert.errors.iter().map(|error| error.error.as_str()).collect();
            text(
                "errors",
                Some(part.clone()),
                Some(if found.is_empty() { "none".to_owned() } else { found.join("; ") }),
            );
        }
    }
}

/// Returns true if a value contains the expected one: for a map, some of its keys; otherwise the same value.
fn includes(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| found.get(key).is_some_and(|found| includes(found, value)))
        }
        (found, expected) => found == expected,
    }
}
