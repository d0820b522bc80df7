use std::{fs, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use watchbell::{
    model::{
        event::Event,
        time::{self, Clock},
    },
    replay::Report,
    rule::{Loader, RuleSet, Stage},
    simulator::SimulatorOptions,
    store::AlertFilter,
};

use crate::support::{Lab, alerts, base, entry, evaluated, events, organization, rule, run};

/// A rules directory of these files, and the problems found when loading it.
fn load(files: &[(&str, &str)]) -> (tempfile::TempDir, Arc<RuleSet>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let (set, problems) =
        reload(&mut Loader::of(vec![directory.path().to_owned()]).without_builtin(), directory.path());
    (directory, set, problems)
}

fn reload(loader: &mut Loader, directory: &Path) -> (Arc<RuleSet>, Vec<String>) {
    let loaded = loader.load();
    let problems = loaded.diagnostics.iter().map(|found| format!("{} {}", found.code, found.one_line()));
    (loaded.set, problems.map(|text| text.replace(&directory.display().to_string(), "[DIR]")).collect())
}

fn three() -> Vec<Event> {
    events(&[entry("1", "x", 0, "ann"), entry("2", "x", 60, "bob"), entry("3", "x", 7_200, "ann")])
}

fn titles(report: &Report) -> Vec<String> {
    report.alerts.iter().map(|alert| format!("{} {} x{}", alert.severity, alert.title, alert.count)).collect()
}

#[test]
fn overrides_hold_by_id_pattern_and_tag_and_the_last_one_wins() {
    let one = rule(
        "team.one",
        "tags: [\"quiet\"], params: #{ limit: 1, name: \"a\" }",
        "fn rule(event) { params.limit == 5 && params.name == \"a\" } fn severity(event) { \"critical\" }",
    );
    let two = rule(
        "team.two",
        "",
        "fn rule(event) { true } fn dedup(event) { \"k\" } fn destinations(event) { [\"pager\"] }",
    );
    let (_directory, set, problems) = load(&[
        ("one.rhai", &one),
        ("two.rhai", &two),
        (
            "overrides.toml",
            "[override.\"team.*\"]\nseverity = \"low\"\nparams = { limit = 5 }\n\n[override.\"tag:quiet\"]\nstage = \"shadow\"\nseverity = \"info\"\n\n\
             [override.\"team.two\"]\nthreshold = 2\nwindow = \"5m\"\ndedup_period = \"4h\"\ndestinations = [\"chat\"]\n",
        ),
    ]);
    assert_eq!(problems, Vec::<String>::new());
    let report = run(&set, &three());
    // An override takes precedence over the rule's own function.
    assert_eq!(titles(&report), ["info team.one fired x2", "low team.two fired x3", "info team.one fired x1"]);
    assert_eq!(report.alerts[1].destinations.as_deref(), Some(&["chat".to_owned()][..]));
    assert_eq!(set.detections[0].metadata.stage, Stage::Shadow);
    assert!(report.alerts[0].shadow && !report.alerts[1].shadow);
    assert!(set.detections[1].metadata.origins["threshold"].ends_with("overrides.toml:9"));
}

#[test]
fn wrong_overrides_are_told_at_their_place() {
    let one = rule("team.one", "params: #{ limit: 1 }", "fn rule(event) { true }");
    let told = |overrides: &str| load(&[("one.rhai", &one), ("overrides.toml", overrides)]).2.join("; ");
    assert_eq!(
        told("[override.\"team.one\"]\nparams = { limt = 1 }\n"),
        "E209 [DIR]/overrides.toml:1:1: rule `team.one` has no parameter `limt`"
    );
    assert!(
        told("[override.\"team.one\"]\nparams = { limit = \"x\" }\n")
            .contains("must have the type of its default, the number 1; found the string \"x\"")
    );
    assert!(told("[override.\"team.one\"]\nseverity = \"loud\"\n").contains("`loud` is not a severity"));
    assert!(told("[override.\"team.one\"]\nseveriti = \"low\"\n").contains("unknown key `severiti`"));
    assert!(told("[overide.\"team.one\"]\n").contains("unknown key `overide`"));
    assert!(told("[override.\"team.on\"]\nenabled = false\n").starts_with("W301"));
    assert!(told("nonsense").starts_with("E100"));
}

#[test]
fn saved_files_are_taken_up_and_broken_ones_keep_their_last_good_version() {
    let (directory, set, _) = load(&[("one.rhai", &rule("team.one", "", "fn rule(event) { true }"))]);
    assert_eq!(titles(&run(&set, &three())), ["medium team.one fired x2", "medium team.one fired x1"]);
    let mut loader = Loader::of(vec![directory.path().to_owned()]).without_builtin();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("overrides.toml", "[override.\"team.one\"]\nseverity = \"low\"\n");
    write("exceptions.toml", EXCEPTION);
    let (set, problems) = reload(&mut loader, directory.path());
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(titles(&run(&set, &three())), ["low team.one fired x1"]);
    write("overrides.toml", "[override.\"team.one\"]\nseverity = ");
    write("exceptions.toml", "[[exception]]\n");
    let (set, problems) = reload(&mut loader, directory.path());
    assert!(
        problems.len() >= 2
            && set.context.broken.len() == 2
            && set.context.broken.iter().all(|broken| broken.last_good_runs),
        "{problems:?}"
    );
    assert_eq!(titles(&run(&set, &three())), ["low team.one fired x1"]);
    // Once removed, they no longer apply.
    fs::remove_file(directory.path().join("overrides.toml")).unwrap();
    fs::remove_file(directory.path().join("exceptions.toml")).unwrap();
    let (set, _) = reload(&mut loader, directory.path());
    assert_eq!(run(&set, &three()).alerts.len(), 2);
}

const EXCEPTION: &str = "[[exception]]\nid = \"ann\"\nrules = [\"team.*\"]\ncondition = 'event.actor.email == \"ann@example.com\"'\n\
                         reason = \"her job\"\nauthor = \"dana\"\ncreated = 2026-01-01\nexpires = \"never\"\n";

#[test]
fn exceptions_take_matches_out_and_count_them() {
    let one = rule(
        "team.one",
        "exception_slots: #{ who: [\"actor.email\", \"action\"] }",
        "fn rule(event) { true } fn dedup(event) { event.actor.name }",
    );
    let found = |exceptions: &str| {
        let (_directory, set, problems) = load(&[("one.rhai", &one), ("exceptions.toml", exceptions)]);
        let report = run(&set, &three());
        let errors: Vec<String> = report.rules.values().filter_map(|rule| rule.first_error.clone()).collect();
        let excepted: u64 = report.excepted.values().sum();
        assert_eq!(report.rules.values().next().unwrap().matches, 3, "matches are counted, hidden or not");
        (report.alerts.len(), excepted, [problems, errors].concat().join("; "))
    };
    assert_eq!(found(EXCEPTION), (1, 2, String::new()));
    // By the values of a slot: all fields must match.
    let slot = |values: &str| {
        EXCEPTION.replace(
            "condition = 'event.actor.email == \"ann@example.com\"'",
            &format!("slot = \"who\"\nvalues = {values}"),
        )
    };
    assert_eq!(found(&slot("[[\"ann@example.com\", \"x\"]]")), (1, 2, String::new()));
    assert_eq!(found(&slot("[[\"ann@example.com\", \"y\"]]")), (3, 0, String::new()));
    assert!(found(&slot("[\"ann@example.com\"]")).2.contains("each field of slot `who` (2)"));
    // It ends by the times of events: the third is after that day.
    assert_eq!(found(&EXCEPTION.replace("\"never\"", "2026-03-01")), (3, 0, String::new()));
    assert_eq!(found(&EXCEPTION.replace("\"never\"", "2026-03-02")), (1, 2, String::new()));
    // A failing condition suppresses nothing, and is reported.
    let (alerts, hidden, told) =
        found(&EXCEPTION.replace("event.actor.email == \"ann@example.com\"", "event.actor.email + 5 > nothing(event)"));
    assert_eq!((alerts, hidden), (3, 0));
    assert!(told.starts_with("exception ann: "), "{told}");
    // It is for other rules.
    assert!(found(&EXCEPTION.replace("team.*", "other.*")).2.contains("W311"));
}

/// `[]` stands for all items that have the rest of the path, wherever in the list they are: each must be excepted.
#[test]
fn a_slot_finds_its_field_in_any_item_of_a_list() {
    let one = rule(
        "team.one",
        "exception_slots: #{ group: [\"attributes.context[].attributes.groupName\"] }",
        "fn rule(event) { true }",
    );
    let exception = EXCEPTION
        .replace("condition = 'event.actor.email == \"ann@example.com\"'", "slot = \"group\"\nvalues = [\"admins\"]");
    let (_directory, set, problems) = load(&[("one.rhai", &one), ("exceptions.toml", &exception)]);
    assert!(problems.is_empty(), "{problems:?}");
    let hidden = |context: serde_json::Value| {
        let mut given = entry("1", "x", 0, "ann");
        given["attributes"]["context"] = context;
        run(&set, &events(&[given])).alerts.is_empty()
    };
    let group = |name: &str| serde_json::json!({ "type": "groups", "attributes": { "groupName": name } });
    assert!(hidden(serde_json::json!([{ "type": "users", "attributes": { "email": "a@b" } }, group("admins")])));
    assert!(hidden(group("admins")));
    assert!(!hidden(serde_json::json!([group("others")])));
    assert!(!hidden(serde_json::json!([group("admins"), group("others")])));
    assert!(hidden(serde_json::json!([group("admins"), group("admins")])));
    assert!(!hidden(serde_json::json!([])));
}

#[test]
fn wrong_exceptions_are_told() {
    let one = rule("team.one", "", "fn rule(event) { true }");
    let told = |from: &str, to: &str| {
        load(&[("one.rhai", &one), ("exceptions.toml", &EXCEPTION.replace(from, to))]).2.join("; ")
    };
    assert!(told("event.actor.email ==", "event.actor.email = =").contains("cannot compile the condition"));
    assert!(told("event.actor", "evnt.actor").contains("`evnt` is not defined"));
    assert!(told("expires = \"never\"", "").contains("missing key `expires`"));
    assert!(told("reason = \"her job\"", "").contains("missing key `reason`"));
    assert!(told("id = \"ann\"", "id = \"a b\"").contains("is not a valid exception name"));
    assert!(told("condition = ", "slot = \"x\"\ncondition = ").contains("must have either `condition`, or `slot`"));
}

/// End to end: suppressed matches raise no alert, their count survives a restart, and a rule in shadow mode raises
/// alerts that are not delivered.
#[test]
fn an_agent_hides_keeps_and_counts() {
    let lab = Lab::with_organization(organization(&[entry("1", "x", 0, "ann"), entry("2", "x", 60, "bob")]), "");
    lab.write("rules/one.rhai", rule("team.one", "", "fn rule(event) { true } fn title(event) { event.actor.name }"));
    lab.write("rules/two.rhai", rule("other.two", "stage: \"shadow\"", "fn rule(event) { true }"));
    lab.write("rules/exceptions.toml", EXCEPTION);
    lab.run_agent_until(|reader| evaluated(reader, 2));
    {
        let (_store, reader) = lab.reader();
        let found: Vec<String> = alerts(&reader).into_iter().map(|(_, title, _)| title).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&"bob".to_owned()) && found.contains(&"other.two fired".to_owned()));
        assert!(reader.outbox().unwrap().values().all(|pending| pending.count == 0));
        let shadow =
            reader.alerts(AlertFilter::default()).map(Result::unwrap).find(|alert| alert.rule.as_str() == "other.two");
        assert!(shadow.unwrap().shadow);
    }
    let delivered = fs::read_to_string(lab.path("alerts.jsonl")).unwrap_or_default();
    assert!(delivered.contains("bob") && !delivered.contains("other.two"), "{delivered}");
    let stats = lab.watchbell(&["exceptions", "stats", "--format", "json"]);
    let stats: Value = serde_json::from_str(&stats.stdout).unwrap();
    assert_eq!((&stats["id"], &stats["hits"], &stats["state"]), (&json!("ann"), &json!(1), &json!("active")));
    assert_eq!(stats["last_event"], json!("1"));
    let hits = lab.watchbell(&["exceptions", "hits", "ann"]);
    assert!(hits.stdout.contains("team.one") && hits.stdout.contains("2026-03-01 12:00:00"), "{}", hits.show());
    assert!(lab.watchbell(&["exceptions", "list"]).stdout.contains("her job"));
    assert_eq!(lab.watchbell(&["store", "verify"]).code, Some(0));
    // The count of suppressed matches continues, and is kept when the exception is removed.
    lab.write("rules/exceptions.toml", "");
    let stats = lab.watchbell(&["exceptions", "stats"]);
    assert!(stats.stdout.contains("removed"), "{}", stats.show());
}

#[test]
fn the_narrowest_exception_is_proposed_and_written_when_asked() {
    let lab = Lab::with_organization(
        organization(&[entry("1", "x", 0, "ann"), entry("2", "x", 60, "ann"), entry("3", "y", 90, "ann")]),
        "",
    );
    lab.write(
        "rules/one.rhai",
        rule(
            "team.one",
            "actions: [\"x\", \"y\"]",
            "fn rule(event) { true } fn title(event) { `${event.actor.name} did ${event.action}` }",
        ),
    );
    lab.run_agent_until(|reader| evaluated(reader, 3));
    let list = lab.watchbell(&["alerts", "list", "--format", "json"]);
    let id = list.stdout.lines().find(|line| line.contains("ann did x")).and_then(|line| {
        serde_json::from_str::<Value>(line).ok().and_then(|alert| alert["id"].as_str().map(str::to_owned))
    });
    let id = id.unwrap_or_else(|| panic!("{}", list.show()));
    let proposed = lab.watchbell(&["exceptions", "add", "--from-alert", &id, "--since", "3650d"]);
    assert_eq!(proposed.code, Some(0), "{}", proposed.show());
    assert!(proposed.stdout.contains(r#"condition = "event.action == \"x\" && event.actor.email == \"ann@example.com\" && event.targets()[0].attributes.email == \"target@example.com\"""#), "{}", proposed.show());
    assert!(proposed.stdout.contains("it would have suppressed 2 of 3 matches"), "{}", proposed.show());
    assert!(!lab.path("rules/exceptions.toml").exists(), "nothing is written unasked");
    // Written only with a reason and an owner; then it loads, and suppresses matches.
    assert_eq!(lab.watchbell(&["exceptions", "add", "--from-alert", &id, "--write", "--author", "dana"]).code, Some(3));
    let written = lab.watchbell(&[
        "exceptions",
        "add",
        "--from-alert",
        &id,
        "--write",
        "--author",
        "dana",
        "--comment",
        "her job",
    ]);
    assert_eq!(written.code, Some(0), "{}", written.show());
    assert_eq!(lab.watchbell(&["check", "--offline"]).code, Some(0));
    let replayed = lab.watchbell(&["replay"]);
    assert!(replayed.stdout.contains("exception one suppresses 2 of these matches"), "{}", replayed.show());
    // A second one beside it has a name of its own.
    lab.watchbell(&["exceptions", "add", "--from-alert", &id, "--write", "--author", "dana", "--comment", "again"]);
    assert!(fs::read_to_string(lab.path("rules/exceptions.toml")).unwrap().contains("id = \"one-2\""));
}

/// A misspelled condition would only show as an exception that suppresses nothing.
#[test]
fn conditions_of_exceptions_are_looked_over() {
    let lab = Lab::new();
    lab.write(
        "rules/a.rhai",
        "const RULE = #{ id: \"a.rule\", title: \"t\", severity: \"low\" };\nfn rule(event) { true }\n",
    );
    let exception = |id: &str, condition: &str| {
        format!(
            "[[exception]]\nid = \"{id}\"\nrules = [\"a.rule\"]\ncondition = '{condition}'\nreason = \"r\"\nauthor = \"a\"\nexpires = \"never\"\n"
        )
    };
    lab.write(
        "rules/exceptions.toml",
        [
            exception("one", "wihin(event.time, \"mon-fri 09:00-18:00\", \"UTC\")"),
            exception("two", "event.actor.emial == \"x@example.com\""),
            exception("three", "event.actor.email == \"x@example.com\""),
        ]
        .concat(),
    );
    let checked = lab.watchbell(&["check", "--offline", "rules"]);
    let told: Vec<&str> = checked.stderr.lines().filter(|line| line.contains("exception `")).collect();
    assert_eq!(
        told,
        [
            "warning[W206]: exception `one`: unknown function `wihin`",
            "warning[W207]: exception `two`: no known event has `event.actor.emial`",
        ],
        "{}",
        checked.show()
    );
    assert!(checked.stderr.contains("did you mean `within`?"), "{}", checked.show());
}

/// Matches of a rule that became active do not join the alert that it opened in shadow mode, which nobody heard of.
#[test]
fn an_active_rule_opens_its_own_alert() {
    let mut later = entry("2", "x", 60, "ann");
    later["attributes"]["processedAt"] = time::after(base(), Duration::from_secs(400)).to_string().into();
    let clock = Clock::manual(time::after(base(), Duration::from_secs(100)));
    let options = SimulatorOptions { clock: clock.clone(), ..organization(&[entry("1", "x", 0, "ann"), later]) };
    let lab = Lab::with_organization(options, "");
    lab.write("rules/one.rhai", rule("team.one", "", "fn rule(event) { true }"));
    lab.write("rules/overrides.toml", "[override.\"team.one\"]\nstage = \"shadow\"\n");
    lab.run_agent_with(&clock, |reader| evaluated(reader, 1));
    fs::remove_file(lab.path("rules/overrides.toml")).unwrap();
    lab.run_agent_with(&clock, |reader| {
        clock.set(time::after(base(), Duration::from_secs(500)));
        evaluated(reader, 2)
    });
    let (_store, reader) = lab.reader();
    let alerts = reader.alerts(AlertFilter::default()).map(Result::unwrap);
    let mut shadow: Vec<bool> =
        alerts.filter(|alert| alert.rule.as_str() == "team.one").map(|alert| alert.shadow).collect();
    shadow.sort_unstable();
    assert_eq!(shadow, [false, true]);
}
