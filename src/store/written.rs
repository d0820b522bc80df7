//! Records how far the store has been written in a file next to sled's. To sled, a log whose end it cannot read is a
//! shorter log, which it opens without an error. The recorded numbers reveal the loss.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Store, StoreError, key, value};
use crate::model::name::Sequence;

/// Numbers that only increase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The number of the next event.
    pub(super) next: u64,
    /// The last event that was evaluated.
    pub(super) checkpoint: u64,
    /// The last logged change.
    pub(super) change: u64,
    /// The first event that retention has kept; 0: not known.
    pub(super) first: u64,
    /// The number of writes; 0: not known.
    pub(super) writes: u64,
}

impl Written {
    /// Reads the numbers in a store.
    pub(super) fn of(tree: &sled::Tree) -> Result<Self, StoreError> {
        let number = |name: &[u8]| -> Result<u64, StoreError> {
            Ok(tree.get(name)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0))
        };
        Ok(Self {
            next: number(key::NEXT_SEQUENCE)?,
            checkpoint: number(key::CHECKPOINT)?,
            change: number(key::LAST_CHANGE)?,
            first: number(key::FIRST)?,
            writes: number(key::WRITES)?,
        })
    }

    /// The numbers among entries, of which `number` returns one by its name.
    pub(super) fn from(number: &dyn Fn(&[u8]) -> u64) -> Self {
        Self {
            next: number(key::NEXT_SEQUENCE),
            checkpoint: number(key::CHECKPOINT),
            change: number(key::LAST_CHANGE),
            first: number(key::FIRST),
            writes: number(key::WRITES),
        }
    }

    /// Reads the numbers recorded next to a store; `None` if they are missing or invalid.
    pub(super) fn next_to(store: &Path) -> Option<Self> {
        let text = fs::read_to_string(file(store)).ok()?;
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let (written, sum) = match *numbers {
            [next, checkpoint, change, first, writes, sum] => (Self { next, checkpoint, change, first, writes }, sum),
            // Earlier versions did not count writes.
            [next, checkpoint, change, first, sum] => (Self { next, checkpoint, change, first, writes: 0 }, sum),
            _ => return None,
        };
        (sum == written.sum()).then_some(written)
    }

    /// Records the numbers. Not synced: an older record after a power failure is just as valid.
    pub(super) fn note(self, store: &Path) -> std::io::Result<()> {
        let Self { next, checkpoint, change, first, writes } = self;
        let sum = self.sum();
        let text = format!("{next:20} {checkpoint:20} {change:20} {first:20} {writes:20} {sum:20}\n");
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file(store))?;
        file.write_all(text.as_bytes())
    }

    fn sum(self) -> u64 {
        let Self { next, checkpoint, change, first, writes } = self;
        next ^ checkpoint.rotate_left(16) ^ change.rotate_left(32) ^ first.rotate_left(48) ^ writes.rotate_left(8)
    }

    /// What was written but is missing from the store: the number of events, and whether anything else.
    pub(super) fn lacks(self, found: Self) -> Option<(u64, bool)> {
        let events = self.next.saturating_sub(found.next);
        let else_lost = self.checkpoint > found.checkpoint || self.change > found.change || self.writes > found.writes;
        (events > 0 || else_lost).then_some((events, else_lost))
    }
}

fn file(store: &Path) -> PathBuf {
    store.join("written")
}

impl Store {
    /// Checks whether the store has lost data that had been written, and records a loss in the store until it is
    /// recovered.
    pub(super) fn look_for_losses(&self, written: Option<Written>) -> Result<(), StoreError> {
        let found = Written::of(self.tree())?;
        let Some(written) = written else {
            return Ok(());
        };
        let Some((events, _)) = written.lacks(found) else {
            return Ok(());
        };
        tracing::error!(
            events,
            last = found.next.saturating_sub(1),
            "the store opened in an earlier state: its latest writes are lost, probably because its file is damaged. What the sources \
             still have is fetched again; what users did last is lost, and messages may repeat. Run `watchbell store verify`"
        );
        let lost = self.lost()?.saturating_add(events.max(1));
        let mut batch = sled::Batch::default();
        batch.insert(key::LOST, lost.to_be_bytes().as_slice());
        // Sequence numbers that were assigned are not assigned again.
        batch.insert(key::NEXT_SEQUENCE, Sequence(written.next.max(found.next)).0.to_be_bytes().as_slice());
        self.write(batch)
    }

    /// The number of events, or at least one record, that the store has lost since it was created or recovered.
    pub(super) fn lost(&self) -> Result<u64, StoreError> {
        Ok(self.tree().get(key::LOST)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0))
    }
}
