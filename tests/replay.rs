use std::{sync::mpsc, time::Duration};

use serde_json::{Value, json};
use watchbell::{
    detect::Settings,
    model::{event::Event, time},
    replay::{self, Replay, ReplayProgress, Report, Run},
    rule::{Limits, RuleSet},
    store::Block,
};

use crate::support::{base, entry, events, rule, rule_set};

/// Random actors, actions and times, some out of order, some malformed.
fn history(seed: u64, count: usize) -> Vec<Event> {
    let mut random = fastrand::Rng::with_seed(seed);
    let entries: Vec<Value> = (0..count)
        .map(|index| {
            let action = ["begun", "ended", "user_login", "user_login_failed", "other"][random.usize(0..5)];
            let second = i64::try_from(index).unwrap() * 20 - random.i64(0..120);
            let mut entry = entry(&format!("e{index}"), action, second, &format!("actor{}", random.u8(0..6)));
            match random.u8(0..20) {
                0 => entry["attributes"]["actor"] = Value::Null,
                1 => entry["attributes"]["location"] = json!("nowhere"),
                2 => entry["attributes"]["actor"] = json!("somebody"),
                _ => {}
            }
            entry
        })
        .collect();
    events(&entries)
}

/// Rules of every kind: pure, failing, with thresholds, stateful, shared state, expecting, subscribing.
fn rules() -> std::sync::Arc<RuleSet> {
    let texts = [
        rule("a.pure", "dedup_period: \"5m\"", "fn rule(event) { event.action == \"begun\" && event.actor.id != () }"),
        rule("b.fails", "", "fn rule(event) { event.attributes.actor.id.nope == 1 }"),
        rule("c.slow", "", "fn rule(event) { if event.action == \"other\" { loop { } } event.action == \"ended\" }"),
        rule(
            "d.many",
            "threshold: 4, window: \"10m\"",
            "fn rule(event) { event.action == \"user_login_failed\" } fn dedup(event) { event.actor.id } fn unique(event) { event.id }",
        ),
        rule(
            "e.counts",
            "dedup_period: \"2m\"",
            "fn rule(event) { count(event.actor.id, \"10m\") % 5 == 0 } fn title(event) { `${event.actor.id} ${counted(event.actor.id, \"10m\")}` }",
        ),
        rule(
            "f.shares",
            "",
            "fn rule(event) { event.action == \"begun\" && common(\"c\").mark(event.actor.id, \"x\", \"1h\") && false }",
        ),
        rule(
            "g.shares",
            "dedup_period: \"1m\"",
            "fn rule(event) { event.action == \"ended\" && common(\"c\").marked(event.actor.id, \"x\") } fn dedup(event) { event.actor.id }",
        ),
        rule(
            "h.expects",
            "dedup_period: \"1m\"",
            "fn rule(event) { if event.action == \"begun\" { expect(event.actor.id, \"2m\", \"end\"); } if event.action == \"ended\" { met(event.actor.id, \"end\"); } false } fn expired(key, event) { true } fn dedup(event) { event.key }",
        ),
        rule(
            "i.listens",
            "on: [\"rule:a.pure\", \"rule:e.counts\", \"rule:h.expects\"], dedup_period: \"30s\"",
            "fn rule(event) { event.opened } fn title(event) { `${event.rule} ${event.key}` }",
        ),
        rule(
            "j.title",
            "dedup_period: \"10m\"",
            "fn rule(event) { event.action == \"user_login\" } fn title(event) { event.actor.id.nope() } fn context(event) { #{ ip: event.ip } }",
        ),
    ];
    rule_set(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

fn in_parallel(
    rules: &std::sync::Arc<RuleSet>,
    settings: &Settings,
    history: &[Event],
    block: usize,
    run: &Run,
) -> Report {
    let (sender, receiver) = mpsc::sync_channel(2);
    let blocks: Vec<Block> = history.chunks(block).map(|events| Block::of(events.to_vec())).collect();
    std::thread::scope(|scope| {
        scope.spawn(move || blocks.into_iter().all(|block| sender.send(block).is_ok()));
        replay::run(rules, settings, run, receiver, &ReplayProgress::default())
    })
}

fn one_by_one(rules: &std::sync::Arc<RuleSet>, settings: &Settings, history: &[Event], run: &Run) -> Report {
    let mut replay = Replay::new(rules.clone(), settings.clone()).since(run.since);
    let begin = run.since.map(|since| time::before(since, run.warm_up));
    for event in history {
        if begin.is_none_or(|begin| event.time >= begin) && run.until.is_none_or(|until| event.time < until) {
            replay.event(event);
        }
    }
    replay.finish()
}

fn plain(report: &Report) -> Value {
    let mut value = serde_json::to_value(report).unwrap();
    value["failures"] = json!(report.failures);
    for rule in value["rules"].as_object_mut().unwrap().values_mut() {
        rule.as_object_mut().unwrap().remove("cost");
    }
    value
}

/// Thread scheduling, block size and the prefilter make no difference.
#[test]
fn many_threads_find_what_one_does() {
    let rules = rules();
    for seed in 0..6 {
        let history = history(seed, 900);
        let mut run = Run::default();
        if seed % 2 == 1 {
            run.since = Some(time::after(base(), Duration::from_secs(5_000)));
            run.until = Some(time::after(base(), Duration::from_secs(15_000)));
            run.warm_up = Duration::from_secs(2_000);
        }
        let limits = Limits { operations: 5_000, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let unfiltered = Settings { prefilter: false, ..settings.clone() };
        let expected = plain(&one_by_one(&rules, &unfiltered, &history, &run));
        assert!(expected["alerts"].as_array().unwrap().len() > 60, "{expected:#}");
        assert_eq!(plain(&one_by_one(&rules, &settings, &history, &run)), expected, "asking ahead, seed {seed}");
        for (threads, block) in [(1, 500), (2, 37), (3, 100), (5, 1)] {
            run.threads = threads;
            let found = plain(&in_parallel(&rules, &settings, &history, block, &run));
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(found.get(key), Some(value), "{key}: {threads} threads, blocks of {block}, seed {seed}");
            }
            assert_eq!(found, expected);
        }
    }
}

/// An interrupted replay returns what it has found so far.
#[test]
fn an_interrupted_replay_tells_what_it_found() {
    let (sender, receiver) = mpsc::sync_channel(1);
    let history = history(1, 600);
    let progress = ReplayProgress::default();
    let rules = rules();
    let report = std::thread::scope(|scope| {
        let progress = &progress;
        scope.spawn(move || {
            for events in history.chunks(100) {
                if sender.send(Block::of(events.to_vec())).is_err() {
                    break;
                }
            }
            progress.stop();
            // The input does not end by itself.
            while sender.send(Block::of(Vec::new())).is_ok() {}
        });
        replay::run(&rules, &Settings::default(), &Run { threads: 2, ..Run::default() }, receiver, progress)
    });
    assert!(report.interrupted && report.events <= 600, "{}", report.events);
}
