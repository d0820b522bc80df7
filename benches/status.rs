//! What `status`, and with it `/metrics`, costs with few and with many alerts in the store. `cargo bench --bench status`

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark fails by panicking")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use watchbell::{
    api::{Service, ServiceSettings},
    deliver::test_alert,
    dispatch::{Recorder, Router},
    model::{
        alert::AlertChange,
        name::{AlertId, RuleId},
        time::Clock,
    },
    store::{Commit, Store},
};

const BATCH: u64 = 1_000;

fn status(criterion: &mut Criterion) {
    for count in [1_000, 100_000] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let clock = Clock::system();
        let mut alert = test_alert(clock.now()).expect("an alert");
        let rule = RuleId::parse("bench.rule").expect("a rule's id");
        for batch in 0..count / BATCH {
            let changes = (0..BATCH).map(|number| {
                alert.id = AlertId::derive(&rule, "bench", &(batch * BATCH + number).to_string(), "");
                AlertChange::Opened(Box::new(alert.clone()))
            });
            let mut writing = store.writing();
            let staged = writing.stage(changes.collect(), clock.now()).expect("staged");
            writing.commit(&Commit { staged, ..Commit::default() }).expect("written");
        }
        let recorder = Recorder::new(store.clone(), Router::new(Vec::new()));
        let settings = ServiceSettings { sources: Vec::new(), destinations: Vec::new() };
        let service = Service::new(store, recorder, settings, clock, None);
        assert_eq!(service.status().expect("a status").open_alerts.info, count);
        criterion.bench_function(&format!("status with {count} alerts"), |bencher| {
            bencher.iter(|| service.status().expect("a status"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = status
}
criterion_main!(benches);
