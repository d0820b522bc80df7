use std::{cell::Cell, sync::Arc};

use serde_json::{Value, json};
use watchbell::{
    model::alert::Alert,
    replay::verify::{History, Reason, Verification, Verified},
    rule::RuleSet,
    simulator::{Fault, Faults, SimulatorOptions},
    store::{AlertFilter, Reader},
};

use crate::support::{Lab, entry, evaluated, organization, rule};

fn plain(alerts: impl IntoIterator<Item = Alert>) -> Vec<Value> {
    let mut alerts: Vec<Value> = alerts
        .into_iter()
        .filter(|alert| alert.kind != watchbell::model::alert::AlertKind::Health)
        .map(|alert| {
            let mut alert = serde_json::to_value(alert).unwrap();
            // Only the time of recording and the rules generation may differ.
            alert["raised_at"] = Value::Null;
            alert["generation"] = Value::Null;
            alert
        })
        .collect();
    alerts.sort_by_key(|alert| alert["id"].to_string());
    alerts
}

/// Sign-ins and other events, up to five minutes out of order.
fn history(seed: u64, count: i64) -> Vec<Value> {
    let mut random = fastrand::Rng::with_seed(seed);
    let one = |index| {
        let action =
            ["user_login", "user_login_failed", "user_logged_in_as_user", "api_token_created"][random.usize(0..4)];
        // Out of order, by up to five minutes.
        let mut entry =
            entry(&format!("e{index}"), action, index * 20 - random.i64(0..300), &format!("actor{}", random.u8(0..9)));
        entry["attributes"]["processedAt"] =
            watchbell::model::time::from_millis(crate::support::base().as_millisecond() + index * 20_000)
                .to_string()
                .into();
        entry["attributes"]["location"]["countryName"] = ["Germany", "France"][random.usize(0..2)].into();
        entry
    };
    (0..count).map(one).collect()
}

/// What the agent did, read from the store.
fn evidence(reader: &Reader) -> History {
    History {
        checkpoint: reader.checkpoint().unwrap(),
        skipped: reader.skipped().map(Result::unwrap).collect(),
        rules: reader.logged_rules().map(Result::unwrap).collect(),
        changes: reader.changes_after(0).map(Result::unwrap).filter(|change| change.author.is_some()).collect(),
        watermarks: reader.watermarks().map(Result::unwrap).collect(),
        alerts: reader.alerts(AlertFilter::default()).map(Result::unwrap).collect(),
    }
}

fn verify(lab: &Lab, reader: &Reader, evidence: History) -> Verified {
    let config = lab.config();
    let rules: Arc<RuleSet> = watchbell::rule::Loader::new(config.rules.clone()).load().set;
    let mut verification = Verification::new(rules, config.detection, evidence);
    for event in reader.scan(watchbell::store::ScanFilter::default()) {
        verification.event(&event.unwrap());
    }
    verification.finish()
}

/// The alerts that the agent raised over several starts equal those of a replay of its store.
#[test]
fn replaying_what_was_evaluated_gives_the_alerts_that_were_raised() {
    let entries = history(3, 800);
    let faults = Faults::some(&[Fault::ServerError, Fault::RetryAfterSeconds], 100, 5);
    let lab = Lab::with_organization(SimulatorOptions { page_limit: 30, faults, ..organization(&entries) }, "");
    for file in watchbell::rule::SHIPPED {
        lab.write(&format!("rules/{}", file.path), file.text);
    }
    lab.write("rules/throws.rhai", "const RULE = #{ id: \"replay.throws\", title: \"t\", severity: \"low\" };\nfn rule(event) { event.actor.id == \"actor3\" && event.nope.nope() }");
    lab.write(
        "rules/remembers.rhai",
        "const RULE = #{ id: \"replay.remembers\", title: \"t\", severity: \"low\", dedup_period: \"5m\" };\nfn rule(event) { let n = count(event.actor.id, \"10m\"); let d = distinct(event.actor.id, event.action, \"15m\"); \
         let f = first_seen(event.actor.id, event.geo.country, \"20m\"); mark(event.actor.id, event.action, \"10m\"); common(\"all\").count(\"k\", \"1m\"); \
         f || d == 3 || (n > 4 && sequence(event.actor.id, [\"user_login_failed\", \"user_login\"], \"10m\")) }\n\
         fn title(event) { `${event.actor.id} ${counted(event.actor.id, \"10m\")} ${common(\"all\").counted(\"k\", \"1m\")}` }",
    );
    lab.write(
        "rules/expects.rhai",
        "const RULE = #{ id: \"replay.expects\", title: \"t\", severity: \"low\", dedup_period: \"5m\" };\nfn rule(event) { if event.action == \"api_token_created\" { expect(event.actor.id, \"2m\", \"login\"); } \
         if event.action == \"user_login\" { met(event.actor.id, \"login\"); } false }\nfn expired(key, event) { true }\nfn dedup(event) { event.key }",
    );
    for part in [200, 500, 800] {
        lab.run_agent_until(|reader| reader.checkpoint().unwrap().0 >= part);
    }
    lab.run_agent_until(|reader| evaluated(reader, 800));
    let raised: Vec<Alert> = lab.reader().1.alerts(AlertFilter::default()).map(Result::unwrap).collect();
    assert!(raised.len() > 50, "{}", raised.len());
    let replayed = lab.watchbell(&["replay", "--format", "json"]);
    // One of the rules throws, which the exit code shows.
    assert_eq!(replayed.code, Some(1), "{}", replayed.stderr);
    let report: Value = serde_json::from_str(&replayed.stdout).unwrap();
    let replayed: Vec<Alert> = serde_json::from_value(report["alerts"].clone()).unwrap();
    let (replayed, raised) = (plain(replayed), plain(raised));
    for (replayed, raised) in replayed.iter().zip(&raised) {
        assert_eq!(replayed, raised);
    }
    assert_eq!(replayed.len(), raised.len());
    // The command reports the same.
    let verified = lab.watchbell(&["replay", "--verify", "--format", "json"]);
    assert_eq!(verified.code, Some(0), "{}", verified.show());
    let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((&verified["same"], &verified["not_compared"]), (&json!(raised.len()), &json!({})), "{verified:#}");
}

/// A day of imports, with a reload of the rules before each.
fn import(lab: &Lab, name: &str, entries: &[Value], more: &[&str]) {
    lab.write(name, entries.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    let mut arguments = vec!["events", "import", name, "--source", "old"];
    arguments.extend(more);
    let done = lab.watchbell(&arguments);
    assert_eq!(done.code, Some(0), "{}", done.show());
}

/// Rules that stay, change, change with state, appear, and disappear; lists and exceptions that change; events that are
/// not evaluated: what is comparable is equal, and the rest is reported.
#[test]
fn verification_follows_reloads_and_says_what_it_cannot_compare() {
    let lab = Lab::with_organization(organization(&[]), "");
    let entries = history(9, 1_000);
    let by_actor = "\nfn dedup(event) { event.actor.id }";
    let write = |name: &str, more: &str, functions: &str| {
        let functions = format!("{functions}{by_actor}");
        lab.write(&format!("rules/{name}.rhai"), rule(&format!("v.{name}"), more, &functions));
    };
    let failed = "fn rule(event) { event.action == \"user_login_failed\" }";
    write("stays", "dedup_period: \"1h\",", failed);
    write("counts", "dedup_period: \"1h\",", "fn rule(event) { count(event.actor.id, \"30m\") == 5 }");
    write("changes", "dedup_period: \"3h\",", failed);
    write("many", "threshold: 3, window: \"1h\",", failed);
    write("goes", "", failed);
    lab.write("rules/lists/actors.txt", "actor1\nactor2\n");
    write("looks", "dedup_period: \"10m\",", "fn rule(event) { list(\"actors\").contains(event.actor.id) }");
    import(&lab, "1.jsonl", &entries[..300], &[]);
    lab.run_agent_until(|reader| reader.checkpoint().unwrap().0 >= 300);

    write(
        "changes",
        "dedup_period: \"3h\",",
        "fn rule(event) { event.action == \"user_login_failed\" && event.actor.id != \"actor4\" }",
    );
    write("many", "threshold: 4, window: \"1h\",", failed);
    write("comes", "dedup_period: \"5m\",", "fn rule(event) { event.action == \"api_token_created\" }");
    write(
        "learns",
        "dedup_period: \"5m\",",
        "fn rule(event) { first_seen(event.actor.id, event.geo.country, \"3d\") || count(event.actor.id, \"1h\") == 7 }",
    );
    std::fs::remove_file(lab.path("rules/goes.rhai")).unwrap();
    import(&lab, "2.jsonl", &entries[300..600], &[]);
    lab.run_agent_until(|reader| reader.checkpoint().unwrap().0 >= 600);
    import(&lab, "3.jsonl", &entries[600..700], &["--no-evaluate"]);
    import(&lab, "4.jsonl", &entries[700..850], &[]);
    // With a running agent.
    let edited = Cell::new(false);
    lab.run_agent_until(|reader| {
        if reader.checkpoint().unwrap().0 >= 850 && !edited.replace(true) {
            lab.write("rules/lists/actors.txt", "actor3\n");
        }
        reader.logged_rules().count() == 3
    });
    import(&lab, "5.jsonl", &entries[850..], &[]);
    lab.run_agent_until(|reader| evaluated(reader, 1_000));

    let (_store, reader) = lab.reader();
    let evidence = evidence(&reader);
    let verified = verify(&lab, &reader, evidence.clone());
    assert!(verified.agrees(), "{verified:#?}");
    assert!(verified.events == 900 && verified.same > 100, "{verified:#?}");
    let reasons: Vec<Reason> = verified.not_compared.keys().copied().collect();
    assert_eq!(reasons, [Reason::RuleGone, Reason::RuleChanged, Reason::RuleRemembered]);
    let rules: Vec<String> = verified.rules_not_compared.keys().map(ToString::to_string).collect();
    assert_eq!(rules, ["v.changes", "v.goes", "v.looks", "v.many"]);

    // The comparison works: it finds every difference.
    let at = evidence.alerts.iter().position(|alert| alert.rule.as_str() == "v.stays").unwrap();
    let mut fewer = evidence.clone();
    fewer.alerts.remove(at);
    assert_eq!(verify(&lab, &reader, fewer).extra.len(), 1);
    let mut other = evidence.clone();
    other.alerts[at].count += 1;
    assert_eq!(verify(&lab, &reader, other).different.len(), 1);
    let mut more = evidence.clone();
    let mut alert = more.alerts[at].clone();
    alert.id = serde_json::from_value(json!("00000000000000000000000000000000")).unwrap();
    more.alerts.push(alert);
    assert_eq!(verify(&lab, &reader, more).missing.len(), 1);
    let mut silent = evidence;
    silent.rules.clear();
    let verified = verify(&lab, &reader, silent);
    assert!(verified.agrees() && verified.same == 0, "{verified:#?}");
}
