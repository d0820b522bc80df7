//! A rule ends the whole process twice at most. The rules call `abort_for_tests`, which exists in debug builds.

use serde_json::Value;

use watchbell::{model::time::Clock, simulator::SimulatorOptions};

use crate::support::{Lab, Running, base, entry, rule, scenario};

const GOOD: &str = "const RULE = #{ id: \"good.rule\", title: \"good\", severity: \"low\" };\nfn rule(event) { true }\nfn dedup(event) { event.id }";

/// An organization with this many events within the last hour: the agent is a process that uses the system clock.
fn lab(events: i64) -> Lab {
    let start = Clock::system().now().as_second() - base().as_second() - 3_600;
    let entries: Vec<Value> =
        (0..events).map(|number| entry(&format!("e{number}"), "x", start + number, "ann")).collect();
    Lab::with_organization(SimulatorOptions::new(scenario(&entries)), "")
}

/// Starts the agent and waits until it dies.
#[track_caller]
fn dies(lab: &Lab) {
    let mut agent = lab.spawn_agent();
    let begun = std::time::Instant::now();
    let status = loop {
        match agent.0.try_wait().unwrap() {
            Some(status) => break status,
            // A bound for failing tests. Without events, time advances every 30 seconds.
            None => assert!(begun.elapsed().as_secs() < 120, "the agent was to die, and goes on"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(status.code(), None, "the agent was to die of a signal: {status:?}");
}

/// Starts the agent and waits until it reports its alerts.
#[track_caller]
fn runs_until(lab: &Lab, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let _agent: Running = lab.spawn_agent();
    let begun = std::time::Instant::now();
    loop {
        let shown = lab.watchbell(&["alerts", "list", "--format", "json"]);
        let alerts: Vec<Value> = shown.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if done(&alerts) {
            return alerts;
        }
        // A bound for failing tests.
        assert!(begun.elapsed().as_secs() < 60, "{}", shown.show());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn count(alerts: &[Value], rule: &str) -> usize {
    alerts.iter().filter(|alert| alert["rule"] == rule).count()
}

#[test]
fn a_rule_that_ends_the_process_at_an_event_is_left_out_after_the_second_time() {
    let lab = lab(5);
    let bad = rule("bad.abort", "", "fn rule(event) { if event.id == \"e2\" { abort_for_tests(); } false }");
    lab.write("rules/bad.rhai", &bad);
    lab.write("rules/good.rhai", GOOD);
    dies(&lab);
    dies(&lab);
    let ready = |alerts: &[Value]| count(alerts, "good.rule") == 5 && count(alerts, "builtin.rule_ended_agent") == 1;
    let alerts = runs_until(&lab, ready);
    let told = alerts.iter().find(|alert| alert["rule"] == "builtin.rule_ended_agent").unwrap();
    assert_eq!(told["title"], "Rule bad.abort ended the agent and is suspended");
    assert_eq!(told["severity"], "high");
    assert!(told["description"].as_str().unwrap().contains("alone on event 3"), "{told}");

    let status = lab.watchbell(&["status"]);
    assert!(status.stdout.contains("bad.abort: 0 errors, suspended"), "{}", status.show());

    // The rule stays suspended across a restart, until its file changes.
    runs_until(&lab, ready);
    lab.write("rules/bad.rhai", bad.replace("abort_for_tests();", ""));
    let resolved = |alerts: &[Value]| {
        alerts.iter().any(|alert| alert["rule"] == "builtin.rule_ended_agent" && alert["status"] == "resolved")
    };
    runs_until(&lab, resolved);
}

#[test]
fn a_file_that_ends_the_process_when_it_is_loaded_is_left_out_after_the_second_time() {
    let lab = lab(1);
    let bad = rule("bad.load", "", "const X = abort_for_tests();\nfn rule(event) { false }");
    lab.write("rules/bad.rhai", &bad);
    lab.write("rules/good.rhai", GOOD);
    dies(&lab);
    dies(&lab);
    let ready = |alerts: &[Value]| count(alerts, "good.rule") == 1 && count(alerts, "builtin.rule_broken") == 1;
    let alerts = runs_until(&lab, ready);
    let told = alerts.iter().find(|alert| alert["rule"] == "builtin.rule_broken").unwrap();
    assert!(told.to_string().contains("died twice"), "{told}");
}

/// The cause may be in an imported file: fixing that file loads the rule again.
#[test]
fn a_file_that_is_left_out_loads_again_when_what_it_imports_is_mended() {
    let lab = lab(1);
    lab.write("rules/lib.rhai", "fn f() { abort_for_tests(); }");
    lab.write(
        "rules/bad.rhai",
        rule("bad.load", "", "import \"lib\" as l;\nconst X = l::f();\nfn rule(event) { true }"),
    );
    lab.write("rules/good.rhai", GOOD);
    dies(&lab);
    dies(&lab);
    runs_until(&lab, |alerts| count(alerts, "good.rule") == 1 && count(alerts, "builtin.rule_broken") == 1);
    lab.write("rules/lib.rhai", "fn f() { 1 }");
    let resolved = |alerts: &[Value]| {
        alerts.iter().any(|alert| alert["rule"] == "builtin.rule_broken" && alert["status"] == "resolved")
    };
    runs_until(&lab, resolved);
}

/// Crashes in an optional function, in `fn expired`, in an exception, in a retro-hunt, and in a check rule.
#[test]
fn wherever_a_rule_ends_the_process_it_is_left_out() {
    let functions = [
        ("", "fn rule(event) { true } fn title(event) { abort_for_tests(); \"t\" }"),
        ("threshold: 2,", "fn rule(event) { true } fn unique(event) { abort_for_tests(); \"t\" }"),
        ("", "fn rule(event) { count(\"k\", \"1h\"); abort_for_tests(); true }"),
        (
            "",
            "fn rule(event) { expect(\"k\", \"1m\", \"x\"); false } fn expired(key, event) { abort_for_tests(); true }",
        ),
        ("", "fn check_agent(agent) { abort_for_tests(); false }"),
    ];
    for (more, functions) in functions {
        let lab = lab(1);
        lab.write("rules/bad.rhai", rule("bad.abort", more, functions));
        lab.write("rules/good.rhai", GOOD);
        dies(&lab);
        dies(&lab);
        runs_until(&lab, |alerts| count(alerts, "good.rule") == 1 && count(alerts, "builtin.rule_ended_agent") == 1);
    }
    // New to an agent that already has events: the rule runs over them before it sees a new one.
    let lab = lab(1);
    let config = std::fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("watchbell.toml", format!("{config}\n[rules]\npaths = [\"rules\"]\nretro_hunt = \"300d\"\n"));
    lab.write("rules/good.rhai", GOOD);
    runs_until(&lab, |alerts| count(alerts, "good.rule") == 1);
    lab.write("rules/bad.rhai", rule("bad.abort", "", "fn rule(event) { abort_for_tests(); true }"));
    dies(&lab);
    dies(&lab);
    runs_until(&lab, |alerts| count(alerts, "builtin.rule_ended_agent") == 1);
}
