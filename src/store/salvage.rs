//! Salvages data from a damaged store: through sled as far as it reads, and from the bytes of its file where it does
//! not.

use std::{
    collections::BTreeMap,
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    CrashRecord, Delivery, DestinationRecord, Excepted, Quarantined, SourceRecord, StoreError, Written,
    block::{self, Contents, Directory},
    files::Pair,
    frame, key, value,
};
use crate::model::{
    action::ActionRecord,
    alert::{Alert, LoggedChange},
    event::{Event, IncomingEvent},
    name::{Sequence, SourceName},
    outcome::{LoggedRules, LoggedWatermark},
    silence::Silence,
    time::{self, Timestamp},
};

/// The data that was saved from a damaged store.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// The number of events saved.
    pub events: u64,
    /// The number of events in blocks that could not be read, as far as is known.
    pub lost_events: u64,
    /// The number of alerts saved.
    pub alerts: u64,
    /// The first event that is known to have been stored.
    #[serde(skip)]
    pub(super) oldest: Option<u64>,
    /// Ranges of events that had been stored and are missing: the first and the last number of each.
    pub missing: Vec<(u64, u64)>,
    /// True if the store's file was searched byte by byte, because sled could not open the store, the store was short,
    /// or a record was unreadable. The search only finds events, alerts and source records. Rule state, pending
    /// deliveries, silences and changes of alerts may be missing or outdated.
    pub searched: bool,
    /// The number of records of any kind that could not be read.
    pub unreadable: u64,
    /// The path where the damaged store is kept.
    pub kept: PathBuf,
    /// The time from which each source is fetched again.
    pub fetched_again: Vec<(SourceName, Timestamp)>,
}

impl Recovered {
    /// Returns true if everything that had been stored was saved.
    pub fn is_whole(&self) -> bool {
        self.lost_events == 0 && self.unreadable == 0 && !self.searched
    }
}

/// Atlassian processes most events within this time.
const PROCESSING: Duration = Duration::from_secs(600);

/// Searches the store's file for events, alerts and source records, and adds what is missing in `pairs`.
pub(super) fn search(
    store: &Path,
    pairs: &mut Vec<Pair>,
    found: &mut Recovered,
    evaluated: &mut BTreeMap<SourceName, Timestamp>,
) -> io::Result<()> {
    let mut known: BTreeMap<Vec<u8>, Vec<u8>> = std::mem::take(pairs).into_iter().collect();
    let mut directories: Vec<Vec<u8>> = Vec::new();
    // A key may occur several times: the chunk of a block from before and after it was merged with others.
    let mut chunks: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut alerts: BTreeMap<Vec<u8>, (u32, Vec<u8>)> = BTreeMap::new();
    let mut sources: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (name, bytes) in frame::carve(&store.join("db"))? {
        match name.first() {
            Some(&key::DIRECTORY) => directories.push(bytes),
            Some(&key::CHUNK) => chunks.entry(name).or_default().push(bytes),
            Some(&key::ALERT) => {
                if let Ok(alert) = value::from_json::<Alert>("an alert", &bytes)
                    && alerts.get(&name).is_none_or(|(revision, _)| *revision <= alert.revision)
                {
                    alerts.insert(name, (alert.revision, bytes));
                }
            }
            Some(&key::SOURCE) => drop(sources.insert(name, bytes)),
            _ => {}
        }
    }
    let mut events: BTreeMap<Sequence, Event> = BTreeMap::new();
    for directory in directories.iter().filter_map(|bytes| Directory::parse(bytes).ok()) {
        for event in block_of(&directory, &chunks).unwrap_or_default() {
            events.entry(event.sequence).or_insert(event);
        }
    }
    // What sled returned is the latest version.
    let held = known.values().filter_map(|bytes| Directory::parse(bytes).ok());
    let held: Vec<(Sequence, Sequence)> = held.map(|directory| (directory.first, directory.last())).collect();
    events.retain(|sequence, _| !held.iter().any(|(first, last)| (first..=last).contains(&sequence)));
    let checkpoint = known.get(key::CHECKPOINT).and_then(|bytes| value::number(bytes));
    let all: Vec<Event> = events.into_values().collect();
    // The sequence numbers in a block are consecutive.
    for run in
        all.chunk_by(|one, other| one.sequence.next() == other.sequence).flat_map(|run| run.chunks(block::FULL_BLOCK))
    {
        for event in run {
            known.insert(key::seen(&event.source, &event.id), event.sequence.0.to_be_bytes().to_vec());
            found.events += 1;
            note_evaluated(event, checkpoint, evaluated);
        }
        known.extend(block::pairs(run).unwrap_or_default());
    }
    for (name, (revision, bytes)) in alerts {
        // sled may have returned an earlier state of the alert.
        let known_revision = known.get(&name).and_then(|bytes| value::from_json::<Alert>("an alert", bytes).ok());
        if known_revision.is_none_or(|alert| alert.revision < revision) {
            known.insert(name, bytes);
        }
    }
    for (name, bytes) in sources {
        if value::from_json::<SourceRecord>("a source's record", &bytes).is_ok() {
            known.entry(name).or_insert(bytes);
        }
    }
    found.searched = true;
    pairs.extend(known);
    Ok(())
}

/// The events of a block, from the first chunks that match its directory.
fn block_of(directory: &Directory, chunks: &BTreeMap<Vec<u8>, Vec<Vec<u8>>>) -> Option<Vec<Event>> {
    let of = |index: u32| chunks.get(&key::chunk(directory.first, index));
    let versions = (0..directory.chunks).filter_map(|index| of(index).map(Vec::len)).max().unwrap_or(0);
    (0..versions).rev().find_map(|version| {
        let mut compressed = Vec::new();
        for index in 0..directory.chunks {
            let candidates = of(index)?;
            compressed.extend_from_slice(candidates.get(version).or(candidates.last())?);
        }
        Contents::unpack(&compressed, directory).ok()?.all(directory).ok()
    })
}

/// Sets the numbers to at least those that are known to have been assigned.
pub(super) fn set_numbers(pairs: &mut Vec<Pair>, written: Written) {
    for (name, number) in [
        (key::NEXT_SEQUENCE, written.next),
        (key::CHECKPOINT, written.checkpoint),
        (key::LAST_CHANGE, written.change),
        (key::FIRST, written.first),
    ] {
        let known = pairs.iter().position(|(other, _)| other == name);
        let before = known.and_then(|index| pairs.get(index)).and_then(|(_, bytes)| value::number(bytes)).unwrap_or(0);
        let bytes = number.max(before).to_be_bytes().to_vec();
        match known.and_then(|index| pairs.get_mut(index)) {
            Some(pair) => pair.1 = bytes,
            None => pairs.push((name.to_vec(), bytes)),
        }
    }
}

/// Records what Atlassian had processed when an event was evaluated.
fn note_evaluated(event: &Event, checkpoint: Option<u64>, evaluated: &mut BTreeMap<SourceName, Timestamp>) {
    let processed = IncomingEvent::parse(&event.raw).ok().and_then(|event| event.processed);
    if let (Some(processed), true) = (processed, checkpoint.is_none_or(|checkpoint| event.sequence.0 <= checkpoint)) {
        let newest = evaluated.entry(event.source.clone()).or_insert(processed);
        *newest = processed.max(*newest);
    }
}

/// Returns what is readable with a prefix: from both ends up to the damage, so that one damaged page does not hide
/// everything after it.
fn readable(db: &sled::Db, prefix: u8, found: &mut Recovered) -> Vec<Pair> {
    // Collected outside of what may panic, so that what was read before that is kept.
    let mut pairs: Vec<Pair> = Vec::new();
    let collect = |items: &mut dyn Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>, pairs: &mut Vec<Pair>| {
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            for item in items {
                match item {
                    Ok((key, value)) => pairs.push((key.to_vec(), value.to_vec())),
                    Err(_) => return false,
                }
            }
            true
        }))
        .unwrap_or(false)
    };
    if collect(&mut db.scan_prefix([prefix]), &mut pairs) {
        return pairs;
    }
    found.unreadable += 1;
    let from = pairs.last().map_or_else(|| vec![prefix], |(key, _)| [key.as_slice(), &[0]].concat());
    let mut behind: Vec<Pair> = Vec::new();
    match prefix.checked_add(1) {
        Some(end) => collect(&mut db.range(from..vec![end]).rev(), &mut behind),
        None => collect(&mut db.range(from..).rev(), &mut behind),
    };
    behind.reverse();
    pairs.extend(behind);
    pairs
}

/// Returns everything that is readable, without dangling references. Records the newest evaluated `processedAt` of each
/// source.
pub(super) fn read(db: &sled::Db, found: &mut Recovered, evaluated: &mut BTreeMap<SourceName, Timestamp>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut directories = Vec::new();
    for prefix in 0..=u8::MAX {
        match prefix {
            // Rebuilt from the events that are there.
            key::SEEN | key::CHUNK => {}
            key::DIRECTORY => directories = readable(db, prefix, found),
            _ => pairs.extend(readable(db, prefix, found)),
        }
    }
    let all = pairs.len();
    pairs.retain(|(name, bytes)| match name.first().copied().unwrap_or_default() {
        key::ALERT => value::from_json::<Alert>("", bytes).is_ok(),
        key::CHANGE => value::from_json::<LoggedChange>("", bytes).is_ok(),
        key::DELIVERY | key::DEAD_LETTER => value::from_json::<Delivery>("", bytes).is_ok(),
        key::SOURCE => value::from_json::<SourceRecord>("", bytes).is_ok(),
        key::ACTION => value::from_json::<ActionRecord>("", bytes).is_ok(),
        key::DESTINATION => value::from_json::<DestinationRecord>("", bytes).is_ok(),
        key::SILENCE => value::from_json::<Silence>("", bytes).is_ok(),
        key::QUARANTINE => value::from_json::<Quarantined>("", bytes).is_ok(),
        key::WATERMARK => value::from_json::<LoggedWatermark>("", bytes).is_ok(),
        key::RULES => value::from_json::<LoggedRules>("", bytes).is_ok(),
        key::CRASH => value::from_json::<CrashRecord>("", bytes).is_ok(),
        // Alerts are counted again.
        key::META if name == key::ALERT_COUNTS => true,
        key::META | key::SKIPPED | key::QUARANTINE_SEEN => bytes.len() == 8,
        key::EXCEPTED => value::from_json::<Excepted>("", bytes).is_ok(),
        key::MATCH => std::str::from_utf8(bytes).is_ok(),
        key::STATE | key::STATE_PIECE | key::ALERT_TIME | key::REFERENCE | key::CHANGE_OF | key::SILENCED => true,
        _ => false,
    });
    found.unreadable += (all - pairs.len()) as u64;
    let checkpoint = pairs.iter().find(|(name, _)| name == key::CHECKPOINT).and_then(|(_, bytes)| value::number(bytes));
    let mut last = Sequence(0);
    for (name, bytes) in directories {
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| -> Result<_, StoreError> {
            let directory = Directory::parse(&bytes)?;
            let mut chunks: Vec<Pair> = Vec::new();
            for item in db.scan_prefix(key::chunks(directory.first)) {
                let (key, value) = item?;
                chunks.push((key.to_vec(), value.to_vec()));
            }
            let events = Contents::read(db, &directory)?.all(&directory)?;
            Ok((directory, chunks, events))
        }));
        match read {
            Ok(Ok((directory, chunks, events))) if directory.first > last => {
                last = directory.last();
                for event in events {
                    pairs.push((key::seen(&event.source, &event.id), event.sequence.0.to_be_bytes().to_vec()));
                    found.events += 1;
                    note_evaluated(&event, checkpoint, evaluated);
                }
                pairs.push((name, bytes));
                pairs.extend(chunks);
            }
            // Exactly the events of readable blocks are kept; the others are fetched again.
            _ => {
                found.unreadable += 1;
                let Ok(directory) = Directory::parse(&bytes) else { continue };
                let first = directory.first.0;
                found.oldest = Some(found.oldest.map_or(first, |oldest| oldest.min(first)));
                if checkpoint.is_none_or(|checkpoint| directory.last().0 <= checkpoint) {
                    // They were evaluated, and their directory shows approximately when they were processed.
                    let arrived = directory.entries.iter().map(|entry| entry.arrived).max().unwrap_or(i64::MIN);
                    let processed = arrived
                        .min(directory.times.1.saturating_add(i64::try_from(PROCESSING.as_millis()).unwrap_or(0)));
                    for source in directory.sources {
                        let newest = evaluated.entry(source).or_insert(Timestamp::MIN);
                        *newest = time::from_millis(processed).max(*newest);
                    }
                }
            }
        }
    }
    pairs
}
