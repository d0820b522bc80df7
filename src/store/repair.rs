//! Repairs a store that sled does not open, and compacts a store that has grown too large.
//!
//! sled 0.34 keeps a snapshot of its page table next to its log, and writes it again whenever it opens. After an abrupt
//! stop the snapshot may be half written, and sled then refuses to open (its issues 1527 and 1533). Usually the log
//! alone is enough. It is not if sled has freed parts of the log that the snapshot made unnecessary, so a copy of each
//! snapshot is kept from when it was good.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    Delivery, Refetch, SourceRecord, Store, StoreError, Written,
    block::Directory,
    files::{Pair, aside, exchange, lock, make, replace, sync_parent},
    key,
    salvage::{self, Recovered},
    sled_open, value,
};
use crate::model::{
    alert::{Alert, LoggedChange},
    name::{Sequence, SourceName},
    time::{self, Timestamp},
};

/// The result of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// Bytes on disk before.
    pub before: u64,
    /// Bytes on disk after.
    pub after: u64,
}

/// The prefix of the name of a snapshot's copy.
const KEPT_SNAPSHOT: &str = "kept-";
fn is_snapshot(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap."))
}

/// Where a copy of the store is kept while a repair is tried.
fn copy_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store.as-it-was")
}

/// Undoes a repair that a crash interrupted: the copy replaces the store again, and the repair starts again.
pub(super) fn finish_interrupted(data_dir: &Path, path: &Path) -> Result<(), StoreError> {
    let unusable = |error| StoreError::Directory { path: path.to_owned(), error };
    let kept = copy_of(data_dir);
    if !kept.exists() {
        return return_snapshot(path).map_err(unusable);
    }
    let lock = lock(data_dir, path)?;
    exchange(&kept, path).map_err(unusable)?;
    drop(lock);
    fs::remove_dir_all(&kept).map_err(unusable)
}

/// Restores the snapshot from its copy if it is gone.
fn return_snapshot(path: &Path) -> std::io::Result<()> {
    let candidates = candidates(path)?;
    match candidates.first() {
        Some(Some((file, name))) if !path.join(name).exists() => fs::copy(file, path.join(name)).map(drop),
        _ => Ok(()),
    }
}

/// Opens a store that sled refused, with another snapshot than the newest, or none. sled changes what it opens, so this
/// is tried only while there is a complete copy: if no attempt restores everything, or a crash intervenes, the copy
/// replaces the store again.
pub(super) fn without_snapshots(data_dir: &Path, path: &Path) -> Result<sled::Db, StoreError> {
    let unusable = |error| StoreError::Directory { path: path.to_owned(), error };
    let refused = |detail: String| StoreError::Unopenable { path: path.to_owned(), detail };
    // No other process may be writing a snapshot now.
    let lock = lock(data_dir, path)?;
    let snapshots: Vec<PathBuf> = fs::read_dir(path)
        .map_err(unusable)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_snapshot(path))
        .collect();
    if snapshots.is_empty() {
        return Err(refused("its log is corrupted".to_owned()));
    }
    let (copying, kept) = (data_dir.join("store.copying"), copy_of(data_dir));
    if copying.exists() {
        // Not complete, or it would have its final name.
        fs::remove_dir_all(&copying).map_err(unusable)?;
    }
    if let Err(error) = copy_directory(path, &copying, &|_| true) {
        fs::remove_dir_all(&copying).ok();
        return Err(refused(format!("a snapshot is damaged, and there is no space for a copy to repair: {error}")));
    }
    fs::rename(&copying, &kept).and_then(|()| sync_parent(&kept)).map_err(unusable)?;
    drop(lock);
    let mut problem = String::new();
    for candidate in candidates(&kept).map_err(unusable)? {
        // Each attempt starts from the copy, because a failed one has changed the log.
        fs::remove_dir_all(path).map_err(unusable)?;
        copy_directory(&kept, path, &|path| !is_snapshot(path)).map_err(unusable)?;
        if let Some((file, name)) = &candidate {
            fs::copy(file, path.join(name)).map_err(unusable)?;
        }
        let opened = sled_open(path).and_then(|db| match db.get(key::FORMAT)? {
            Some(_) => Ok(db),
            // To sled, a log that it cannot read is an empty log.
            None => Err(sled::Error::Corruption { at: None, bt: () }),
        });
        match opened {
            Ok(db) => {
                tracing::warn!(store = %path.display(), "opened the store without a damaged snapshot, as after an abrupt stop; nothing is lost");
                fs::remove_dir_all(&kept).map_err(unusable)?;
                return Ok(db);
            }
            Err(error) => problem = error.to_string(),
        }
    }
    exchange(&kept, path).map_err(unusable)?;
    fs::remove_dir_all(&kept).map_err(unusable)?;
    Err(refused(problem))
}

/// The snapshots to try, with the names that sled uses for them, the newest first; `None` is the log alone. A copy is
/// as good as the original, because everything later is in the log.
fn candidates(directory: &Path) -> std::io::Result<Vec<Option<(PathBuf, String)>>> {
    let mut candidates = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let original = name.strip_prefix(KEPT_SNAPSHOT).unwrap_or(&name).to_owned();
        let whole = original.strip_prefix("snap.").is_some_and(|lsn| lsn.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if whole {
            candidates.push(Some((path, original)));
        }
    }
    candidates.sort_by(|one, other| {
        let name = |candidate: &Option<(PathBuf, String)>| candidate.as_ref().map(|(_, name)| name.clone());
        name(other).cmp(&name(one))
    });
    candidates.push(None);
    Ok(candidates)
}

/// Keeps a copy of the snapshot with which sled has just opened the store: earlier parts of the log may be gone, so
/// that the log alone may not be enough.
pub(super) fn keep_snapshot(path: &Path) -> std::io::Result<()> {
    let names: Vec<String> = fs::read_dir(path)?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect();
    let newest = names
        .iter()
        .filter(|name| name.strip_prefix("snap.").is_some_and(|lsn| lsn.bytes().all(|byte| byte.is_ascii_hexdigit())))
        .max();
    let Some(newest) = newest else {
        return Ok(());
    };
    let kept = format!("{KEPT_SNAPSHOT}{newest}");
    if !names.contains(&kept) {
        let making = path.join("kept-making");
        fs::copy(path.join(newest), &making)?;
        File::open(&making)?.sync_all()?;
        fs::rename(&making, path.join(&kept))?;
        File::open(path)?.sync_all()?;
    }
    for old in names.iter().filter(|name| name.starts_with(KEPT_SNAPSHOT) && **name != kept) {
        fs::remove_file(path.join(old))?;
    }
    Ok(())
}

/// Rewrites the store so that it does not take more space than it needs. No agent may be running.
pub fn compact(data_dir: &Path) -> Result<Compacted, StoreError> {
    let directory = |error| StoreError::Directory { path: data_dir.to_owned(), error };
    let store = Store::open_patiently(data_dir, super::RELEASE_TIMEOUT)?;
    let before = store.size_on_disk()?;
    let new = data_dir.join("store.new");
    let count = store.tree().len() as u64;
    let pairs = store
        .tree()
        .iter()
        .map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(StoreError::from));
    let made = make(&new, pairs)?;
    if made != count {
        fs::remove_dir_all(&new).map_err(directory)?;
        return Err(StoreError::damaged("entries", format!("copied {made} of {count}")));
    }
    let path = store.inner.path.clone();
    exchange(&new, &path).map_err(directory)?;
    drop(store);
    fs::remove_dir_all(&new).map_err(directory)?;
    let after = Store::open_patiently(data_dir, super::RELEASE_TIMEOUT)?.size_on_disk()?;
    Ok(Compacted { before, after })
}

/// Copies what is readable of a store to a new one, and keeps the old one aside, complete. The next agent fetches what
/// the sources still have of the lost data again, from `kept_since` on. Events that had been evaluated are not
/// evaluated again, so that there are no duplicate notifications.
///
/// `sources` are those of the configuration, because their records may be among the lost data.
pub fn recover(
    data_dir: &Path,
    sources: &[SourceName],
    kept_since: Timestamp,
    now: Timestamp,
) -> Result<Recovered, StoreError> {
    let directory = |error| StoreError::Directory { path: data_dir.to_owned(), error };
    let path = data_dir.join("store");
    super::refuse_as_root(data_dir)?;
    let lock = lock(data_dir, &path)?;
    let last_written = fs::metadata(path.join("db"))
        .and_then(|file| file.modified())
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or(now);
    // sled changes what it opens; this leaves the original unchanged.
    let copy = data_dir.join("store.salvage");
    let mut found = Recovered::default();
    let mut evaluated = BTreeMap::new();
    let mut pairs = Vec::new();
    for candidate in candidates(&path).map_err(directory)? {
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(directory)?;
        }
        // Without sled's parameters, which it writes again, they cannot be damaged.
        copy_directory(&path, &copy, &|path| !is_snapshot(path) && !path.ends_with("conf")).map_err(directory)?;
        if let Some((file, name)) = &candidate {
            fs::copy(file, copy.join(name)).map_err(directory)?;
        }
        if let Ok(db) = sled_open(&copy)
            && !db.is_empty()
        {
            pairs = salvage::read(&db, &mut found, &mut evaluated);
            break;
        }
    }
    let written = Written::next_to(&path);
    // To sled, a log whose beginning it cannot read is an empty log, and one whose end it cannot read is a shorter log.
    // If the store was opened since then, it has recorded the loss itself.
    let number = |wanted: &[u8]| {
        let found = pairs.iter().find(|(name, _)| name == wanted).and_then(|(_, bytes)| value::number(bytes));
        found.unwrap_or(0)
    };
    let has = Written::from(&number);
    let is_short = written.is_some_and(|written| written.lacks(has).is_some()) || number(key::LOST) > 0;
    if pairs.is_empty() || is_short || found.unreadable > 0 {
        salvage::search(&path, &mut pairs, &mut found, &mut evaluated).map_err(directory)?;
    }
    if let Some(written) = written {
        salvage::set_numbers(&mut pairs, written);
    }
    finish(&mut pairs, sources, &evaluated, (kept_since, now), last_written, &mut found)?;
    let new = data_dir.join("store.new");
    make(&new, pairs.into_iter().map(Ok))?;
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    found.kept = aside(data_dir, "damaged", &stamp);
    replace(&new, &path, &found.kept)?;
    fs::remove_dir_all(&copy).map_err(directory)?;
    drop(lock);
    Store::open_patiently(data_dir, super::RELEASE_TIMEOUT)?;
    Ok(found)
}

fn copy_directory(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?.path();
        let Some(name) = entry.file_name() else { continue };
        if !wanted(&entry) {
            continue;
        }
        if entry.is_dir() {
            copy_directory(&entry, &to.join(name), wanted)?;
        } else {
            fs::copy(&entry, to.join(name))?;
            let copy = File::options().write(true).open(to.join(name))?;
            // The time of the last write is used to find out how far the agent had come.
            copy.set_modified(fs::metadata(&entry)?.modified()?)?;
            copy.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

/// The ranges of event numbers without a block, from the first that should be there, if known, to the last.
fn missing(all: &BTreeMap<Vec<u8>, Vec<u8>>, first: Option<u64>, last: u64) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut missing = Vec::new();
    let mut next = first;
    for (_, bytes) in all.iter().filter(|(name, _)| name.first() == Some(&key::DIRECTORY)) {
        let directory = Directory::parse(bytes)?;
        let first = directory.first.0;
        if let Some(next) = next.filter(|next| *next < first) {
            missing.push((next, first - 1));
        }
        next = next.max(Some(directory.last().0 + 1));
    }
    let next = next.unwrap_or(1);
    if next <= last {
        missing.push((next, last));
    }
    Ok(missing)
}

/// Drops references to lost data, corrects the numbers, and requests a refetch from the sources.
fn finish(
    pairs: &mut Vec<Pair>,
    sources: &[SourceName],
    evaluated: &BTreeMap<SourceName, Timestamp>,
    (kept_since, now): (Timestamp, Timestamp),
    last_written: Timestamp,
    found: &mut Recovered,
) -> Result<(), StoreError> {
    let mut all: BTreeMap<Vec<u8>, Vec<u8>> = std::mem::take(pairs).into_iter().collect();
    let alerts: HashSet<Vec<u8>> = all
        .keys()
        .filter(|name| name.first() == Some(&key::ALERT))
        .filter_map(|name| name.get(1..17).map(<[u8]>::to_vec))
        .collect();
    found.alerts = alerts.len() as u64;
    // What belongs to a lost alert is dropped; the index by time is rebuilt.
    all.retain(|name, bytes| match name.first() {
        Some(&(key::MATCH | key::REFERENCE | key::CHANGE_OF)) => {
            name.get(1..17).is_some_and(|alert| alerts.contains(alert))
        }
        Some(&key::SILENCED) => name.get(9..25).is_some_and(|alert| alerts.contains(alert)),
        Some(&key::ALERT_TIME) => false,
        Some(&(key::DELIVERY | key::DEAD_LETTER)) => value::from_json::<Delivery>("", bytes)
            .is_ok_and(|delivery| alerts.contains(delivery.alert.bytes().as_slice())),
        Some(&key::CHANGE) => value::from_json::<LoggedChange>("", bytes)
            .is_ok_and(|change| alerts.contains(change.alert.bytes().as_slice())),
        _ => true,
    });
    let mut times = Vec::new();
    for (name, bytes) in &all {
        if name.first() == Some(&key::ALERT) {
            let alert: Alert = value::from_json("an alert", bytes)?;
            times.push((key::alert_time(alert.opened_at, alert.id), Vec::new()));
        }
    }
    all.extend(times);
    let changes: HashSet<u64> = all
        .keys()
        .filter(|name| name.first() == Some(&key::CHANGE))
        .filter_map(|name| key::number_at_end(name))
        .collect();
    all.retain(|name, _| {
        name.first() != Some(&key::CHANGE_OF)
            || key::number_at_end(name).is_some_and(|number| changes.contains(&number))
    });
    let number = |name: &[u8]| all.get(name).and_then(|bytes| value::number(bytes)).unwrap_or(0);
    let mut last = number(key::NEXT_SEQUENCE).saturating_sub(1);
    let matched =
        all.keys().filter(|name| name.first() == Some(&key::MATCH)).filter_map(|name| key::number_at_end(name)).max();
    let mut checkpoint = number(key::CHECKPOINT);
    for (name, bytes) in &all {
        if name.first() == Some(&key::DIRECTORY) {
            let directory = Directory::parse(bytes)?;
            last = last.max(directory.last().0);
        }
    }
    last = last.max(matched.unwrap_or(0)).max(checkpoint);
    // A store of an earlier version does not record what retention has kept.
    let first = Some(number(key::FIRST)).filter(|first| *first > 0).or(found.oldest);
    found.missing = missing(&all, first, last)?;
    found.lost_events = found.missing.iter().map(|(first, last)| last - first + 1).sum();
    if !all.contains_key(key::CHECKPOINT) {
        // It is not known how far evaluation had come, so everything that is left counts as evaluated.
        checkpoint = last;
    }
    let backlog = last > checkpoint;
    let last_change = number(key::LAST_CHANGE).max(changes.iter().copied().max().unwrap_or(0));
    let alive = number(key::ALIVE).cast_signed();
    let put = |all: &mut BTreeMap<Vec<u8>, Vec<u8>>, name: &[u8], number: u64| {
        all.insert(name.to_vec(), number.to_be_bytes().to_vec());
    };
    put(&mut all, key::FORMAT, u64::from(super::FORMAT));
    put(&mut all, key::NEXT_SEQUENCE, Sequence(last).next().0);
    put(&mut all, key::CHECKPOINT, checkpoint);
    put(&mut all, key::LAST_CHANGE, last_change);
    // Some alerts may be gone: they are counted again.
    all.remove(key::ALERT_COUNTS);
    // What was lost has been reported.
    all.remove(key::LOST);

    let mut names: Vec<SourceName> = sources.to_vec();
    for name in all.keys().filter(|name| name.first() == Some(&key::SOURCE)) {
        let text = std::str::from_utf8(name.get(1..).unwrap_or_default()).unwrap_or_default();
        if let Ok(name) = SourceName::parse(text)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    for source in names {
        let record = all.get(&key::source(&source)).map(|bytes| value::from_json::<SourceRecord>("a record", bytes));
        let mut record = record.transpose()?.unwrap_or_default();
        // Events that Atlassian had processed before this are known to have been evaluated. All others are evaluated:
        // an alert that already exists is not raised again.
        let nothing_left = found.events == 0 && found.alerts == 0;
        record.evaluated_before = match (record.newest_processed, evaluated.get(&source)) {
            (Some(newest), _) if !backlog => Some(newest),
            (_, Some(newest)) => Some(*newest),
            // Without any evidence, there would be duplicate notifications for everything: an agent was alive until
            // `alive`, or wrote until then.
            (None, None) if nothing_left => Some(if alive > 0 { time::from_millis(alive) } else { last_written }),
            _ => None,
        };
        record.cursor = None;
        record.refetch = Some(Refetch::new(kept_since, now).and(record.refetch.take()));
        found.fetched_again.push((source.clone(), kept_since));
        all.insert(key::source(&source), value::to_json(&record)?);
    }
    pairs.extend(all);
    Ok(())
}
