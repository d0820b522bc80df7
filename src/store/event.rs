//! Appends pages of events. A page, its sequence numbers, its ids and the cursor after it are one write.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{
    MAX_CLOCK_SKEW, SourceRecord, Store, StoreError,
    action::{ActionCounts, Fate},
    block, key, quarantine, value,
};
use crate::model::{
    action::Unwanted,
    event::{Event, IncomingEvent, RejectedEntry},
    name::{Sequence, SourceName},
    time::{self, Timestamp},
};

/// A page of events from a source.
#[derive(Debug, Clone)]
pub struct Page {
    pub source: SourceName,
    /// When it arrived: by the server's clock if this machine's is wrong, because it bounds the times of events.
    pub arrived: Timestamp,
    /// The events, in the order of the page.
    pub events: Vec<IncomingEvent>,
    /// The entries that are not events.
    pub rejected: Vec<RejectedEntry>,
    /// Events that were processed (or happened) before this are stored but not evaluated.
    pub quiet_before: Option<Timestamp>,
    /// Which events are not wanted.
    pub unwanted: Unwanted,
}

impl Page {
    /// Creates a page whose events are all evaluated.
    pub fn new(source: SourceName, arrived: Timestamp, events: Vec<IncomingEvent>) -> Self {
        Self { source, arrived, events, rejected: Vec::new(), quiet_before: None, unwanted: Unwanted::default() }
    }
}

/// The result of appending a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// The number of new events.
    pub stored: usize,
    /// The number of events that were already stored, or twice on the page.
    pub duplicates: usize,
    /// The number of entries that are not events.
    pub quarantined: usize,
    /// The number of events that are not wanted.
    #[serde(default)]
    pub dropped: usize,
}

impl Store {
    /// Appends a page and, in the same write, the cursor after it. `record` is the record of the source after this
    /// page; its counts are updated here.
    pub fn append_page(&self, page: Page, record: &mut SourceRecord) -> Result<Appended, StoreError> {
        self.append(page, Some(record))
    }

    /// Appends events that were not polled: the source's cursor does not change.
    pub fn import_page(&self, page: Page) -> Result<Appended, StoreError> {
        self.append(page, None)
    }

    fn append(&self, page: Page, record: Option<&mut SourceRecord>) -> Result<Appended, StoreError> {
        let _appending = self.lock_appending();
        let mut next = self.next_sequence()?;
        let mut batch = sled::Batch::default();
        let mut appended = Appended::default();
        let mut events: Vec<Event> = Vec::with_capacity(page.events.len());
        let mut on_page: HashSet<Vec<u8>> = HashSet::with_capacity(page.events.len());
        // An event shows how far Atlassian has come, whether it is new or not.
        let mut counted = ActionCounts::default();
        let mut newest_dropped = None;
        // Polling from a time in the future would find nothing: such a time is wrong.
        let latest = time::after(page.arrived, MAX_CLOCK_SKEW);
        let newest_processed =
            page.events.iter().filter_map(|event| event.processed).filter(|processed| *processed <= latest).max();
        let mut skipped: Vec<(Sequence, Sequence)> = Vec::new();
        for incoming in page.events {
            if page.unwanted.drop.is_match(&incoming.action) {
                let time = incoming.time.or(incoming.processed).unwrap_or(page.arrived);
                counted.add(&incoming.action, time, Fate::Dropped);
                newest_dropped = newest_dropped.max(Some(time.min(page.arrived)));
                appended.dropped += 1;
                continue;
            }
            let seen = key::seen(&page.source, &incoming.id);
            if self.tree().contains_key(&seen)? || on_page.contains(&seen) {
                appended.duplicates += 1;
                continue;
            }
            batch.insert(seen.as_slice(), next.0.to_be_bytes().as_slice());
            on_page.insert(seen);
            let known_at = incoming.processed.or(incoming.time);
            if page.quiet_before.is_some_and(|before| known_at.is_none_or(|time| time < before)) {
                match skipped.last_mut() {
                    Some((_, last)) if last.next() == next => *last = next,
                    _ => skipped.push((next, next)),
                }
            }
            let event = incoming.into_event(page.source.clone(), next, page.arrived);
            let is_ignored = page.unwanted.ignore.is_match(&event.action);
            counted.add(&event.action, event.time, if is_ignored { Fate::Ignored } else { Fate::Evaluated });
            events.push(event);
            next = next.next();
        }
        appended.stored = events.len();
        for part in events.chunks(block::FULL_BLOCK) {
            block::write(&mut batch, part)?;
        }
        for (first, last) in skipped {
            batch.insert(key::skipped(first), last.0.to_be_bytes().as_slice());
        }
        if !page.rejected.is_empty() {
            appended.quarantined = quarantine::write(self, &mut batch, &page.source, page.arrived, page.rejected)?;
        }
        let any_rejected = appended.quarantined > 0;
        match record {
            Some(record) => {
                record.newest_processed = record.newest_processed.max(newest_processed);
                // Events that are not wanted still show that the log is not silent.
                let newest = events.iter().map(|event| event.time.min(event.arrived)).max().max(newest_dropped);
                if let Some(time) = newest {
                    record.newest_event = record.newest_event.max(Some(time));
                    record.newest_arrival = Some(page.arrived);
                }
                if any_rejected {
                    record.last_quarantined = Some(page.arrived);
                }
                record.stored += appended.stored as u64;
                record.duplicates += appended.duplicates as u64;
                record.quarantined += appended.quarantined as u64;
                value::put_framed(&mut batch, key::source(&page.source), record)?;
            }
            None => {
                let mut record = self.reader().source(&page.source)?.unwrap_or_default();
                // The poller updates the record of a source that is polled; otherwise the counts are updated here.
                if record.last_poll.is_none() && record.error.is_none() {
                    record.stored += appended.stored as u64;
                    record.duplicates += appended.duplicates as u64;
                    record.quarantined += appended.quarantined as u64;
                    value::put_framed(&mut batch, key::source(&page.source), &record)?;
                }
            }
        }
        counted.write(self, &mut batch, &page.source, page.arrived)?;
        batch.insert(key::NEXT_SEQUENCE, next.0.to_be_bytes().as_slice());
        self.write(batch)?;
        Ok(appended)
    }

    fn next_sequence(&self) -> Result<Sequence, StoreError> {
        match self.tree().get(key::NEXT_SEQUENCE)? {
            Some(bytes) => value::number(&bytes)
                .map(Sequence)
                .ok_or_else(|| StoreError::damaged("the next sequence number", "not a number")),
            None => Ok(Sequence(1)),
        }
    }
}
