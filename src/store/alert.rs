//! Changes of alerts: carried out, logged, and committed with everything else that followed from the same cause, in one
//! write.
//!
//! An alert is read, changed and written back, by the rules' thread and by people. [`Writing`] is the turn to do so: whoever
//! holds it is alone.

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

/// Alerts as they will be once the changes are carried out, and the notices that follow: what routing needs to know.
#[derive(Debug, Default)]
pub struct Staged {
    /// Alerts that change, as they will be.
    pub alerts: BTreeMap<AlertId, Alert>,
    /// Whom to tell of what, in order.
    pub notices: Vec<(AlertId, Notice)>,
    log: Vec<LoggedChange>,
    /// The status and severity that alerts had before.
    before: BTreeMap<AlertId, (AlertStatus, Severity)>,
}

/// A match that an exception took out of alerting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excepted {
    /// The rule that said true.
    pub rule: RuleId,
    /// The event.
    pub event: EventId,
    /// Its time.
    pub time: Timestamp,
}

/// Everything that is written together.
#[derive(Debug, Default)]
pub struct Commit {
    /// From [`Writing::stage`].
    pub staged: Staged,
    /// Matches of the batch.
    pub matches: Vec<Match>,
    /// Detection state that changed.
    pub state: StateChanges,
    /// Deliveries that are pending from now on.
    pub deliveries: Vec<Delivery>,
    /// Silences that changed.
    pub silences: Vec<Silence>,
    /// Alerts that a silence kept from being delivered.
    pub silenced: Vec<(SilenceId, AlertId)>,
    /// What followed from there being no events.
    pub watermarks: Vec<Watermark>,
    /// The last event that has been evaluated; absent where no event was (health checks, people).
    pub checkpoint: Option<Sequence>,
}

/// The turn to change alerts and silences. Others wait until it is dropped.
#[derive(Debug)]
pub struct Writing<'a> {
    store: &'a Store,
    /// The number of the last logged change, once it is known.
    last_change: MutexGuard<'a, Option<u64>>,
}

impl Store {
    /// Waits for the turn to change alerts.
    pub fn writing(&self) -> Writing<'_> {
        Writing { store: self, last_change: self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Writing<'_> {
    /// Carries changes out on copies of the alerts they concern. `now` is when new alerts are raised.
    ///
    /// An alert that is there already is not opened again: after events were lost and fetched once more, whoever was told of
    /// it is not told twice.
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
                // Retention took it while its key was still open: nobody is left to tell.
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

    /// Notes which rules run from here on, unless they are those that ran before; and, if asked to, that those which never ran before
    /// are pending a hunt. In a store that is new, none is.
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

    /// Writes it all, or nothing.
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

    /// The store that is written to.
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

/// The name of the state that says that a rule is pending a hunt: a run over what was stored before it came.
pub fn hunt_key(rule: &RuleId) -> String {
    format!("hunt/{rule}")
}

/// A match more is news where it makes ten, a hundred, a thousand of them.
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
