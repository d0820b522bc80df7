//! Replay: runs rules over stored events, or over a file of events, with a separate detector. It does not write or
//! deliver anything: it gets a [`crate::store::Reader`], or no store at all.
//!
//! It uses the same [`Detector`] as `run`, with the same input, so that a replay of evaluated events yields the alerts
//! that were raised.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub mod coverage;
mod diff;
pub mod exception_impact;
pub mod explain;
mod parallel;
mod report;
pub mod test_runner;
pub mod verify;

pub use diff::{ChangedAlert, Diff, Difference, Found, RuleChange, RuleDiff};
pub use parallel::{ReplayProgress, Run, Side, run, run_sides};
use report::Part;
pub use report::{FunctionCost, Report, RuleCost, RuleReport, Tally, WarmUp};

use crate::{
    detect::{Detector, Settings, Verdict},
    model::{
        alert::{Alert, AlertAction, AlertChange, LoggedChange, Notice},
        event::{Event, Evidence, IncomingEvent},
        name::{AlertId, Sequence, SourceName},
        outcome::{LoggedWatermark, Outcome},
        time::Timestamp,
    },
    rule::RuleSet,
    store::EventHead,
};

/// The number of alerts that are kept complete, at some 3 KiB each.
const KEPT_WHOLE: usize = 10_000;
/// The number of alerts that are kept at all.
const KEPT: usize = 50_000;

/// Runs rules over a series of events.
#[derive(Debug)]
pub struct Replay {
    detector: Detector,
    part: Part,
    /// Events before this only warm up the rules.
    since: Option<Timestamp>,
    alerts: BTreeMap<AlertId, Alert>,
    order: Vec<(AlertId, Sequence)>,
    /// What users did with alerts after the present position, in order.
    handled: VecDeque<LoggedChange>,
    /// Watermarks of the agent after the present position, in order.
    watermarks: VecDeque<LoggedWatermark>,
}

impl Replay {
    /// Creates a replay of these rules, without state.
    pub fn new(rules: Arc<RuleSet>, settings: Settings) -> Self {
        let empty = |hash: &String| RuleReport { hash: hash.clone(), ..RuleReport::default() };
        let reports = rules.detections.iter().map(|rule| (rule.id().clone(), empty(&rule.hash))).collect();
        Self {
            detector: Detector::new(rules, settings),
            part: Part { report: Report { rules: reports, ..Report::default() }, ..Part::default() },
            since: None,
            alerts: BTreeMap::new(),
            order: Vec::new(),
            handled: VecDeque::new(),
            watermarks: VecDeque::new(),
        }
    }

    /// Applies what users did with alerts while the events were evaluated live: matches do not join a resolved alert.
    /// `changes` is the change log.
    #[must_use]
    pub fn with_changes(mut self, changes: impl IntoIterator<Item = LoggedChange>) -> Self {
        self.handled = changes
            .into_iter()
            .filter(|change| change.author.is_some() && matches!(change.what, Notice::Resolved | Notice::Reopened))
            .collect();
        self
    }

    /// Applies the watermarks that the agent recorded while there were no events.
    #[must_use]
    pub fn with_watermarks(mut self, watermarks: impl IntoIterator<Item = LoggedWatermark>) -> Self {
        self.watermarks = watermarks.into_iter().collect();
        self
    }

    /// Applies all remaining changes and watermarks, including those after the last event.
    pub fn follow_all(&mut self) {
        self.follow(Sequence(u64::MAX));
    }

    /// Sets the time before which events only warm up the rules: what matches there is not reported. Later matches can
    /// still join alerts that opened there.
    #[must_use]
    pub fn since(mut self, since: Option<Timestamp>) -> Self {
        self.since = since;
        self
    }

    /// Evaluates the next event.
    pub fn event(&mut self, event: &Event) {
        self.follow(event.sequence);
        self.count(event.time);
        let outcome = self.detector.evaluate(event);
        self.take(outcome, event.sequence, event.time);
    }

    /// Moves to the next event, with the verdicts that are already known. `event` is absent if no rule matched, failed,
    /// or has to run in order.
    fn step(&mut self, head: EventHead<'_>, event: Option<(&Event, Vec<(usize, Verdict)>)>) {
        self.follow(head.sequence);
        self.count(head.time);
        let mut outcome = self.detector.begin(head.source, head.time, head.arrived);
        if let Some((event, verdicts)) = event {
            self.detector.decide(event, verdicts, &mut outcome);
            self.take(outcome, head.sequence, head.time);
            return;
        }
        self.detector.rule_out(head.action, |_| false);
        if outcome != Outcome::default() {
            self.take(outcome, head.sequence, head.time);
        }
    }

    fn count(&mut self, time: Timestamp) {
        let report = &mut self.part.report;
        if self.since.is_some_and(|since| time < since) {
            let warm_up = report.warm_up.get_or_insert(WarmUp { events: 0, earliest: time });
            warm_up.events += 1;
            warm_up.earliest = warm_up.earliest.min(time);
        } else {
            report.events += 1;
            report.earliest = Some(report.earliest.map_or(time, |earliest| earliest.min(time)));
            report.latest = Some(report.latest.map_or(time, |latest| latest.max(time)));
        }
    }

    /// Applies that the log of a source is known to be complete up to a time, although no event shows it.
    pub fn advance(&mut self, source: &SourceName, until: Timestamp) {
        let outcome = self.detector.advance(source, until);
        self.take(outcome, Sequence(u64::MAX), until);
    }

    /// Applies changes and watermarks from before the event with this number.
    fn follow(&mut self, next: Sequence) {
        self.follow_while(|change| change.checkpoint < next, |watermark| watermark.checkpoint < next);
    }

    /// Applies changes and watermarks as long as they are due.
    fn follow_while(
        &mut self,
        change_is_due: impl Fn(&LoggedChange) -> bool,
        watermark_is_due: impl Fn(&LoggedWatermark) -> bool,
    ) {
        loop {
            let handled = self.handled.front().filter(|change| change_is_due(change)).map(|change| change.number);
            let passed = self
                .watermarks
                .front()
                .filter(|watermark| watermark_is_due(watermark))
                .map(|watermark| watermark.change);
            // A watermark has the number of the last change before it.
            let watermark_is_next = match (handled, passed) {
                (None, None) => return,
                (Some(change), Some(before)) => change > before,
                (handled, _) => handled.is_none(),
            };
            if watermark_is_next && let Some(logged) = self.watermarks.pop_front() {
                let outcome = self.detector.advance(&logged.watermark.source, logged.watermark.until);
                self.take(outcome, logged.checkpoint, logged.watermark.until);
            } else if let Some(change) = self.handled.pop_front() {
                let action =
                    if change.what == Notice::Reopened { AlertAction::Reopen } else { AlertAction::Resolve(None) };
                if let Some(alert) = self.alerts.get(&change.alert) {
                    self.detector.handled(alert, action);
                }
            }
        }
    }

    fn take(&mut self, outcome: Outcome, sequence: Sequence, time: Timestamp) {
        // The state of a replay is not stored.
        self.detector.drop_changes();
        let counts = self.since.is_none_or(|since| time >= since);
        let report = &mut self.part.report;
        for found in outcome.matches.iter().filter(|_| counts) {
            if let Some(exception) = &found.exception {
                *report.excepted.entry(exception.clone()).or_default() += 1;
            }
            let rule = report.rules.entry(found.rule.clone()).or_default();
            rule.matches += 1;
            *rule.hours.entry(found.time.as_second().div_euclid(3_600)).or_default() += 1;
            if let Some(key) = &found.key {
                rule.keys.add(key.as_str());
            }
            rule.actors.add(found.actor.as_deref().unwrap_or("-"));
        }
        for (rule, error) in outcome.failures.into_iter().filter(|_| counts) {
            self.part.fail(sequence, &rule, &error);
            let rule = self.part.report.rules.entry(rule).or_default();
            rule.errors += 1;
            rule.first_error.get_or_insert(error);
        }
        for change in outcome.alerts {
            let id = change.alert();
            if let AlertChange::Opened(mut alert) = change {
                let report = &mut self.part.report;
                let rule = report.rules.entry(alert.rule.clone()).or_default();
                rule.alerts += u64::from(counts);
                if self.alerts.len() >= KEPT_WHOLE {
                    strip(&mut alert);
                }
                if self.alerts.len() >= KEPT {
                    report.not_kept += u64::from(counts);
                    continue;
                }
                if counts {
                    self.order.push((id, sequence));
                }
                self.alerts.insert(id, *alert);
            } else if let Some(alert) = self.alerts.get_mut(&id) {
                alert.apply(&change);
            }
        }
    }

    /// Returns the report.
    pub fn finish(self) -> Report {
        Part::join(vec![self.into_part()])
    }

    fn into_part(mut self) -> Part {
        for (rule, _) in self.detector.records().filter(|(_, record)| record.suspended.is_some()) {
            self.part.report.rules.entry(rule.clone()).or_default().suspended = true;
        }
        for (id, sequence) in self.order {
            if let Some(alert) = self.alerts.remove(&id) {
                self.part.report.alerts.push(alert);
                self.part.opened.push(sequence);
            }
        }
        self.part
    }
}

/// Removes from an alert what is only needed to look at it in detail.
fn strip(alert: &mut Alert) {
    alert.evidence = Evidence::default();
    alert.context = serde_json::Map::new();
    alert.histogram = None;
    alert.lists.clear();
    for text in [&mut alert.description, &mut alert.runbook, &mut alert.reference] {
        *text = None;
    }
    for list in [&mut alert.tags, &mut alert.attack] {
        *list = Vec::new();
    }
    alert.first_events.truncate(1);
    alert.first_events.shrink_to_fit();
    alert.newest_events = Vec::new();
}

/// The events of a file, in the order of the file, as if each had arrived when it happened.
pub fn file_events(events: Vec<IncomingEvent>, source: &SourceName, now: Timestamp) -> impl Iterator<Item = Event> {
    (1..).zip(events).map(move |(number, event)| {
        let arrived = event.time.or(event.processed).unwrap_or(now);
        event.into_event(source.clone(), Sequence(number), arrived)
    })
}
