//! Benchmarks rule state: a batch of 500 events through a rule that uses one stateful function, including the changes
//! for the store, with a thousand keys and with a million. Run with `cargo bench --bench memory`.
//!
//! Each key recurs after all the others, within the window, so that the two cases differ only in the number of keys.

#![allow(clippy::expect_used, clippy::print_stderr, missing_docs, reason = "a benchmark fails by panicking")]

use std::{fs, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use watchbell::{
    detect::{Detector, Settings},
    model::{
        event::Event,
        name::{EventId, Sequence, SourceName},
        time,
    },
    rule::{Loader, Quota, RuleSet},
};

const BATCH: u64 = 500;
const START: i64 = 1_770_000_000_000;

/// Stateful functions with the body of `fn rule`. `WINDOW` is replaced.
const FACILITIES: [(&str, &str); 9] = [
    ("nothing", "false"),
    ("count", "count(event.actor.id, \"WINDOW\") > 100"),
    ("rate", "rate(event.actor.id, \"WINDOW\") > 100.0"),
    ("distinct", "distinct(event.actor.id, event.ip, \"WINDOW\") > 100"),
    ("first_seen", "first_seen(event.actor.id, event.ip, \"WINDOW\") && false"),
    ("mark_and_marked", "mark(event.actor.id, \"x\", \"WINDOW\") && marked(event.actor.id, \"y\")"),
    ("sequence", "mark(event.actor.id, \"x\", \"WINDOW\") && sequence(event.actor.id, [\"x\", \"y\"], \"WINDOW\")"),
    ("remember_and_recall", "recall(event.actor.id) == 5 || (remember(event.actor.id, event.ip, \"WINDOW\") && false)"),
    ("met_and_expect", "met(event.actor.id, \"x\"); expect(event.actor.id, \"WINDOW\", \"x\"); false"),
];

fn rules(body: &str, keys: u64) -> Arc<RuleSet> {
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "const RULE = #{{ id: \"bench.rule\", title: \"t\", severity: \"low\" }};\nfn rule(event) {{ {} }}\nfn expired(key, event) {{ false }}\n",
        body.replace("WINDOW", &format!("{}s", keys * 2))
    );
    fs::write(directory.path().join("rule.rhai"), text).expect("a file");
    let set = Loader::of(vec![directory.path().to_owned()]).without_builtin().load().set;
    assert_eq!(set.detections.len(), 1);
    set
}

fn event(number: u64, keys: u64, source: &SourceName) -> Event {
    let seconds = i64::try_from(number).expect("not that many");
    let time = time::from_millis(START + seconds * 1_000);
    let key = number % keys;
    let raw = format!(
        "{{\"id\":\"{number}\",\"attributes\":{{\"action\":\"user_login\",\"actor\":{{\"id\":\"712020:{key:08}\"}},\"location\":{{\"ip\":\"203.0.113.{}\"}}}}}}",
        key % 250
    );
    Event {
        flags: Default::default(),
        sequence: Sequence(number + 1),
        source: source.clone(),
        arrived: time,
        time,
        id: EventId::parse(&number.to_string()).expect("an id"),
        action: "user_login".into(),
        raw: raw.into(),
    }
}

/// Resident memory of the process in MB, if the system reports it.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1_024)
}

fn memory(criterion: &mut Criterion) {
    let source = SourceName::parse("bench").expect("a name");
    for keys in [1_000, 1_000_000] {
        let mut group = criterion.benchmark_group(format!("memory_of_{keys}_keys"));
        group.throughput(Throughput::Elements(BATCH)).sample_size(20);
        for (facility, body) in FACILITIES {
            let quota = Quota { keys: 4_000_000, bytes: 8 << 30 };
            let before = resident();
            let mut detector = Detector::new(rules(body, keys), Settings { quota, ..Settings::default() });
            for number in 0..keys {
                detector.evaluate(&event(number, keys, &source));
                if number % BATCH == 0 {
                    detector.take_changes();
                }
            }
            if let (Some(before), Some(after)) = (before, resident())
                && keys > 1_000
            {
                eprintln!("{facility}: {keys} keys take {} MB", after.saturating_sub(before));
            }
            let mut next = keys;
            group.bench_function(facility, |bencher| {
                bencher.iter_batched(
                    || {
                        next += BATCH;
                        (next - BATCH..next).map(|number| event(number, keys, &source)).collect::<Vec<_>>()
                    },
                    |events| {
                        for event in &events {
                            detector.evaluate(event);
                        }
                        detector.take_changes()
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

criterion_group!(benches, memory);
criterion_main!(benches);
