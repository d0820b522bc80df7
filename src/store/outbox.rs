//! Deliveries pending: written with the alert they tell of, struck off when they are settled. Those that could not be made in
//! time are kept as dead letters, for a person to try again.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, key, value};
use crate::model::{
    alert::{Alert, Notice, Remark},
    name::{AlertId, DestinationName, SilenceId},
    time::Timestamp,
};

/// Why an alert is told together with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Together {
    /// Its opening event was old when it arrived.
    Late,
    /// It was silenced, and the silence has ended.
    Silenced(SilenceId),
}

/// One alert pending to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its place in the outbox.
    #[serde(default)]
    pub number: u64,
    /// To whom.
    pub destination: DestinationName,
    /// Of what.
    pub alert: AlertId,
    /// Why.
    pub notice: Notice,
    /// The alert's revision that it tells of.
    #[serde(default)]
    pub revision: u32,
    /// What a person did or said then, where it tells of that.
    #[serde(default)]
    pub remark: Option<Remark>,
    /// To be told in a digest only.
    #[serde(default)]
    pub together: Option<Together>,
    /// When it came up.
    pub created: Timestamp,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Not before this.
    pub due: Timestamp,
    /// What the last attempt came to.
    pub error: Option<String>,
    /// When it was given up; absent while it is pending.
    #[serde(default)]
    pub given_up: Option<Timestamp>,
}

impl Delivery {
    /// A delivery of an alert as it is, which came up at `now` and has not been tried.
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

/// What is kept of a destination between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRecord {
    /// Messages delivered.
    pub delivered: u64,
    /// When the last was.
    pub last_delivered: Option<Timestamp>,
    /// When the messages of the last hour were sent, where their number is limited.
    pub sent: Vec<Timestamp>,
    /// Messages were held back by that limit, and come together once more may be sent.
    #[serde(default)]
    pub holding: bool,
}

/// The highest number of a delivery that is pending or was given up.
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
            // Numbers only need to go up; gaps after a crash do not matter.
            let number = self.inner.next_delivery.fetch_add(1, Ordering::Relaxed);
            let delivery = Delivery { number, ..delivery.clone() };
            batch.insert(key::delivery(&delivery.destination, number), value::to_json(&delivery)?);
        }
        Ok(())
    }

    /// Strikes deliveries off: they were made, or nobody is left to tell. `record` is what is known of the destination from
    /// now on; `reference` is what the destination calls the alert.
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

    /// Saves what is known of a destination.
    pub fn save_destination(
        &self,
        destination: &DestinationName,
        record: &DestinationRecord,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::destination(destination), value::to_json(record)?);
        self.write(batch)
    }

    /// Keeps deliveries that failed, with their new due time.
    pub fn postpone(&self, deliveries: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.insert(key::delivery(&delivery.destination, delivery.number), value::to_json(delivery)?);
        }
        self.write(batch)
    }

    /// Gives deliveries up: they become dead letters.
    pub fn give_up(&self, deliveries: &[Delivery], now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.remove(key::delivery(&delivery.destination, delivery.number));
            let dead = Delivery { given_up: Some(now), ..delivery.clone() };
            batch.insert(key::dead_letter(&delivery.destination, delivery.number), value::to_json(&dead)?);
        }
        self.write(batch)
    }

    /// Owes dead letters again, as if they had just come up.
    pub fn revive(&self, letters: &[Delivery], now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for letter in letters {
            batch.remove(key::dead_letter(&letter.destination, letter.number));
            let delivery = Delivery { created: now, attempts: 0, due: now, given_up: None, ..letter.clone() };
            batch.insert(key::delivery(&letter.destination, letter.number), value::to_json(&delivery)?);
        }
        self.write(batch)
    }

    /// Throws dead letters away.
    pub fn discard(&self, letters: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for letter in letters {
            batch.remove(key::dead_letter(&letter.destination, letter.number));
        }
        self.write(batch)
    }
}
