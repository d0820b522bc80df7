//! How far the store had been written, kept in a file beside sled's: to sled, a log whose end it cannot read is a shorter log, and it opens as if
//! nothing had been there. What is noted here tells the difference.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Store, StoreError, key, value};
use crate::model::name::Sequence;

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The number of the next event.
    pub(super) next: u64,
    /// The last event that was evaluated.
    pub(super) checkpoint: u64,
    /// The last logged change.
    pub(super) change: u64,
    /// The first event that retention has left; 0: not known.
    pub(super) first: u64,
}

impl Written {
    /// What a store says itself.
    pub(super) fn of(tree: &sled::Tree) -> Result<Self, StoreError> {
        let number = |name: &[u8]| -> Result<u64, StoreError> {
            Ok(tree.get(name)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0))
        };
        Ok(Self {
            next: number(key::NEXT_SEQUENCE)?,
            checkpoint: number(key::CHECKPOINT)?,
            change: number(key::LAST_CHANGE)?,
            first: number(key::FIRST)?,
        })
    }

    /// What was noted beside a store; none where nothing legible is.
    pub(super) fn beside(store: &Path) -> Option<Self> {
        let text = fs::read_to_string(file(store)).ok()?;
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().ok());
        let mut number = || numbers.next().flatten();
        let written = Self { next: number()?, checkpoint: number()?, change: number()?, first: number()? };
        let sum = number()?;
        (sum == written.sum()).then_some(written)
    }

    /// Notes it. Not synced: after a loss of power an older note is as true.
    pub(super) fn note(self, store: &Path) -> std::io::Result<()> {
        let Self { next, checkpoint, change, first } = self;
        let text = format!("{next:20} {checkpoint:20} {change:20} {first:20} {:20}\n", self.sum());
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file(store))?;
        file.write_all(text.as_bytes())
    }

    fn sum(self) -> u64 {
        self.next ^ self.checkpoint.rotate_left(16) ^ self.change.rotate_left(32) ^ self.first.rotate_left(48)
    }

    /// What a store lacks that had been written: the events, and whether anything else.
    pub(super) fn lacks(self, has: Self) -> Option<(u64, bool)> {
        let events = self.next.saturating_sub(has.next);
        let else_lost = self.checkpoint > has.checkpoint || self.change > has.change;
        (events > 0 || else_lost).then_some((events, else_lost))
    }
}

fn file(store: &Path) -> PathBuf {
    store.join("written")
}

impl Store {
    /// Looks whether the store has lost what had been written, and keeps that in it until it is recovered.
    pub(super) fn look_for_losses(&self) -> Result<(), StoreError> {
        let has = Written::of(self.tree())?;
        let Some(written) = Written::beside(&self.inner.path) else {
            return Ok(());
        };
        let Some((events, _)) = written.lacks(has) else {
            return Ok(());
        };
        tracing::error!(
            events,
            last = has.next.saturating_sub(1),
            "the store has lost its end: it opens as it was earlier, as when its file is damaged. What the sources still have is \
             fetched again; `watchbell store verify` says what is missing"
        );
        let lost = self.lost()?.saturating_add(events.max(1));
        let mut batch = sled::Batch::default();
        batch.insert(key::LOST, lost.to_be_bytes().as_slice());
        // Numbers that were given out are not given out again.
        batch.insert(key::NEXT_SEQUENCE, Sequence(written.next.max(has.next)).0.to_be_bytes().as_slice());
        self.write(batch)
    }

    /// Events, or at least one record, that the store has lost since it was made or recovered.
    pub(super) fn lost(&self) -> Result<u64, StoreError> {
        Ok(self.tree().get(key::LOST)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0))
    }
}
