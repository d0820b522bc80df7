//! Nothing that an attacker writes into a name or a title hides what they do.

use proptest::prelude::*;
use serde_json::{Value, json};
use watchbell::{
    model::{
        event::{Event, IncomingEvent},
        name::{Sequence, SourceName},
        time::Clock,
    },
    replay::Report,
    simulator::{Scenario, Simulated, SimulatorOptions},
};

use crate::support::{Lab, alerts, base, entry, evaluated, now, rule, rule_set, run};

const IMPERSONATION: &str = "const RULE = #{ id: \"a.impersonation\", title: \"t\", severity: \"high\", actions: [\"user_logged_in_as_user\"] };\nfn rule(event) { event.targets(\"users\")[0].attributes.email != event.actor.email }\nfn title(event) { `${event.actor.name} as ${event.targets(\"users\")[0].attributes.email}` }\nfn dedup(event) { event.id }";

/// One impersonation, with something in it that a strict parser refuses or interprets differently.
fn disguised() -> Vec<(&'static str, String, &'static [&'static str])> {
    let plain = |id: &str| entry(id, "user_logged_in_as_user", 0, "eve");
    let with = |id: &str, change: &dyn Fn(&mut Value)| {
        let mut value = plain(id);
        change(&mut value);
        value.to_string()
    };
    let replaced = |id: &str, from: &str, to: &str| {
        let text = plain(id).to_string();
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1)
    };
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    vec![
        ("plain", plain("plain").to_string(), &[]),
        ("half a pair", replaced("half", r#""name":"eve""#, r#""name":"eve \ud83d""#), &["surrogate"]),
        ("the other half", replaced("half2", r#""name":"eve""#, r#""name":"\ude00eve""#), &["surrogate"]),
        ("in a name of a field", replaced("half3", r#""city""#, r#""x\udfff":1,"city""#), &["surrogate"]),
        ("number", replaced("big", r#""city""#, r#""n":1e400,"city""#), &["number"]),
        (
            "many digits",
            replaced("big2", r#""city""#, &format!(r#""n":-{}.5E+99,"city""#, "9".repeat(400))),
            &["number"],
        ),
        ("deep", replaced("deep", r#""city""#, &format!(r#""n":{deep},"city""#)), &["too_deep"]),
        (
            "capitals",
            with("upper", &|value| value["attributes"]["action"] = "User_Logged_In_As_User".into()),
            &["action"],
        ),
        (
            "blanks",
            with("blank", &|value| value["attributes"]["action"] = " user_logged_in_as_user\t".into()),
            &["action"],
        ),
        (
            "NUL and a blank",
            with("nulblank", &|value| value["attributes"]["action"] = "\0 user_logged_in_as_user".into()),
            &["control", "action"],
        ),
        ("largest float", replaced("big3", r#""city""#, r#""n":1.7976931348623158e308,"city""#), &["number"]),
        (
            "a long text",
            with("long", &|value| value["attributes"]["message"] = json!({"content": "x".repeat(300_000)})),
            &["too_large"],
        ),
        (
            "a long name",
            with("longname", &|value| value["attributes"]["actor"]["note"] = "x".repeat(300_000).into()),
            &["too_large"],
        ),
        (
            "a long list",
            with("list", &|value| {
                let context = value["attributes"]["context"].as_array_mut().unwrap();
                context.extend((0..9_000).map(|index| json!({"id": index, "type": "x"})));
            }),
            &["too_large"],
        ),
        (
            "many names",
            with("names", &|value| {
                let names = (0..25_000).map(|index| (format!("!{index}"), json!(index)));
                value["attributes"].as_object_mut().unwrap().extend(names);
            }),
            &["too_large"],
        ),
        ("twice", replaced("twice", r#""action""#, r#""action":"user_login","action""#), &["duplicate_key"]),
        ("long id", with("x", &|value| value["id"] = "i".repeat(600).into()), &["id"]),
        ("id of control characters", with("x", &|value| value["id"] = "a\u{1b}[2J".into()), &["control", "id"]),
        ("NUL", with("nul", &|value| value["attributes"]["actor"]["name"] = "e\0ve".into()), &["control"]),
        (
            "turned around",
            with("bidi", &|value| value["attributes"]["actor"]["name"] = "\u{202e}eve".into()),
            &["bidi"],
        ),
        ("1970", with("old", &|value| value["attributes"]["time"] = "1970-01-01T00:00:10Z".into()), &["time"]),
        ("9999", with("new", &|value| value["attributes"]["time"] = "9999-12-31T23:59:59Z".into()), &["time"]),
        ("no time", with("none", &|value| value["attributes"]["time"] = json!({}).clone()), &["time"]),
    ]
}

fn event(number: u64, raw: &str) -> Event {
    let source = SourceName::parse("test").unwrap();
    IncomingEvent::parse(raw).unwrap().into_event(source, Sequence(number), now())
}

fn found(rules: &[&str], entries: &[String]) -> Report {
    let events: Vec<Event> = (1..).zip(entries).map(|(number, raw)| event(number, raw)).collect();
    run(&rule_set(rules), &events)
}

#[test]
fn every_disguise_is_seen_through_and_flagged() {
    let flagged = "const RULE = #{ id: \"a.flagged\", title: \"t\", severity: \"low\", flagged: true };\nfn rule(event) { true }\nfn title(event) { event.flags.join(\" \") }\nfn dedup(event) { event.id }";
    for (name, raw, flags) in disguised() {
        let report = found(&[IMPERSONATION, flagged], &[raw]);
        assert!(report.rules.values().all(|rule| rule.first_error.is_none()), "{name}");
        let titles = |rule: &str| -> Vec<String> {
            report.alerts.iter().filter(|alert| alert.rule.as_str() == rule).map(|alert| alert.title.clone()).collect()
        };
        let seen = titles("a.impersonation");
        assert_eq!(seen.len(), 1, "{name}");
        assert!(seen[0].ends_with("as target@example.com"), "{name}: {seen:?}");
        let wanted: Vec<String> = if flags.is_empty() { Vec::new() } else { vec![flags.join(" ")] };
        assert_eq!(titles("a.flagged"), wanted, "{name}");
    }
}

/// An action that only looks like another one is different, but it is flagged.
#[test]
fn an_action_that_looks_like_another_is_flagged() {
    for action in ["user\u{200b}_login", "user_log\u{ad}in", "\u{443}ser_login", "user_login\u{fe0f}", "user login"] {
        let mut value = entry("1", "x", 0, "eve");
        value["attributes"]["action"] = action.into();
        let flags = event(1, &value.to_string()).flags;
        assert_eq!(
            flags.iter().map(watchbell::model::legible::Flag::name).collect::<Vec<_>>(),
            ["action"],
            "{action:?}"
        );
    }
}

/// Three events that are too large for a rule do not suspend it.
#[test]
fn what_is_too_large_suspends_no_rule() {
    let large = |id: usize| {
        let mut value = entry(&id.to_string(), "user_logged_in_as_user", 0, "eve");
        value["attributes"]["message"] = json!({"content": "x".repeat(300_000)});
        value.to_string()
    };
    let entries: Vec<String> =
        (0..4).map(large).chain([entry("after", "user_logged_in_as_user", 0, "eve").to_string()]).collect();
    let report = found(&[IMPERSONATION], &entries);
    assert_eq!(report.alerts.len(), 5, "{:?}", report.rules);
}

/// The same through a source, the store, a restart, and a replay from the store: each event once, byte for byte.
#[test]
fn what_is_disguised_is_stored_as_it_came_and_raises_its_alert_once() {
    let disguised = disguised();
    let simulated = disguised.iter().map(|(_, raw, _)| Simulated { processed: base(), json: raw.clone() });
    let options =
        SimulatorOptions { clock: Clock::manual(now()), ..SimulatorOptions::new(Scenario::of(simulated.collect())) };
    let lab = Lab::with_organization(options, "");
    lab.write("rules/impersonation.rhai", IMPERSONATION);
    let count = disguised.len() as u64;
    for _ in 0..2 {
        lab.run_agent_until(|reader| evaluated(reader, count));
        let (store, reader) = lab.reader();
        let stored: Vec<String> =
            reader.scan(watchbell::store::ScanFilter::default()).map(|event| event.unwrap().raw.to_string()).collect();
        let came: Vec<String> = disguised.iter().map(|(_, raw, _)| raw.clone()).collect();
        assert_eq!(stored, came);
        assert_eq!(alerts(&reader).len(), disguised.len());
        assert_eq!(reader.quarantined().count(), 0);
        let verified = store.verify().unwrap();
        assert!(verified.problems.is_empty(), "{verified:?}");
    }
    let replayed = lab.watchbell(&["replay", "--verify", "--format", "json"]);
    assert_eq!(replayed.code, Some(0), "{}", replayed.show());
}

#[test]
fn a_long_name_pushes_nothing_out() {
    let text = rule(
        "a.long",
        "",
        "fn rule(event) { true }\nfn title(event) { `${event.actor.name} logged in as ${event.targets(\"users\")[0].attributes.email}` }",
    );
    let entries: Vec<String> = ["ceo", "cfo", "cto"]
        .into_iter()
        .map(|who| {
            let mut value = entry(who, "x", 0, "eve");
            value["attributes"]["actor"]["name"] = "N".repeat(3_000).into();
            value["attributes"]["context"][0]["attributes"]["email"] = format!("{who}@example.com").into();
            value.to_string()
        })
        .collect();
    let report = found(&[&text], &entries);
    assert_eq!(report.alerts.len(), 3);
    for (alert, who) in report.alerts.iter().zip(["ceo", "cfo", "cto"]) {
        let end = format!("N logged in as {who}@example.com");
        assert!(alert.title.ends_with(&end) && alert.title.contains("NN…NN"), "{}", alert.title);
        assert!(alert.title.len() < 200);
    }
}

fn any_value() -> impl Strategy<Value = Option<String>> {
    prop::option::of(
        prop::collection::vec(prop::sample::select(vec!["x", " ", "/", " / ", "-", "\\", "\\-", "1.1.1.1"]), 1..4)
            .prop_map(|parts| parts.concat()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Two events are in one group exactly if all fields are equal.
    #[test]
    fn groups_do_not_collide(one in (any_value(), any_value()), other in (any_value(), any_value())) {
        let text = rule("a.group", "group_by: [\"actor.name\", \"ip\"],", "fn rule(event) { true }");
        let of = |id: &str, (name, ip): &(Option<String>, Option<String>)| {
            json!({ "id": id, "attributes": { "action": "x", "time": base().to_string(), "actor": { "name": name }, "location": { "ip": ip } } }).to_string()
        };
        let report = found(&[&text], &[of("1", &one), of("2", &other)]);
        prop_assert_eq!(report.alerts.len() == 1, one == other, "{:?}", report.alerts.iter().map(|alert| alert.dedup_key.to_string()).collect::<Vec<_>>());
    }
}

/// `flagged` narrows what a rule declares besides, and tools that explain such a rule agree with the agent.
#[test]
fn a_rule_for_flagged_events_of_some_actions() {
    let narrow = "const RULE = #{ id: \"a.narrow\", title: \"t\", severity: \"low\", flagged: true, actions: [\"user_login\"] };\nfn rule(event) { true }";
    let flagged = |id: &str, action: &str| {
        let mut value = entry(id, action, 0, "eve");
        value["attributes"]["actor"]["name"] = "e\0ve".into();
        value.to_string()
    };
    let entries = [
        entry("plain", "user_login", 0, "eve").to_string(),
        flagged("other", "user_logout"),
        flagged("wanted", "user_login"),
    ];
    let report = found(&[narrow], &entries);
    assert_eq!(report.rules.values().map(|rule| rule.matches).sum::<u64>(), 1);

    let simulated = entries.iter().map(|raw| Simulated { processed: base(), json: raw.clone() });
    let options =
        SimulatorOptions { clock: Clock::manual(now()), ..SimulatorOptions::new(Scenario::of(simulated.collect())) };
    let lab = Lab::with_organization(options, "");
    lab.write("rules/narrow.rhai", narrow);
    lab.run_agent_until(|reader| evaluated(reader, 3));
    let explained = |id: &str| lab.watchbell(&["explain", "--rule", "a.narrow", "--event", id]).stdout;
    assert!(
        explained("plain").contains("no alert: the rule evaluates only events with flags"),
        "{}",
        explained("plain")
    );
    assert!(explained("wanted").contains("alert"), "{}", explained("wanted"));
    assert!(!explained("wanted").contains("no alert"), "{}", explained("wanted"));
    let listed = lab.watchbell(&["rules", "list"]).stdout;
    assert!(listed.contains("user_login with flags"), "{listed}");
}

/// JSON is shown in terminals as well: control characters are escaped without changing its meaning.
#[test]
fn json_of_every_verb_is_safe_to_show() {
    let lab = Lab::new();
    lab.write("watchbell.toml", "[[source]]\nname = \"test\"\norg_id = \"o\"\napi_key = { file = \"key\" }\n");
    lab.write("rules/a.rhai", "const RULE = #{ id: \"a.b\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }\nfn title(event) { event.actor.name }");
    let event = "{\"id\":\"1\",\"attributes\":{\"action\":\"x\",\"time\":\"2026-03-01T12:00:00Z\",\"actor\":{\"name\":\"a\u{202e}b\u{9b}c\u{2066}\"}}}\n";
    lab.write("events.jsonl", event);
    assert_eq!(lab.watchbell(&["events", "import", "events.jsonl", "--source", "test"]).code, Some(0));
    for arguments in [
        &["events", "list", "--format", "json"][..],
        &["events", "list"],
        &["events", "show", "1", "--format", "json"],
        &["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "json"],
        &["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "jsonl"],
        &["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "html"],
        &["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "markdown"],
        &["replay", "--rules", "rules", "--events", "events.jsonl", "--format", "junit"],
        &["explain", "--rule", "a.b", "--event", "events.jsonl", "--format", "json"],
    ] {
        let shown = lab.watchbell(arguments);
        let said = format!("{}{}", shown.stdout, shown.stderr);
        assert!(!said.contains(['\u{202e}', '\u{9b}', '\u{2066}']), "{arguments:?}: {}", shown.show());
    }
    // An exported file is byte for byte as it was imported.
    assert_eq!(lab.watchbell(&["events", "export", "--output", "out.jsonl"]).code, Some(0));
    assert_eq!(std::fs::read_to_string(lab.path("out.jsonl")).unwrap(), event);
    // Nor does a rule file reach a terminal unescaped.
    lab.write("rules/b.rhai", "const RULE = #{ id: \"b.c\", title: \"t\u{202e}\u{9b}\", severity: \"wrong\u{202e}\" };\nfn rule(event) { \u{202e} }");
    for format in ["human", "json", "sarif", "github"] {
        let shown = lab.watchbell(&["check", "rules", "--format", format]);
        let said = format!("{}{}", shown.stdout, shown.stderr);
        assert!(!said.contains(['\u{202e}', '\u{9b}']), "{format}: {said}");
    }
}
