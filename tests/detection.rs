use insta::assert_debug_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::{
    detect::{Detector, Settings},
    model::{alert::Severity, name::SourceName, outcome::Outcome, time},
};

use crate::support::{base, entry, event, events, found, rule, rule_set, run};

const ALL: &str = "fn rule(event) { true }";

#[test]
fn matches_with_one_key_join_within_the_period() {
    let text = rule(
        "a.dedup",
        "actions: [\"x\"], dedup_period: \"1h\",",
        &format!("{ALL}\nfn dedup(event) {{ event.actor.id }}"),
    );
    let entries = [
        entry("1", "x", 0, "ann"),
        entry("2", "x", 10, "bob"),
        entry("3", "x", 3_599, "ann"),
        entry("4", "y", 20, "ann"),
        // An hour after the opening match: a new alert.
        entry("5", "x", 3_600, "ann"),
        // Out of order, and closer to the first.
        entry("6", "x", 30, "ann"),
    ];
    assert_debug_snapshot!(found(&text, &entries), @r#"
    [
        "medium x2 a.dedup fired [ann]",
        "medium x1 a.dedup fired [bob]",
        "medium x2 a.dedup fired [ann]",
    ]
    "#);
}

#[test]
fn keys_fall_back_to_the_title_and_sources_are_kept_apart() {
    let rules = rule_set(&[&rule("a.title", "", &format!("{ALL}\nfn title(event) {{ `by ${{event.actor.id}}` }}"))]);
    let mut other = event(3, &entry("3", "x", 2, "ann"));
    other.source = SourceName::parse("other").unwrap();
    let report = run(&rules, &[event(1, &entry("1", "x", 0, "ann")), event(2, &entry("2", "x", 1, "ann")), other]);
    let counts: Vec<_> = report.alerts.iter().map(|alert| (alert.dedup_key.as_str(), alert.count)).collect();
    assert_eq!(counts, [("by ann", 2), ("by ann", 1)]);
}

#[test]
fn a_match_of_higher_severity_raises_the_alert() {
    let text = rule(
        "a.raise",
        "",
        &format!("{ALL}\nfn severity(event) {{ if event.action == \"bad\" {{ \"critical\" }} else {{ \"low\" }} }}"),
    );
    let entries = [entry("1", "x", 0, "ann"), entry("2", "bad", 1, "ann"), entry("3", "x", 2, "ann")];
    let report = run(&rule_set(&[&text]), &events(&entries));
    let alert = &report.alerts[0];
    assert_eq!((alert.severity, alert.count, alert.revision), (Severity::Critical, 3, 3));
}

#[test]
fn a_failing_optional_function_never_costs_the_alert() {
    let text = rule(
        "a.fallback",
        "description: \"d\", runbook: \"r\",",
        r#"fn rule(event) { true }
        fn title(event) { throw "no title" }
        fn severity(event) { "loud" }
        fn dedup(event) { event.nothing.to_string(1, 2) }
        fn description(event) { 5.5.nope() }
        fn context(event) { "no map" }
        fn destinations(event) { 7 }"#,
    );
    let report = run(&rule_set(&[&text]), &events(&[entry("1", "x", 0, "ann")]));
    let alert = &report.alerts[0];
    assert_eq!(
        (alert.title.as_str(), alert.severity, alert.dedup_key.as_str()),
        ("a.fallback fired", Severity::Medium, "a.fallback fired")
    );
    assert_eq!(alert.description.as_deref(), Some("d"));
    let errors: Vec<String> = alert.errors.iter().map(|error| format!("{}: {}", error.function, error.error)).collect();
    assert_debug_snapshot!(errors, @r#"
    [
        "title: no title (line 3, column 27)",
        "severity: `severity` must return `info`, `low`, `medium`, `high` or `critical`, but returned the string \"loud\"",
        "dedup: no function `to_string ((), i64, i64)` (line 5, column 41)",
        "description: no function `nope (f64)` (line 6, column 37)",
        "destinations: `destinations` must return a list of destination names, but returned the number 7",
        "context: `context` must return a map, such as `#{ target: … }`, but returned the string \"no map\"",
    ]
    "#);
}

#[test]
fn thresholds_count_in_a_sliding_window() {
    let text = rule("a.count", "threshold: 3, window: \"1m\",", ALL);
    // Two, a long pause, then three within a minute, of which one arrives out of order.
    let entries: Vec<Value> =
        [0, 59, 300, 340, 310].iter().enumerate().map(|(id, at)| entry(&id.to_string(), "x", *at, "ann")).collect();
    assert_debug_snapshot!(found(&text, &entries), @r#"
    [
        "medium x3 a.count fired [a.count fired]",
    ]
    "#);
    assert!(found(&text, &entries[..4]).is_empty());
}

#[test]
fn unique_counts_distinct_values() {
    let text =
        rule("a.unique", "threshold: 2, window: \"1h\",", &format!("{ALL}\nfn unique(event) {{ event.actor.id }}"));
    assert!(found(&text, &[entry("1", "x", 0, "ann"), entry("2", "x", 1, "ann")]).is_empty());
    assert_eq!(
        found(&text, &[entry("1", "x", 0, "ann"), entry("2", "x", 1, "ann"), entry("3", "x", 2, "bob")]).len(),
        1
    );
}

#[test]
fn events_that_were_old_when_they_arrived_raise_late_alerts() {
    let rules = rule_set(&[&rule("a.late", "", &format!("{ALL}\nfn dedup(event) {{ event.id }}"))]);
    let mut old = event(1, &entry("1", "x", 0, "ann"));
    old.arrived = time::after(old.time, std::time::Duration::from_secs(86_401));
    let report = run(&rules, &[old, event(2, &entry("2", "x", 0, "ann"))]);
    assert_eq!(report.alerts.iter().map(|alert| alert.late).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn actions_choose_who_looks_at_an_event() {
    let rules = rule_set(&[
        &rule("a.exact", "actions: [\"user_login\"],", ALL),
        &rule("a.glob", "actions: [\"user_*\", \"*_login\"],", ALL),
        &rule("a.every", "", ALL),
    ]);
    let names = |action: &str| -> Vec<&str> {
        rules.wanting(action).into_iter().map(|index| rules.detections[index].id().as_str()).collect()
    };
    assert_eq!(names("user_login"), ["a.every", "a.exact", "a.glob"]);
    assert_eq!(names("sso_login"), ["a.every", "a.glob"]);
    assert_eq!(names("other"), ["a.every"]);
}

#[test]
fn rule_errors_are_one_alert_a_rule_and_kind() {
    let text =
        rule("a.error", "", "fn rule(event) { if event.actor.id == \"bob\" { \"yes\" } else { throw \"broken\" } }");
    let entries = [entry("1", "x", 0, "ann"), entry("2", "x", 5, "ann"), entry("3", "x", 9, "bob")];
    assert_debug_snapshot!(found(&text, &entries), @r#"
    [
        "high x2 Rule `a.error` throws [error/threw]",
        "high x1 Rule `a.error` does not return true or false [error/wrong_type]",
        "error: broken (line 2, column 62)",
    ]
    "#);
}

#[test]
fn the_alert_says_where_it_comes_from() {
    let text = rule(
        "a.whole",
        "tags: [\"t\"], attack: [\"T1098\"], reference: \"https://example.com\",",
        &format!(
            "{ALL}\nfn context(event) {{ #{{ target: event.targets(\"users\")[0].attributes.email, nothing: event.nope, list: [1, 2.5, true] }} }}"
        ),
    );
    let rules = rule_set(&[&text]);
    let report = run(&rules, &events(&[entry("1", "x", 0, "ann")]));
    let alert = serde_json::to_value(&report.alerts[0]).unwrap();
    assert_eq!(alert["context"], json!({ "target": "target@example.com", "nothing": null, "list": [1, 2.5, true] }));
    assert_eq!(alert["evidence"]["place"], "Berlin, Germany");
    assert_eq!(alert["rule_hash"].as_str(), Some(rules.detections[0].hash.as_str()));
    assert_eq!(alert["opened_at"], base().to_string());
    assert_eq!(alert["raised_at"], Value::Null);
}

/// Rules that use everything with state.
const STATEFUL: [&str; 3] = [
    "const RULE = #{ id: \"s.dedup\", title: \"t\", severity: \"low\", dedup_period: \"2m\" };\nfn rule(event) { true }\nfn dedup(event) { event.actor.id }\nfn severity(event) { if event.action == \"b\" { \"high\" } else { \"low\" } }",
    "const RULE = #{ id: \"s.count\", title: \"t\", severity: \"low\", threshold: 3, window: \"1m\", dedup_period: \"90s\" };\nfn rule(event) { event.action != \"c\" }\nfn unique(event) { event.actor.id }",
    "const RULE = #{ id: \"s.error\", title: \"t\", severity: \"low\" };\nfn rule(event) { if event.action == \"c\" { loop {} } false }",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// A detector restored from stored state at arbitrary points finds the same as one that runs through.
    #[test]
    fn restoring_at_any_point_changes_nothing(
        made in prop::collection::vec((0_i64..900, 0_usize..3, 0_usize..4), 1..60),
        cuts in prop::collection::btree_set(0_usize..60, 0..6),
    ) {
        let entries: Vec<Value> = made
            .iter()
            .enumerate()
            .map(|(id, (at, action, actor))| entry(&id.to_string(), ["a", "b", "c"][*action], *at, ["ann", "bob", "eve", "kim"][*actor]))
            .collect();
        let mut settings = Settings::default();
        settings.limits.operations = 2_000;
        let rules = rule_set(&STATEFUL);
        let straight = {
            let mut detector = Detector::new(rules.clone(), settings.clone());
            collect(events(&entries).iter().map(|event| detector.evaluate(event)))
        };
        let mut stored = std::collections::BTreeMap::new();
        let mut detector = Detector::new(rules.clone(), settings.clone());
        let mut outcomes = Vec::new();
        for (index, event) in events(&entries).iter().enumerate() {
            if cuts.contains(&index) {
                detector = Detector::restore(rules.clone(), settings.clone(), stored.clone());
            }
            outcomes.push(detector.evaluate(event));
            for (name, bytes) in detector.take_changes() {
                match bytes {
                    Some(bytes) => stored.insert(name, bytes),
                    None => stored.remove(&name),
                };
            }
        }
        prop_assert_eq!(collect(outcomes.into_iter()), straight);
    }
}

fn collect(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    outcomes.fold(Outcome::default(), |mut all, next| {
        all.append(next);
        all
    })
}
