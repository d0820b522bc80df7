//! Committing what followed from a batch of events: alerts, matches, detection state, deliveries and the mark, in one write.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Delivery, Store, StoreError, key, value};
use crate::{
    alert::{Alert, AlertChange, Notice},
    name::{AlertId, Sequence},
    outcome::{Match, StateChanges},
    time::Timestamp,
};

/// Alerts as they will be once the changes are carried out, and the notices that follow: what routing needs to know.
#[derive(Debug, Default)]
pub struct Staged {
    /// Alerts that change, as they will be.
    pub alerts: BTreeMap<AlertId, Alert>,
    /// Whom to tell of what, in order.
    pub notices: Vec<(AlertId, Notice)>,
}

/// Everything that is written together.
#[derive(Debug, Default)]
pub struct Commit {
    /// From [`Store::stage`].
    pub staged: Staged,
    /// Matches of the batch.
    pub matches: Vec<Match>,
    /// Detection state that changed.
    pub state: StateChanges,
    /// Deliveries that are owed from now on.
    pub deliveries: Vec<Delivery>,
    /// The last event that has been evaluated; absent where no event was (health checks).
    pub mark: Option<Sequence>,
}

impl Store {
    /// Carries changes out on copies of the alerts they concern. `now` is when new alerts are raised.
    pub fn stage(&self, changes: Vec<AlertChange>, now: Timestamp) -> Result<Staged, StoreError> {
        let mut staged = Staged::default();
        for change in changes {
            let id = change.alert();
            if let Some(notice) = change.notice() {
                staged.notices.push((id, notice));
            }
            if let AlertChange::Opened(mut alert) = change {
                alert.raised_at = Some(now);
                staged.alerts.insert(id, *alert);
                continue;
            }
            let alert = match staged.alerts.entry(id) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => match self.reader().alert(id)? {
                    Some(alert) => entry.insert(alert),
                    None => {
                        // Retention took it while its key was still open: nobody is left to tell.
                        staged.notices.retain(|(other, _)| *other != id);
                        continue;
                    }
                },
            };
            alert.apply(&change);
        }
        Ok(staged)
    }

    /// Writes it all, or nothing.
    pub fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (id, alert) in &commit.staged.alerts {
            batch.insert(key::alert(*id), value::to_json(alert)?);
            batch.insert(key::alert_time(alert.opened_at, *id), &[]);
        }
        for found in &commit.matches {
            if let Some(alert) = found.alert {
                batch.insert(key::matched(alert, found.sequence), found.event.as_str().as_bytes());
            }
        }
        for (name, bytes) in &commit.state {
            match bytes {
                Some(bytes) => batch.insert(key::state(name), bytes.as_slice()),
                None => batch.remove(key::state(name)),
            }
        }
        self.write_deliveries(&mut batch, &commit.deliveries)?;
        if let Some(mark) = commit.mark {
            batch.insert(key::MARK, mark.0.to_be_bytes().as_slice());
        }
        self.write(batch)
    }
}
