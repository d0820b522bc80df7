//! Writing down what happened to alerts, together with what is pending to whom because of it: the one way from detection,
//! health checks and people into the store.
//!
//! Silences are applied here: an alert that one covers is recorded and counted, and its deliveries wait for the end of the
//! silence, when they come as one message.

use super::Router;
use crate::deliver::Late;
use crate::{
    model::{
        alert::{Alert, AlertAction, AlertChange, Notice, Remark, Severity},
        name::{AlertId, Sequence, SilenceId},
        outcome::{Outcome, StateChanges},
        silence::{NewSilence, Silence},
        time::Timestamp,
    },
    store::{Commit, Delivery, Store, StoreError, Together, Writing},
};

/// Writes alerts and what is pending. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    store: Store,
    router: Router,
}

/// What was written.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Alerts that opened, by severity, in the order of [`Severity::ALL`].
    pub opened: [u64; 5],
    /// Alerts that were kept from being delivered.
    pub silenced: u64,
    /// Whether something is pending that was not before.
    pub has_pending: bool,
}

impl Recorder {
    /// A recorder that routes as `router` says.
    pub fn new(store: Store, router: Router) -> Self {
        Self { store, router }
    }

    /// Writes what followed from events, or from checks, with everything that belongs to it, at `now`.
    pub fn record(
        &self,
        outcome: Outcome,
        state: StateChanges,
        checkpoint: Option<Sequence>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        self.write(&mut self.store.writing(), outcome, state, checkpoint, now)
    }

    /// Writes what a person did with an alert; none if there is no such alert. `state` is what detection no longer knows, or
    /// knows again, because of it.
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
                tracing::debug!(alert = %alert.id, rule = %alert.rule, severity = %alert.severity, late = alert.late, "alert opened");
            }
            let raises = matches!(notice, Notice::Opened | Notice::Escalated | Notice::Reopened | Notice::Grew);
            let silence = silences.iter_mut().find(|silence| silence.covers(alert, now));
            match silence {
                Some(silence) if raises => {
                    // An alert that people were told of before stays one they know.
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
                // Nobody was told of it yet: how it goes on is told when the silence ends.
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
        self.router
            .route(alert, notice)
            .filter(|settings| !(alert.late && settings.late == Late::Never))
            .map(|settings| {
                let together = (alert.late && settings.late == Late::Digest).then_some(Together::Late);
                Delivery { together, ..Delivery::new(settings.name.clone(), alert, notice, now) }
            })
            .collect()
    }

    /// Begins a silence.
    pub fn add_silence(&self, wanted: NewSilence, now: Timestamp) -> Result<Silence, StoreError> {
        self.store.writing().add_silence(wanted, now)
    }

    /// Ends a silence now; none if there is none of this number that has not ended.
    pub fn end_silence(&self, id: SilenceId, now: Timestamp) -> Result<Option<(Silence, Recorded)>, StoreError> {
        let mut writing = self.store.writing();
        let found =
            self.store.reader().silences()?.into_iter().find(|silence| silence.id == id && silence.ended.is_none());
        let Some(silence) = found else {
            return Ok(None);
        };
        self.end(&mut writing, silence, now).map(Some)
    }

    /// Ends all silences whose time is over.
    pub fn end_silences(&self, now: Timestamp) -> Result<Recorded, StoreError> {
        let over = |silence: &Silence| silence.ended.is_none() && silence.until <= now;
        if !self.store.reader().silences()?.iter().any(over) {
            return Ok(Recorded::default());
        }
        let mut writing = self.store.writing();
        let mut recorded = Recorded::default();
        for silence in self.store.reader().silences()?.into_iter().filter(over) {
            let (silence, ended) = self.end(&mut writing, silence, now)?;
            tracing::info!(silence = %silence.id, silenced = silence.silenced, "a silence has ended");
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
            // A silence that was made to go on with this one lists it in its time.
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
