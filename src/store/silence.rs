//! Silences, and the alerts that each kept from being delivered.

use super::{Commit, Delivery, StoreError, Writing, key, value};
use crate::model::{
    alert::Alert,
    name::SilenceId,
    silence::{NewSilence, Silence},
    time::Timestamp,
};

impl Writing<'_> {
    /// Creates a silence that starts at `now`.
    pub fn add_silence(&mut self, wanted: NewSilence, now: Timestamp) -> Result<Silence, StoreError> {
        let last = self.store().reader().silences()?.iter().map(|silence| silence.id.0).max().unwrap_or(0);
        let silence = Silence {
            id: SilenceId(last + 1),
            rule: wanted.rule,
            actor: wanted.actor,
            source: wanted.source,
            from: now,
            until: wanted.until,
            author: wanted.author,
            comment: wanted.comment,
            silenced: 0,
            ended: None,
        };
        self.commit(&Commit { silences: vec![silence.clone()], ..Commit::default() })?;
        Ok(silence)
    }

    /// Ends a silence, with the deliveries that report what it silenced. Alerts in `passed_on` belong to another
    /// silence from now on.
    pub fn end_silence(
        &mut self,
        silence: Silence,
        deliveries: &[Delivery],
        passed_on: &[(SilenceId, Alert)],
    ) -> Result<(), StoreError> {
        let store = self.store();
        let mut batch = sled::Batch::default();
        for item in store.tree().scan_prefix(key::silenced(silence.id)).keys() {
            batch.remove(item?);
        }
        for (other, alert) in passed_on {
            batch.insert(key::silenced_alert(*other, alert.id), &[]);
            value::put_framed(&mut batch, key::alert(alert.id), alert)?;
        }
        store.write_deliveries(&mut batch, deliveries)?;
        batch.insert(key::silence(silence.id), value::to_json(&silence)?);
        store.write(batch)
    }
}
