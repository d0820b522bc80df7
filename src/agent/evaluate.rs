//! The rules' thread: reads what follows the mark, asks the detector what it means, and commits everything that follows
//! together with the new mark. Between batches it takes up new rules and runs the health checks.
//!
//! If a commit fails the detector is ahead of the disk: it is thrown away, and the agent opened again from the store.

use std::{sync::Arc, time::Instant};

use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{Watched, health};
use crate::{
    alert::Severity,
    deliver::Router,
    detect::{Detector, HealthDetector, Settings},
    name::Sequence,
    outcome::{Outcome, StateChanges},
    rule::RuleSet,
    store::{Commit, Delivery, Store, StoreError},
    time::Clock,
};

/// Events evaluated between two commits. A commit waits for the disk, an event takes microseconds.
const BATCH: usize = 500;

/// How far evaluation has come since the agent started.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The last event that was evaluated.
    pub mark: Sequence,
    /// Events evaluated.
    pub events: u64,
    /// Calls of `fn rule`.
    pub rules_run: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Alerts opened, by severity, in the order of [`Severity::ALL`].
    pub alerts: [u64; 5],
}

pub(super) struct Evaluator {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) router: Router,
    pub(super) clock: Clock,
    pub(super) rules: watch::Receiver<Arc<RuleSet>>,
    pub(super) stored: watch::Receiver<u64>,
    pub(super) owed: watch::Sender<u64>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) watched: Watched,
}

impl Evaluator {
    /// Evaluates until `stop`. Must be called on a thread of its own. Ends early if the store fails: the detector is then ahead
    /// of the disk, and sled refuses all work after an error, so that only opening everything again helps.
    pub(super) fn run(mut self, runtime: &Handle, stop: &CancellationToken) -> Result<(), StoreError> {
        let (detector, checks) = self.restore()?;
        self.evaluate(detector, checks, runtime, stop)
    }

    fn restore(&mut self) -> Result<(Detector, HealthDetector), StoreError> {
        let state = self.store.reader().state()?;
        let rules = Arc::clone(&self.rules.borrow_and_update());
        let checks = HealthDetector::restore(&self.settings.limits, state.clone());
        Ok((Detector::restore(rules, self.settings.clone(), state), checks))
    }

    fn evaluate(
        &mut self,
        mut detector: Detector,
        mut checks: HealthDetector,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let reader = self.store.reader();
        let mut mark = reader.mark()?;
        let mut pulse = health::Pulse::new(&self.watched, &self.clock);
        while !stop.is_cancelled() {
            if self.rules.has_changed().unwrap_or(false) {
                detector.set_rules(Arc::clone(&self.rules.borrow_and_update()));
                // A file that broke is told at once.
                pulse.hurry();
            }
            if pulse.is_due() {
                self.check(&mut detector, &mut checks, &mut pulse, mark)?;
            }
            self.stored.mark_unchanged();
            let events = reader.events_after(mark, BATCH)?;
            let Some(last) = events.last().map(|event| event.sequence) else {
                let wait = pulse.until_due();
                runtime.block_on(async {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = self.stored.changed() => {}
                        _ = self.rules.changed() => self.rules.mark_changed(),
                        () = tokio::time::sleep(wait) => {}
                    }
                });
                continue;
            };
            let begun = Instant::now();
            let mut outcome = Outcome::default();
            let count = events.len();
            let mut evaluated = mark;
            for event in &events {
                outcome.append(detector.evaluate(event));
                evaluated = event.sequence;
                // A batch of slow rules must not hold up the end; what is done so far is committed.
                if stop.is_cancelled() {
                    break;
                }
            }
            debug_assert!(evaluated <= last);
            let state = detector.take_changes();
            self.commit(outcome, state, Some(evaluated), count as u64)?;
            mark = evaluated;
            tracing::debug!(events = count, %mark, took = ?begun.elapsed(), "batch evaluated");
        }
        Ok(())
    }

    fn check(
        &self,
        detector: &mut Detector,
        checks: &mut HealthDetector,
        pulse: &mut health::Pulse,
        mark: Sequence,
    ) -> Result<(), StoreError> {
        let now = pulse.beat(&self.clock);
        self.store.set_alive(now)?;
        let subjects = health::subjects(&self.watched, pulse, &self.store.reader(), detector, mark, now)?;
        let rules = Arc::clone(detector.rules());
        let (outcome, state) = checks.check(&rules, &subjects, now);
        for (rule, error) in &outcome.failures {
            tracing::warn!(%rule, "check rule failed: {error}");
        }
        if outcome.alerts.is_empty() && state.is_empty() {
            return Ok(());
        }
        self.commit(outcome, state, None, 0)
    }

    fn commit(
        &self,
        outcome: Outcome,
        state: StateChanges,
        mark: Option<Sequence>,
        events: u64,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let staged = self.store.stage(outcome.alerts, now)?;
        let mut deliveries = Vec::new();
        let mut opened = [0; 5];
        for (id, notice) in &staged.notices {
            let Some(alert) = staged.alerts.get(id) else {
                continue;
            };
            if *notice == crate::alert::Notice::Opened {
                let index = Severity::ALL.iter().position(|severity| *severity == alert.severity);
                if let Some(count) = index.and_then(|index| opened.get_mut(index)) {
                    *count += 1_u64;
                }
                tracing::debug!(alert = %alert.id, rule = %alert.rule, severity = %alert.severity, late = alert.late, "alert opened");
            }
            for destination in self.router.route(alert) {
                deliveries.push(Delivery {
                    number: 0,
                    destination,
                    alert: *id,
                    notice: *notice,
                    late: alert.late,
                    created: now,
                    attempts: 0,
                    due: now,
                    error: None,
                });
            }
        }
        for (rule, error) in &outcome.failures {
            tracing::debug!(%rule, "rule failed: {error}");
        }
        let owes = !deliveries.is_empty();
        self.store.commit(&Commit { staged, matches: outcome.matches, state, deliveries, mark })?;
        if owes {
            self.owed.send_modify(|count| *count += 1);
        }
        self.progress.send_modify(|progress| {
            progress.mark = mark.unwrap_or(progress.mark);
            progress.events += events;
            progress.rules_run += u64::from(outcome.rules_run);
            progress.failures += outcome.failures.len() as u64;
            for (total, count) in progress.alerts.iter_mut().zip(opened) {
                *total += count;
            }
        });
        Ok(())
    }
}
