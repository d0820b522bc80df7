//! The rules thread: reads events after the checkpoint, runs the detector on them, and commits the results together
//! with the new checkpoint. Between batches it loads new rules and runs the health checks.
//!
//! If a commit fails, the detector is ahead of the disk. It is discarded, and the agent is opened again from the store.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    Watched,
    crash::{CrashLog, Runner},
    health,
    request::{Beat, EvaluationProgress, HandleRequest, RetroHuntResult, RulesRequest},
    retro_hunt::RetroHunt,
    warm_up,
};
use crate::model::signal::{Listener, Signal};
use crate::{
    api::allowed,
    detect::{Detector, HealthDetector, Settings},
    dispatch::{Recorded, Recorder},
    model::{
        alert::{Alert, AlertAction, AlertChange},
        name::{AlertId, RuleId, Sequence, SourceName},
        outcome::{Outcome, StateChanges},
        time::{Clock, Timestamp},
    },
    rule::{EXPIRED, RuleSet},
    source::SourceStatus,
    store::{Store, StoreError, hunt_key},
};

/// Events evaluated between two commits. A commit waits for the disk, an event takes microseconds.
const BATCH: usize = 500;

pub(super) struct Evaluator {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) recorder: Recorder,
    pub(super) clock: Clock,
    pub(super) requests: mpsc::Receiver<RulesRequest>,
    /// Shows that the thread is not stuck.
    pub(super) beat: Arc<Beat>,
    pub(super) rules: watch::Receiver<Arc<RuleSet>>,
    pub(super) stored: Listener,
    pub(super) pending: Signal,
    pub(super) progress: watch::Sender<EvaluationProgress>,
    pub(super) watched: Watched,
    /// How far back retro-hunts go; `None` if they are off.
    pub(super) retro_hunt: Option<Duration>,
    /// Where retro-hunts send their results.
    pub(super) hunted: mpsc::Sender<RulesRequest>,
    /// Suspected and suspended rules, and notes of what is running.
    pub(super) crashes: Arc<CrashLog>,
}

impl Evaluator {
    /// Evaluates until `stop`. Must be called on a dedicated thread. Ends early if the store fails: the detector is
    /// then ahead of the disk, and sled refuses all work after an error, so everything has to be opened again.
    pub(super) fn run(mut self, runtime: &Handle, stop: &CancellationToken) -> Result<(), StoreError> {
        let (detector, checks) = self.restore()?;
        self.evaluate(detector, checks, runtime, stop)
    }

    fn restore(&mut self) -> Result<(Detector, HealthDetector), StoreError> {
        let state = self.store.reader().state()?;
        let rules = Arc::clone(&self.rules.borrow_and_update());
        self.note(&rules)?;
        let mut checks = HealthDetector::restore(&self.settings.limits, state.clone());
        checks.set_watch(Some(self.crashes.watch(Runner::Check, None)));
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
        let mut checkpoint = reader.checkpoint()?;
        let mut pulse = health::Pulse::new(&self.watched, &self.clock);
        self.learn(&mut detector, checkpoint, stop)?;
        self.hunt(detector.rules(), stop)?;
        while !stop.is_cancelled() {
            self.beat.beat();
            while let Ok(request) = self.requests.try_recv() {
                self.answer(request, &mut detector, &checks)?;
            }
            if self.rules.has_changed().unwrap_or(false) {
                let rules = Arc::clone(&self.rules.borrow_and_update());
                self.note(&rules)?;
                detector.set_rules(rules);
                self.learn(&mut detector, checkpoint, stop)?;
                self.hunt(detector.rules(), stop)?;
                // Reports a broken file immediately.
                pulse.hurry();
            }
            if pulse.is_due() {
                self.check(&mut detector, &mut checks, &mut pulse, checkpoint)?;
            }
            self.stored.mark_unchanged();
            // Must come before the batch is read: an empty batch then proves that everything stored by this point has
            // been evaluated.
            let whole = self.whole_logs();
            let Some(batch) = reader.batch_after(checkpoint, BATCH)? else {
                self.advance(&mut detector, &whole)?;
                let wait = pulse.until_due();
                let request = runtime.block_on(async {
                    tokio::select! {
                        () = stop.cancelled() => None,
                        _ = self.stored.changed() => None,
                        _ = self.rules.changed() => { self.rules.mark_changed(); None }
                        request = self.requests.recv() => request,
                        () = tokio::time::sleep(wait) => None,
                    }
                });
                if let Some(request) = request {
                    self.answer(request, &mut detector, &checks)?;
                }
                continue;
            };
            let begun = Instant::now();
            let mut outcome = Outcome::default();
            let mut evaluated = batch.last;
            let mut count = 0;
            let mut cleared = Vec::new();
            let noted = self.crashes.clearing(Runner::Evaluate);
            for event in &batch.events {
                self.crashes.event(event.sequence);
                // If the process died on this event, note each rule before it runs.
                let suspect = self.crashes.is_suspect_event(event.sequence);
                if suspect {
                    detector.set_watch(Some(self.crashes.watch(Runner::Evaluate, Some(event.sequence))));
                }
                outcome.append(detector.evaluate(event));
                if suspect {
                    detector.set_watch(None);
                    cleared.push(event.sequence);
                }
                count += 1;
                self.beat.beat();
                // A batch of slow rules must not delay shutdown. What has been evaluated so far is committed.
                if stop.is_cancelled() {
                    evaluated = event.sequence;
                    break;
                }
            }
            // Must come before the commit, which waits for the disk: a crash there is not caused by an event.
            drop(noted);
            let state = detector.take_changes();
            self.record(outcome, state, Some(evaluated), count)?;
            self.crashes.cleared(&cleared, &[])?;
            checkpoint = evaluated;
            tracing::debug!(events = count, %checkpoint, took = ?begun.elapsed(), "batch evaluated");
        }
        Ok(())
    }

    /// Records which rules run from now on, and which of them have a pending retro-hunt.
    fn note(&self, rules: &RuleSet) -> Result<(), StoreError> {
        self.store.writing().note_rules(&rules.versions(), self.retro_hunt.is_some())
    }

    /// Starts the pending retro-hunts.
    fn hunt(&self, rules: &Arc<RuleSet>, stop: &CancellationToken) -> Result<(), StoreError> {
        let Some(span) = self.retro_hunt else {
            return Ok(());
        };
        for (checkpoint, ids) in self.store.reader().hunts()? {
            let wanted = rules.detections.iter().filter(|rule| ids.contains(rule.id())).cloned().collect::<Vec<_>>();
            if wanted.is_empty() {
                continue;
            }
            let hunt = RetroHunt { rules: Arc::clone(rules), wanted, span, checkpoint };
            let (settings, reader, results) = (self.settings.clone(), self.store.reader(), self.hunted.clone());
            hunt.begin(settings, reader, self.clock.now(), results, Arc::clone(&self.crashes), stop.clone());
        }
        Ok(())
    }

    /// Records the matches of new rules in stored events. Later matches join those alerts that are recent enough.
    fn hunted(&self, hunted: RetroHuntResult, detector: &mut Detector) -> Result<(), StoreError> {
        let RetroHuntResult { rules, mut outcome } = hunted;
        let pending = self.store.reader().hunts()?;
        // Two reloads in a row can start the same hunt twice, and a rule may have changed or been removed since its
        // hunt started.
        let running = detector.rules().versions();
        let rules: Vec<RuleId> = rules
            .into_iter()
            .filter(|(rule, version)| running.get(rule) == Some(version))
            .map(|(rule, _)| rule)
            .collect();
        let is_pending = |rule: &RuleId| rules.contains(rule) && pending.values().any(|ids| ids.contains(rule));
        let mut opened: Vec<Alert> = Vec::new();
        for change in &outcome.alerts {
            if let AlertChange::Opened(alert) = change
                && is_pending(&alert.rule)
                && self.store.reader().alert(alert.id)?.is_none()
            {
                opened.push((**alert).clone());
            }
        }
        // Existing alerts already have these matches.
        let new: HashSet<AlertId> = opened.iter().map(|alert| alert.id).collect();
        let is_new = |id: AlertId| new.contains(&id);
        outcome.alerts.retain(|change| is_new(change.alert()));
        outcome.matches.retain(|found| found.alert.is_some_and(is_new));
        for alert in &mut opened {
            // Apply all changes: later matches may have raised the severity.
            let id = alert.id;
            outcome.alerts.iter().filter(|change| change.alert() == id).for_each(|change| alert.apply(change));
            detector.handled(alert, AlertAction::Reopen);
        }
        let names: Vec<String> = rules.iter().map(ToString::to_string).collect();
        tracing::info!(rules = ?names, alerts = opened.len(), "retro-hunt finished");
        let mut state = detector.take_changes();
        state.extend(rules.iter().map(|rule| (hunt_key(rule), None)));
        self.record(outcome, state, None, 0)
    }

    /// Warms up new rules, and stores the result immediately so that they do not have to learn it again.
    fn learn(&self, detector: &mut Detector, checkpoint: Sequence, stop: &CancellationToken) -> Result<(), StoreError> {
        warm_up::learn(detector, &self.store.reader(), checkpoint, &self.beat, &self.crashes, stop)?;
        let state = detector.take_changes();
        self.record(Outcome::default(), state, None, 0)
    }

    /// Time up to which each source's log is known to be complete: when it was last read to its end.
    fn whole_logs(&self) -> Vec<(SourceName, Timestamp)> {
        let whole = |status: &SourceStatus| {
            let record = &status.record;
            record.last_poll.filter(|_| record.caught_up).map(|polled| record.by_server(polled))
        };
        let sources = self.watched.sources.iter();
        sources.filter_map(|(settings, status)| Some((settings.name.clone(), whole(&status.borrow())?))).collect()
    }

    /// Advances event time where there are no events, so that rules notice expected events that did not happen.
    fn advance(&self, detector: &mut Detector, whole: &[(SourceName, Timestamp)]) -> Result<(), StoreError> {
        let mut outcome = Outcome::default();
        {
            let _noted = self.crashes.clearing(Runner::Evaluate);
            let rules = Arc::clone(detector.rules());
            let expecting = || rules.detections.iter().filter(|rule| rule.has(EXPIRED));
            self.crashes.rules(Runner::Evaluate, expecting());
            let suspicious = expecting().any(|rule| self.crashes.is_suspect(rule));
            if suspicious {
                detector.set_watch(Some(self.crashes.watch(Runner::Evaluate, None)));
            }
            for (source, until) in whole {
                outcome.append(detector.advance(source, *until));
            }
            if suspicious {
                detector.set_watch(None);
            }
        }
        if outcome.watermarks.is_empty() {
            return Ok(());
        }
        let state = detector.take_changes();
        self.record(outcome, state, None, 0)
    }

    fn check(
        &self,
        detector: &mut Detector,
        checks: &mut HealthDetector,
        pulse: &mut health::Pulse,
        checkpoint: Sequence,
    ) -> Result<(), StoreError> {
        let now = pulse.beat(&self.clock);
        self.store.set_alive(now)?;
        let ended = self.recorder.end_silences(now)?;
        self.look_again(&ended);
        let subjects = health::subjects(&self.watched, pulse, &self.store.reader(), detector, checkpoint, now)?;
        let rules = Arc::clone(detector.rules());
        let (outcome, state) = {
            let _noted = self.crashes.clearing(Runner::Check);
            checks.check(&rules, &subjects, now)
        };
        if self.crashes.suspects_any() {
            self.crashes.cleared(&[], &rules.checks)?;
        }
        for (rule, error) in &outcome.failures {
            tracing::warn!(%rule, "check rule failed: {error}");
        }
        if outcome.alerts.is_empty() && state.is_empty() {
            return Ok(());
        }
        self.record(outcome, state, None, 0)
    }

    fn record(
        &self,
        outcome: Outcome,
        state: StateChanges,
        checkpoint: Option<Sequence>,
        events: u64,
    ) -> Result<(), StoreError> {
        for (rule, error) in &outcome.failures {
            tracing::debug!(%rule, "rule failed: {error}");
        }
        let (rules_run, failures) = (u64::from(outcome.rules_run), outcome.failures.len() as u64);
        let recorded = self.recorder.record(outcome, state, checkpoint, self.clock.now())?;
        self.look_again(&recorded);
        self.progress.send_modify(|progress| {
            progress.checkpoint = checkpoint.unwrap_or(progress.checkpoint);
            progress.events += events;
            progress.rules_run += rules_run;
            progress.failures += failures;
            progress.silenced += recorded.silenced;
            for (total, count) in progress.alerts.iter_mut().zip(recorded.opened) {
                *total += count;
            }
        });
        Ok(())
    }

    fn look_again(&self, recorded: &Recorded) {
        if recorded.has_pending {
            self.pending.send();
        }
    }

    fn answer(
        &self,
        request: RulesRequest,
        detector: &mut Detector,
        checks: &HealthDetector,
    ) -> Result<(), StoreError> {
        match request {
            RulesRequest::Handle(request) => self.handle(request, detector, checks),
            RulesRequest::RetroHuntResult(hunted) => self.hunted(*hunted, detector),
            RulesRequest::ClearMemory { space, reply } => {
                let count = detector.clear_memory(&space);
                let state = detector.take_changes();
                self.recorder.record(Outcome::default(), state, None, self.clock.now())?;
                // The requester may be gone.
                reply.send(count).ok();
                Ok(())
            }
        }
    }

    /// Applies a user's action to an alert. Runs on this thread because the detector keeps state about open alerts.
    fn handle(
        &self,
        request: HandleRequest,
        detector: &mut Detector,
        checks: &HealthDetector,
    ) -> Result<(), StoreError> {
        let HandleRequest { alert: id, action, remark, reply } = request;
        let answer = match self.store.reader().alert(id)? {
            None => Err(format!("no alert `{id}`")),
            Some(alert) => match allowed(&alert, action, checks.is_open(id)) {
                Err(reason) => Err(reason),
                Ok(()) => {
                    detector.handled(&alert, action);
                    let state = detector.take_changes();
                    let handled = self.recorder.handle(id, action, remark, state)?;
                    self.pending.send();
                    handled.ok_or_else(|| format!("no alert `{id}`"))
                }
            },
        };
        // The requester may be gone.
        reply.send(answer).ok();
        Ok(())
    }
}
