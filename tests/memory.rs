use std::time::Duration;

use serde_json::Value;
use watchbell::{
    detect::{Detector, Settings},
    model::{
        alert::Alert,
        time::{self, Clock},
    },
    replay::Replay,
    rule::{CompiledRule, Loader, Quota, RuleSet},
    simulator,
    store::AlertFilter,
};

use crate::support::{
    Lab, alerts, base, entry, evaluated, event, events, found, load, organization, rule, rule_set, run,
};

/// Entries of one action by one actor at these seconds.
fn at(seconds: &[i64]) -> Vec<Value> {
    seconds.iter().enumerate().map(|(index, second)| entry(&index.to_string(), "x", *second, "ann")).collect()
}

#[test]
fn an_alert_says_when_its_matches_came() {
    let set = rule_set(&[&rule(
        "a.many",
        "threshold: 4, window: \"10m\"",
        "fn rule(event) { true } fn dedup(event) { \"k\" }",
    )]);
    let report = run(&set, &events(&at(&[0, 10, 20, 300])));
    let histogram = report.alerts[0].histogram.clone().unwrap();
    assert_eq!(histogram.counts.iter().sum::<u32>(), 4);
    assert_eq!(histogram.bars(), "█▁▁▁▁▁▁▁▁▁▁▄");
    let ids: Vec<&str> = report.alerts[0].first_events.iter().map(|id| id.as_str()).collect();
    assert_eq!(ids, ["0", "1", "2", "3"]);
}

#[test]
fn grouping_by_fields_is_short_for_a_key() {
    let grouped = |more: &str, functions: &str| {
        found(
            &rule("a.group", more, functions),
            &[entry("1", "x", 0, "ann"), entry("2", "x", 1, "bob"), entry("3", "y", 2, "ann")],
        )
    };
    let group = "group_by: [\"actor.email\"]";
    assert_eq!(
        grouped(group, "fn rule(event) { true }"),
        ["medium x2 a.group fired [ann@example.com]", "medium x1 a.group fired [bob@example.com]"]
    );
    assert_eq!(
        grouped("group_by: [\"action\", \"nothing\"]", "fn rule(event) { true }")[1],
        "medium x1 a.group fired [y / -]"
    );
    // A `fn dedup` takes precedence over `group`.
    assert_eq!(grouped(group, "fn rule(event) { true } fn dedup(event) { event.action }").len(), 2);
}

/// Only `fn rule` writes state; other functions can query it without changing it.
#[test]
fn only_the_rule_itself_writes() {
    let text = rule(
        "a.writes",
        "dedup_period: \"1s\"",
        "fn rule(event) { count(\"k\", \"1h\") > 0 } fn title(event) { count(\"k\", \"1h\"); mark(\"k\", \"m\", \"1h\"); `${count(\"k\", \"1h\")} ${marked(\"k\", \"m\")}` }",
    );
    assert_eq!(
        found(&text, &at(&[0, 10, 20])),
        ["medium x1 1 false [1 false]", "medium x1 2 false [2 false]", "medium x1 3 false [3 false]"]
    );
}

#[test]
fn each_rule_has_a_memory_of_its_own_and_may_share_one() {
    let own = |id: &str| rule(id, "dedup_period: \"1s\"", "fn rule(event) { count(\"k\", \"1h\") == 2 }");
    let shares =
        |id: &str| rule(id, "dedup_period: \"1s\"", "fn rule(event) { common(\"s\").count(\"k\", \"1h\") == 3 }");
    let set = rule_set(&[&own("a.one"), &own("a.two"), &shares("a.three"), &shares("b.four")]);
    let report = run(&set, &events(&at(&[0, 10])));
    let rules: Vec<&str> = report.alerts.iter().map(|alert| alert.rule.as_str()).collect();
    // Shared state counts once per rule: the third count is in `a.three`, at the second event.
    assert_eq!(rules, ["a.one", "a.three", "a.two"]);
}

#[test]
fn late_events_count_where_they_belong() {
    let text = rule(
        "a.late",
        "dedup_period: \"1s\"",
        "fn rule(event) { true } fn title(event) { `${counted(\"k\", \"1m\")}` }",
    )
    .replace("{ true }", "{ count(\"k\", \"1m\") > 0 }");
    // The third event arrives last but one, and is the first in time.
    let titles: Vec<String> =
        found(&text, &at(&[30, 100, 0, 110])).iter().map(|line| line[10..].trim().to_owned()).collect();
    assert_eq!(titles, ["1 [1]", "1 [1]", "1 [1]", "2 [2]"]);
}

/// The same events in the same order leave the same state, byte for byte, wherever pages end and the agent restarts.
#[test]
fn memory_is_the_same_however_it_came_about() {
    let text = rule(
        "a.all",
        "",
        "fn rule(event) { count(event.actor.id, \"5m\"); distinct(event.actor.id, event.action, \"5m\"); first_seen(\"c\", event.actor.id, \"3m\", #{ learn: \"1m\" }); \
         mark(event.actor.id, event.action, \"4m\"); remember(event.action, event.time, \"2m\"); if event.action == \"b\" { forget(\"a\"); } false }",
    );
    let mut random = fastrand::Rng::with_seed(11);
    let all: Vec<_> = (0..400_u64)
        .map(|index| {
            let action = ["a", "b", "c"][random.usize(0..3)];
            let seconds = i64::try_from(index).unwrap() * 5 - random.i64(0..120);
            event(index + 1, &entry(&format!("e{index}"), action, seconds, &format!("actor{}", random.u8(0..6))))
        })
        .collect();
    let rules = rule_set(&[&text]);
    let run = |restarts: &[usize]| {
        let mut stored = std::collections::BTreeMap::new();
        let mut detector = Detector::new(std::sync::Arc::clone(&rules), Settings::default());
        for (index, event) in all.iter().enumerate() {
            if restarts.contains(&index) {
                for (name, bytes) in detector.take_changes() {
                    match bytes {
                        Some(bytes) => drop(stored.insert(name, bytes)),
                        None => drop(stored.remove(&name)),
                    }
                }
                detector = Detector::restore(std::sync::Arc::clone(&rules), Settings::default(), stored.clone());
            }
            detector.evaluate(event);
        }
        for (name, bytes) in detector.take_changes() {
            match bytes {
                Some(bytes) => drop(stored.insert(name, bytes)),
                None => drop(stored.remove(&name)),
            }
        }
        stored
    };
    let undisturbed = run(&[]);
    assert!(undisturbed.keys().filter(|name| name.starts_with("memory/")).count() > 10);
    for _ in 0..5 {
        let restarts: Vec<usize> = (0..20).map(|_| random.usize(0..all.len())).collect();
        assert_eq!(run(&restarts), undisturbed);
    }
}

#[test]
fn what_grows_without_end_is_bounded_and_told_once() {
    let text = rule("a.greedy", "", "fn rule(event) { count(event.id, \"30d\"); false }");
    let rules = rule_set(&[&text]);
    let settings = Settings { quota: Quota { keys: 50, ..Quota::default() }, ..Settings::default() };
    let mut replay = watchbell::replay::Replay::new(rules, settings);
    for event in &events(&at(&(0..500).collect::<Vec<_>>())) {
        replay.event(event);
    }
    let report = replay.finish();
    let titles: Vec<&str> = report.alerts.iter().map(|alert| alert.title.as_str()).collect();
    assert_eq!(titles, ["Rule `a.greedy` remembers more than it may, and forgets what is oldest"]);
}

#[test]
fn what_is_remembered_can_be_looked_at_and_cleared() {
    let lab = Lab::with_organization(organization(&[entry("1", "x", 0, "ann"), entry("2", "x", 1, "bob")]), "");
    lab.write("rules/r.rhai", rule("a.counts", "", "fn rule(event) { count(event.actor.email, \"30d\"); remember(\"last\", event.actor.name, \"30d\"); false }"));
    lab.run_agent_until(|reader| evaluated(reader, 2));
    assert_eq!(lab.watchbell(&["state", "list", "--format", "json"]).stdout, "{\"keys\":3,\"rule\":\"a.counts\"}\n");
    let shown = lab.watchbell(&["state", "show", "--rule", "a.counts"]);
    for part in ["count/ann@example.com", "count/bob@example.com", "1 time", "note/last", "\"bob\""] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.show());
    }
    assert_eq!(lab.watchbell(&["state", "clear", "--rule", "a.counts"]).stdout, "cleared 3 keys of a.counts\n");
    assert_eq!(lab.watchbell(&["state", "list"]).stdout, "");
}

#[test]
fn rules_listen_to_rules_in_order_and_never_in_a_circle() {
    let signal = rule(
        "a.signal",
        "signal: true, actions: [\"x\"]",
        "fn rule(event) { true } fn title(event) { `by ${event.actor.name}` } fn dedup(event) { event.actor.id }",
    );
    let listens = rule(
        "b.listens",
        "on: [\"rule:a.*\"]",
        "fn rule(event) { count(event.key, \"1h\") == 2 } fn title(event) { `${event.rule} ${event.severity} ${event.title} at ${event.ip}` }",
    );
    let further = rule("c.further", "on: [\"rule:b.listens\"]", "fn rule(event) { event.rule == \"b.listens\" }");
    let report = run(
        &rule_set(&[&further, &listens, &signal]),
        &events(&[
            entry("1", "x", 0, "ann"),
            entry("2", "y", 1, "ann"),
            entry("3", "x", 2, "bob"),
            entry("4", "x", 3, "ann"),
        ]),
    );
    let titles: Vec<&str> = report.alerts.iter().map(|alert| alert.title.as_str()).collect();
    assert_eq!(titles, ["a.signal medium by ann at 203.0.113.9", "c.further fired"]);
    // The alert is about the event that triggered it.
    assert_eq!(report.alerts[0].first_events[0].as_str(), "4");
    assert_eq!(report.rules.values().map(|rule| rule.matches).sum::<u64>(), 5);
    let (set, problems) = load(&[
        &rule("a.one", "on: [\"rule:b.two\"]", "fn rule(event) { true }"),
        &rule("b.two", "on: [\"rule:a.one\"]", "fn rule(event) { true }"),
        &rule("c.self", "on: [\"rule:c.*\"]", "fn rule(event) { true }"),
        &rule("d.nobody", "on: [\"rule:x.nobody\"]", "fn rule(event) { true }"),
    ]);
    assert_eq!(problems.iter().filter(|problem| problem.starts_with("E215")).count(), 3, "{problems:#?}");
    assert_eq!(set.detections.len(), 1);
    let (_, problems) = load(&[&rule("d.nobody", "on: [\"rule:x.nobody\"]", "fn rule(event) { true }")]);
    assert!(problems[0].starts_with("W302"), "{problems:?}");
    let (_, problems) = load(&[&rule("e.both", "on: [\"rule:x.y\"], actions: [\"x\"]", "fn rule(event) { true }")]);
    assert!(problems[0].contains("`on` cannot be combined with `actions`"), "{problems:?}");
}

/// Other rules see a match only if it counts: not below its rule's threshold, not if an exception suppresses it, and
/// matches of shadow rules only in other shadow rules.
#[test]
fn rules_hear_what_counts() {
    let heard = |extra: &str, listener: &str| {
        let heard = rule("a.heard", &format!("actions: [\"x\"], risk: 7, {extra}"), "fn rule(event) { true }");
        let listens = rule(
            "b.listens",
            &format!("on: [\"risk\"], {listener}"),
            "fn rule(event) { true } fn title(event) { `${event.id} ${event.risk} ${event.opened}` }",
        );
        let all: Vec<_> = (1..=5).map(|second| entry(&second.to_string(), "x", second, "ann")).collect();
        let report = run(&rule_set(&[&heard, &listens]), &events(&all));
        let listening = report.alerts.iter().filter(|alert| alert.rule.as_str() == "b.listens");
        listening.map(|alert| alert.title.clone()).collect::<Vec<_>>()
    };
    let every = ["1 7 true", "2 7 false", "3 7 false", "4 7 false", "5 7 false"];
    assert_eq!(heard("", ""), every);
    assert_eq!(heard("signal: true", ""), every);
    assert_eq!(heard("threshold: 3, window: \"10m\"", ""), ["3 7 true", "4 7 false", "5 7 false"]);
    assert_eq!(heard("threshold: 3, window: \"10m\", signal: true", ""), ["3 7 true", "4 7 false", "5 7 false"]);
    assert_eq!(heard("dedup_period: \"2s\"", ""), ["1 7 true", "2 7 false", "3 7 true", "4 7 false", "5 7 true"]);
    assert!(heard("stage: \"shadow\"", "").is_empty());
    assert_eq!(heard("stage: \"shadow\"", "stage: \"shadow\""), every);
}

const EXPECTS: &str = "fn rule(event) { if event.action == \"begun\" { expect(event.actor.id, \"1h\", \"end\"); } \
    if event.action == \"ended\" { met(event.actor.id, \"end\"); } event.action == \"begun\" }\n\
    fn expired(key, event) { key == event.actor.id && event.expected == \"end\" && event.key == key }\n\
    fn title(event) { if event.expected == () { `${event.actor.id} begins` } else { `${event.actor.id} did not end by ${event.time}, begun ${event.since}` } }\n\
    fn dedup(event) { event.actor.id }";

/// Runs the events, each at its second, and then advances time up to a second.
fn expecting(entries: &[(&str, &str, i64)], until: Option<i64>) -> Vec<String> {
    let text = rule("a.expects", "dedup_period: \"1s\"", EXPECTS);
    let mut replay = Replay::new(rule_set(&[&text]), Settings::default());
    let entries: Vec<Value> = (1..)
        .zip(entries)
        .map(|(number, (action, actor, second)): (u64, _)| entry(&number.to_string(), action, *second, actor))
        .collect();
    let events = events(&entries);
    for event in &events {
        replay.event(event);
    }
    if let Some(until) = until {
        replay.advance(&events[0].source, time::from_millis(base().as_millisecond() + until * 1_000));
    }
    let report = replay.finish();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let late = report.alerts.iter().filter(|alert| !alert.title.ends_with("begins"));
    late.map(|alert| format!("{} [{}]", alert.title, alert.opened_at)).collect()
}

#[test]
fn what_does_not_happen_is_told() {
    let failed = ["ann did not end by 2026-03-01T13:00:00Z, begun 2026-03-01T12:00:00Z [2026-03-01T13:00:00Z]"];
    // The deadline passes with a later event of any kind, ten minutes after the end and not before, or by time alone.
    assert_eq!(expecting(&[("begun", "ann", 0), ("other", "bob", 4_200)], None), failed);
    assert!(expecting(&[("begun", "ann", 0), ("other", "bob", 4_199)], None).is_empty());
    assert_eq!(expecting(&[("begun", "ann", 0)], Some(4_200)), failed);
    assert!(expecting(&[("begun", "ann", 0)], Some(4_199)).is_empty());
    // The expected event at the last moment, too late, about another key, or earlier.
    assert!(expecting(&[("begun", "ann", 0), ("ended", "ann", 3_600)], Some(9_999)).is_empty());
    assert_eq!(expecting(&[("begun", "ann", 0), ("ended", "ann", 3_601)], Some(9_999)), failed);
    assert_eq!(expecting(&[("begun", "ann", 0), ("ended", "bob", 60)], Some(9_999)), failed);
    assert_eq!(expecting(&[("ended", "ann", -60), ("begun", "ann", 0)], Some(9_999)), failed);
    // The expected event arrives late, or arrived before.
    assert!(expecting(&[("begun", "ann", 0), ("other", "bob", 4_100), ("ended", "ann", 60)], Some(9_999)).is_empty());
    assert!(expecting(&[("ended", "ann", 60), ("begun", "ann", 0)], Some(9_999)).is_empty());
    // Each key waits separately.
    let twice = [("begun", "ann", 0), ("begun", "ann", 1_800), ("ended", "ann", 3_700)];
    assert_eq!(expecting(&twice, Some(9_999)), failed);
    assert_eq!(expecting(&twice[..2], Some(9_999)).len(), 2);
}

#[test]
fn what_is_expected_needs_somebody_to_tell() {
    let (_, problems) = load(&[&rule("a.lone", "", "fn rule(event) { expect(\"k\", \"1h\", \"x\"); false }")]);
    assert!(problems[0].starts_with("E216"), "{problems:?}");
    let (_, problems) = load(&[&rule("a.one", "", "fn rule(event) { false } fn expired(event) { true }")]);
    assert!(problems[0].contains("`fn expired` must have 2 parameters, found 1"), "{problems:?}");
    let shared = rule(
        "a.shared",
        "",
        "fn rule(event) { common(\"c\").expect(\"k\", \"1h\", \"x\") } fn expired(key, event) { true }",
    );
    let report = run(&rule_set(&[&shared]), &events(&at(&[0])));
    assert!(report.failures[0].contains("expectations cannot be shared"), "{:?}", report.failures);
    // One that fails is told as any other.
    let throws = rule(
        "a.throws",
        "",
        "fn rule(event) { expect(\"k\", \"1h\", \"x\") && false } fn expired(key, event) { key.nope() }",
    );
    let report = run(&rule_set(&[&throws]), &events(&at(&[0, 9_000])));
    assert!(report.failures[0].contains("nope"), "{:?}", report.failures);
    assert_eq!(report.rules.values().next().unwrap().errors, 1);
}

/// The agent reports it while the log is silent; a restart loses nothing, and a replay gives the same.
#[test]
fn silence_is_told_by_the_clock() {
    let second = |seconds: i64| time::from_millis(base().as_millisecond() + seconds * 1_000);
    let clock = Clock::manual(second(10));
    let entries = [
        entry("1", "begun", 0, "ann"),
        entry("2", "begun", 1, "bob"),
        entry("3", "ended", 20_000, "ann"),
        entry("4", "begun", 20_001, "ann"),
    ];
    let options = simulator::SimulatorOptions { clock: clock.clone(), ..organization(&entries) };
    let lab = Lab::with_organization(options, "");
    lab.write("rules/expects.rhai", rule("a.expects", "dedup_period: \"1s\"", EXPECTS));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 2));
    assert_eq!(alerts(&lab.reader().1).len(), 2);
    // Not yet.
    clock.set(second(4_190));
    lab.run_agent_with(&clock, |reader| {
        reader.sources().unwrap().into_values().next().unwrap().last_poll >= Some(second(4_190))
    });
    assert_eq!(alerts(&lab.reader().1).len(), 2);
    clock.set(second(4_300));
    lab.run_agent_with(&clock, |reader| alerts(reader).len() == 4);
    clock.set(second(20_100));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 4));
    clock.set(second(90_000));
    lab.run_agent_with(&clock, |reader| alerts(reader).len() == 6);
    let titles = |all: Vec<Alert>| {
        let mut titles: Vec<(String, String)> =
            all.into_iter().map(|alert| (alert.id.to_string(), alert.title)).collect();
        titles.sort();
        titles
    };
    let raised: Vec<Alert> = lab.reader().1.alerts(AlertFilter::default()).map(Result::unwrap).collect();
    let replayed = lab.watchbell(&["replay", "--format", "json"]);
    let report: Value = serde_json::from_str(&replayed.stdout).unwrap();
    assert_eq!(titles(serde_json::from_value(report["alerts"].clone()).unwrap()), titles(raised));
    assert_eq!(lab.reader().1.watermarks().count(), 2);
    let verified = lab.watchbell(&["store", "verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.show());
}

/// A new rule, or one with a longer window, learns from stored events without raising alerts for them.
#[test]
fn new_rules_learn_from_what_is_stored() {
    let hour = |hours: u64| time::after(base(), Duration::from_secs(hours * 3_600));
    let clock = Clock::manual(hour(3));
    let actors = ["ann", "bob", "cat", "ann", "bob", "dan", "ann", "eve"];
    let entries: Vec<Value> =
        (0_i64..).zip(actors).map(|(index, actor)| entry(&index.to_string(), "x", index * 3_600 - 1, actor)).collect();
    let options = simulator::SimulatorOptions { clock: clock.clone(), ..organization(&entries) };
    let lab = Lab::with_organization(options, "");
    let is_new = |window: &str| {
        rule(
            "a.new",
            "dedup_period: \"1s\"",
            &format!(
                "fn rule(event) {{ first_seen(\"actor\", event.actor.id, \"{window}\") }} fn title(event) {{ `${{event.actor.id}} ${{event.time}}` }}"
            ),
        )
    };
    let new = |lab: &Lab| {
        let alerts = lab.reader().1.alerts(AlertFilter::default()).map(|alert| alert.unwrap().title);
        let mut found: Vec<String> = alerts.filter_map(|title| title.split(' ').next().map(str::to_owned)).collect();
        found.sort();
        found
    };
    lab.write("rules/other.rhai", rule("a.other", "", "fn rule(event) { false }"));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 4));
    lab.write("rules/new.rhai", is_new("4h"));
    clock.set(hour(5));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 6));
    // Ann, Bob and Cat were there before.
    assert_eq!(new(&lab), ["dan"]);
    // Two hours are too short to learn Ann, who was last seen three hours before; but learned state is kept.
    lab.write("rules/new.rhai", is_new("2h"));
    clock.set(hour(6));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 7));
    assert_eq!(new(&lab), ["ann", "dan"]);
    // A longer window: Cat is known, Eve is not.
    lab.write("rules/new.rhai", is_new("9h"));
    clock.set(hour(7));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 8));
    assert_eq!(new(&lab), ["ann", "dan", "eve"]);
    let listed = lab.watchbell(&["state", "show", "--rule", "a.new"]);
    assert!(listed.stdout.contains("cat"), "{}", listed.show());

    // A replay of a part learns from the events before it, unless disabled.
    let replay = |more: &[&str]| {
        let since = hour(5).to_string();
        let arguments = [&["replay", "--rules", "rules/new.rhai", "--since", &since], more].concat();
        lab.watchbell(&arguments)
    };
    let learned = replay(&[]);
    assert!(
        learned.stdout.contains("2 events") && learned.stdout.contains("after a warm-up of 6 events"),
        "{}",
        learned.show()
    );
    assert!(learned.stdout.contains("eve") && !learned.stdout.contains("ann 20"), "{}", learned.show());
    let empty = replay(&["--warm-up", "0s"]);
    assert!(!empty.stdout.contains("warm-up") && empty.stdout.contains("ann 20"), "{}", empty.show());
}

/// The examples of Sigma's four kinds of correlation pass their tests.
#[test]
fn the_examples_hold() {
    let lab = Lab::new();
    let examples = std::fs::canonicalize("examples/rules").unwrap();
    let finished = lab.watchbell(&["test", examples.to_str().unwrap(), "--min-cases", "2"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
    let finished = lab.watchbell(&["check", examples.to_str().unwrap(), "--deny-warnings"]);
    assert_eq!(finished.code, Some(0), "{}", finished.show());
}

/// The rule whose change closes a cycle goes back to its previous version; the other rules in the cycle keep running.
#[test]
fn a_circle_is_broken_where_it_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let mut loader = Loader::of(vec![directory.path().to_owned()]).without_builtin();
    let yes = "fn rule(event) { true }";
    let runs = |set: &RuleSet| -> Vec<String> {
        let on = |rule: &CompiledRule| {
            rule.metadata.on.iter().flatten().map(|on| on.as_str().to_owned()).collect::<Vec<_>>()
        };
        set.detections.iter().map(|rule| format!("{} {}", rule.id(), on(rule).join(" "))).collect()
    };
    write("a.rhai", &rule("t.a", "on: [\"tag:x\"]", yes));
    write("b.rhai", &rule("t.b", "actions: [\"x\"]", yes));
    assert_eq!(runs(&loader.load().set), ["t.a tag:x", "t.b "]);
    // B now subscribes to A and has the tag that A subscribes to: B keeps its previous version.
    write("b.rhai", &rule("t.b", "on: [\"rule:t.a\"], tags: [\"x\"]", yes));
    let loaded = loader.load();
    assert_eq!(runs(&loaded.set), ["t.a tag:x", "t.b "]);
    let broken: Vec<bool> = loaded.set.context.broken.iter().map(|broken| broken.last_good_runs).collect();
    assert_eq!((broken, loaded.diagnostics.len()), (vec![true], 1));
    // A no longer compiles, so its last good version runs, and a third rule would close a cycle with that.
    write("b.rhai", &rule("t.b", "actions: [\"x\"]", yes));
    loader.load();
    write("a.rhai", "const RULE = #{");
    write("c.rhai", &rule("t.c", "on: [\"rule:t.a\"], tags: [\"x\"]", yes));
    assert_eq!(runs(&loader.load().set), ["t.a tag:x", "t.b "]);
}

/// A copy of a rule with the same id replaces nothing, wherever it is.
#[test]
fn an_id_stays_with_the_file_that_had_it() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let mut loader = Loader::of(vec![directory.path().to_owned()]).without_builtin();
    write("z.rhai", &rule("t.a", "", "fn rule(event) { true }"));
    loader.load();
    write("a.rhai", &rule("t.a", "", "fn rule(event) { false }"));
    let set = loader.load().set;
    assert!(set.detections[0].file.ends_with("z.rhai"));
    assert_eq!(set.context.broken.len(), 1);
}

/// An event from the future, due to a wrong clock, does not keep a rule from seeing current events.
#[test]
fn an_event_from_the_future_blinds_nothing() {
    let counts = rule(
        "t.counts",
        "actions: [\"x\"], threshold: 3, window: \"10m\"",
        "fn rule(event) { true } fn dedup(event) { \"k\" }",
    );
    let sees = rule(
        "t.sees",
        "actions: [\"x\"]",
        "fn rule(event) { first_seen(\"k\", event.actor.id, \"30d\") } fn dedup(event) { event.id }",
    );
    let mut wrong = events(&[entry("1", "x", 0, "ann")]);
    wrong[0].time = "2099-01-01T00:00:00Z".parse().unwrap();
    wrong.extend(events(&[entry("2", "x", 10, "ann"), entry("3", "x", 20, "ann"), entry("4", "x", 30, "ann")]));
    let report = run(&rule_set(&[&counts, &sees]), &wrong);
    let found: Vec<String> = report.alerts.iter().map(|alert| format!("{} {}", alert.rule, alert.dedup_key)).collect();
    assert_eq!(found, ["t.sees 1", "t.counts k"]);
}

/// Repeated values do not evict values that add to the count.
#[test]
fn repetition_hides_no_distinct_value() {
    let distinct = rule(
        "t.distinct",
        "actions: [\"x\"], threshold: 4, window: \"1d\"",
        "fn rule(event) { true } fn dedup(event) { \"k\" } fn unique(event) { event.actor.id }",
    );
    let mut entries = vec![entry("a", "x", 0, "one"), entry("b", "x", 1, "two")];
    entries.extend((0..1_200).map(|number| entry(&format!("r{number}"), "x", 2 + number, "three")));
    entries.push(entry("z", "x", 1_300, "four"));
    assert_eq!(run(&rule_set(&[&distinct]), &events(&entries)).alerts.len(), 1);
}
