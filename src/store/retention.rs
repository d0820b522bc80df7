//! Background maintenance: removes old events, matches and alerts, and merges small blocks into full ones.
//!
//! It never goes past the checkpoint, and never removes an alert with a pending delivery. sled does not return space to
//! the file system, but reuses what was freed: in a steady state the store stays below four times its live data (a test
//! checks this; 2 to 3 is usual).

use std::collections::HashSet;

use super::{
    Delivery, Excepted, Store, StoreError,
    block::{self, Contents, Directory},
    key, value,
};
use crate::model::{
    event::Event,
    name::AlertId,
    outcome::{LoggedRules, LoggedWatermark},
    silence::Silence,
    time::Timestamp,
};

/// The number of blocks that are merged in one write, so that the write stays small.
const MERGED_AT_ONCE: usize = 64;
/// The number of adjacent small blocks for which merging is worth a write.
const WORTH_MERGING: usize = 32;
/// Blocks are not merged beyond this size before compression.
const MERGED_BYTES: u64 = 2 * 1024 * 1024;

/// The numbers of removed events and alerts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub events: u64,
    pub alerts: u64,
}

impl Store {
    /// Removes events that arrived before `cutoff`, whole blocks at a time, and alerts that were raised before it.
    pub fn remove_before(&self, cutoff: Timestamp) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let checkpoint = self.reader().checkpoint()?;
        let mut first = self.tree().get(key::FIRST)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0);
        for directory in self.reader().directories() {
            let directory = directory?;
            if directory.last() > checkpoint {
                break;
            }
            // Blocks are in order of arrival, but a late page may be between newer ones, so all blocks are checked.
            if directory.newest >= cutoff.as_millisecond() {
                continue;
            }
            let contents = match Contents::read(self.tree(), &directory) {
                Ok(contents) => contents,
                Err(StoreError::Damaged { what, detail }) => {
                    // A damaged block must not keep all others from being removed.
                    tracing::error!(first = %directory.first, "cannot read {what}: {detail}; see `watchbell store verify`");
                    continue;
                }
                Err(other) => return Err(other),
            };
            let mut batch = sled::Batch::default();
            for event in contents.all(&directory)? {
                batch.remove(key::seen(&event.source, &event.id));
            }
            block::remove(&mut batch, &directory);
            first = first.max(directory.last().next().0);
            batch.insert(key::FIRST, first.to_be_bytes().as_slice());
            self.apply(batch)?;
            removed.events += directory.entries.len() as u64;
        }
        self.remove_skipped_ranges()?;
        self.remove_old_records(cutoff)?;
        removed.alerts = self.remove_alerts_before(cutoff)?;
        if removed != Removed::default() {
            self.flush()?;
        }
        Ok(removed)
    }

    /// Removes ranges of skipped events whose events are gone.
    fn remove_skipped_ranges(&self) -> Result<(), StoreError> {
        let oldest = self.reader().directories().next().transpose()?.map(|directory| directory.first);
        let checkpoint = self.reader().checkpoint()?;
        let mut batch = sled::Batch::default();
        let mut any = false;
        for item in self.tree().scan_prefix([key::SKIPPED]) {
            let (run, last) = item?;
            let last = value::number(&last).unwrap_or(0);
            if last <= checkpoint.0 && oldest.is_none_or(|oldest| last < oldest.0) {
                batch.remove(run);
                any = true;
            }
        }
        if any { self.apply(batch) } else { Ok(()) }
    }

    /// Removes dead letters, ended silences, matches suppressed by exceptions, and watermarks from before `cutoff`.
    fn remove_old_records(&self, cutoff: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let mut any = false;
        for item in self.tree().scan_prefix([key::DEAD_LETTER]) {
            let (letter, bytes) = item?;
            let delivery: Delivery = value::from_json("a dead letter", &bytes)?;
            if delivery.given_up.is_some_and(|time| time < cutoff) {
                batch.remove(letter);
                any = true;
            }
        }
        for item in self.tree().scan_prefix([key::WATERMARK]) {
            let (watermark, bytes) = item?;
            if value::from_json::<LoggedWatermark>("a watermark", &bytes)?.watermark.until < cutoff {
                batch.remove(watermark);
                any = true;
            }
        }
        // The rules that ran when the oldest event arrived must still be known.
        let oldest = self.reader().directories().next().transpose()?.map(|directory| directory.first);
        let notes: Vec<LoggedRules> = self.reader().logged_rules().collect::<Result<_, _>>()?;
        for (note, next) in notes.iter().zip(notes.iter().skip(1)) {
            if oldest.is_some_and(|oldest| next.checkpoint < oldest) {
                batch.remove(key::rules(note.checkpoint, note.change));
                any = true;
            }
        }
        for item in self.tree().scan_prefix([key::EXCEPTED]) {
            let (found, bytes) = item?;
            if value::from_json::<Excepted>("a match", &bytes)?.time < cutoff {
                batch.remove(found);
                any = true;
            }
        }
        for item in self.tree().scan_prefix([key::SILENCE]) {
            let (silence, bytes) = item?;
            let ended = value::from_json::<Silence>("a silence", &bytes)?.ended;
            if ended.is_some_and(|time| time < cutoff) {
                batch.remove(silence);
                any = true;
            }
        }
        if any { self.apply(batch) } else { Ok(()) }
    }

    fn remove_alerts_before(&self, cutoff: Timestamp) -> Result<u64, StoreError> {
        let mut pending: HashSet<AlertId> = HashSet::new();
        for prefix in [key::DELIVERY, key::DEAD_LETTER] {
            for item in self.tree().scan_prefix([prefix]) {
                pending.insert(value::from_json::<Delivery>("a delivery", &item?.1)?.alert);
            }
        }
        // Alerts that a silence lists when it ends are pending as well.
        pending.extend(self.tree().scan_prefix([key::SILENCED]).keys().filter_map(|key| key::alert_at_end(&key.ok()?)));
        let mut count = 0;
        for item in self.tree().range(vec![key::ALERT_TIME]..key::alert_times_from(cutoff)) {
            let (time_key, _) = item?;
            let Some(id) = key::alert_at_end(&time_key) else {
                continue;
            };
            if pending.contains(&id) {
                continue;
            }
            // No other thread changes the alert or the counts meanwhile.
            let _turn = self.writing();
            let alert = self.reader().alert(id)?;
            // The events of an alert may be long past when it is raised; it is kept from then on.
            if alert.as_ref().is_some_and(|alert| alert.raised_at.is_some_and(|raised| raised >= cutoff)) {
                continue;
            }
            let mut batch = sled::Batch::default();
            if let Some(alert) = alert {
                let mut counts = self.reader().alert_counts()?;
                counts.remove(alert.status, alert.severity);
                batch.insert(key::ALERT_COUNTS, counts.encode());
            }
            batch.remove(time_key);
            batch.remove(key::alert(id));
            for belonging in [key::matches(id), key::changes_of(id), key::references(id)] {
                for item in self.tree().scan_prefix(belonging).keys() {
                    let item = item?;
                    if let (Some(&key::CHANGE_OF), Some(number)) = (item.first(), key::number_at_end(&item)) {
                        batch.remove(key::change(number));
                    }
                    batch.remove(item);
                }
            }
            self.apply(batch)?;
            count += 1;
        }
        Ok(count)
    }

    /// Merges adjacent small blocks, up to the checkpoint. Returns by how many the number of blocks decreased.
    pub fn merge_blocks(&self) -> Result<u64, StoreError> {
        let checkpoint = self.reader().checkpoint()?;
        let mut merged = 0;
        let mut run: Vec<Directory> = Vec::new();
        for directory in self.reader().directories() {
            let directory = directory?;
            if directory.last() > checkpoint {
                break;
            }
            let fits = run.last().is_none_or(|last| last.last().next() == directory.first)
                && run.iter().map(|block| block.entries.len()).sum::<usize>() + directory.entries.len()
                    <= block::FULL_BLOCK
                && run.iter().map(|block| block.raw_bytes).sum::<u64>() + directory.raw_bytes <= MERGED_BYTES
                && run.len() < MERGED_AT_ONCE;
            if !fits {
                merged += self.merge(&run)?;
                run.clear();
            }
            run.push(directory);
        }
        merged += self.merge(&run)?;
        Ok(merged)
    }

    fn merge(&self, run: &[Directory]) -> Result<u64, StoreError> {
        let events: usize = run.iter().map(|block| block.entries.len()).sum();
        let worth = run.len() >= WORTH_MERGING || (run.len() > 1 && events >= block::FULL_BLOCK / 2);
        if !worth {
            return Ok(0);
        }
        let mut all: Vec<Event> = Vec::with_capacity(events);
        let mut batch = sled::Batch::default();
        for directory in run {
            all.extend(Contents::read(self.tree(), directory)?.all(directory)?);
            block::remove(&mut batch, directory);
        }
        // Later operations on the same key take precedence, so the new block replaces the first old one.
        block::write(&mut batch, &all)?;
        self.write(batch)?;
        Ok(run.len() as u64 - 1)
    }
}
