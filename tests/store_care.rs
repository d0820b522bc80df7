use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use watchbell::{
    model::{
        event::IncomingEvent,
        name::{Sequence, SourceName},
        time::{self, Clock},
    },
    simulator::SimulatorOptions,
    store::{self, Commit, Page, ScanFilter, SourceRecord, Store, StoreCheck, StoreError},
};

use crate::support::{Lab, alerts, base, entry, evaluated, now, organization, rule, scenario, stored_ids};

/// sled releases a store some milliseconds after it has been closed.
fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open_patiently(directory, Duration::from_secs(10))
}

fn source() -> SourceName {
    SourceName::parse("test").unwrap()
}

/// Writes and removes much data, so that sled reuses parts of its log.
fn churn(directory: &Path, days: std::ops::Range<u64>) -> Store {
    let store = open(directory).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut record = SourceRecord::default();
    for day in days {
        let at = time::after(base(), Duration::from_secs(day * 86_400));
        for page in 0..20 {
            let events = (0..100)
                .map(|number| {
                    let mut given = entry(&format!("e{day}-{page}-{number}"), "x", 0, "ann");
                    given["attributes"]["time"] = at.to_string().into();
                    let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(500).collect();
                    given["attributes"]["filler"] = text.into();
                    IncomingEvent::parse(&given.to_string()).unwrap()
                })
                .collect();
            store.append_page(Page::new(source(), at, events), &mut record).unwrap();
        }
        let mark = store.reader().last_sequence().unwrap();
        store.writing().commit(&Commit { checkpoint: Some(mark), ..Commit::default() }).unwrap();
        store.remove_before(time::before(at, Duration::from_secs(86_400))).unwrap();
    }
    store
}

/// The complete content of a store, for comparison.
fn contents(store: &Store) -> (Vec<watchbell::model::event::Event>, Sequence, StoreCheck) {
    let events = store.reader().scan(ScanFilter::default()).map(Result::unwrap).collect();
    (events, store.reader().checkpoint().unwrap(), store.verify().unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// A file's name and content.
type File = (String, Vec<u8>);

fn snapshots(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
        .collect();
    found.sort();
    found
}

/// sled refuses a damaged snapshot; the log alone is sufficient, whatever happened to the snapshot.
#[test]
fn a_damaged_snapshot_costs_nothing() {
    let origin = tempfile::tempdir().unwrap();
    drop(churn(origin.path(), 0..4));
    // sled writes a snapshot when it opens; later writes are only in the log.
    let store = churn(origin.path(), 4..8);
    let expected = contents(&store);
    assert_eq!(expected.2.wrong, 0, "{:#?}", expected.2);
    assert_eq!(expected.0.len(), 4_000, "most has been removed again");
    drop(store);
    let snapshot = snapshots(origin.path()).pop().expect("sled wrote one when it was opened");
    let bytes = fs::read(&snapshot).unwrap();
    let name = snapshot.file_name().unwrap().to_string_lossy().into_owned();

    let mut damages: Vec<(String, Vec<File>)> = vec![
        ("empty".to_owned(), vec![(name.clone(), Vec::new())]),
        ("left half written".to_owned(), vec![(format!("{name}.generating"), bytes[..bytes.len() / 3].to_vec())]),
        ("a newer one left empty".to_owned(), vec![("snap.FFFFFFFFFFFFFFF0.generating".to_owned(), Vec::new())]),
        ("a newer one of nonsense".to_owned(), vec![("snap.FFFFFFFFFFFFFFF1".to_owned(), vec![0x5a; 4_096])]),
        ("both".to_owned(), vec![(name.clone(), vec![0; 64]), (format!("{name}.generating"), bytes[..20].to_vec())]),
    ];
    for cut in [1, 11, 12, 13, bytes.len() / 2, bytes.len() - 1] {
        damages.push((format!("cut after {cut} bytes"), vec![(name.clone(), bytes[..cut].to_vec())]));
    }
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..12 {
        let mut flipped = bytes.clone();
        let at = random.usize(..flipped.len());
        flipped[at] ^= 1 << random.u8(..8);
        damages.push((format!("a bit of byte {at} of {} flipped", bytes.len()), vec![(name.clone(), flipped)]));
    }
    // Short runs leave little but the end in the log: here, the log alone is not sufficient.
    let short = tempfile::tempdir().unwrap();
    for round in 0..6 {
        drop(churn(short.path(), round..round + 1));
        drop(open(short.path()).unwrap());
    }
    let whole = contents(&open(short.path()).unwrap());
    for damage in [&b""[..], b"xx", &[0; 5_000]] {
        let directory = tempfile::tempdir().unwrap();
        copy(short.path(), directory.path());
        fs::write(snapshots(directory.path()).pop().unwrap(), damage).unwrap();
        fs::write(directory.path().join("store/snap.00ff.generating"), b"").unwrap();
        assert_eq!(contents(&open(directory.path()).unwrap()), whole);
    }
    {
        let directory = tempfile::tempdir().unwrap();
        copy(short.path(), directory.path());
        snapshots(directory.path()).iter().for_each(|snapshot| fs::remove_file(snapshot).unwrap());
        assert_eq!(contents(&open(directory.path()).unwrap()), whole, "removed");
    }
    for (what, files) in damages {
        let directory = tempfile::tempdir().unwrap();
        copy(origin.path(), directory.path());
        for (name, bytes) in files {
            fs::write(directory.path().join("store").join(name), bytes).unwrap();
        }
        let store = open(directory.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(contents(&store), expected, "{what}");
        // It continues as if nothing had happened.
        let event = IncomingEvent::parse(&entry("new", "x", 0, "ann").to_string()).unwrap();
        store.append_page(Page::new(source(), base(), vec![event]), &mut SourceRecord::default()).unwrap();
        drop(store);
        let store = open(directory.path()).unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert_eq!(store.reader().scan(ScanFilter::default()).count(), 4_001, "{what}");
        let beside = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(beside, 1, "nothing is left next to the store: {what}");
    }
}

/// If the log itself is damaged, nothing is deleted, and the message says where the data is and what to do.
#[test]
fn a_damaged_log_is_left_alone_and_told() {
    let directory = tempfile::tempdir().unwrap();
    drop(churn(directory.path(), 0..1));
    drop(open(directory.path()).unwrap());
    let log = directory.path().join("store/db");
    let mut bytes = fs::read(&log).unwrap();
    for byte in &mut bytes {
        *byte ^= 0xff;
    }
    fs::write(&log, &bytes).unwrap();
    for snapshot in snapshots(directory.path()) {
        fs::write(snapshot, b"damaged beyond all repair").unwrap();
    }
    let names = |directory: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = names(&directory.path().join("store"));
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Unopenable { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("watchbell store recover") && told.contains("nothing was deleted"), "{told}");
    assert!(told.contains(&directory.path().join("store").display().to_string()), "{told}");
    assert!(names(&directory.path().join("store")) == before, "byte for byte as it was");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn verify_finds_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let store = churn(directory.path(), 0..1);
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
    drop(store);
    // Direct damage: a block loses a piece, an id its event, an alert is invalid.
    let db = crate::support::open_sled(directory.path().join("store"));
    let first = |prefix: u8| db.scan_prefix([prefix]).keys().next().unwrap().unwrap();
    db.remove(first(b'e')).unwrap();
    db.remove(first(b'i')).unwrap();
    db.insert([b"a".as_slice(), &[7; 16]].concat(), b"\x01{}").unwrap();
    db.insert([b"x".as_slice(), &[9; 16], &1_u64.to_be_bytes()].concat(), b"e1").unwrap();
    db.flush().unwrap();
    drop(db);
    let found = open(directory.path()).unwrap().verify().unwrap();
    let problems = found.problems.join("\n");
    for wanted in ["a block", "block chunks", "an alert", "matches refer to missing alerts"] {
        assert!(problems.contains(wanted), "{wanted}: {problems}");
    }
}

const TWO_RULES: [(&str, &str); 2] = [
    ("rules/each.rhai", "fn rule(event) { event.action == \"x\" }\nfn dedup(event) { event.id }"),
    ("rules/by_actor.rhai", "fn rule(event) { true }\nfn dedup(event) { event.actor.id }"),
];

fn recent(count: i64) -> Vec<Value> {
    let start = time::before(Clock::system().now(), Duration::from_secs(7_200));
    let offset = start.as_second() - base().as_second();
    (0..count)
        .map(|index| entry(&format!("e{index:04}"), if index % 7 == 0 { "x" } else { "y" }, offset + index, "ann"))
        .collect()
}

fn lab(events: i64) -> Lab {
    let lab = Lab::with_organization(
        SimulatorOptions { page_limit: 50, ..SimulatorOptions::new(scenario(&recent(events))) },
        "drop_off = \"30d\"",
    );
    for (path, functions) in TWO_RULES {
        lab.write(path, rule(&format!("team.{}", &path[6..path.len() - 5]), "", functions));
    }
    lab.run_agent_with(&Clock::system(), |reader| {
        evaluated(reader, u64::try_from(events).unwrap()) && reader.outbox().unwrap().is_empty()
    });
    lab
}

#[test]
fn a_backup_is_the_store_again() {
    let lab = lab(400);
    let expected = contents(&lab.reader().0);
    let before = alerts(&lab.reader().1);
    let run = |arguments: &[&str]| lab.watchbell(arguments);
    assert_eq!(run(&["store", "backup", "copy.wb"]).code, Some(0));
    assert_eq!(run(&["store", "backup", "copy.wb"]).code, Some(3), "it is there already");
    // Not over an existing store, nor from something that is not a backup.
    let refused = run(&["store", "restore", "copy.wb"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("--replace"), "{}", refused.show());
    let bytes = fs::read(lab.path("copy.wb")).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for (name, bytes) in [("cut", &bytes[..bytes.len() - 9]), ("flipped", &flipped[..]), ("other", b"hello".as_slice())]
    {
        lab.write(name, bytes);
        let refused = run(&["store", "restore", name, "--replace"]);
        assert_eq!(refused.code, Some(3), "{name}: {}", refused.show());
        assert_eq!(contents(&lab.reader().0), expected, "{name}: the store is as it was");
    }
    // Everything newer than the backup is removed from the store, and kept separately.
    lab.write("more.jsonl", entry("later", "x", 0, "ann").to_string());
    assert_eq!(run(&["events", "import", "more.jsonl", "--source", "other"]).code, Some(0));
    let restored = run(&["store", "restore", "copy.wb", "--replace"]);
    assert_eq!(restored.code, Some(0), "{}", restored.show());
    assert_eq!(contents(&lab.reader().0), expected);
    assert_eq!(alerts(&lab.reader().1), before);
    let kept: Vec<_> = fs::read_dir(lab.path("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(kept.iter().any(|name| name.to_string_lossy().starts_with("store.replaced-")), "{kept:?}");
    assert_eq!(run(&["store", "verify"]).code, Some(0));
}

#[test]
fn compaction_makes_it_smaller_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = churn(directory.path(), 0..8);
    let expected = contents(&store);
    drop(store);
    let compacted = watchbell::store::compact(directory.path()).unwrap();
    assert!(compacted.after < compacted.before, "{compacted:?}");
    let store = open(directory.path()).unwrap();
    assert_eq!(contents(&store), expected);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left next to it");
}

/// Part of the store is lost: readable data is saved, the rest is fetched again, and nothing is delivered twice.
#[test]
fn what_is_lost_is_fetched_again_and_told_once() {
    let lab = lab(400);
    let told = fs::read_to_string(lab.path("alerts.jsonl")).unwrap();
    let (ids, before) = {
        let (_store, reader) = lab.reader();
        (stored_ids(&reader), alerts(&reader))
    };
    // Half of the blocks lose a piece, and a source loses its record. The rest goes to new files, so nothing old
    // remains in them.
    {
        let (old, new) = (lab.path("data/store"), lab.path("data/new"));
        let db = crate::support::open_sled(&old);
        let pieces: Vec<_> = db.scan_prefix(b"e").keys().map(Result::unwrap).collect();
        for piece in pieces.iter().step_by(2) {
            db.remove(piece).unwrap();
        }
        db.insert(db.scan_prefix(b"c").keys().next().unwrap().unwrap(), b"nonsense").unwrap();
        let copy = crate::support::open_sled(&new);
        copy.import(db.export());
        copy.flush().unwrap();
        drop((db, copy));
        fs::copy(old.join("written"), new.join("written")).unwrap();
        fs::remove_dir_all(&old).unwrap();
        fs::rename(&new, &old).unwrap();
    }
    assert_eq!(lab.watchbell(&["store", "verify"]).code, Some(1));
    let recovered = lab.watchbell(&["store", "recover", "--format", "json"]);
    assert_eq!(recovered.code, Some(1), "something is missing: {}", recovered.show());
    let found: Value = serde_json::from_str(&recovered.stdout).unwrap_or_else(|_| panic!("{}", recovered.show()));
    let saved = found["events"].as_u64().unwrap();
    assert!(saved > 0 && saved < 400, "{found}");
    assert_eq!(found["lost_events"], 400 - saved);
    let kept = Path::new(found["kept"].as_str().unwrap()).file_name().unwrap().to_owned();
    assert!(lab.path("data").join(kept).join("db").exists());
    let verified = lab.watchbell(&["store", "verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.show());

    lab.run_agent_with(&Clock::system(), |reader| {
        let record = reader.sources().unwrap().into_values().next().unwrap();
        evaluated(reader, 1) && record.refetch.is_none() && reader.event_totals().unwrap().0 == 400
    });
    let (store, reader) = lab.reader();
    let mut again = stored_ids(&reader);
    again.sort();
    let mut ids = ids;
    ids.sort();
    assert_eq!(again, ids);
    assert_eq!(alerts(&reader), before, "as they were: none is new, none has grown");
    assert_eq!(fs::read_to_string(lab.path("alerts.jsonl")).unwrap(), told, "nothing is delivered twice");
    assert_eq!(store.verify().unwrap().wrong, 0);
}

/// However much of the file is lost, what is saved and what is missing add up to the original.
#[test]
fn what_is_missing_is_counted_from_the_first_event_on() {
    // The start of each value in the file: see docs/store.md.
    const MAGIC: &[u8] = b"\x03wbF1";
    let lab = lab(400);
    let file = lab.path("data/store/db");
    let whole = fs::read(&file).unwrap();
    let frames: Vec<usize> = (0..whole.len()).filter(|at| whole[*at..].starts_with(MAGIC)).collect();
    assert!(frames.len() > 10, "{}", frames.len());
    for parts in [1, 2, 3] {
        let mut bytes = whole.clone();
        // Its first parts are overwritten, and the last is cut off.
        for at in &frames[..frames.len() * parts / 4] {
            bytes[at + MAGIC.len()..at + MAGIC.len() + 12].fill(0xa5);
        }
        bytes.truncate(frames[frames.len() * 7 / 8]);
        fs::write(&file, bytes).unwrap();
        let recovered = lab.watchbell(&["store", "recover", "--format", "json"]);
        let found: Value = serde_json::from_str(&recovered.stdout).unwrap_or_else(|_| panic!("{}", recovered.show()));
        let (saved, lost) = (found["events"].as_u64().unwrap(), found["lost_events"].as_u64().unwrap());
        assert_eq!(saved + lost, 400, "{parts}: {found}");
        assert_eq!(recovered.code, Some(1), "{}", recovered.show());
        let verified = lab.watchbell(&["store", "verify"]);
        assert_eq!(verified.code, Some(0), "{}", verified.show());
        let kept = lab.path("data").join(Path::new(found["kept"].as_str().unwrap()).file_name().unwrap());
        fs::remove_dir_all(lab.path("data/store")).unwrap();
        fs::rename(kept, lab.path("data/store")).unwrap();
    }
}

/// Unreadable events are counted, whether read from the store or sent by an agent, and the rest is replayed.
#[test]
fn a_replay_goes_on_behind_what_it_cannot_read() {
    let lab = lab(400);
    let whole = lab.watchbell(&["replay", "--format", "json", "--threads", "2"]);
    {
        let db = crate::support::open_sled(lab.path("data/store"));
        let directories: Vec<_> = db.scan_prefix(b"d").keys().map(Result::unwrap).collect();
        assert!(directories.len() >= 4, "{}", directories.len());
        db.insert(&directories[1], b"nonsense").unwrap();
        let number = &directories[2][1..];
        let piece = db.scan_prefix([b"e", number].concat()).keys().next().unwrap().unwrap();
        db.remove(piece).unwrap();
        db.flush().unwrap();
    }
    let found = lab.watchbell(&["replay", "--format", "json"]);
    let (whole, found): (Value, Value) =
        (serde_json::from_str(&whole.stdout).unwrap(), serde_json::from_str(&found.stdout).unwrap());
    let events = |report: &Value| report["events"].as_u64().unwrap();
    assert!(whole.get("unreadable").is_none() && found["unreadable"].as_u64().unwrap() > 1, "{found:#}");
    assert!(events(&found) > 0 && events(&found) < events(&whole));
    let (_store, reader) = lab.reader();
    let sent: Vec<bool> = reader.sent_blocks().map(|block| block.unwrap().block().unwrap().unpack().is_ok()).collect();
    let stored: Vec<bool> = reader.blocks().map(|block| block.unwrap().unpack().is_ok()).collect();
    assert_eq!(sent, stored);
    assert_eq!(sent.iter().filter(|readable| !**readable).count(), 1, "the directory that is nonsense");
}

/// Even if sled cannot read a store at all, a new one is created, and the old one is kept.
#[test]
fn recovery_begins_anew_where_nothing_can_be_read() {
    let lab = lab(60);
    let log = lab.path("data/store/db");
    let mut file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.write_all(&vec![0x77; usize::try_from(fs::metadata(&log).unwrap().len()).unwrap()]).unwrap();
    drop(file);
    let recovered = lab.watchbell(&["store", "recover"]);
    assert_eq!(recovered.code, Some(1), "{}", recovered.show());
    assert!(recovered.stdout.contains("saved 0 events and 0 alerts"), "{}", recovered.show());
    // Evaluated events are not reported again: all of them happened before the last write to the store.
    fs::remove_file(lab.path("alerts.jsonl")).unwrap();
    lab.run_agent_with(&Clock::system(), |reader| {
        let record = reader.sources().unwrap().into_values().next().unwrap();
        evaluated(reader, 60) && record.refetch.is_none()
    });
    assert!(alerts(&lab.reader().1).is_empty());
}

/// sled keeps its parameters in a separate file. If that is damaged, it refuses the store with an unhelpful message.
#[test]
fn damaged_parameters_of_sled_lose_nothing() {
    for damage in [&b""[..], b"torn", &[0xff; 200]] {
        let directory = tempfile::tempdir().unwrap();
        let store = churn(directory.path(), 0..2);
        let expected = contents(&store);
        drop(store);
        fs::write(directory.path().join("store/conf"), damage).unwrap();
        if let Err(error) = open(directory.path()) {
            assert!(error.to_string().contains("watchbell store recover"), "{error}");
            let now = time::from_millis(1_800_000_000_000);
            let recovered = store::recover(directory.path(), &[], now, now).unwrap();
            assert!(recovered.is_whole(), "{recovered:#?}");
        }
        assert_eq!(contents(&open(directory.path()).unwrap()).0, expected.0);
    }
}

/// A repair that a crash interrupted starts again from the copy, whatever happened to the store.
#[test]
fn an_interrupted_repair_is_undone_and_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = churn(directory.path(), 0..2);
    let expected = contents(&store);
    drop(store);
    drop(open(directory.path()).unwrap());
    // As after a crash: the copy is complete, and the store was being tried without its snapshots.
    copy(&directory.path().join("store"), &directory.path().join("store.as-it-was"));
    fs::write(directory.path().join("store/db"), b"torn").unwrap();
    for snapshot in snapshots(directory.path()) {
        fs::remove_file(snapshot).unwrap();
    }
    assert_eq!(contents(&open(directory.path()).unwrap()), expected);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A log that is completely unreadable is not mistaken for a new store.
#[test]
fn a_log_of_nonsense_is_no_empty_store() {
    let directory = tempfile::tempdir().unwrap();
    drop(churn(directory.path(), 0..3));
    let log = directory.path().join("store/db");
    let length = usize::try_from(fs::metadata(&log).unwrap().len()).unwrap();
    assert!(length > 4 << 20, "{length}");
    for snapshot in snapshots(directory.path()) {
        fs::remove_file(snapshot).unwrap();
    }
    fs::write(&log, vec![0x77; length]).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Unopenable { .. }), "{error}");
}

/// Pending deliveries keep their place when the store is rewritten, and later ones do not take it.
#[test]
fn deliveries_survive_compaction_and_later_ones_follow_them() {
    use watchbell::{
        model::{
            alert::Notice,
            name::{AlertId, DestinationName},
        },
        store::Delivery,
    };
    let directory = tempfile::tempdir().unwrap();
    let destination = DestinationName::parse("slack").unwrap();
    let mut alert = watchbell::deliver::test_alert(base()).unwrap();
    for round in 0..4_u8 {
        let store = open(directory.path()).unwrap();
        let mut commit = Commit::default();
        for number in 0..3 {
            alert.id = AlertId::from_bytes([round * 3 + number; 16]);
            commit.deliveries.push(Delivery::new(destination.clone(), &alert, Notice::Opened, base()));
        }
        store.writing().commit(&commit).unwrap();
        if round == 1 {
            let letter = store.reader().pending(&destination, 1).unwrap();
            store.give_up(&letter, base()).unwrap();
            store.revive(&letter, base()).unwrap();
        }
        drop(store);
        watchbell::store::compact(directory.path()).unwrap();
    }
    let pending = open(directory.path()).unwrap().reader().pending(&destination, 100).unwrap();
    let order: Vec<u8> = pending.iter().map(|delivery| delivery.alert.bytes()[0]).collect();
    assert_eq!(order, (0..12).collect::<Vec<u8>>());
}

/// Wherever the log is damaged, recovery produces a consistent store.
#[test]
fn recovery_from_damage_anywhere_leaves_a_whole_store() {
    let lab = lab(300);
    let bytes = fs::read(lab.path("data/store/db")).unwrap();
    let conf = fs::read(lab.path("data/store/conf")).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..8 {
        let mut damaged = bytes.clone();
        let at = random.usize(..damaged.len() - 4_096);
        for byte in &mut damaged[at..at + 600] {
            *byte = random.u8(..);
        }
        for beside in fs::read_dir(lab.path("data")).unwrap() {
            fs::remove_dir_all(beside.unwrap().path()).ok();
        }
        fs::create_dir_all(lab.path("data/store/blobs")).unwrap();
        lab.write("data/store/db", &damaged);
        lab.write("data/store/conf", &conf);
        let recovered = lab.watchbell(&["store", "recover", "--format", "json"]);
        assert_eq!(recovered.code, Some(0), "round {round}, byte {at}: {}", recovered.show());
        let verified = lab.watchbell(&["store", "verify"]);
        assert_eq!(verified.code, Some(0), "round {round}, byte {at}: {}", verified.show());
    }
}

/// Retention counts from the arrival of events, regardless of their own time.
#[test]
fn events_are_kept_by_their_arrival() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let event = |id: &str| IncomingEvent::parse(&entry(id, "x", 0, "ann").to_string()).unwrap();
    let now = time::after(base(), Duration::from_secs(400 * 86_400));
    store.import_page(Page::new(source(), now, vec![event("imported")])).unwrap();
    let mut polled = entry("polled", "x", 0, "ann");
    polled["attributes"]["time"] = "1970-01-01T00:00:10Z".into();
    let polled = IncomingEvent::parse(&polled.to_string()).unwrap();
    store.append_page(Page::new(source(), now, vec![polled]), &mut SourceRecord::default()).unwrap();
    let mark = store.reader().last_sequence().unwrap();
    store.writing().commit(&Commit { checkpoint: Some(mark), ..Commit::default() }).unwrap();
    store.remove_before(time::before(now, Duration::from_secs(180 * 86_400))).unwrap();
    assert_eq!(stored_ids(&store.reader()), ["imported", "polled"]);
    let verified = store.verify().unwrap();
    assert!(verified.problems.is_empty(), "{verified:?}");
    store.remove_before(time::after(now, Duration::from_secs(1))).unwrap();
    assert!(stored_ids(&store.reader()).is_empty());
}

/// A new rule learns from the readable events; the agent keeps running.
#[test]
fn a_damaged_block_keeps_no_rule_from_learning() {
    let late = |id: &str| {
        let mut late = entry(id, "x", 0, "ann");
        let time = time::after(now(), Duration::from_secs(3_600)).to_string();
        late["attributes"]["processedAt"] = time.clone().into();
        late["attributes"]["time"] = time.into();
        late
    };
    let clock = Clock::manual(now());
    let options = SimulatorOptions {
        clock: clock.clone(),
        ..SimulatorOptions::new(scenario(&[entry("e1", "x", 0, "ann"), late("e2")]))
    };
    let lab = Lab::with_organization(options, "");
    lab.run_agent_with(&clock, |reader| evaluated(reader, 1));
    {
        let (_store, _) = lab.reader();
    }
    let db = loop {
        // sled releases a store some milliseconds after it has been closed.
        match sled::open(lab.path("data/store")) {
            Ok(db) => break db,
            Err(_) => std::thread::yield_now(),
        }
    };
    let chunks: Vec<sled::IVec> = db.scan_prefix(b"e").keys().map(Result::unwrap).collect();
    assert!(!chunks.is_empty());
    for chunk in chunks {
        db.insert(chunk, b"nonsense").unwrap();
    }
    db.flush().unwrap();
    drop(db);
    lab.write("rules/new.rhai", rule("t.new", "", "fn rule(event) { first_seen(\"k\", event.actor.id, \"30d\") }"));
    clock.set(time::after(now(), Duration::from_secs(7_200)));
    lab.run_agent_with(&clock, |reader| evaluated(reader, 2));
    let (_store, reader) = lab.reader();
    assert_eq!(alerts(&reader).len(), 1);
}

/// Number of flips. `WATCHBELL_FLIPS=500 cargo test flipped` runs more.
fn flips() -> usize {
    std::env::var("WATCHBELL_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

/// A store with 2,400 events and some alerts, in the directory that the configuration names.
fn filled(lab: &Lab) {
    let entries: Vec<Value> = (0..2_400).map(|number| entry(&format!("e{number:05}"), "x", number, "ann")).collect();
    let store = Store::open(&lab.path("data")).unwrap();
    let mut record = SourceRecord::default();
    for page in entries.chunks(100) {
        let events = page.iter().map(|entry| IncomingEvent::parse(&entry.to_string()).unwrap()).collect();
        store.append_page(Page::new(source(), now(), events), &mut record).unwrap();
    }
    let mark = store.reader().last_sequence().unwrap();
    store.writing().commit(&Commit { checkpoint: Some(mark), ..Commit::default() }).unwrap();
}

/// A bit is flipped anywhere in sled's file: `verify` reports it, or the content is unchanged. Nothing panics, and
/// `recover` saves what is readable, reports what is missing, and leaves the original unchanged.
#[test]
fn a_flipped_bit_is_noticed_or_does_no_harm() {
    let lab = Lab::with_organization(organization(&[]), "");
    filled(&lab);
    let whole: Vec<String> = stored_ids(&lab.reader().1);
    let verified = lab.watchbell(&["store", "verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.show());
    let copy = |name: &str| {
        let mut files: Vec<(std::path::PathBuf, Vec<u8>)> = Vec::new();
        for entry in fs::read_dir(lab.path(name)).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_file() {
                files.push((entry.clone(), fs::read(&entry).unwrap()));
            }
        }
        files
    };
    let (store, beside) = (copy("data/store"), copy("data"));
    let put = |files: &[(std::path::PathBuf, Vec<u8>)]| {
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap())
    };
    let db = lab.path("data/store/db");
    let bytes = fs::read(&db).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut random = fastrand::Rng::with_seed(15);
    let (mut noticed, mut recovered) = (0, 0);
    for flip in 0..flips() {
        fs::remove_dir_all(lab.path("data")).unwrap();
        fs::create_dir_all(lab.path("data/store/blobs")).unwrap();
        put(&store);
        put(&beside);
        let at = random.usize(..used);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << random.u8(..8);
        fs::write(&db, &damaged).unwrap();
        let verified = lab.watchbell(&["store", "verify"]);
        assert!(!verified.stderr.contains("please report"), "flip {flip} at {at}: {}", verified.show());
        if verified.code == Some(0) {
            let (_store, reader) = lab.reader();
            assert_eq!(stored_ids(&reader), whole, "flip {flip} at {at}");
            continue;
        }
        noticed += 1;
        put(&store);
        put(&beside);
        fs::write(&db, &damaged).unwrap();
        let saved = lab.watchbell(&["store", "recover", "--format", "json"]);
        let report: Value =
            serde_json::from_str(&saved.stdout).unwrap_or_else(|_| panic!("flip {flip} at {at}: {}", saved.show()));
        let (events, lost) = (report["events"].as_u64().unwrap(), report["lost_events"].as_u64().unwrap());
        assert_eq!(events + lost, 2_400, "flip {flip} at {at}: {}", saved.show());
        // A flipped bit costs at most the block that it is in.
        assert!(lost <= 500, "flip {flip} at {at}: {}", saved.show());
        let whole = lost == 0 && report["unreadable"] == 0 && report["searched"] == false;
        assert_eq!(saved.code, Some(if whole { 0 } else { 1 }), "{}", saved.show());
        let kept = report["kept"].as_str().unwrap();
        assert_eq!(fs::read(lab.path(kept).join("db")).unwrap(), damaged, "flip {flip} at {at}");
        let verified = lab.watchbell(&["store", "verify"]);
        assert_eq!(verified.code, Some(0), "flip {flip} at {at}: {}", verified.show());
        recovered += 1;
    }
    assert!(noticed >= flips() / 8 && recovered == noticed, "{noticed} noticed, {recovered} recovered");
}

/// Wherever a part of the file is zeroed: recovery says that everything was saved only if it was, whether the store was
/// opened in between or not, and what it leaves verifies.
#[test]
fn recovery_says_everything_was_saved_only_if_it_was() {
    let lab = lab(300);
    let state = |lab: &Lab| {
        let alerts = lab.watchbell(&["alerts", "list", "--limit", "1000", "--format", "json"]).stdout;
        let mut alerts: Vec<String> = alerts
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|alert| format!("{} {} {}", alert["id"], alert["revision"], alert["status"]))
            .collect();
        alerts.sort();
        let events = lab.watchbell(&["events", "export"]).stdout;
        (alerts, lab.watchbell(&["silence", "list", "--format", "json"]).stdout, events)
    };
    let ids: Vec<String> = state(&lab).0.iter().map(|line| line[1..33].to_owned()).collect();
    for id in ids.iter().take(20) {
        let resolved = lab.watchbell(&["alerts", "resolve", id, "--author", "dana", "--comment", "looked at it"]);
        assert_eq!(resolved.code, Some(0), "{}", resolved.show());
    }
    let silenced = ["silence", "add", "--rule", "x.*", "--for", "30d", "--author", "dana", "--comment", "none"];
    assert_eq!(lab.watchbell(&silenced).code, Some(0));
    let whole = state(&lab);
    assert_eq!(whole.0.iter().filter(|alert| alert.contains("resolved")).count(), 20);
    fs::rename(lab.path("data"), lab.path("whole")).unwrap();
    let log = fs::read(lab.path("whole/store/db")).unwrap();
    let used = log.iter().rposition(|byte| *byte != 0).unwrap();
    let mut random = fastrand::Rng::with_seed(23);
    let (mut saved, mut lost) = (0, 0);
    for round in 0..16 {
        fs::remove_dir_all(lab.path("data")).ok();
        copy(&lab.path("whole"), &lab.path("data"));
        let at = random.usize(..used);
        let mut damaged = log.clone();
        let length = [256, 4_096, 40_000][round % 3].min(damaged.len() - at);
        damaged[at..at + length].fill(0);
        if round % 4 == 3 {
            // Only the snapshot: the log has everything.
            for entry in fs::read_dir(lab.path("data/store")).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_string_lossy().contains("snap.") {
                    fs::write(path, "nonsense").unwrap();
                }
            }
        } else {
            lab.write("data/store/db", &damaged);
        }
        if round % 2 == 1 {
            lab.watchbell(&["store", "verify"]);
        }
        let recovered = lab.watchbell(&["store", "recover"]);
        let told = format!("round {round}, {length} bytes at {at} of {used}: {}", recovered.show());
        if recovered.code == Some(0) {
            assert_eq!(state(&lab), whole, "{told}");
            saved += 1;
        } else {
            assert_eq!(recovered.code, Some(1), "{told}");
            lost += 1;
        }
        let verified = lab.watchbell(&["store", "verify"]);
        assert_eq!(verified.code, Some(0), "{told}\n{}", verified.show());
    }
    // Both happen: neither answer is given whatever the damage is.
    assert!(saved > 0 && lost > 0, "{saved} saved, {lost} lost");
}
