//! How many alerts there are of each status and severity: kept up to date with each commit, so that the agent's status costs
//! the same however many alerts are stored.

use super::{Reader, StoreError, key, value};
use crate::model::alert::{Alert, AlertStatus, Severity};

/// Numbers of alerts, by status and severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlertCounts([[u64; Severity::ALL.len()]; AlertStatus::ALL.len()]);

impl AlertCounts {
    /// The number of alerts of a status and a severity.
    pub fn of(&self, status: AlertStatus, severity: Severity) -> u64 {
        self.0.get(status as usize).and_then(|row| row.get(severity as usize)).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, alert: &Alert) {
        if let Some(count) = self.count(alert.status, alert.severity) {
            *count += 1;
        }
    }

    pub(super) fn remove(&mut self, status: AlertStatus, severity: Severity) {
        if let Some(count) = self.count(status, severity) {
            *count = count.saturating_sub(1);
        }
    }

    fn count(&mut self, status: AlertStatus, severity: Severity) -> Option<&mut u64> {
        self.0.get_mut(status as usize)?.get_mut(severity as usize)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.0.iter().flatten().flat_map(|count| count.to_be_bytes()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut counts = Self::default();
        let mut numbers = bytes.chunks_exact(8);
        for count in counts.0.iter_mut().flatten() {
            *count = value::number(numbers.next()?)?;
        }
        (numbers.next().is_none() && numbers.remainder().is_empty()).then_some(counts)
    }
}

impl Reader {
    /// The numbers of alerts. A store of an earlier version does not have them until something changes: they are counted.
    pub fn alert_counts(&self) -> Result<AlertCounts, StoreError> {
        let stored = self.tree().get(key::ALERT_COUNTS)?;
        match stored.and_then(|bytes| AlertCounts::decode(&bytes)) {
            Some(counts) => Ok(counts),
            None => self.count_alerts(),
        }
    }

    /// Counts all alerts.
    pub(super) fn count_alerts(&self) -> Result<AlertCounts, StoreError> {
        let mut counts = AlertCounts::default();
        for item in self.tree().scan_prefix([key::ALERT]) {
            match value::from_json("an alert", &item?.1) {
                Ok(alert) => counts.add(&alert),
                // A damaged alert must not keep all others from being written; `verify` reports it.
                Err(error) => tracing::warn!(%error, "an alert is not counted"),
            }
        }
        Ok(counts)
    }
}
