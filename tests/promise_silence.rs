use std::sync::Arc;

use insta::assert_snapshot;
use serde_json::{Value, json};
use watchbell::{
    config::Config,
    detect::{HealthDetector, Subject},
    model::{
        alert::{Alert, AlertChange, AlertKind, AlertStatus},
        error_kind::ErrorKind,
        name::SourceName,
        time::{self, Clock},
    },
    rule::{Limits, Loader, RuleSet, RuleSources},
    simulator::{Fault, Faults, SimulatorOptions},
    store::{AlertFilter, Reader},
};

use crate::support::{Lab, base, entry, evaluated, organization};

/// The configuration of the built-in checks.
fn sources(config: &str) -> RuleSources {
    let (config, problems) = Config::parse(std::path::Path::new("watchbell.toml"), config);
    let config = config.unwrap_or_else(|| panic!("{problems:#?}"));
    RuleSources { roots: Vec::new(), ..config.rules }
}

fn checks(config: &str) -> Arc<RuleSet> {
    let loaded = Loader::new(sources(config)).load();
    assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
    loaded.set
}

/// A healthy source, with these changes.
fn source(changes: Value) -> Subject {
    let mut record = json!({
        "name": "test", "drop_off": 86_400, "poll_interval": 30, "polled": true, "awake_for": 999_999, "away": 0, "ever": true,
        "silent_for": 60, "newest_event": 61, "newest_event_time": "2026-03-01T11:59:00Z", "newest_arrival": 60, "lag": 1,
        "last_poll": 5, "caught_up": true, "error": null, "error_kind": null, "error_remedy": null, "needs_a_person": false,
        "failures": 0, "failing_for": null, "cursor_trouble": null, "key_expires_in": null, "quarantined": 0,
        "last_quarantined": null, "set_aside": [], "stored": 100,
    });
    for (name, value) in changes.as_object().unwrap() {
        assert!(record.get(name).is_some(), "the agent's record has no `{name}`");
        record[name] = value.clone();
    }
    Subject { source: Some(SourceName::parse("test").unwrap()), record }
}

/// Titles and severities of the alerts of all checks for a source.
fn findings(changes: Value) -> String {
    let mut detector = HealthDetector::restore(&Limits::default(), []);
    let (outcome, _) = detector.check(&checks(""), &[source(changes)], base());
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let lines: Vec<String> = outcome
        .alerts
        .iter()
        .map(|change| match change {
            AlertChange::Opened(alert) => format!("{} {}: {}", alert.severity, alert.rule, alert.title),
            other => panic!("{other:?}"),
        })
        .collect();
    lines.join("\n")
}

#[test]
fn every_kind_of_silence_is_told_apart() {
    assert_eq!(findings(json!({})), "");
    let silent = json!({ "silent_for": 90_000, "newest_arrival": 90_000, "newest_event": 90_001 });
    let with = |more: Value| {
        let mut all = silent.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        findings(all)
    };
    assert_snapshot!(with(json!({})), @"high builtin.log_drop_off: No events from test for 1d or more, although polling works");
    assert_snapshot!(with(json!({ "ever": false, "newest_arrival": null, "newest_event": null })), @"high builtin.log_drop_off: test has returned no events since polling began");
    assert_snapshot!(with(json!({ "error": "api answered 500", "error_kind": "server_error", "error_remedy": "wait", "failures": 40, "failing_for": 80_000 })), @"
    high builtin.log_drop_off: No events from test for 1d or more: it cannot be polled (server_error)
    medium builtin.source_failing: test cannot be polled (server_error)
    ");
    assert_snapshot!(with(json!({ "error": "api answered 401", "error_kind": "key_refused", "error_remedy": "new key", "needs_a_person": true, "failures": 4, "failing_for": 80_000 })), @"
    high builtin.log_drop_off: No events from test for 1d or more: it cannot be polled (key_refused)
    high builtin.source_refused: test refuses to be read (key_refused)
    ");
    assert_snapshot!(findings(json!({ "lag": 90_000 })), @"high builtin.log_drop_off: Events from test arrive at least 1d late");
    // The agent was off for two days: no alert before the first poll …
    assert_eq!(with(json!({ "polled": false, "away": 172_800, "awake_for": 3 })), "");
    // … nor while it catches up.
    assert_eq!(with(json!({ "caught_up": false })), "");
    // If that poll fails, there is an alert.
    assert!(with(json!({ "polled": false, "away": 172_800, "error": "no connection", "error_kind": "unreachable", "error_remedy": "look", "failures": 1, "failing_for": 1 })).contains("cannot be polled (unreachable)"));
}

#[test]
fn other_ways_to_be_unwell_have_alerts_of_their_own() {
    assert_snapshot!(findings(json!({ "needs_a_person": true, "error": "api answered 403", "error_kind": "key_lacks_scope", "error_remedy": "scope", "failing_for": 1 })), @"high builtin.source_refused: test refuses to be read (key_lacks_scope)");
    assert_snapshot!(findings(json!({ "error": "e", "error_kind": "timeout", "error_remedy": "r", "failures": 9, "failing_for": 1_000 })), @"medium builtin.source_failing: test cannot be polled (timeout)");
    assert_snapshot!(findings(json!({ "cursor_trouble": 10 })), @"low builtin.cursor_stuck: The position in the audit log of test was lost and recovered");
    assert_snapshot!(findings(json!({ "last_quarantined": 10, "quarantined": 3, "set_aside": [{ "hash": "a", "age": 10, "reason": "not a JSON object", "beginning": "17" }, { "hash": "b", "age": 90_000, "reason": "not a JSON object", "beginning": "18" }] })), @"medium builtin.events_quarantined: An entry from test could not be used: not a JSON object");
    let expiring: Vec<String> = [31, 30, 14, 7, 1, -1].map(|days| findings(json!({ "key_expires_in": days }))).to_vec();
    assert_snapshot!(expiring.join("\n"), @"

    info builtin.key_expiring: The API key of test expires within 30 days
    medium builtin.key_expiring: The API key of test expires within 14 days
    high builtin.key_expiring: The API key of test expires within a week
    critical builtin.key_expiring: The API key of test expires within a day
    critical builtin.key_expiring: The API key of test has expired
    ");
}

#[test]
fn a_finding_is_one_alert_from_beginning_to_end() {
    let rules = checks("");
    let mut stored: std::collections::BTreeMap<String, Vec<u8>> = std::collections::BTreeMap::new();
    let mut alert: Option<Alert> = None;
    let mut told = Vec::new();
    for days in [40, 29, 20, 13, 6, 5, 1, 300] {
        // A new detector each time: open alerts are known from the store.
        let mut detector = HealthDetector::restore(&Limits::default(), stored.clone());
        let (outcome, changes) = detector.check(&rules, &[source(json!({ "key_expires_in": days }))], base());
        for (name, bytes) in changes {
            match bytes {
                Some(bytes) => stored.insert(name, bytes),
                None => stored.remove(&name),
            };
        }
        for change in outcome.alerts {
            told.push((days, change.notice().is_some()));
            match change {
                AlertChange::Opened(opened) => alert = Some(*opened),
                change => alert.as_mut().unwrap().apply(&change),
            }
        }
    }
    assert_eq!(told, [(29, true), (13, true), (6, true), (1, true), (300, true)]);
    let alert = alert.unwrap();
    assert_eq!((alert.status, alert.title.as_str()), (AlertStatus::Resolved, "The key was renewed: test"));
    assert!(stored.is_empty());
}

/// A failing check knows nothing: what it reported before is not resolved.
#[test]
fn a_check_that_fails_resolves_nothing() {
    let text = crate::support::rule(
        "own.check",
        "resolved: \"All is well\"",
        "fn check(source) { if source.silent_for == () { throw \"no idea\" } if source.silent_for > 10 { #{ title: \"silent\" } } else { false } }",
    );
    let rules = crate::support::rule_set(&[&text]);
    let mut detector = HealthDetector::restore(&Limits::default(), []);
    let mut told = |record: Value| -> Vec<String> {
        let (outcome, _) = detector.check(&rules, &[source(record)], base());
        let title = |change: &AlertChange| match change {
            AlertChange::Opened(alert) => format!("opened {}", alert.title),
            AlertChange::Resolved { title, .. } => format!("resolved {title}"),
            other => format!("{other:?}"),
        };
        outcome.alerts.iter().map(title).collect()
    };
    assert_eq!(told(json!({ "silent_for": 60 })), ["opened silent"]);
    assert_eq!(told(json!({ "silent_for": null })), ["opened check rule `own.check` fails"]);
    assert_eq!(told(json!({ "silent_for": 60 })), ["resolved All is well: test"]);
    assert_eq!(told(json!({ "silent_for": 0 })), ["resolved All is well: test"]);
}

/// A restart or a backlog does not mean that the log is back.
#[test]
fn what_cannot_be_judged_yet_stays_as_it_was() {
    let rules = checks("");
    let mut detector = HealthDetector::restore(&Limits::default(), []);
    let silent = json!({ "silent_for": 90_000, "newest_arrival": 90_000 });
    let (opened, state) = detector.check(&rules, &[source(silent)], base());
    assert_eq!(opened.alerts.len(), 1);
    let stored: Vec<(String, Vec<u8>)> = state.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))).collect();
    let mut restarted = HealthDetector::restore(&Limits::default(), stored);
    let mut changes = |record: Value| restarted.check(&rules, &[source(record)], base()).0.alerts.len();
    assert_eq!(changes(json!({ "polled": false, "silent_for": 90_000, "away": 60 })), 0);
    assert_eq!(changes(json!({ "caught_up": false, "silent_for": 90_000 })), 0);
    // Polled, and still silent: the same alert continues. Then events arrive.
    assert_eq!(changes(json!({ "silent_for": 90_000, "newest_arrival": 90_000 })), 0);
    assert_eq!(changes(json!({})), 1);
}

#[test]
fn checks_can_be_switched_off_and_set() {
    let overrides = "[checks.\"builtin.cursor_stuck\"]\nenabled = false\n\
                     [checks.\"builtin.source_failing\"]\nparams = { failures = 100 }\n";
    let mut detector = HealthDetector::restore(&Limits::default(), []);
    let subject = source(
        json!({ "cursor_trouble": 10, "error": "e", "error_kind": "timeout", "failures": 9, "failing_for": 9_000 }),
    );
    assert!(detector.check(&checks(overrides), &[subject], base()).0.alerts.is_empty());
    // An unknown parameter is an error with its place.
    let wrong = "[checks.\"builtin.source_failing\"]\nparams = { failure = 1 }\n";
    let loaded = Loader::new(sources(wrong)).load();
    let found = &loaded.diagnostics[0];
    assert_eq!(found.one_line(), "watchbell.toml:1:1: rule `builtin.source_failing` has no parameter `failure`");
    assert_eq!(found.help.as_deref(), Some("did you mean `failures`?"));
}

fn health(reader: &watchbell::store::Reader) -> Vec<Alert> {
    reader.alerts(AlertFilter::default()).map(Result::unwrap).filter(|alert| alert.kind == AlertKind::Health).collect()
}

/// End to end: the log falls silent under a running agent, an alert is raised, events arrive, the alert is resolved.
#[test]
fn the_alarm_is_raised_and_resolved_by_a_running_agent() {
    let start = time::after(base(), std::time::Duration::from_secs(10));
    let clock = Clock::manual(start);
    let options = SimulatorOptions {
        clock: clock.clone(),
        ..organization(&[entry("1", "x", 0, "ann"), entry("2", "x", 100_000, "ann")])
    };
    let lab = Lab::with_organization(options, "drop_off = \"24h\"");
    let moved = std::cell::Cell::new(0);
    lab.run_agent_with(&clock, |reader| {
        let record = reader.sources().unwrap().into_values().next().unwrap_or_default();
        let alarm = health(reader).into_iter().find(|alert| alert.rule.as_str() == "builtin.log_drop_off");
        match moved.get() {
            0 if record.stored == 1 && record.caught_up => {
                clock.set(time::after(start, std::time::Duration::from_secs(90_000)));
                moved.set(1);
            }
            1 if alarm.as_ref().is_some_and(|alarm| alarm.status == AlertStatus::Open) => {
                clock.set(time::after(start, std::time::Duration::from_secs(100_000)));
                moved.set(2);
            }
            2 => return alarm.is_some_and(|alarm| alarm.status == AlertStatus::Resolved) && record.stored == 2,
            _ => {}
        }
        false
    });
    let lines = std::fs::read_to_string(lab.path("alerts.jsonl")).unwrap();
    let told: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|message| {
            format!("{}: {}", message["notice"].as_str().unwrap(), message["alert"]["title"].as_str().unwrap())
        })
        .collect();
    assert_snapshot!(told.join("\n"), @"
    opened: No events from test for 1d or more, although polling works
    resolved: Events are arriving again: test
    ");
}

#[test]
fn a_refused_key_and_a_broken_rule_raise_alerts_of_their_own() {
    let options =
        SimulatorOptions { faults: Faults::always(Fault::Unauthorized), ..organization(&[entry("1", "x", 0, "ann")]) };
    let lab = Lab::with_organization(options, "");
    lab.write("rules/broken.rhai", "const RULE = #{");
    lab.run_agent_until(|reader| {
        let open = health(reader);
        ["builtin.source_refused", "builtin.rule_broken"]
            .iter()
            .all(|rule| open.iter().any(|alert| alert.rule.as_str() == *rule))
    });
    // A different failure instead is not an all-clear.
    lab.simulator.as_ref().unwrap().set_faults(Faults::always(Fault::ServerError));
    let refused = |reader: &Reader| {
        health(reader).into_iter().find(|alert| alert.rule.as_str() == "builtin.source_refused").unwrap().status
    };
    lab.run_agent_until(|reader| {
        let record = reader.sources().unwrap().into_values().next().unwrap();
        let ticked = health(reader).iter().any(|alert| alert.rule.as_str() == "builtin.rule_broken");
        record.failures > 8 && record.error.is_some_and(|error| error.kind == ErrorKind::ServerError) && ticked
    });
    assert_eq!(refused(&lab.reader().1), AlertStatus::Open);
    // The key is fixed: missing events are fetched, and the alert is resolved.
    lab.simulator.as_ref().unwrap().set_faults(Faults::none());
    lab.run_agent_until(|reader| {
        let resolved = health(reader)
            .into_iter()
            .any(|alert| alert.rule.as_str() == "builtin.source_refused" && alert.status == AlertStatus::Resolved);
        resolved && evaluated(reader, 1)
    });
}
