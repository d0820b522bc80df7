//! Deliveries owed: written with the alert they tell of, struck off when they are settled.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, key, value};
use crate::{
    alert::Notice,
    name::{AlertId, DestinationName},
    time::Timestamp,
};

/// One alert owed to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its place in the outbox.
    #[serde(skip)]
    pub number: u64,
    /// To whom.
    pub destination: DestinationName,
    /// Of what.
    pub alert: AlertId,
    /// Why.
    pub notice: Notice,
    /// To be told in a digest only.
    pub late: bool,
    /// When it came up.
    pub created: Timestamp,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Not before this.
    pub due: Timestamp,
    /// What the last attempt came to.
    pub error: Option<String>,
}

impl Store {
    pub(super) fn write_deliveries(&self, batch: &mut sled::Batch, deliveries: &[Delivery]) -> Result<(), StoreError> {
        for delivery in deliveries {
            // Numbers only need to go up; gaps after a crash do not matter.
            let number = self.inner.db.generate_id()?;
            batch.insert(key::delivery(&delivery.destination, number), value::to_json(delivery)?);
        }
        Ok(())
    }

    /// Strikes deliveries off: they were made, or given up.
    pub fn settle(&self, deliveries: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.remove(key::delivery(&delivery.destination, delivery.number));
        }
        self.write(batch)
    }

    /// Keeps a delivery that failed, with its new due time.
    pub fn postpone(&self, deliveries: &[Delivery]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for delivery in deliveries {
            batch.insert(key::delivery(&delivery.destination, delivery.number), value::to_json(delivery)?);
        }
        self.write(batch)
    }
}
