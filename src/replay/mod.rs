//! Replay: rules over events that are stored, or over a file of them, with a detector of its own. It writes and delivers
//! nothing: it is given a [`crate::store::Reader`], or no store at all.
//!
//! It is the same [`Detector`] as in `run`, fed the same way, so that replaying what was evaluated gives the alerts that were
//! raised.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;

pub mod explain;
pub mod hidden;
pub mod suite;

use crate::{
    alert::{Action, Alert, AlertChange, LoggedChange, Notice},
    detect::{Detector, Settings},
    event::{Event, IncomingEvent},
    name::{AlertId, ExceptionId, RuleId, Sequence, SourceName},
    outcome::{LoggedPass, Outcome},
    rule::RuleSet,
    time::Timestamp,
};

/// Failures that are told one by one.
const MAX_FAILURES: usize = 20;

/// What rules found in a history.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Events that were looked at.
    pub events: u64,
    /// What was only learned from, before the events that count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Time of the earliest.
    pub earliest: Option<Timestamp>,
    /// Time of the latest.
    pub latest: Option<Timestamp>,
    /// What each rule found, in the order of their ids.
    pub rules: BTreeMap<RuleId, RuleReport>,
    /// The alerts as they would have looked, in the order they opened.
    pub alerts: Vec<Alert>,
    /// Failures of rules, the first of them, each told once.
    #[serde(skip)]
    pub failures: Vec<String>,
    /// Matches that exceptions took out of alerting, by exception.
    pub excepted: BTreeMap<ExceptionId, u64>,
}

/// Events that rules learned from, and whose alerts are not reported.
#[derive(Debug, Clone, Serialize)]
pub struct WarmUp {
    /// How many.
    pub events: u64,
    /// Time of the earliest.
    pub earliest: Timestamp,
}

/// What one rule found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RuleReport {
    /// Events it said true for.
    pub matches: u64,
    /// Alerts these made.
    pub alerts: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Text of the first failure.
    pub first_error: Option<String>,
    /// It exceeded its limits three times in a row, and looked at no event after that.
    pub suspended: bool,
}

/// Runs rules over events as they come.
#[derive(Debug)]
pub struct Replay {
    detector: Detector,
    report: Report,
    alerts: BTreeMap<AlertId, Alert>,
    order: Vec<AlertId>,
    /// What people did with alerts, in order, that has not been reached yet.
    handled: VecDeque<LoggedChange>,
    /// What the agent took note of while there were no events, in order, that has not been reached yet.
    passes: VecDeque<LoggedPass>,
}

impl Replay {
    /// A replay of these rules, beginning with no state.
    pub fn new(rules: Arc<RuleSet>, settings: Settings) -> Self {
        let reports = rules.detections.iter().map(|rule| (rule.id().clone(), RuleReport::default())).collect();
        Self {
            detector: Detector::new(rules, settings),
            report: Report { rules: reports, ..Report::default() },
            alerts: BTreeMap::new(),
            order: Vec::new(),
            handled: VecDeque::new(),
            passes: VecDeque::new(),
        }
    }

    /// Takes account of what people did with alerts while the events were evaluated live: a resolved alert takes no more
    /// matches in. `changes` is the log of changes.
    #[must_use]
    pub fn with_changes(mut self, changes: impl IntoIterator<Item = LoggedChange>) -> Self {
        self.handled = changes
            .into_iter()
            .filter(|change| change.author.is_some() && matches!(change.what, Notice::Resolved | Notice::Reopened))
            .collect();
        self
    }

    /// Takes account of what the agent took note of while there were no events.
    #[must_use]
    pub fn with_passes(mut self, passes: impl IntoIterator<Item = LoggedPass>) -> Self {
        self.passes = passes.into_iter().collect();
        self
    }

    /// Takes account of all that happened beside events, also after the last of them.
    pub fn follow_all(&mut self) {
        self.follow(Sequence(u64::MAX));
    }

    /// Evaluates the next event only so that rules know of it: what they find is not reported. Alerts that open here still take
    /// in matches of later events.
    pub fn warm_up(&mut self, event: &Event) {
        self.follow(event.sequence);
        let warm_up = self.report.warm_up.get_or_insert(WarmUp { events: 0, earliest: event.time });
        warm_up.events += 1;
        warm_up.earliest = warm_up.earliest.min(event.time);
        for change in self.detector.evaluate(event).alerts {
            if let AlertChange::Opened(alert) = change {
                self.alerts.insert(alert.id, *alert);
            }
        }
        self.detector.take_changes();
    }

    /// Evaluates the next event.
    pub fn event(&mut self, event: &Event) {
        self.follow(event.sequence);
        self.report.events += 1;
        self.report.earliest = Some(self.report.earliest.map_or(event.time, |time| time.min(event.time)));
        self.report.latest = Some(self.report.latest.map_or(event.time, |time| time.max(event.time)));
        let outcome = self.detector.evaluate(event);
        self.take(outcome);
    }

    /// Takes note that the log of a source is known to be whole up to a time, although no event says so.
    pub fn pass(&mut self, source: &SourceName, until: Timestamp) {
        let outcome = self.detector.pass(source, until);
        self.take(outcome);
    }

    /// What happened beside events, up to the one with this number.
    fn follow(&mut self, next: Sequence) {
        loop {
            let handled = self.handled.front().filter(|change| change.mark < next).map(|change| change.number);
            let passed = self.passes.front().filter(|pass| pass.mark < next).map(|pass| pass.change);
            // A pass has the number of the last change before it.
            let pass_is_next = match (handled, passed) {
                (None, None) => return,
                (Some(change), Some(before)) => change > before,
                (handled, _) => handled.is_none(),
            };
            if pass_is_next && let Some(logged) = self.passes.pop_front() {
                self.pass(&logged.pass.source, logged.pass.until);
            } else if let Some(change) = self.handled.pop_front() {
                let action = if change.what == Notice::Reopened { Action::Reopen } else { Action::Resolve(None) };
                if let Some(alert) = self.alerts.get(&change.alert) {
                    self.detector.handled(alert, action);
                }
            }
        }
    }

    fn take(&mut self, outcome: Outcome) {
        for found in outcome.matches {
            if let Some(exception) = found.exception {
                *self.report.excepted.entry(exception).or_default() += 1;
            }
            self.report.rules.entry(found.rule).or_default().matches += 1;
        }
        for (rule, error) in outcome.failures {
            let rule = self.report.rules.entry(rule).or_default();
            rule.errors += 1;
            if self.report.failures.len() < MAX_FAILURES && !self.report.failures.contains(&error) {
                self.report.failures.push(error.clone());
            }
            rule.first_error.get_or_insert(error);
        }
        for change in outcome.alerts {
            let id = change.alert();
            if let AlertChange::Opened(alert) = change {
                self.report.rules.entry(alert.rule.clone()).or_default().alerts += 1;
                self.order.push(id);
                self.alerts.insert(id, *alert);
            } else if let Some(alert) = self.alerts.get_mut(&id) {
                alert.apply(&change);
            }
        }
        // Nobody stores the state of a replay.
        self.detector.take_changes();
    }

    /// What was found.
    pub fn finish(mut self) -> Report {
        for (rule, _) in self.detector.records().filter(|(_, record)| record.suspended.is_some()) {
            self.report.rules.entry(rule.clone()).or_default().suspended = true;
        }
        self.report.alerts = self.order.iter().filter_map(|id| self.alerts.remove(id)).collect();
        self.report
    }
}

/// Events of a file as they would be if each had arrived when it happened, in the order of the file.
pub fn file_events(events: Vec<IncomingEvent>, source: &SourceName, now: Timestamp) -> impl Iterator<Item = Event> {
    (1..).zip(events).map(move |(number, event)| {
        let arrived = event.time.or(event.processed).unwrap_or(now);
        event.into_event(source.clone(), Sequence(number), arrived)
    })
}
