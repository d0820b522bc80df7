use serde_json::Value;
use watchbell::{alert::Alert, simulator::Options, store::AlertFilter};

use crate::support::{Lab, entry, evaluated, organization};

fn plain(alerts: impl IntoIterator<Item = Alert>) -> Vec<Value> {
    let mut alerts: Vec<Value> = alerts
        .into_iter()
        .filter(|alert| alert.kind != watchbell::alert::Kind::Health)
        .map(|alert| {
            let mut alert = serde_json::to_value(alert).unwrap();
            // When it was recorded, and by which load of the rules, is all that may differ.
            alert["raised_at"] = Value::Null;
            alert["generation"] = Value::Null;
            alert
        })
        .collect();
    alerts.sort_by_key(|alert| alert["id"].to_string());
    alerts
}

/// What the agent raised over several starts is what a replay of its store gives.
#[test]
fn replaying_what_was_evaluated_gives_the_alerts_that_were_raised() {
    let mut random = fastrand::Rng::with_seed(3);
    let entries: Vec<Value> = (0..800)
        .map(|index| {
            let action =
                ["user_login", "user_login_failed", "user_logged_in_as_user", "api_token_created"][random.usize(0..4)];
            // Out of order, by up to five minutes.
            let mut entry = entry(
                &format!("e{index}"),
                action,
                index * 20 - random.i64(0..300),
                &format!("actor{}", random.u8(0..9)),
            );
            entry["attributes"]["processedAt"] =
                watchbell::time::from_millis(crate::support::base().as_millisecond() + index * 20_000)
                    .to_string()
                    .into();
            entry["attributes"]["location"]["countryName"] = ["Germany", "France"][random.usize(0..2)].into();
            entry
        })
        .collect();
    let lab = Lab::with_organization(Options { page_limit: 30, ..organization(&entries) }, "");
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
        lab.run_agent_until(|reader| reader.mark().unwrap().0 >= part);
    }
    lab.run_agent_until(|reader| evaluated(reader, 800));
    let raised: Vec<Alert> = lab.reader().1.alerts(AlertFilter::default()).map(Result::unwrap).collect();
    assert!(raised.len() > 50, "{}", raised.len());
    let replayed = lab.watchbell(&["replay", "--format", "json"]);
    // One of the rules throws, which the exit code tells.
    assert_eq!(replayed.code, Some(1), "{}", replayed.stderr);
    let report: Value = serde_json::from_str(&replayed.stdout).unwrap();
    let replayed: Vec<Alert> = serde_json::from_value(report["alerts"].clone()).unwrap();
    let (replayed, raised) = (plain(replayed), plain(raised));
    for (replayed, raised) in replayed.iter().zip(&raised) {
        assert_eq!(replayed, raised);
    }
    assert_eq!(replayed.len(), raised.len());
}
