//! Benchmarks the path of a page: into the store (flushed and synced), through the shipped rules, and the results back
//! into the store. Run with `cargo bench`.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark fails by panicking")]

use std::{sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use watchbell::{
    detect::{Detector, Settings},
    model::{
        event::IncomingEvent,
        name::{Sequence, SourceName},
        outcome::Outcome,
        time::{self, Timestamp},
    },
    rule::{Loader, RuleSet},
    simulator::Scenario,
    store::{Commit, Page, SourceRecord, Store},
};

const PAGE: usize = 500;

fn rules() -> Arc<RuleSet> {
    Loader::of(vec!["rules".into()]).without_builtin().load().set
}

fn page(scenario: &Scenario, number: usize, now: Timestamp) -> Page {
    let events = (number * PAGE..(number + 1) * PAGE)
        .map(|index| IncomingEvent::parse(&scenario.entry(index).json).expect("the simulator makes events"))
        .collect();
    Page::new(SourceName::parse("bench").expect("a name"), now, events)
}

fn pipeline(criterion: &mut Criterion) {
    let start: Timestamp = "2026-03-01T00:00:00Z".parse().expect("a time");
    let now = time::after(start, Duration::from_secs(3_600));
    let scenario = Scenario::Flood { count: 10_000_000, start };
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(PAGE as u64)).sample_size(30);

    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let mut record = SourceRecord::default();
    let mut detector = Detector::new(rules(), Settings::default());
    let mut number = 0;
    group.bench_function("page_stored_evaluated_committed", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                page(&scenario, number, now)
            },
            |page| {
                store.append_page(page, &mut record).expect("the page is stored");
                let reader = store.reader();
                let mut checkpoint = reader.checkpoint().expect("a checkpoint");
                let mut outcome = Outcome::default();
                for event in reader.events_after(checkpoint, PAGE).expect("the page is read") {
                    outcome.append(detector.evaluate(&event));
                    checkpoint = event.sequence;
                }
                let mut writing = store.writing();
                let staged = writing.stage(outcome.alerts, now).expect("alerts are staged");
                let state = detector.take_changes();
                let checkpoint = Some(checkpoint);
                let commit = Commit { staged, matches: outcome.matches, state, checkpoint, ..Commit::default() };
                writing.commit(&commit).expect("the batch is committed");
            },
            criterion::BatchSize::PerIteration,
        );
    });

    let mut number = 1_000;
    let mut record = SourceRecord::default();
    group.bench_function("page_stored", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                page(&scenario, number, now)
            },
            |page| store.append_page(page, &mut record).expect("the page is stored"),
            criterion::BatchSize::PerIteration,
        );
    });

    let events: Vec<_> = page(&scenario, 5, now)
        .events
        .into_iter()
        .map(|event| event.into_event(SourceName::parse("bench").expect("a name"), Sequence(1), now))
        .collect();
    let rules = rules();
    group.bench_function("page_evaluated", |bencher| {
        // A new detector for each iteration, because an agent sees each event only once.
        bencher.iter_batched_ref(
            || Detector::new(Arc::clone(&rules), Settings::default()),
            |detector| {
                for event in &events {
                    std::hint::black_box(detector.evaluate(event));
                }
                detector.take_changes()
            },
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
