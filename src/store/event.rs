//! Appending pages of events. A page, the numbers it is given, the ids it brings, and the cursor behind it are one write.

use std::collections::HashSet;

use super::{SourceRecord, Store, StoreError, block, key, quarantine, value};
use crate::{
    event::{Event, IncomingEvent, RejectedEntry},
    name::{Sequence, SourceName},
    time::Timestamp,
};

/// A page as it came from a source.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where it came from.
    pub source: SourceName,
    /// When it came.
    pub arrived: Timestamp,
    /// Its events, in the order of the page.
    pub events: Vec<IncomingEvent>,
    /// Its entries that are no events.
    pub rejected: Vec<RejectedEntry>,
}

/// What became of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events that are new.
    pub stored: usize,
    /// Events that were there already, or twice on the page.
    pub duplicates: usize,
    /// Entries that are no events.
    pub quarantined: usize,
}

impl Store {
    /// Appends a page and, in the same write, the cursor behind it. `record` is what is known of the source after this page;
    /// its counts are filled in here.
    pub fn append_page(&self, page: Page, record: &mut SourceRecord) -> Result<Appended, StoreError> {
        let _appending = self.lock_appending();
        let mut next = self.next_sequence()?;
        let mut batch = sled::Batch::default();
        let mut appended = Appended::default();
        let mut events: Vec<Event> = Vec::with_capacity(page.events.len());
        let mut on_page: HashSet<Vec<u8>> = HashSet::with_capacity(page.events.len());
        for incoming in page.events {
            let seen = key::seen(&page.source, &incoming.id);
            if self.tree().contains_key(&seen)? || on_page.contains(&seen) {
                appended.duplicates += 1;
                // Seen or not, it tells how far Atlassian has come.
                record.newest_processed = record.newest_processed.max(incoming.processed);
                continue;
            }
            record.newest_processed = record.newest_processed.max(incoming.processed);
            batch.insert(seen.as_slice(), next.0.to_be_bytes().as_slice());
            on_page.insert(seen);
            events.push(incoming.into_event(page.source.clone(), next, page.arrived));
            next = next.next();
        }
        appended.stored = events.len();
        appended.quarantined = page.rejected.len();
        for part in events.chunks(block::FULL_BLOCK) {
            block::write(&mut batch, part)?;
        }
        if let Some(time) = events.iter().map(|event| event.time.min(event.arrived)).max() {
            record.newest_event = record.newest_event.max(Some(time));
            record.newest_arrival = Some(page.arrived);
        }
        if !page.rejected.is_empty() {
            record.last_quarantined = Some(page.arrived);
            quarantine::write(self, &mut batch, &page.source, page.arrived, page.rejected)?;
        }
        record.stored += appended.stored as u64;
        record.duplicates += appended.duplicates as u64;
        record.quarantined += appended.quarantined as u64;
        batch.insert(key::source(&page.source), value::to_json(record)?);
        batch.insert(key::NEXT_SEQUENCE, next.0.to_be_bytes().as_slice());
        self.write(batch)?;
        Ok(appended)
    }

    fn next_sequence(&self) -> Result<Sequence, StoreError> {
        match self.tree().get(key::NEXT_SEQUENCE)? {
            Some(bytes) => value::number(&bytes)
                .map(Sequence)
                .ok_or_else(|| StoreError::damaged("the next sequence", "not a number")),
            None => Ok(Sequence(1)),
        }
    }
}
