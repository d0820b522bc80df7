//! Entries of a page that are not events: kept in a limited number, with the reason, so that a user can look at them.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, key, value};
use crate::model::{event::RejectedEntry, name::SourceName, time::Timestamp};

/// Only the newest entries are kept, so that a source that sends only invalid entries does not fill the disk.
const KEPT: u64 = 1_000;
/// The number of bytes kept of an entry: enough to see what it is.
const KEPT_BYTES: usize = 16 * 1024;

/// An entry that is not an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub source: SourceName,
    /// When it arrived.
    pub arrived: Timestamp,
    /// Why it cannot be used.
    pub reason: String,
    /// The hash of the whole entry; empty if an earlier version quarantined it.
    #[serde(default)]
    pub hash: String,
    /// The beginning of the entry.
    pub raw: String,
}

/// Quarantines entries that are new. Returns their number.
pub(super) fn write(
    store: &Store,
    batch: &mut sled::Batch,
    source: &SourceName,
    arrived: Timestamp,
    rejected: Vec<RejectedEntry>,
) -> Result<usize, StoreError> {
    let last = store.tree().scan_prefix([key::QUARANTINE]).next_back().transpose()?;
    let mut number = last.and_then(|(key, _)| key::number_at_end(&key)).unwrap_or(0);
    let mut set_aside = 0;
    let mut on_page: HashSet<Vec<u8>> = HashSet::new();
    for entry in rejected {
        // The same entry arrives again with each page that overlaps.
        let hash = blake3::hash(entry.raw.as_bytes()).to_hex();
        let hash = hash.get(..32).unwrap_or_default();
        let seen = key::quarantine_seen(source, hash);
        if store.tree().contains_key(&seen)? || !on_page.insert(seen.clone()) {
            continue;
        }
        number += 1;
        set_aside += 1;
        batch.insert(seen, number.to_be_bytes().as_slice());
        let end = (0..=KEPT_BYTES.min(entry.raw.len())).rev().find(|end| entry.raw.is_char_boundary(*end)).unwrap_or(0);
        let quarantined = Quarantined {
            source: source.clone(),
            arrived,
            reason: entry.reason,
            hash: hash.to_owned(),
            raw: entry.raw.get(..end).unwrap_or_default().to_owned(),
        };
        batch.insert(key::quarantined(number), value::to_json(&quarantined)?);
        if let Some(old) = number.checked_sub(KEPT) {
            let name = key::quarantined(old);
            if let Some(bytes) = store.tree().get(&name)?
                && let Ok(old) = value::from_json::<Quarantined>("a quarantined entry", &bytes)
            {
                batch.remove(key::quarantine_seen(&old.source, &old.hash));
            }
            batch.remove(name);
        }
    }
    Ok(set_aside)
}
