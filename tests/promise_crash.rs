use std::{collections::BTreeSet, fs, thread, time::Duration};

use serde_json::Value;
use watchbell::{
    model::time::{self, Clock, Timestamp},
    simulator::{Ending, Fault, Faults, SimulatorOptions},
};

use crate::support::{Lab, alerts, base, entry, evaluated, scenario, stored_ids};

/// Number of kills. `WATCHBELL_KILLS=200 cargo test promise_crash` runs more.
fn kills() -> u64 {
    std::env::var("WATCHBELL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

const EVENTS: usize = 3_000;

const RULES: [(&str, &str); 5] = [
    (
        "rules/each.rhai",
        "const RULE = #{ id: \"crash.each\", title: \"t\", severity: \"low\", actions: [\"action_1\"], dedup_period: \"10m\" };\nfn rule(event) { true }\nfn title(event) { `${event.actor.id} again` }",
    ),
    (
        "rules/count.rhai",
        "const RULE = #{ id: \"crash.count\", title: \"t\", severity: \"low\", threshold: 7, window: \"5m\", dedup_period: \"20m\" };\nfn rule(event) { event.action == \"action_2\" }\nfn dedup(event) { event.actor.id }",
    ),
    // Rule state is neither lost nor counted twice.
    (
        "rules/remembers.rhai",
        "const RULE = #{ id: \"crash.remembers\", title: \"t\", severity: \"low\", actions: [\"action_4\", \"action_5\"], dedup_period: \"1m\" };\nfn rule(event) { if event.action == \"action_4\" { mark(event.actor.id, \"four\", \"5m\"); } let n = count(event.actor.id, \"10m\"); n % 5 == 0 && marked(event.actor.id, \"four\") }\nfn title(event) { `${event.actor.id} ${counted(event.actor.id, \"10m\")}` }",
    ),
    // Nor are expectations. The last events are excluded, because no later event advances time.
    (
        "rules/expects.rhai",
        "const RULE = #{ id: \"crash.expects\", title: \"t\", severity: \"low\", actions: [\"action_6\", \"action_7\"], dedup_period: \"1m\" };\nfn rule(event) { if event.action == \"action_7\" { met(event.actor.id, \"seven\"); } else if event.id < \"event-02500\" { expect(event.actor.id, \"90s\", \"seven\"); } false }\nfn expired(key, event) { true }\nfn title(event) { `${event.key} ${event.since}` }",
    ),
    (
        "rules/fails.rhai",
        "const RULE = #{ id: \"crash.fails\", title: \"t\", severity: \"low\", actions: [\"action_3\"] };\nfn rule(event) { throw \"always\" }",
    ),
];

/// The killed processes use the system clock, so these events happened within the last hours.
fn entries(start: Timestamp) -> Vec<Value> {
    let mut random = fastrand::Rng::with_seed(42);
    (0..EVENTS)
        .map(|index| {
            let action = format!("action_{}", random.u8(0..12));
            let actor = format!("actor{}", random.u8(0..5));
            let at = start.as_second() - base().as_second() + i64::try_from(index).unwrap() * 3;
            entry(&format!("event-{index:05}"), &action, at, &actor)
        })
        .collect()
}

fn lab(start: Timestamp, ending: Ending, faults: Faults) -> Lab {
    // Small pages, to give more points of interruption.
    let options =
        SimulatorOptions { ending, faults, page_limit: 40, ..SimulatorOptions::new(scenario(&entries(start))) };
    let lab = Lab::with_organization(options, "");
    for (path, text) in RULES {
        lab.write(path, text);
    }
    lab
}

/// Kills the agent at random instants while it reads, then lets one finish.
fn survives(ending: Ending, seed: u64, kills: u64) {
    let clock = Clock::system();
    let start = time::before(clock.now(), Duration::from_secs(6 * 3_600));
    let undisturbed = lab(start, Ending::Cursor, Faults::none());
    undisturbed.run_agent_with(&clock, |reader| evaluated(reader, EVENTS as u64));
    let expected = alerts(&undisturbed.reader().1);
    assert!(expected.len() > 50, "{}", expected.len());

    let lab = lab(start, ending, Faults::some(&Fault::PASSING, 150, seed));
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..kills {
        let agent = lab.spawn_agent();
        // The instant of the kill is the only intended randomness here.
        thread::sleep(Duration::from_millis(random.u64(20..220)));
        drop(agent);
    }
    lab.run_agent_with(&clock, |reader| evaluated(reader, EVENTS as u64));
    let (_store, reader) = lab.reader();
    let ids = stored_ids(&reader);
    let distinct: BTreeSet<&String> = ids.iter().collect();
    assert_eq!((ids.len(), distinct.len()), (EVENTS, EVENTS), "seed {seed}");
    assert_eq!(alerts(&reader), expected, "seed {seed}");
    // Every alert was delivered at least once, and nothing is pending.
    assert!(reader.outbox().unwrap().is_empty());
    let lines = fs::read_to_string(lab.path("alerts.jsonl")).unwrap();
    let delivered: BTreeSet<String> = lines.lines().flat_map(told).collect();
    for (id, ..) in &expected {
        assert!(delivered.contains(id), "alert {id} was not delivered (seed {seed})");
    }
}

/// Ids of the alerts in the file. Lines that a kill cut off are skipped.
fn told(line: &str) -> Vec<String> {
    let Ok(message) = serde_json::from_str::<Value>(line) else { return Vec::new() };
    let digest = message["alerts"].as_array().cloned().unwrap_or_default();
    std::iter::once(message["alert"].clone())
        .chain(digest)
        .filter_map(|alert| alert["id"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn killed_at_any_instant_with_a_cursor_at_the_end() {
    survives(Ending::Cursor, 1, kills().div_ceil(2));
}

#[test]
fn killed_at_any_instant_without_a_cursor_at_the_end() {
    survives(Ending::Null, 2, kills().div_ceil(2));
}
