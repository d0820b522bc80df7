use std::{sync::Arc, time::Duration};

use watchbell::{
    model::{
        event::IncomingEvent,
        name::{Sequence, SourceName},
        time::{self, Timestamp},
    },
    store::{Commit, Page, ScanFilter, SourceRecord, Store, StoreError},
};

use crate::support::{base, entry};

fn source() -> SourceName {
    SourceName::parse("test").unwrap()
}

/// A page of events, one per second from `at`, with about a kilobyte of text that compresses badly.
fn page(first: u64, count: u64, at: Timestamp, random: &mut fastrand::Rng) -> Page {
    let events = (first..first + count)
        .map(|number| {
            let mut given = entry(&format!("e{number}"), &format!("action_{}", number % 60), 0, "ann");
            let time = time::after(at, Duration::from_secs(number - first));
            given["attributes"]["time"] = time.to_string().into();
            let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(700).collect();
            given["attributes"]["filler"] = text.into();
            IncomingEvent::parse(&given.to_string()).unwrap()
        })
        .collect();
    Page::new(source(), time::after(at, Duration::from_secs(count)), events)
}

fn evaluate_all(store: &Store) {
    let mark = store.reader().last_sequence().unwrap();
    store.writing().commit(&Commit { checkpoint: Some(mark), ..Commit::default() }).unwrap();
}

fn numbers(store: &Store) -> Vec<u64> {
    store.reader().scan(ScanFilter::default()).map(|event| event.unwrap().sequence.0).collect()
}

#[test]
fn small_pages_are_merged_and_read_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut record = SourceRecord::default();
    let mut first = 0;
    for count in (1..=120).map(|number| 1 + number % 3) {
        store
            .append_page(page(first, count, time::after(base(), Duration::from_secs(first)), &mut random), &mut record)
            .unwrap();
        first += count;
    }
    let before: Vec<_> = store.reader().scan(ScanFilter::default()).map(Result::unwrap).collect();
    // Events that have not been evaluated are not merged.
    assert_eq!(store.merge_blocks().unwrap(), 0);
    evaluate_all(&store);
    assert!(store.merge_blocks().unwrap() > 100);
    assert_eq!(store.merge_blocks().unwrap(), 0);
    let after: Vec<_> = store.reader().scan(ScanFilter::default()).map(Result::unwrap).collect();
    assert_eq!(after, before);
    // Reading from any number, and by id.
    for mark in [0, 1, 77, first - 1, first] {
        let next = store.reader().events_after(Sequence(mark), 10).unwrap();
        assert_eq!(next.first().map(|event| event.sequence.0), (mark < first).then_some(mark + 1));
    }
    let wanted = &before[33];
    assert_eq!(store.reader().event(&source(), &wanted.id).unwrap().as_ref(), Some(wanted));
}

/// Writes ten retention spans with a retention of one day: live data stays complete, and the disk does not fill.
#[test]
fn retention_keeps_the_disk_below_four_times_the_live_data() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    let mut record = SourceRecord::default();
    let (pages_a_day, page_size) = (24, 250);
    let mut number = 0;
    let mut live = 0;
    for day in 0..10 {
        for hour in 0..pages_a_day {
            let at = time::after(base(), Duration::from_secs(86_400 * day + 3_600 * hour));
            store.append_page(page(number, page_size, at, &mut random), &mut record).unwrap();
            number += page_size;
            evaluate_all(&store);
            store.remove_before(time::before(at, Duration::from_secs(86_400))).unwrap();
        }
        let size = store.size_on_disk().unwrap();
        if day == 0 {
            // A day without removals: live data, as sled stores it.
            live = size;
        }
        assert!(size < 4 * live, "day {day}: {size} bytes on disk, {live} live");
    }
    let kept = numbers(&store);
    // Whole blocks are removed, so up to one block more than a day remains; nothing within the day is missing.
    let day = pages_a_day * page_size;
    assert!((day..=day + 2 * page_size).contains(&(kept.len() as u64)), "{}", kept.len());
    assert_eq!(kept.last(), Some(&number));
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1));
    // Ids of removed events are removed with them, so the store does not grow with its history.
    drop(store);
    let reopened = Store::open_patiently(directory.path(), Duration::from_secs(10)).unwrap();
    assert_eq!(numbers(&reopened), kept);
}

#[test]
fn what_has_not_been_evaluated_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    store.append_page(page(0, 50, base(), &mut random), &mut SourceRecord::default()).unwrap();
    let later = time::after(base(), Duration::from_secs(999_999));
    assert_eq!(store.remove_before(later).unwrap().events, 0);
    evaluate_all(&store);
    assert_eq!(store.remove_before(later).unwrap().events, 50);
    assert!(numbers(&store).is_empty());
    // Numbering continues where it was.
    store.append_page(page(50, 1, base(), &mut random), &mut SourceRecord::default()).unwrap();
    assert_eq!(numbers(&store), [51]);
    assert_eq!(store.reader().events_after(Sequence(0), 10).unwrap().len(), 1);
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let _store = Store::open(directory.path()).unwrap();
    std::fs::write(directory.path().join("agent.pid"), "4242\n").unwrap();
    match Store::open(directory.path()) {
        Err(StoreError::Locked { holder, .. }) => assert_eq!(holder, "process 4242"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stores_of_others_and_of_the_future_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let put = |key: &[u8], value: &[u8]| {
        let db = crate::support::open_sled(&path);
        db.clear().unwrap();
        db.insert(key, value).unwrap();
        db.flush().unwrap();
    };
    put(b"something", b"else");
    assert!(matches!(Store::open(directory.path()), Err(StoreError::Foreign { .. })));
    put(b"m/format", &9_u64.to_be_bytes());
    // sled releases a store some milliseconds after it has been closed.
    let patience = std::time::Duration::from_secs(10);
    assert!(matches!(Store::open_patiently(directory.path(), patience), Err(StoreError::Newer { found: 9, .. })));
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let store = Store::open(&data).unwrap();
    store.flush().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("store"))), (0o700, 0o700));
    assert_eq!(mode(&data.join("store/db")), 0o600);
}

#[test]
fn a_scan_picks_by_time_action_and_source() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(4);
    let mut record = SourceRecord::default();
    for number in 0..5 {
        let at = time::after(base(), Duration::from_secs(number * 1_000));
        store.append_page(page(number * 100, 100, at, &mut random), &mut record).unwrap();
    }
    let filter = ScanFilter {
        since: Some(time::after(base(), Duration::from_secs(1_050))),
        until: Some(time::after(base(), Duration::from_secs(3_000))),
        action: Some(globset::Glob::new("action_4*").unwrap().compile_matcher()),
        source: Some(source()),
        ..ScanFilter::default()
    };
    let picked: Vec<Arc<str>> = store.reader().scan(filter.clone()).map(|event| event.unwrap().action).collect();
    let expected = (150..300).filter(|number| format!("action_{}", number % 60).starts_with("action_4")).count();
    assert_eq!(picked.len(), expected);
    let mut newest: Vec<_> = store.reader().scan_newest_first(filter).map(|event| event.unwrap().sequence).collect();
    newest.reverse();
    assert!(newest.windows(2).all(|pair| pair[0] < pair[1]) && newest.len() == expected);
}

/// While pages arrive, are evaluated, merged and removed, every scan sees each event once, in order, without gaps.
#[test]
fn scans_are_whole_while_blocks_are_merged_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let at = |number: u64| time::after(base(), Duration::from_secs(number));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(4);
            let mut record = SourceRecord::default();
            let mut first = 0;
            for round in 0..60 {
                for _ in 0..10 {
                    let count = random.u64(1..6);
                    store.append_page(page(first, count, at(first), &mut random), &mut record).unwrap();
                    first += count;
                }
                evaluate_all(&store);
                store.merge_blocks().unwrap();
                if round % 10 == 9 {
                    store.remove_before(at(first.saturating_sub(200))).unwrap();
                }
            }
            over.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        for newest_first in [false, true] {
            let (store, over) = (&store, &over);
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let reader = store.reader();
                    let mut numbers: Vec<u64> = if newest_first {
                        reader.scan_newest_first(ScanFilter::default()).map(|event| event.unwrap().sequence.0).collect()
                    } else {
                        reader.scan(ScanFilter::default()).map(|event| event.unwrap().sequence.0).collect()
                    };
                    if newest_first {
                        numbers.reverse();
                    }
                    // Retention may remove the oldest events during the scan; there are no gaps after the first one.
                    let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
                    assert!(gaps <= 1, "{newest_first}: {numbers:?}");
                    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{newest_first}: {numbers:?}");
                }
            });
        }
    });
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
}

/// sled does not sync its separate files for large values: rule state is never stored that way.
#[test]
fn large_state_is_kept_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..400_000_u32).map(|number| (number % 251) as u8).collect();
    let names = ["memory/a", "memory/b", "other"];
    let commit = |store: &Store, values: [Option<&[u8]>; 3]| {
        let state = names.iter().zip(values).map(|(name, bytes)| ((*name).to_owned(), bytes.map(<[u8]>::to_vec)));
        store.writing().commit(&Commit { state: state.collect(), ..Commit::default() }).unwrap();
    };
    let state = |store: &Store| store.reader().state().unwrap();
    {
        let store = Store::open(directory.path()).unwrap();
        for _ in 0..20 {
            commit(&store, [Some(&large), Some(&large[..7_000]), Some(b"small")]);
        }
        let blobs = std::fs::read_dir(directory.path().join("store/blobs")).map_or(0, Iterator::count);
        assert_eq!(blobs, 0);
        let expected: Vec<(String, Vec<u8>)> = names
            .iter()
            .map(|name| (*name).to_owned())
            .zip([large.clone(), large[..7_000].to_vec(), b"small".to_vec()])
            .collect();
        assert_eq!(state(&store), expected);
        assert!(store.verify().unwrap().problems.is_empty());
    }
    let store = Store::open_patiently(directory.path(), std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(state(&store)[0].1, large);
    // Values that shrink or are removed leave nothing behind.
    commit(&store, [Some(b"small"), None, Some(b"small")]);
    assert_eq!(state(&store), [("memory/a".to_owned(), b"small".to_vec()), ("other".to_owned(), b"small".to_vec())]);
    drop(store);
    let db = loop {
        match sled::open(directory.path().join("store")) {
            Ok(db) => break db,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(db.scan_prefix(b"r").count(), 0);
}

/// The numbers of alerts by status are right after each change, after retention, and in a store that does not have them yet.
#[test]
fn alerts_are_counted_by_status() {
    use watchbell::model::{
        alert::{AlertAction, AlertChange, AlertStatus, Remark, Severity},
        name::{AlertId, RuleId},
    };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let rule = RuleId::parse("team.rule").unwrap();
    let open = |number: u64, severity: Severity, at: Timestamp| {
        let mut alert = watchbell::deliver::test_alert(at).unwrap();
        alert.id = AlertId::derive(&rule, "", &number.to_string(), "");
        alert.severity = severity;
        AlertChange::Opened(Box::new(alert))
    };
    let commit = |changes: Vec<AlertChange>, now: Timestamp| {
        let mut writing = store.writing();
        let staged = writing.stage(changes, now).unwrap();
        writing.commit(&Commit { staged, ..Commit::default() }).unwrap();
    };
    let counts = || {
        let counts = store.reader().alert_counts().unwrap();
        assert!(store.verify().unwrap().problems.is_empty());
        AlertStatus::ALL.map(|status| Severity::ALL.map(|severity| counts.of(status, severity)))
    };
    let later = time::after(base(), Duration::from_secs(86_400));
    commit(
        vec![open(1, Severity::Low, base()), open(2, Severity::High, base()), open(3, Severity::High, base())],
        base(),
    );
    assert_eq!(counts(), [[0, 1, 0, 2, 0], [0; 5], [0; 5]]);
    let changes = store.reader().alerts(watchbell::store::AlertFilter::default()).map(Result::unwrap).map(|alert| {
        let action = match alert.severity {
            Severity::Low => AlertAction::Acknowledge,
            _ => AlertAction::Resolve(None),
        };
        let remark = Remark { author: "dana".to_owned(), at: base(), comment: None };
        AlertChange::Handled { alert: alert.id, action, remark }
    });
    commit(changes.collect(), base());
    commit(vec![open(4, Severity::Critical, later)], later);
    assert_eq!(counts(), [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 2, 0]]);
    store.remove_before(later).unwrap();
    assert_eq!(counts(), [[0, 0, 0, 0, 1], [0; 5], [0; 5]]);
    // As a store that an earlier version has written.
    drop(store);
    let db = crate::support::open_sled(directory.path().join("store"));
    assert!(db.remove("m/alerts").unwrap().is_some());
    db.flush().unwrap();
    drop(db);
    let store = Store::open_patiently(directory.path(), Duration::from_secs(10)).unwrap();
    assert_eq!(store.reader().alert_counts().unwrap().of(AlertStatus::Open, Severity::Critical), 1);
}
