//! Housekeeping in the background: old events, matches and alerts are removed, and small blocks merged into full ones.
//!
//! Never past the checkpoint, and never an alert that a delivery is still pending of. sled gives no space back to the file system, but
//! reuses what was freed: in steady state the store stays below four times its live data (a test holds it; 2 to 3 is usual).

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

/// Blocks that are merged in one write, so that the write stays small.
const MERGED_AT_ONCE: usize = 64;
/// Small blocks next to each other before merging is worth a write.
const WORTH_MERGING: usize = 32;
/// Blocks are not merged beyond this size before compression.
const MERGED_BYTES: u64 = 2 * 1024 * 1024;

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Events.
    pub events: u64,
    /// Alerts.
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
            // Blocks are in the order of arrival; a late page may stand between newer ones, so all are looked at.
            if directory.newest >= cutoff.as_millisecond() {
                continue;
            }
            let contents = match Contents::read(self.tree(), &directory) {
                Ok(contents) => contents,
                Err(StoreError::Damaged { what, detail }) => {
                    // It must not keep all others from being removed.
                    tracing::error!(first = %directory.first, "{what} cannot be read: {detail}; see `watchbell store verify`");
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
        self.remove_quiet_runs()?;
        self.remove_old_letters(cutoff)?;
        removed.alerts = self.remove_alerts_before(cutoff)?;
        if removed != Removed::default() {
            self.flush()?;
        }
        Ok(removed)
    }

    /// Forgets which events are not evaluated where these events are gone.
    fn remove_quiet_runs(&self) -> Result<(), StoreError> {
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

    /// Removes dead letters given up, silences that ended, matches that exceptions hid, and watermarks, before `cutoff`.
    fn remove_old_letters(&self, cutoff: Timestamp) -> Result<(), StoreError> {
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
        for item in self.tree().scan_prefix([key::PASS]) {
            let (watermark, bytes) = item?;
            if value::from_json::<LoggedWatermark>("a pass", &bytes)?.watermark.until < cutoff {
                batch.remove(watermark);
                any = true;
            }
        }
        // What ran when the oldest event came is still to be known.
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
        // What a silence will list when it ends is pending as well.
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
            // Nobody changes the alert, or the numbers of alerts, meanwhile.
            let _turn = self.writing();
            let alert = self.reader().alert(id)?;
            // What it is about may be long past when it is raised; it is kept from then on.
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

    /// Merges small blocks that stand next to each other, up to the checkpoint. Returns how many blocks became one fewer.
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
        // Later operations on the same key win, so the new block replaces the first old one.
        block::write(&mut batch, &all)?;
        self.write(batch)?;
        Ok(run.len() as u64 - 1)
    }
}
