//! Records of actions: what organizations list, and what occurred in events. Counts are written together with the
//! events that they count.

use std::{collections::BTreeMap, sync::Arc};

use super::{Reader, SourceRecord, Store, StoreError, key, value};
use crate::model::{
    action::{ActionRecord, Catalog, ListedAction},
    name::SourceName,
    time::Timestamp,
};

/// The length of an action id is not limited in events; longer ids are not counted.
const MAX_ID_BYTES: usize = 200;

/// The counts of a page, by action.
#[derive(Debug, Default)]
pub(super) struct ActionCounts {
    actions: BTreeMap<Arc<str>, Count>,
}

#[derive(Debug, Default)]
struct Count {
    events: u64,
    ignored: u64,
    dropped: u64,
    newest: Option<Timestamp>,
}

/// What is done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Evaluated,
    Ignored,
    Dropped,
}

impl ActionCounts {
    pub(super) fn add(&mut self, action: &Arc<str>, time: Timestamp, fate: Fate) {
        if action.len() > MAX_ID_BYTES {
            return;
        }
        let count = self.actions.entry(Arc::clone(action)).or_default();
        match fate {
            Fate::Dropped => count.dropped += 1,
            Fate::Evaluated | Fate::Ignored => count.events += 1,
        }
        count.ignored += u64::from(fate == Fate::Ignored);
        count.newest = count.newest.max(Some(time));
    }

    pub(super) fn write(
        self,
        store: &Store,
        batch: &mut sled::Batch,
        source: &SourceName,
        arrived: Timestamp,
    ) -> Result<(), StoreError> {
        for (id, count) in self.actions {
            let name = key::action(source, &id);
            let mut record = read(store, &name)?;
            record.seen = record.seen.or(Some(arrived));
            record.newest = record.newest.max(count.newest);
            record.events += count.events;
            record.ignored += count.ignored;
            record.dropped += count.dropped;
            batch.insert(name, value::to_json(&record)?);
        }
        Ok(())
    }
}

fn read(store: &Store, name: &[u8]) -> Result<ActionRecord, StoreError> {
    match store.tree().get(name)? {
        Some(bytes) => value::from_json("an action's record", &bytes),
        None => Ok(ActionRecord::default()),
    }
}

impl Store {
    /// Saves an organization's list of actions together with the record of its source. Actions that are no longer
    /// listed are kept. Returns the number of actions that were not listed before.
    pub fn save_listed(
        &self,
        source: &SourceName,
        listed: &[ListedAction],
        record: &SourceRecord,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        // Counts change while pages are appended.
        let _appending = self.lock_appending();
        let mut batch = sled::Batch::default();
        let mut new = 0;
        for action in listed.iter().filter(|action| action.id.len() <= MAX_ID_BYTES) {
            let name = key::action(source, &action.id);
            let before = read(self, &name)?;
            let mut after = before.clone();
            new += usize::from(after.listed.is_none());
            after.listed = after.listed.or(Some(now));
            after.name = action.name.clone().or(after.name);
            after.group = action.group.clone().or(after.group);
            if after != before {
                batch.insert(name, value::to_json(&after)?);
            }
        }
        value::put_framed(&mut batch, key::source(source), record)?;
        self.write(batch)?;
        Ok(new)
    }
}

impl Reader {
    /// The records of actions, by source and id.
    pub fn actions(&self) -> impl Iterator<Item = Result<(SourceName, String, ActionRecord), StoreError>> + use<> {
        self.tree().scan_prefix([key::ACTION]).map(|item| {
            let (name, bytes) = item?;
            let parts = key::action_parts(&name);
            let (source, id) = parts.ok_or_else(|| StoreError::damaged("an action's record", "invalid key"))?;
            Ok((source, id.to_owned(), value::from_json("an action's record", &bytes)?))
        })
    }

    /// The catalog of actions that organizations list.
    pub fn catalog(&self) -> Result<Catalog, StoreError> {
        let listed = self.actions().filter_map(|item| match item {
            Ok((_, id, record)) => record
                .listed
                .is_some()
                .then(|| Ok(ListedAction { id: id.into(), name: record.name, group: record.group })),
            Err(error) => Some(Err(error)),
        });
        listed.collect()
    }
}
