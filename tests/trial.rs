use std::{cell::Cell, fs, time::Duration};

use serde_json::Value;
use watchbell::{
    model::{
        alert::Alert,
        name::RuleId,
        time::{self, Clock},
    },
    simulator::SimulatorOptions,
    store::{AlertFilter, Commit, Reader, hunt_key},
};

use crate::support::{Lab, entry, evaluated, now, organization, rule};

/// Sign-ins of ten people, every two minutes.
fn lab(more: &str) -> Lab {
    let entries: Vec<Value> = (0..300)
        .map(|index| entry(&format!("e{index}"), "user_login", index * 120, &format!("actor{}", index % 10)))
        .collect();
    let lab = Lab::with_organization(SimulatorOptions { page_limit: 100, ..organization(&entries) }, "");
    let config = fs::read_to_string(lab.path("watchbell.toml")).unwrap();
    lab.write("rules/few.rhai", few("actor3"));
    lab.write("rules/other.rhai", rule("t.other", "", "fn rule(event) { event.actor.id == \"actor5\" }"));
    lab.run_agent_until(|reader| evaluated(reader, 300));
    lab.write("watchbell.toml", format!("{config}\n[rules]\n{more}\n"));
    lab
}

fn few(actor: &str) -> String {
    rule("t.few", "dedup_period: \"2h\",", &format!("fn rule(event) {{ event.actor.id.starts_with(\"{actor}\") }}"))
}

fn of<'a>(reader: &'a Reader, id: &'a str) -> impl Iterator<Item = Alert> + 'a {
    reader.alerts(AlertFilter::default()).map(Result::unwrap).filter(move |alert| alert.rule.as_str() == id)
}

fn import(lab: &Lab, from: i64, to: i64) {
    let entries: Vec<String> = (from..to)
        .map(|index| {
            entry(&format!("n{index}"), "user_login", index * 120, &format!("actor{}", index % 10)).to_string()
        })
        .collect();
    lab.write("more.jsonl", entries.join("\n"));
    assert_eq!(lab.watchbell(&["events", "import", "more.jsonl", "--source", "test"]).code, Some(0));
}

/// A changed rule that would raise too many alerts runs in shadow mode, at the start and on a reload; others run.
#[test]
fn a_rule_that_would_flood_goes_on_trial() {
    let lab = lab("guard = { since = \"30d\", max_new_alerts = 5 }");
    let before = of(&lab.reader().1, "t.few").count();
    // All actors, with an alert every half hour; another rule finds other events, but no more than before.
    lab.write("rules/few.rhai", rule("t.few", "dedup_period: \"30m\",", "fn rule(event) { true }"));
    lab.write("rules/other.rhai", rule("t.other", "", "fn rule(event) { event.actor.id == \"actor6\" }"));
    import(&lab, 300, 320);
    lab.run_agent_until(|reader| evaluated(reader, 320) && of(reader, "builtin.rule_guarded").count() == 1);
    {
        let (_store, reader) = lab.reader();
        let told: Vec<Alert> = of(&reader, "builtin.rule_guarded").collect();
        assert!(told[0].title.contains("t.few is in shadow mode: it would have raised"), "{}", told[0].title);
        assert!(of(&reader, "t.few").any(|alert| alert.shadow));
        assert_eq!(of(&reader, "t.few").filter(|alert| !alert.shadow).count(), before);
        assert!(of(&reader, "t.other").all(|alert| !alert.shadow));
    }
    // Narrowed again while the agent runs, the rule runs as before, and the alert about it is resolved.
    let edited = Cell::new(0);
    let clock = Clock::manual(now());
    lab.run_agent_with(&clock, |reader| {
        let lasts = of(reader, "builtin.rule_guarded").any(|alert| alert.resolved_at.is_none());
        if edited.get() == 0 && lasts {
            edited.set(1);
            lab.write("rules/few.rhai", few("actor3"));
        }
        if edited.get() == 1 && !lasts {
            edited.set(2);
            // A different match at a different time.
            clock.set(time::after(now(), Duration::from_secs(60)));
            // And again: now it is replayed while another version runs.
            lab.write("rules/few.rhai", rule("t.few", "dedup_period: \"20m\",", "fn rule(event) { true }"));
        }
        edited.get() == 2 && lasts
    });
    // A user's override takes precedence.
    lab.write("rules/overrides.toml", "[override.\"t.few\"]\nstage = \"active\"\n");
    import(&lab, 320, 330);
    lab.run_agent_until(|reader| {
        evaluated(reader, 330) && of(reader, "builtin.rule_guarded").all(|alert| alert.resolved_at.is_some())
    });
    assert!(of(&lab.reader().1, "t.few").filter(|alert| !alert.shadow).count() > before);
}

/// Matches of a new rule in stored events become late alerts, once; later matches join them.
#[test]
fn a_new_rule_is_run_over_stored_events_once() {
    let lab = lab("retro_hunt = \"30d\"");
    lab.write(
        "rules/new.rhai",
        rule(
            "t.new",
            "dedup_period: \"3h\",",
            "fn rule(event) { event.actor.id == \"actor7\" }\nfn dedup(event) { event.actor.id }",
        ),
    );
    lab.write(
        "rules/counts.rhai",
        rule(
            "t.counts",
            "dedup_period: \"1d\",",
            "fn rule(event) { count(event.actor.id, \"1d\") == 3 }\nfn dedup(event) { event.actor.id }",
        ),
    );
    // As if the agent had been stopped right after it loaded the rule.
    let known = |store: &watchbell::store::Store, ids: &[&str]| {
        let mut rules = store.reader().logged_rules().last().unwrap().unwrap().rules;
        rules.extend(
            ids.iter().map(|id| (RuleId::parse(id).unwrap(), "0123456789abcdef".to_owned().try_into().unwrap())),
        );
        store.writing().note_rules(&rules, true).unwrap();
    };
    known(&lab.reader().0, &["t.new"]);
    lab.run_agent_until(|reader| reader.hunts().unwrap().is_empty() && of(reader, "t.counts").count() > 0);
    let found = |reader: &Reader| -> Vec<Alert> { of(reader, "t.new").chain(of(reader, "t.counts")).collect() };
    let first = {
        let (_store, reader) = lab.reader();
        let found = found(&reader);
        // 300 events, every two minutes: actor7 signs in every 20 minutes, for ten hours.
        assert_eq!(of(&reader, "t.new").count(), 4);
        assert!(of(&reader, "t.counts").count() >= 10);
        assert!(found.iter().all(|alert| alert.late && alert.raised_at.is_some()));
        let events = reader.events_of_alert(found[0].id).count() as u64;
        assert_eq!(events, found[0].count);
        found
    };
    // Nothing is recorded twice, even if the hunt runs again, and later matches join.
    {
        let (store, reader) = lab.reader();
        let mark = reader.checkpoint().unwrap().0.to_be_bytes().to_vec();
        let state = ["t.new", "t.counts"].map(|id| (hunt_key(&RuleId::parse(id).unwrap()), Some(mark.clone())));
        store.writing().commit(&Commit { state: state.into(), ..Commit::default() }).unwrap();
    }
    lab.run_agent_until(|reader| reader.hunts().unwrap().is_empty());
    assert_eq!(found(&lab.reader().1), first);
    import(&lab, 300, 310);
    lab.run_agent_until(|reader| evaluated(reader, 310));
    let (_store, reader) = lab.reader();
    assert_eq!(of(&reader, "t.new").count(), 4);
    let count = |alerts: &[Alert]| {
        alerts.iter().filter(|alert| alert.rule.as_str() == "t.new").map(|alert| alert.count).sum::<u64>()
    };
    assert_eq!(count(&found(&reader)), count(&first) + 1);
    // They were delivered in one message.
    let told = fs::read_to_string(lab.path("alerts.jsonl")).unwrap();
    let digests: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["notice"] == "late_digest")
        .collect();
    assert!(
        !digests.is_empty() && !told.lines().any(|line| line.contains("\"t.new\"") && !line.contains("late_digest")),
        "{told}"
    );
}
