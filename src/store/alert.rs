//! Changes of alerts: applied, logged, and committed with everything else that followed from the same cause, in one
//! write.
//!
//! The rules' thread and users read, change and write back alerts. [`Writing`] is the exclusive right to do so.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{Delivery, Store, StoreError, key, state, value};
use crate::model::{
    alert::{Alert, AlertChange, AlertStatus, LoggedChange, Notice, Severity},
    name::{AlertId, EventId, RuleId, RuleVersion, Sequence, SilenceId},
    outcome::{LoggedRules, LoggedWatermark, Match, StateChanges, Watermark},
    silence::Silence,
    time::Timestamp,
};

/// Alerts after their changes are applied, and the resulting notices: what routing needs to know.
#[derive(Debug, Default)]
pub struct Staged {
    /// The changed alerts, in their new state.
    pub alerts: BTreeMap<AlertId, Alert>,
    /// The notices to send, in order.
    pub notices: Vec<(AlertId, Notice)>,
    log: Vec<LoggedChange>,
    /// The status and severity that alerts had before.
    before: BTreeMap<AlertId, (AlertStatus, Severity)>,
}

/// A match that an exception suppressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excepted {
    /// The rule that matched.
    pub rule: RuleId,
    pub event: EventId,
    /// The event's time.
    pub time: Timestamp,
}

/// Everything that is written together.
#[derive(Debug, Default)]
pub struct Commit {
    /// The result of [`Writing::stage`].
    pub staged: Staged,
    /// The matches of the batch.
    pub matches: Vec<Match>,
    /// The changes of detection state.
    pub state: StateChanges,
    /// The new pending deliveries.
    pub deliveries: Vec<Delivery>,
    /// The silences that changed.
    pub silences: Vec<Silence>,
    /// The alerts that a silence kept from being delivered.
    pub silenced: Vec<(SilenceId, AlertId)>,
    /// What followed from the absence of events.
    pub watermarks: Vec<Watermark>,
    /// The last event evaluated; absent if no event was (health checks, users' actions).
    pub checkpoint: Option<Sequence>,
}

/// The exclusive right to change alerts and silences. Others wait until it is dropped.
#[derive(Debug)]
pub struct Writing<'a> {
    store: &'a Store,
    /// The number of the last logged change, once it is known.
    last_change: MutexGuard<'a, Option<u64>>,
}

impl Store {
    /// Waits for the exclusive right to change alerts.
    pub fn writing(&self) -> Writing<'_> {
        Writing { store: self, last_change: self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Writing<'_> {
    /// Applies changes to copies of the alerts that they concern. `now` is the time at which new alerts are raised.
    ///
    /// An alert that already exists is not opened again, so that there are no duplicate notifications after events were
    /// lost and fetched again.
    pub fn stage(&self, changes: Vec<AlertChange>, now: Timestamp) -> Result<Staged, StoreError> {
        let mut staged = Staged::default();
        for change in changes {
            let id = change.alert();
            let known = match staged.alerts.entry(id) {
                Entry::Occupied(entry) => Some(entry.into_mut()),
                Entry::Vacant(entry) => self.store.reader().alert(id)?.map(|alert| {
                    staged.before.insert(id, (alert.status, alert.severity));
                    entry.insert(alert)
                }),
            };
            let alert = match (change, known) {
                (AlertChange::Opened(_), Some(_)) => continue,
                (AlertChange::Opened(mut alert), None) => {
                    alert.raised_at = Some(now);
                    let alert = staged.alerts.entry(id).or_insert(*alert);
                    staged.notices.push((id, Notice::Opened));
                    staged.log.push(logged(alert, Notice::Opened, now));
                    continue;
                }
                // Retention removed the alert while its key was still open: there is nothing left to report.
                (_, None) => continue,
                (change, Some(alert)) => {
                    alert.apply(&change);
                    let Some(notice) = change.notice().or_else(|| growth(&change, alert.count)) else {
                        continue;
                    };
                    staged.notices.push((id, notice));
                    let mut entry = logged(alert, notice, now);
                    if let AlertChange::Handled { remark, action, .. } = change {
                        entry.author = Some(remark.author);
                        entry.comment = remark.comment;
                        if let crate::model::alert::AlertAction::Resolve(disposition) = action {
                            entry.disposition = disposition;
                        }
                    }
                    entry
                }
            };
            staged.log.push(alert);
        }
        Ok(staged)
    }

    /// Records which rules run from now on, if they changed. With `hunt`, also records a pending retro-hunt for the
    /// rules that never ran before, except in a new store.
    pub fn note_rules(&mut self, rules: &BTreeMap<RuleId, RuleVersion>, hunt: bool) -> Result<(), StoreError> {
        let reader = self.store.reader();
        if reader.last_rules()?.is_some_and(|last| last.rules == *rules) {
            return Ok(());
        }
        let notes: Vec<LoggedRules> = reader.logged_rules().collect::<Result<_, _>>()?;
        let logged =
            LoggedRules { checkpoint: reader.checkpoint()?, change: self.last_change()?, rules: rules.clone() };
        let mut batch = sled::Batch::default();
        batch.insert(key::rules(logged.checkpoint, logged.change), value::to_json(&logged)?);
        if hunt && !notes.is_empty() {
            for rule in rules.keys().filter(|rule| notes.iter().all(|note| !note.rules.contains_key(*rule))) {
                batch.insert(key::state(&hunt_key(rule)), logged.checkpoint.0.to_be_bytes().as_slice());
            }
        }
        self.store.apply(batch)
    }

    /// Writes everything atomically.
    pub fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let store = self.store;
        let mut batch = sled::Batch::default();
        for (id, alert) in &commit.staged.alerts {
            value::put_framed(&mut batch, key::alert(*id), alert)?;
            batch.insert(key::alert_time(alert.opened_at, *id), &[]);
        }
        if !commit.staged.alerts.is_empty() {
            let mut counts = store.reader().alert_counts()?;
            for (id, alert) in &commit.staged.alerts {
                if let Some((status, severity)) = commit.staged.before.get(id) {
                    counts.remove(*status, *severity);
                }
                counts.add(alert);
            }
            batch.insert(key::ALERT_COUNTS, counts.encode());
        }
        for watermark in &commit.watermarks {
            let checkpoint = commit.checkpoint.map_or_else(|| store.reader().checkpoint(), Ok)?;
            let change = self.last_change()?;
            let logged = LoggedWatermark { checkpoint, change, watermark: watermark.clone() };
            batch.insert(key::watermark(checkpoint, change, &watermark.source), value::to_json(&logged)?);
        }
        if !commit.staged.log.is_empty() {
            let checkpoint = commit.checkpoint.map_or_else(|| store.reader().checkpoint(), Ok)?;
            let mut last = self.last_change()?;
            for entry in &commit.staged.log {
                last += 1;
                let entry = LoggedChange { number: last, checkpoint, ..entry.clone() };
                batch.insert(key::change(last), value::to_json(&entry)?);
                batch.insert(key::change_of(entry.alert, last), &[]);
            }
            batch.insert(key::LAST_CHANGE, last.to_be_bytes().as_slice());
            *self.last_change = Some(last);
        }
        for found in &commit.matches {
            if let Some(alert) = found.alert {
                batch.insert(key::matched(alert, found.sequence), found.event.as_str().as_bytes());
            }
            if let Some(exception) = &found.exception {
                let excepted = Excepted { rule: found.rule.clone(), event: found.event.clone(), time: found.time };
                let key = key::excepted(exception, found.sequence, &found.rule);
                batch.insert(key, value::to_json(&excepted)?);
            }
        }
        for (name, bytes) in &commit.state {
            state::write(store, &mut batch, name, bytes.as_deref())?;
        }
        for silence in &commit.silences {
            batch.insert(key::silence(silence.id), value::to_json(silence)?);
        }
        for (silence, alert) in &commit.silenced {
            batch.insert(key::silenced_alert(*silence, *alert), &[]);
        }
        store.write_deliveries(&mut batch, &commit.deliveries)?;
        if let Some(checkpoint) = commit.checkpoint {
            batch.insert(key::CHECKPOINT, checkpoint.0.to_be_bytes().as_slice());
        }
        store.write(batch)
    }

    /// The store that this writes to.
    pub(super) fn store(&self) -> &Store {
        self.store
    }

    fn last_change(&self) -> Result<u64, StoreError> {
        match *self.last_change {
            Some(last) => Ok(last),
            None => self.store.reader().last_change(),
        }
    }
}

/// The name of the state that records a pending retro-hunt of a rule: a run over the events stored before it was added.
pub fn hunt_key(rule: &RuleId) -> String {
    format!("hunt/{rule}")
}

/// Another match is reported if it is the tenth, the hundredth, the thousandth, …
fn growth(change: &AlertChange, count: u64) -> Option<Notice> {
    let grew = matches!(change, AlertChange::Joined { .. }) && count >= 10 && 10_u64.pow(count.ilog10()) == count;
    grew.then_some(Notice::Grew)
}

fn logged(alert: &Alert, what: Notice, at: Timestamp) -> LoggedChange {
    LoggedChange {
        number: 0,
        at,
        alert: alert.id,
        revision: alert.revision,
        what,
        severity: alert.severity,
        author: None,
        comment: None,
        disposition: None,
        checkpoint: Sequence(0),
    }
}
