//! Pending deliveries: written together with the change of the alert that they report, and removed when they are
//! settled. Those that could not be delivered in time are kept as dead letters, for a user to retry.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, key, value};
use crate::model::{
    alert::{Alert, Notice, Remark, Severity},
    name::{AlertId, DestinationName, SilenceId},
    time::Timestamp,
};

/// Why an alert is only delivered in a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Together {
    /// Its opening event was old when it arrived.
    Late,
    /// It was silenced, and the silence has ended.
    Silenced(SilenceId),
}

/// The delivery of one alert to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The position in the outbox.
    #[serde(default)]
    pub number: u64,
    pub destination: DestinationName,
    pub alert: AlertId,
    /// Why the destination is notified.
    pub notice: Notice,
    /// The alert's revision that it reports.
    #[serde(default)]
    pub revision: u32,
    /// What a user did or said, if it reports that.
    #[serde(default)]
    pub remark: Option<Remark>,
    /// If set, the alert is only delivered in a digest.
    #[serde(default)]
    pub together: Option<Together>,
    /// When it was created.
    pub created: Timestamp,
    /// The number of failed attempts.
    pub attempts: u32,
    /// The earliest time of the next attempt.
    pub due: Timestamp,
    /// The error of the last attempt, if any.
    pub error: Option<String>,
    /// When it became a dead letter; absent while it is pending.
    #[serde(default)]
    pub given_up: Option<Timestamp>,
}

impl Delivery {
    /// Creates a delivery of an alert in its present state, at `now` and without attempts.
    pub fn new(destination: DestinationName, alert: &Alert, notice: Notice, now: Timestamp) -> Self {
        Self {
            number: 0,
            destination,
            alert: alert.id,
            notice,
            revision: alert.revision,
            remark: alert.remark.clone(),
            together: None,
            created: now,
            attempts: 0,
            due: now,
            error: None,
            given_up: None,
        }
    }
}

/// What is kept about a destination between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRecord {
    /// The number of messages delivered.
    pub delivered: u64,
    /// When the last message was delivered.
    pub last_delivered: Option<Timestamp>,
    /// The messages of the last hour, if their number is limited.
    pub sent: Vec<Sent>,
    /// True if messages were held back by that limit; they are sent together once the limit allows.
    #[serde(default)]
    pub holding: bool,
}

/// A message that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredSent")]
pub struct Sent {
    pub at: Timestamp,
    /// The highest severity of its alerts.
    pub severity: Severity,
}

/// [`Sent`] as it is stored. Earlier versions stored the time only.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredSent {
    Time(Timestamp),
    Sent { at: Timestamp, severity: Severity },
}

impl From<StoredSent> for Sent {
    fn from(stored: StoredSent) -> Self {
        match stored {
            StoredSent::Time(at) => Self { at, severity: Severity::Critical },
            StoredSent::Sent { at, severity } => Self { at, severity },
        }
    }
}

/// The highest number of a pending delivery or dead letter.
pub(super) fn highest_number(tree: &sled::Tree) -> Result<u64, StoreError> {
    let mut highest = 0;
    for prefix in [key::DELIVERY, key::DEAD_LETTER] {
        for item in tree.scan_prefix([prefix]).keys() {
            highest = highest.max(key::number_at_end(&item?).unwrap_or(0));
        }
    }
    Ok(highest)
}

impl Store {
    pub(super) fn write_deliveries(&self, batch: &mut sled::Batch, deliveries: &[Delivery]) -> Result<(), StoreError> {
        for delivery in deliveries {
            // Numbers only need to increase; gaps after a crash do not matter.
            let number = self.inner.next_delivery.fetch_add(1, Ordering::Relaxed);
            let delivery = Delivery { number, ..delivery.clone() };
            batch.insert(key::delivery(&delivery.destination, number), value::to_json(&delivery)?);
        }
        Ok(())
    }

    /// Removes deliveries that succeeded or are no longer needed. `record` is the new record of the destination;
    /// `reference` is the destination's reference to the alert.
    pub fn settle(
        &self,
        deliveries: &[Delivery],
        record: Option<&DestinationRecord>,
        reference: Option<&str>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.remove(key::delivery(&delivery.destination, delivery.number));
            if let Some(reference) = reference {
                batch.insert(key::reference(delivery.alert, &delivery.destination), reference.as_bytes());
            }
        }
        if let (Some(record), Some(delivery)) = (record, deliveries.first()) {
            batch.insert(key::destination(&delivery.destination), value::to_json(record)?);
        }
        self.write(batch)
    }

    /// Saves the record of a destination.
    pub fn save_destination(
        &self,
        destination: &DestinationName,
        record: &DestinationRecord,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::destination(destination), value::to_json(record)?);
        self.write(batch)
    }

    /// Saves deliveries that failed, with their new due time.
    pub fn postpone(&self, deliveries: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.insert(key::delivery(&delivery.destination, delivery.number), value::to_json(delivery)?);
        }
        self.write(batch)
    }

    /// Turns deliveries into dead letters.
    pub fn give_up(&self, deliveries: &[Delivery], now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.remove(key::delivery(&delivery.destination, delivery.number));
            let dead = Delivery { given_up: Some(now), ..delivery.clone() };
            batch.insert(key::dead_letter(&delivery.destination, delivery.number), value::to_json(&dead)?);
        }
        self.write(batch)
    }

    /// Makes dead letters pending again, as if they were new.
    pub fn revive(&self, letters: &[Delivery], now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for letter in letters {
            batch.remove(key::dead_letter(&letter.destination, letter.number));
            let delivery = Delivery { created: now, attempts: 0, due: now, given_up: None, ..letter.clone() };
            batch.insert(key::delivery(&letter.destination, letter.number), value::to_json(&delivery)?);
        }
        self.write(batch)
    }

    /// Deletes dead letters.
    pub fn discard(&self, letters: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for letter in letters {
            batch.remove(key::dead_letter(&letter.destination, letter.number));
        }
        self.write(batch)
    }
}
