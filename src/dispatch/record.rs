//! Stores changes to alerts together with the deliveries that they cause. All changes from detection, health checks and
//! users go through here.
//!
//! Silences are applied here: a silenced alert is stored and counted, and delivered in one message with the others when
//! the silence ends.

use std::time::Duration;

use super::Router;
use crate::deliver::Late;
use crate::{
    model::{
        alert::{Alert, AlertAction, AlertChange, Notice, Remark, Severity},
        name::{AlertId, Sequence, SilenceId},
        outcome::{Outcome, StateChanges},
        silence::{NewSilence, Silence},
        time::{self, Timestamp},
    },
    store::{Commit, Delivery, Store, StoreError, Together, Writing},
};

/// A match that is younger than this has just happened.
const CURRENT: Duration = Duration::from_secs(86_400);

/// Writes alerts and pending deliveries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    store: Store,
    router: Router,
}

/// Summary of what was written.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Number of alerts that opened, by severity, in the order of [`Severity::ALL`].
    pub opened: [u64; 5],
    /// Number of alerts that were silenced.
    pub silenced: u64,
    /// True if there are new pending deliveries.
    pub has_pending: bool,
}

impl Recorder {
    pub fn new(store: Store, router: Router) -> Self {
        Self { store, router }
    }

    /// Writes the outcome of events or checks in one commit with the state and the checkpoint, at `now`.
    pub fn record(
        &self,
        outcome: Outcome,
        state: StateChanges,
        checkpoint: Option<Sequence>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        self.write(&mut self.store.writing(), outcome, state, checkpoint, now)
    }

    /// Writes a user's action on an alert, and returns the changed alert, or `None` if it does not exist. `state` holds
    /// the resulting changes to the detector's state.
    pub fn handle(
        &self,
        alert: AlertId,
        action: AlertAction,
        remark: Remark,
        state: StateChanges,
    ) -> Result<Option<Alert>, StoreError> {
        let now = remark.at;
        let change = AlertChange::Handled { alert, action, remark };
        let outcome = Outcome { alerts: vec![change], ..Outcome::default() };
        self.write(&mut self.store.writing(), outcome, state, None, now)?;
        self.store.reader().alert(alert)
    }

    fn write(
        &self,
        writing: &mut Writing<'_>,
        outcome: Outcome,
        state: StateChanges,
        checkpoint: Option<Sequence>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        let mut staged = writing.stage(outcome.alerts, now)?;
        let mut silences = Vec::new();
        if !staged.notices.is_empty() {
            silences = self.store.reader().silences()?;
            silences.retain(|silence| silence.ended.is_none());
        }
        let active: Vec<SilenceId> = silences.iter().map(|silence| silence.id).collect();
        let mut commit =
            Commit { matches: outcome.matches, watermarks: outcome.watermarks, state, checkpoint, ..Commit::default() };
        let mut recorded = Recorded::default();
        for (id, notice) in &staged.notices {
            let Some(alert) = staged.alerts.get_mut(id) else {
                continue;
            };
            if *notice == Notice::Opened {
                let index = Severity::ALL.iter().position(|severity| *severity == alert.severity);
                if let Some(count) = index.and_then(|index| recorded.opened.get_mut(index)) {
                    *count += 1_u64;
                }
                let Alert { id, rule, severity, late, .. } = &*alert;
                tracing::debug!(alert = %id, %rule, %severity, late, "alert opened");
            }
            let raises = matches!(notice, Notice::Opened | Notice::Escalated | Notice::Reopened | Notice::Grew);
            let silence = silences.iter_mut().find(|silence| silence.covers(alert, now));
            match silence {
                Some(silence) if raises => {
                    // An escalated alert has already been delivered: it is not marked as silenced.
                    if matches!(notice, Notice::Opened | Notice::Reopened) {
                        alert.silenced_by = Some(silence.id);
                    }
                    let entry = (silence.id, alert.id);
                    let counted =
                        commit.silenced.contains(&entry) || self.store.reader().is_silenced(entry.0, entry.1)?;
                    if !counted {
                        silence.silenced += 1;
                        recorded.silenced += 1;
                        commit.silences.retain(|other| other.id != silence.id);
                        commit.silences.push(silence.clone());
                        commit.silenced.push(entry);
                    }
                    continue;
                }
                // The alert has not been delivered yet: its updates wait for the end of the silence too.
                _ if !raises && alert.silenced_by.is_some_and(|id| active.contains(&id)) => continue,
                _ => {}
            }
            commit.deliveries.extend(self.pending(alert, *notice, now));
        }
        recorded.has_pending = !commit.deliveries.is_empty();
        commit.staged = staged;
        writing.commit(&commit)?;
        Ok(recorded)
    }

    fn pending(&self, alert: &Alert, notice: Notice, now: Timestamp) -> Vec<Delivery> {
        // A match that has just happened may escalate an alert that opened late: that is news.
        let current = notice == Notice::Escalated && time::since(now, alert.last_seen) < CURRENT;
        let late = alert.late && !current;
        self.router
            .route(alert, notice)
            .filter(|settings| !(late && settings.late == Late::Never))
            .map(|settings| {
                let together = (late && settings.late == Late::Digest).then_some(Together::Late);
                Delivery { together, ..Delivery::new(settings.name.clone(), alert, notice, now) }
            })
            .collect()
    }

    /// Starts a silence.
    pub fn add_silence(&self, wanted: NewSilence, now: Timestamp) -> Result<Silence, StoreError> {
        self.store.writing().add_silence(wanted, now)
    }

    /// Ends a silence now. Returns `None` if there is no active silence with this id.
    pub fn end_silence(&self, id: SilenceId, now: Timestamp) -> Result<Option<(Silence, Recorded)>, StoreError> {
        let mut writing = self.store.writing();
        let silence =
            self.store.reader().silences()?.into_iter().find(|silence| silence.id == id && silence.ended.is_none());
        let Some(silence) = silence else {
            return Ok(None);
        };
        self.end(&mut writing, silence, now).map(Some)
    }

    /// Ends all silences that have expired.
    pub fn end_silences(&self, now: Timestamp) -> Result<Recorded, StoreError> {
        let is_expired = |silence: &Silence| silence.ended.is_none() && silence.until <= now;
        if !self.store.reader().silences()?.iter().any(is_expired) {
            return Ok(Recorded::default());
        }
        let mut writing = self.store.writing();
        let mut recorded = Recorded::default();
        for silence in self.store.reader().silences()?.into_iter().filter(is_expired) {
            let (silence, ended) = self.end(&mut writing, silence, now)?;
            tracing::info!(silence = %silence.id, silenced = silence.silenced, "silence ended");
            recorded.has_pending |= ended.has_pending;
        }
        Ok(recorded)
    }

    fn end(
        &self,
        writing: &mut Writing<'_>,
        silence: Silence,
        now: Timestamp,
    ) -> Result<(Silence, Recorded), StoreError> {
        let reader = self.store.reader();
        let mut others = reader.silences()?;
        others.retain(|other| other.ended.is_none() && other.id != silence.id);
        let mut deliveries = Vec::new();
        let mut passed_on = Vec::new();
        for id in reader.silenced(silence.id)? {
            let Some(alert) = reader.alert(id)? else { continue };
            // Another silence still covers the alert, and delivers it when it ends.
            if let Some(other) = others.iter().find(|other| other.covers(&alert, now)) {
                passed_on.push((other.id, Alert { silenced_by: Some(other.id), ..alert }));
                continue;
            }
            for delivery in self.pending(&alert, Notice::Opened, now) {
                deliveries.push(Delivery { together: Some(Together::Silenced(silence.id)), ..delivery });
            }
        }
        let ended = Silence { ended: Some(now), until: silence.until.min(now), ..silence };
        writing.end_silence(ended.clone(), &deliveries, &passed_on)?;
        Ok((ended, Recorded { has_pending: !deliveries.is_empty(), ..Recorded::default() }))
    }
}
