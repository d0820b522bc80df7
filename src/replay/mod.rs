//! Replay: rules over events that are stored, or over a file of them, with a detector of its own. It writes and delivers
//! nothing: it is given a [`crate::store::Reader`], or no store at all.
//!
//! It is the same [`Detector`] as in `run`, fed the same way, so that replaying what was evaluated gives the alerts that were
//! raised.

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

/// Alerts that are kept whole, the first ones; some 3 KiB each.
const KEPT_WHOLE: usize = 10_000;
/// Alerts that are kept at all.
const KEPT: usize = 50_000;

/// Runs rules over events as they come.
#[derive(Debug)]
pub struct Replay {
    detector: Detector,
    part: Part,
    /// Events before this are only learned from.
    since: Option<Timestamp>,
    alerts: BTreeMap<AlertId, Alert>,
    order: Vec<(AlertId, Sequence)>,
    /// What people did with alerts, in order, that has not been reached yet.
    handled: VecDeque<LoggedChange>,
    /// What the agent took note of while there were no events, in order, that has not been reached yet.
    watermarks: VecDeque<LoggedWatermark>,
}

impl Replay {
    /// A replay of these rules, beginning with no state.
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
    pub fn with_watermarks(mut self, watermarks: impl IntoIterator<Item = LoggedWatermark>) -> Self {
        self.watermarks = watermarks.into_iter().collect();
        self
    }

    /// Takes account of all that happened beside events, also after the last of them.
    pub fn follow_all(&mut self) {
        self.follow(Sequence(u64::MAX));
    }

    /// Events before a time are only learned from: what rules find in them is not reported. Alerts that open there still take in
    /// matches of later events.
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

    /// Goes on to the next event, of which it is known already what the rules say that can say so ahead of its turn. The event
    /// itself is there where any rule said, or is to say, something.
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

    /// Takes note that the log of a source is known to be whole up to a time, although no event says so.
    pub fn advance(&mut self, source: &SourceName, until: Timestamp) {
        let outcome = self.detector.advance(source, until);
        self.take(outcome, Sequence(u64::MAX), until);
    }

    /// What happened beside events, up to the one with this number.
    fn follow(&mut self, next: Sequence) {
        self.follow_while(|change| change.checkpoint < next, |watermark| watermark.checkpoint < next);
    }

    /// What happened beside events, as far as that is due.
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
            // A pass has the number of the last change before it.
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
        // Nobody stores the state of a replay.
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

    /// What was found.
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

/// Takes out of an alert what is for people who look at it one by one.
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

/// Events of a file as they would be if each had arrived when it happened, in the order of the file.
pub fn file_events(events: Vec<IncomingEvent>, source: &SourceName, now: Timestamp) -> impl Iterator<Item = Event> {
    (1..).zip(events).map(move |(number, event)| {
        let arrived = event.time.or(event.processed).unwrap_or(now);
        event.into_event(source.clone(), Sequence(number), arrived)
    })
}
