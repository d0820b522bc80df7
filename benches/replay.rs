//! Benchmarks replays of 20,000 stored events with the shipped rules, on one thread and on two. Run with
//! `cargo bench --bench replay`. For whole processes and larger stores, see `benches/replay.sh`.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark fails by panicking")]

use std::{sync::mpsc, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use watchbell::{
    detect::Settings,
    model::{
        event::IncomingEvent,
        name::SourceName,
        time::{self, Timestamp},
    },
    replay::{self, ReplayProgress, Run},
    rule::Loader,
    simulator::Scenario,
    store::{Page, Store},
};

const EVENTS: usize = 20_000;
const PAGE: usize = 500;

fn replays(criterion: &mut Criterion) {
    let start: Timestamp = "2026-03-01T00:00:00Z".parse().expect("a time");
    let scenario = Scenario::Flood { count: EVENTS, start };
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let source = SourceName::parse("bench").expect("a name");
    for first in (0..EVENTS).step_by(PAGE) {
        let parse = |index| IncomingEvent::parse(&scenario.entry(index).json).expect("the simulator makes events");
        let arrived = time::after(scenario.entry(first + PAGE - 1).processed, Duration::from_secs(1));
        let page = Page::new(source.clone(), arrived, (first..first + PAGE).map(parse).collect());
        store.import_page(page).expect("the page is stored");
    }
    let reader = store.reader();
    let rules = Loader::of(vec!["rules".into()]).without_builtin().load().set;
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(EVENTS as u64)).sample_size(20);
    for threads in [1, 2] {
        let run = Run { threads, ..Run::default() };
        group.bench_with_input(BenchmarkId::new("shipped_rules", threads), &run, |bencher, run| {
            bencher.iter(|| {
                let (sender, receiver) = mpsc::sync_channel(8);
                std::thread::scope(|scope| {
                    let mut blocks = reader.blocks().map(|block| block.expect("the block is read"));
                    scope.spawn(move || blocks.all(|block| sender.send(block).is_ok()));
                    replay::run(&rules, &Settings::default(), run, receiver, &ReplayProgress::default())
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, replays);
criterion_main!(benches);
