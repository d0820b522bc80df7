//! Housekeeping in the background: old events, matches and alerts are removed, and small blocks merged into full ones.
//!
//! Never past the mark, and never an alert that a delivery is still owed of. sled gives no space back to the file system, but
//! reuses what was freed: in steady state the store stays below three times its live data (a test holds it).

use std::collections::HashSet;

use super::{
    Delivery, Store, StoreError,
    block::{self, Contents, Directory},
    key, value,
};
use crate::{event::Event, name::AlertId, time::Timestamp};

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
    /// Removes events whose time is before `cutoff`, whole blocks at a time, and alerts that opened before it.
    pub fn remove_before(&self, cutoff: Timestamp) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let mark = self.reader().mark()?;
        for directory in self.reader().directories() {
            let directory = directory?;
            if directory.last() > mark {
                break;
            }
            // Blocks are in the order of arrival; a late page may stand between newer ones, so all are looked at.
            if directory.newest >= cutoff.as_millisecond() {
                continue;
            }
            let contents = Contents::read(self.tree(), &directory)?;
            let mut batch = sled::Batch::default();
            for (index, id) in contents.ids().iter().enumerate() {
                let event = contents.event(&directory, index)?;
                batch.remove(key::seen(&event.source, id));
            }
            block::remove(&mut batch, &directory);
            self.tree().apply_batch(batch)?;
            removed.events += directory.entries.len() as u64;
        }
        removed.alerts = self.remove_alerts_before(cutoff)?;
        if removed != Removed::default() {
            self.flush()?;
        }
        Ok(removed)
    }

    fn remove_alerts_before(&self, cutoff: Timestamp) -> Result<u64, StoreError> {
        let mut owed: HashSet<AlertId> = HashSet::new();
        for item in self.tree().scan_prefix([key::DELIVERY]) {
            owed.insert(value::from_json::<Delivery>("a delivery", &item?.1)?.alert);
        }
        let mut count = 0;
        for item in self.tree().range(vec![key::ALERT_TIME]..key::alert_times_from(cutoff)) {
            let (time_key, _) = item?;
            let Some(id) = key::alert_at_end(&time_key) else {
                continue;
            };
            if owed.contains(&id) {
                continue;
            }
            let mut batch = sled::Batch::default();
            batch.remove(time_key);
            batch.remove(key::alert(id));
            for matched in self.tree().scan_prefix(key::matches(id)).keys() {
                batch.remove(matched?);
            }
            self.tree().apply_batch(batch)?;
            count += 1;
        }
        Ok(count)
    }

    /// Merges small blocks that stand next to each other, up to the mark. Returns how many blocks became one fewer.
    pub fn merge_blocks(&self) -> Result<u64, StoreError> {
        let mark = self.reader().mark()?;
        let mut merged = 0;
        let mut run: Vec<Directory> = Vec::new();
        for directory in self.reader().directories() {
            let directory = directory?;
            if directory.last() > mark {
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
