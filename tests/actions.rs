use std::{fs, sync::Arc, time::Duration};

use serde_json::{Value, json};
use watchbell::{
    detect::Settings,
    model::{
        action::ListedAction,
        time::{self, Clock},
    },
    replay::Replay,
    simulator::{ActionRow, SimulatorOptions},
    store::Reader,
};

use crate::support::{
    Lab, alerts, base, entry, evaluated, events, now, organization, rule, rule_set, scenario, stored_ids,
};

const LISTED: &[ActionRow] = &[
    ("acc_off", "Deactivated account", "Atlassian accounts"),
    ("user_login", "User logged in", "Authentication"),
    ("pol_1", "Updated something", "Security policies"),
    ("never_seen", "Exported audit log", "Organization administration"),
];

fn by_name(name: &str) -> String {
    rule(
        "team.by_name",
        &format!("activities: [\"{name}\"]"),
        "fn rule(event) { true }\nfn title(event) { `${event.activity} by ${event.actor.name}` }\nfn dedup(event) { event.id }",
    )
}

fn lab(entries: &[Value], actions: Option<&'static [ActionRow]>, more: &str) -> Lab {
    let options = organization(entries);
    let options = match actions {
        Some(actions) => options.with_actions(actions),
        None => options,
    };
    Lab::with_organization(options, more)
}

fn titles(reader: &Reader) -> Vec<String> {
    alerts(reader).into_iter().map(|(_, title, _)| title).collect()
}

/// The list is fetched before the first page and loaded by the rules; what the agent did can be replayed.
#[test]
fn names_of_activities_are_known_before_the_first_event() {
    let lab = lab(&[entry("e1", "acc_off", 0, "ann"), entry("e2", "user_login", 1, "bob")], Some(LISTED), "");
    lab.write("rules/by_name.rhai", by_name("deactivated Account"));
    lab.run_agent_until(|reader| evaluated(reader, 2));
    {
        let (_store, reader) = lab.reader();
        assert_eq!(titles(&reader), ["Deactivated account by ann"]);
        let list = reader.sources().unwrap().into_values().next().unwrap().actions;
        assert_eq!((list.listed, list.error), (4, None));
    }
    let verified = lab.watchbell(&["replay", "--verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.show());
    // A replay uses the list as well, from the store or from a file.
    let replayed = |arguments: &[&str]| {
        let finished = lab.watchbell(&[&["replay", "--format", "json"], arguments].concat());
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.show()));
        report["alerts"].as_array().unwrap().len()
    };
    assert_eq!(replayed(&[]), 1);
    lab.write("none.json", "[]");
    lab.write(
        "list.json",
        json!({ "data": [{ "id": "user_login", "attributes": { "displayName": "Deactivated account" } }] }).to_string(),
    );
    assert_eq!(replayed(&["--actions", "none.json"]), 0);
    assert_eq!(replayed(&["--actions", "list.json"]), 1);
    lab.write("broken.json", "{}");
    let broken = lab.watchbell(&["replay", "--actions", "broken.json"]);
    assert_eq!(broken.code, Some(3));
    assert!(broken.stderr.contains("expected a list of actions"), "{}", broken.stderr);
}

/// Without a list, rules use ids: this is not an error, and only actions seen in events are known.
#[test]
fn a_key_that_may_not_read_the_list_is_no_error() {
    let lab = lab(&[entry("e1", "acc_off", 0, "ann"), entry("e2", "user_login", 1, "bob")], None, "");
    lab.write("rules/by_name.rhai", by_name("Deactivated account"));
    lab.write("rules/by_id.rhai", rule("team.by_id", "actions: [\"acc_*\"]", "fn rule(event) { true }"));
    lab.write("rules/near.rhai", rule("team.near", "actions: [\"user_login_failed\"]", "fn rule(event) { true }"));
    lab.run_agent_until(|reader| evaluated(reader, 2));
    {
        let (_store, reader) = lab.reader();
        assert_eq!(titles(&reader), ["team.by_id fired"]);
        assert_eq!(reader.alerts(watchbell::store::AlertFilter::default()).count(), 1, "no alert about health");
        let record = reader.sources().unwrap().into_values().next().unwrap();
        assert!(record.error.is_none() && record.actions.error.is_some());
    }
    let listed = lab.watchbell(&["rules", "list"]);
    insta::assert_snapshot!(listed.stderr, @"
    team.by_name is unmatched: no event has had such an action yet
    team.near is unmatched: no event has had such an action yet; the nearest are user_login
    ");
    let refused = lab.watchbell(&["actions", "refresh"]);
    assert_eq!(refused.code, Some(3));
    insta::assert_snapshot!(refused.stderr, @r#"error: cannot fetch the list of actions of "test": 127.0.0.1 answered 403 Forbidden: The key lacks a scope; rules still match by action ID. The list needs the scope `read:events:admin`; see `watchbell check`"#);
}

/// Ignored actions are counted but not evaluated, dropped ones counted but not stored: live, in replays and in imports.
#[test]
fn what_is_not_wanted_is_counted() {
    let entries = [
        entry("e1", "page_viewed", 0, "ann"),
        entry("e2", "junk", 1, "ann"),
        entry("e3", "user_login", 2, "ann"),
        entry("e4", "page_viewed", 3, "ann"),
        entry("e5", "junk", 4, "ann"),
    ];
    let lab = lab(&entries, None, "ignore = [\"*_viewed\"]\ndrop = [\"junk\"]");
    lab.write("rules/each.rhai", rule("team.each", "", "fn rule(event) { true }\nfn title(event) { event.id }"));
    lab.run_agent_until(|reader| evaluated(reader, 3));
    {
        let (_store, reader) = lab.reader();
        assert_eq!(stored_ids(&reader), ["e1", "e3", "e4"]);
        assert_eq!(titles(&reader), ["e3"]);
        let counts: Vec<(String, u64, u64, u64)> = reader
            .actions()
            .map(|action| action.map(|(_, id, record)| (id, record.events, record.ignored, record.dropped)).unwrap())
            .collect();
        let expected = [("junk", 0, 0, 2), ("page_viewed", 2, 2, 0), ("user_login", 1, 0, 0)];
        assert_eq!(counts, expected.map(|(id, events, ignored, dropped)| (id.to_owned(), events, ignored, dropped)));
    }
    let status = lab.watchbell(&["status"]);
    assert!(
        status.stdout.contains("categories authentication 1, unknown 2 (2 ignored, 2 dropped)"),
        "{}",
        status.stdout
    );
    assert_eq!(lab.watchbell(&["replay", "--verify"]).code, Some(0));
    let replayed = lab.watchbell(&["replay", "--format", "json"]);
    let report: Value = serde_json::from_str(&replayed.stdout).unwrap();
    assert_eq!(report["alerts"].as_array().unwrap().len(), 1);
    lab.write("more.jsonl", format!("{}\n{}\n", entry("e6", "junk", 5, "bob"), entry("e7", "page_viewed", 6, "bob")));
    let imported = lab.watchbell(&["events", "import", "more.jsonl", "--source", "test", "--format", "json"]);
    let imported: Value = serde_json::from_str(&imported.stdout).unwrap();
    assert_eq!(imported, json!({ "stored": 1, "duplicates": 0, "quarantined": 0, "dropped": 1 }));
    // Noise of one source is not noise of another.
    let elsewhere = lab.watchbell(&["events", "import", "more.jsonl", "--source", "old", "--format", "json"]);
    assert!(elsewhere.stdout.contains("\"stored\": 2"), "{}", elsewhere.stdout);
    lab.write("watchbell.toml", fs::read_to_string(lab.path("watchbell.toml")).unwrap().replace("\"junk\"", "\"a b\""));
    let wrong = lab.watchbell(&["check", "--offline"]);
    assert_eq!(wrong.code, Some(3));
    assert!(wrong.stderr.contains("`a b` is not an action ID"), "{}", wrong.stderr);
}

/// If only noise arrives, the log is not silent.
#[test]
fn dropped_events_are_a_sign_of_life() {
    let lab = lab(&[entry("e1", "junk", 0, "ann")], None, "drop = [\"junk\"]");
    lab.run_agent_until(|reader| {
        let record = reader.sources().unwrap().into_values().next().unwrap_or_default();
        record.newest_arrival.is_some() && record.caught_up
    });
    let (_store, reader) = lab.reader();
    assert_eq!(reader.last_sequence().unwrap().0, 0);
    let record = reader.sources().unwrap().into_values().next().unwrap();
    assert_eq!((record.newest_event, record.stored), (Some(base()), 0));
}

#[test]
fn actions_are_listed_with_what_is_known_of_them() {
    let entries = [
        entry("e1", "acc_off", 0, "ann"),
        entry("e2", "user_login", 1, "bob"),
        entry("e3", "user_login", 2, "bob"),
        entry("e4", "brand_new", 3, "bob"),
    ];
    let lab = lab(&entries, Some(LISTED), "");
    lab.write("rules/by_name.rhai", by_name("Deactivated account"));
    lab.write(
        "rules/unmatched.rhai",
        rule("team.unmatched", "actions: [\"audit_log_export*\"]", "fn rule(event) { true }"),
    );
    lab.write("rules/policy.rhai", rule("team.policy", "", "fn rule(event) { event.category == \"security-policy\" }"));
    lab.run_agent_until(|reader| evaluated(reader, 4));
    insta::assert_snapshot!(lab.watchbell(&["actions", "list"]).show(), @"
    exit: 0
    --- stdout
     ACTION      NAME                 GROUP                        CATEGORY         SEEN  LAST (UTC)           RULES
     user_login  User logged in       Authentication               authentication   2     2026-03-01 12:00:02  -
     acc_off     Deactivated account  Atlassian accounts           access           1     2026-03-01 12:00:00  team.by_name
     brand_new   -                    -                            unknown          1     2026-03-01 12:00:03  -
     never_seen  Exported audit log   Organization administration  admin            0     -                    -
     pol_1       Updated something    Security policies            security-policy  0     -                    team.policy
    --- stderr
    ");
    let ids = |arguments: &[&str]| -> Vec<String> {
        let finished = lab.watchbell(&[&["actions", "list", "--format", "json"], arguments].concat());
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        finished.stdout.lines().map(id).collect()
    };
    assert_eq!(ids(&["--unknown"]), ["brand_new"]);
    assert_eq!(ids(&["--seen"]), ["acc_off", "brand_new", "user_login"]);
    assert_eq!(ids(&["--uncovered", "--seen"]), ["brand_new", "user_login"]);
    let listed = lab.watchbell(&["rules", "list"]);
    insta::assert_snapshot!(listed.stderr, @"team.unmatched is unmatched: the organization lists no such action; the nearest are never_seen");
    assert!(listed.stdout.contains("team.unmatched"), "{}", listed.stdout);
    let shown = lab.watchbell(&["rules", "show", "team.unmatched"]);
    assert!(shown.stdout.contains("unmatched  the organization lists no such action"), "{}", shown.stdout);
    let events = lab.watchbell(&["events", "list", "--category", "authentication", "--format", "json"]);
    assert_eq!(events.stdout.lines().count(), 2);
    assert_eq!(lab.watchbell(&["events", "list", "--category", "nonsense"]).code, Some(3));
}

/// The list is refreshed on request, by a running agent or by the command itself.
#[test]
fn the_list_is_fetched_when_somebody_asks() {
    let lab = lab(&[entry("e1", "acc_off", 0, "ann")], Some(LISTED), "");
    let refreshed = lab.watchbell(&["actions", "refresh"]);
    assert_eq!(
        refreshed.stdout,
        "test: 4 actions, 4 of them new; `watchbell actions list` shows them\n",
        "{}",
        refreshed.show()
    );
    let _agent = lab.spawn_agent();
    let socket = lab.path("data/agent.sock");
    let begun = std::time::Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the agent does not start");
        std::thread::yield_now();
    }
    let refreshed = lab.watchbell(&["actions", "refresh"]);
    assert_eq!(
        refreshed.stdout,
        "test: 4 actions, 0 of them new; `watchbell actions list` shows them\n",
        "{}",
        refreshed.show()
    );
    let unknown = lab.watchbell(&["actions", "refresh", "--source", "nope"]);
    assert_eq!(unknown.code, Some(3));
    assert!(unknown.stderr.contains("no source \"nope\" is configured"), "{}", unknown.stderr);
}

/// An action that first appears days after the source is reported once a day; one that appears at the start is not.
#[test]
fn a_new_kind_of_action_is_told() {
    let late = |id: &str, action: &str| {
        let mut late = entry(id, action, 0, "ann");
        let time = time::after(now(), Duration::from_secs(3 * 86_400)).to_string();
        late["attributes"]["time"] = time.clone().into();
        late["attributes"]["processedAt"] = time.into();
        late
    };
    let entries =
        [entry("e1", "unheard_of", 0, "ann"), late("e2", "brand_new"), late("e3", "other_new"), late("e4", "acc_off")];
    let clock = Clock::manual(now());
    let options =
        SimulatorOptions { clock: clock.clone(), ..SimulatorOptions::new(scenario(&entries)) }.with_actions(LISTED);
    let lab = Lab::with_organization(options, "");
    lab.run_agent_with(&clock, |reader| evaluated(reader, 1));
    let later = time::after(now(), Duration::from_secs(3 * 86_400 + 60));
    clock.set(later);
    let told = |reader: &Reader| -> Vec<String> {
        let all = reader.alerts(watchbell::store::AlertFilter::default()).map(Result::unwrap);
        all.filter(|alert| alert.rule.as_str() == "builtin.new_action").map(|alert| alert.title).collect()
    };
    lab.run_agent_with(&clock, |reader| evaluated(reader, 4) && !told(reader).is_empty());
    let (_store, reader) = lab.reader();
    assert_eq!(told(&reader), ["test has new kinds of actions: brand_new, other_new"]);
}

/// The resolved actions are part of a rule's version; those of other rules are not.
#[test]
fn a_new_name_is_a_new_version_of_the_rules_that_go_by_it() {
    let before = rule_set(&[
        &by_name("Deactivated account"),
        &rule("team.by_id", "actions: [\"acc_off\"]", "fn rule(event) { true }"),
    ]);
    let listed = |id: &str, name: &str| ListedAction { id: id.into(), name: Some(name.to_owned()), group: None };
    let after = before.with_actions([listed("acc_off", "Deactivated account"), listed("other", "Something else")]);
    let (old, new) = (before.versions(), after.versions());
    let changed: Vec<&str> =
        old.iter().filter(|(id, version)| new[*id] != **version).map(|(id, _)| id.as_str()).collect();
    assert_eq!(changed, ["team.by_name"]);
    assert!(Arc::ptr_eq(&after, &after.with_actions([listed("acc_off", "Deactivated account")])));
    let unrelated = after.with_actions([listed("third", "Whatever")]);
    assert_eq!(unrelated.versions(), new);
}

/// Conditions on the name and the category are decided by the action before any script runs, with the same result.
#[test]
fn categories_and_names_are_prefiltered_as_scripts_would_say() {
    let rules = rule_set(&[
        &rule(
            "a.category",
            "",
            "fn rule(event) { event.category in [\"access\", \"ai\"] }\nfn dedup(event) { event.id }",
        ),
        &rule(
            "b.activity",
            "",
            "fn rule(event) { event.activity != () && event.activity.starts_with(\"Deac\") }\nfn dedup(event) { event.id }",
        ),
        &rule(
            "c.neither",
            "",
            "fn rule(event) { event.activity == () && !(event.category == \"unknown\") }\nfn dedup(event) { event.id }",
        ),
    ]);
    let rules = rules.with_actions(LISTED.iter().map(|(id, name, group)| ListedAction {
        id: (*id).into(),
        name: Some((*name).to_owned()),
        group: Some((*group).to_owned()),
    }));
    let entries: Vec<Value> = ["acc_off", "user_login", "pol_1", "rovo_x", "whatever", "group_created"]
        .iter()
        .enumerate()
        .map(|(number, action)| entry(&format!("e{number}"), action, i64::try_from(number).unwrap(), "ann"))
        .collect();
    let found = |prefilter: bool| {
        let mut replay = Replay::new(Arc::clone(&rules), Settings { prefilter, ..Settings::default() });
        events(&entries).iter().for_each(|event| replay.event(event));
        let report = replay.finish();
        report.alerts.iter().map(|alert| format!("{} {}", alert.rule, alert.dedup_key)).collect::<Vec<_>>()
    };
    assert_eq!(found(true), found(false));
    assert_eq!(
        found(true),
        ["a.category e0", "b.activity e0", "a.category e3", "c.neither e3", "a.category e5", "c.neither e5"]
    );
}

/// A misspelled activity name causes a warning, unless the rule marks it as a guess.
#[test]
fn misspelt_activities_are_doubted() {
    let lab = Lab::new();
    lab.write("rules/a.rhai", by_name("Deactivated acount"));
    lab.write(
        "rules/b.rhai",
        rule("team.guess", "actions: [\"zebra_painted\"], evidence: \"assumed\"", "fn rule(event) { true }"),
    );
    lab.write(
        "rules/c.rhai",
        rule("team.sure", "actions: [\"zebra_painted\"], evidence: \"verified\"", "fn rule(event) { true }"),
    );
    lab.write("rules/d.rhai", rule("team.wrong", "evidence: \"verifed\"", "fn rule(event) { true }"));
    let checked = lab.watchbell(&["check", "rules", "--format", "json"]);
    let found: Value = serde_json::from_str(&checked.stdout).unwrap();
    let of = |code: &str| -> Vec<String> {
        let all = found["diagnostics"].as_array().unwrap().iter().filter(|found| found["code"] == code);
        all.map(|found| format!("{}: {}", found["file"].as_str().unwrap(), found["help"].as_str().unwrap_or_default()))
            .collect()
    };
    assert_eq!(of("W408"), ["rules/a.rhai: did you mean `Deactivated account`?"]);
    assert_eq!(of("W406"), ["rules/c.rhai: no public source has this action; compare it with your own audit log"]);
    assert_eq!(of("E203"), ["rules/d.rhai: did you mean `verified`?"]);
}
