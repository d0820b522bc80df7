//! Entries of a page that are no events: kept, bounded, with the reason, so that somebody can look at them.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, key, value};
use crate::{event::RejectedEntry, name::SourceName, time::Timestamp};

/// Only the newest are kept; a source that sends nothing but rubbish must not fill the disk.
const KEPT: u64 = 1_000;
/// Enough to see what an entry is.
const KEPT_BYTES: usize = 16 * 1024;

/// An entry that is no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Where it came from.
    pub source: SourceName,
    /// When it came.
    pub arrived: Timestamp,
    /// Why it cannot be used.
    pub reason: String,
    /// The beginning of the entry.
    pub raw: String,
}

pub(super) fn write(
    store: &Store,
    batch: &mut sled::Batch,
    source: &SourceName,
    arrived: Timestamp,
    rejected: Vec<RejectedEntry>,
) -> Result<(), StoreError> {
    let last = store.tree().scan_prefix([key::QUARANTINE]).next_back().transpose()?;
    let mut number = last.and_then(|(key, _)| key::number_at_end(&key)).unwrap_or(0);
    for entry in rejected {
        number += 1;
        let end = (0..=KEPT_BYTES.min(entry.raw.len())).rev().find(|end| entry.raw.is_char_boundary(*end)).unwrap_or(0);
        let quarantined = Quarantined {
            source: source.clone(),
            arrived,
            reason: entry.reason,
            raw: entry.raw.get(..end).unwrap_or_default().to_owned(),
        };
        batch.insert(key::quarantined(number), value::to_json(&quarantined)?);
        if let Some(old) = number.checked_sub(KEPT) {
            batch.remove(key::quarantined(old));
        }
    }
    Ok(())
}
