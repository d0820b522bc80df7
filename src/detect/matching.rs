//! From a match to its alert: exceptions, dedup key, threshold, and the alert that the match opens or joins.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Detector,
    state::{self, KeyState, OpenAlert},
    window::{self, WindowCount},
};
use crate::{
    model::{
        alert::{Alert, AlertChange, AlertKind, FunctionError, Histogram, Severity},
        bound::bounded,
        event::Event,
        name::{AlertId, DedupKey, EventId},
        outcome::{Match, Outcome},
        time,
    },
    rule::{CompiledRule, EXPIRED, Exception, MatchInfo, Metadata, RuleFailure, RuleHost, RuleInput, Stage},
};

/// The details of a match that are needed to find its alert.
#[derive(Debug, Clone)]
pub struct Details {
    pub(super) title: String,
    pub(super) severity: Severity,
    pub(super) key: DedupKey,
    pub(super) errors: Vec<FunctionError>,
    actor: Option<String>,
    /// The named lists that the rule read, with their versions.
    lists: BTreeMap<String, String>,
}

impl Details {
    /// Calls the rule's functions for title, severity and dedup key, each with its fallback.
    pub(super) fn find(host: &RuleHost, rule: &CompiledRule, input: &RuleInput<'_>) -> Self {
        let mut errors = Vec::new();
        let title = fallible("title", host.text(rule, "title", input), &mut errors);
        let title = title.filter(|title| !title.trim().is_empty()).unwrap_or_else(|| rule.metadata.title.clone());
        // An override applies whatever the rule's own function returns.
        let own = |key| !rule.metadata.is_overridden(key);
        let severity = own("severity").then(|| host.severity(rule, input)).flatten();
        let severity = fallible("severity", severity, &mut errors);
        let dedup = fallible("dedup", host.text(rule, "dedup", input), &mut errors);
        let key = dedup.filter(|key| !key.is_empty()).or_else(|| host.group(rule, input));
        let key = key.unwrap_or_else(|| title.clone());
        Self {
            severity: severity.unwrap_or(rule.metadata.severity),
            key: DedupKey::clipped(&key),
            title: input.shortened(rule, &title),
            errors,
            actor: input.who(rule),
            lists: host.take_lists(),
        }
    }

    /// What subscribed rules get to know about the match.
    pub(super) fn info(&self, rule: &CompiledRule, opened: bool) -> MatchInfo {
        MatchInfo {
            rule: rule.id().clone(),
            severity: self.severity,
            key: self.key.to_string(),
            title: self.title.clone(),
            risk: rule.metadata.risk,
            opened,
        }
    }
}

impl Detector {
    /// Returns true if an exception suppresses a match; the match is still recorded and counted. A condition that fails
    /// suppresses nothing.
    pub(super) fn excepted(
        &mut self,
        rule: &CompiledRule,
        exceptions: &[Arc<Exception>],
        event: &Event,
        input: &RuleInput<'_>,
        outcome: &mut Outcome,
    ) -> bool {
        for exception in exceptions.iter().filter(|exception| exception.applies_at(event.time)) {
            match self.host.excepts(rule, exception, input) {
                Ok(false) => {}
                Ok(true) => {
                    self.state.matched(rule.id(), event.time);
                    self.state.excepted(&exception.id, event);
                    outcome.matches.push(Match { exception: Some(exception.id.clone()), ..matched(rule, event, None) });
                    return true;
                }
                Err(failure) => {
                    self.state.exception_failed(&exception.id, &failure);
                    outcome.failures.push((rule.id().clone(), format!("exception {}: {failure}", exception.id)));
                }
            }
        }
        false
    }

    /// Assigns a match to its alert, or counts it towards its threshold. Returns what subscribed rules get to know when
    /// the match counts: when it opens or joins an alert. A signal is processed the same way, but does not raise
    /// alerts.
    pub(super) fn matched(
        &mut self,
        rule: &CompiledRule,
        event: &Event,
        input: &RuleInput<'_>,
        details: Details,
        outcome: &mut Outcome,
    ) -> Option<MatchInfo> {
        let raises = !rule.metadata.signal;
        self.function_errors(rule, event, &details.errors, outcome);
        let state_key =
            state::key_of(rule.id(), event.source.as_str(), details.key.as_str(), rule.metadata.stage == Stage::Shadow);
        let mut keyed = self.state.take(&state_key);
        let period = rule.metadata.dedup_period;
        let (key, actor) = (details.key.clone(), details.actor.clone());
        let mut published = None;
        let mut alert = None;
        if let Some(open) = keyed.open_at(event.time, period) {
            published = Some(details.info(rule, false));
            alert = Some(open.id);
            let mut change = joined(open, event, details.severity);
            if let AlertChange::Joined { raised_to: Some(_), destinations, .. } = &mut change
                && !rule.metadata.is_overridden("destinations")
            {
                let mut errors = Vec::new();
                let asked = fallible("destinations", self.host.destinations(rule, input), &mut errors);
                *destinations = asked.unwrap_or_default();
                self.function_errors(rule, event, &errors, outcome);
            }
            outcome.alerts.extend(raises.then_some(change));
        } else if let Some(events) = self.count(rule, event, input, &mut keyed, outcome) {
            published = Some(details.info(rule, true));
            let reported = details.errors.len();
            let opened = self.open(rule, event, input, details, events);
            self.function_errors(rule, event, opened.errors.get(reported..).unwrap_or(&[]), outcome);
            keyed.open(OpenAlert {
                id: opened.id,
                opened: opened.opened_at.as_millisecond(),
                severity: opened.severity,
            });
            alert = Some(opened.id);
            outcome.alerts.extend(raises.then(|| AlertChange::Opened(Box::new(opened))));
        }
        self.state.put(&state_key, keyed, period.max(rule.metadata.window) + self.settings.max_age);
        self.state.matched(rule.id(), event.time);
        let alert = alert.filter(|_| raises);
        outcome.matches.push(Match { alert, actor, ..matched(rule, event, Some(key)) });
        published
    }

    /// Counts a match towards its rule's threshold. Returns the matches that reached it.
    fn count(
        &self,
        rule: &CompiledRule,
        event: &Event,
        input: &RuleInput<'_>,
        keyed: &mut KeyState,
        outcome: &mut Outcome,
    ) -> Option<Vec<WindowCount>> {
        // A match without a value is not counted, but a threshold of one is still reached.
        let unique = match self.host.unique(rule, input).transpose() {
            Ok(value) => value.flatten(),
            Err(failure) => {
                outcome.failures.push((rule.id().clone(), format!("fn unique: {failure}")));
                None
            }
        };
        let counted = WindowCount { time: event.moment().as_millisecond(), event: event.id.clone(), unique };
        let Metadata { threshold, window, .. } = rule.metadata;
        window::count(&mut keyed.pending, counted, threshold, window, rule.has("unique"))
    }

    /// Records errors of optional functions.
    pub(super) fn function_errors(
        &mut self,
        rule: &CompiledRule,
        event: &Event,
        errors: &[FunctionError],
        outcome: &mut Outcome,
    ) {
        for error in errors {
            let message = format!("fn {}: {}", error.function, error.error);
            self.state.function_failed(rule.id(), event.time, &message);
            outcome.failures.push((rule.id().clone(), message));
        }
    }

    fn open(
        &self,
        rule: &CompiledRule,
        event: &Event,
        input: &RuleInput<'_>,
        details: Details,
        counted: Vec<WindowCount>,
    ) -> Alert {
        let times: Vec<i64> = counted.iter().map(|counted| counted.time).collect();
        let events: Vec<EventId> = counted.into_iter().map(|counted| counted.event).collect();
        let Details { title, severity, key, mut errors, mut lists, .. } = details;
        let metadata = &rule.metadata;
        // The event may have opened an alert with the same key when it arrived.
        let birth = match input.failed() {
            None => event.id.to_string(),
            Some(failed) => format!("{}/{EXPIRED}/{}", event.id, failed.name),
        };
        let mut text = |name: &str, fallback: &Option<String>| {
            let own = fallible(name, self.host.text(rule, name, input), &mut errors);
            own.or_else(|| fallback.clone()).map(|text| clipped(&text, 20_000))
        };
        let description = text("description", &metadata.description);
        let runbook = text("runbook", &metadata.runbook).map(|runbook| input.fill(rule, &runbook));
        let reference = text("reference", &metadata.reference);
        let destinations =
            (!metadata.is_overridden("destinations")).then(|| self.host.destinations(rule, input)).flatten();
        let destinations = fallible("destinations", destinations, &mut errors);
        let context = fallible("context", self.host.context(rule, input), &mut errors);
        lists.extend(self.host.take_lists());
        let id = AlertId::derive(rule.id(), event.source.as_str(), key.as_str(), &birth);
        bounded(Alert {
            source: Some(event.source.clone()),
            count: events.len() as u64,
            first_events: events.iter().take(Alert::FIRST_EVENTS).cloned().collect(),
            newest_events: newest(&events),
            dedup_key: key,
            evidence: event.evidence(),
            context: context.unwrap_or_default(),
            description,
            runbook,
            reference,
            tags: metadata.tags.clone(),
            attack: metadata.attack.clone(),
            destinations: destinations.or_else(|| metadata.destinations.clone()),
            errors,
            rule_hash: rule.hash.clone(),
            generation: self.rules.context.generation,
            late: time::since(event.arrived, event.time) > self.settings.max_age,
            shadow: metadata.stage == Stage::Shadow,
            lists,
            histogram: Histogram::of(&times),
            ..Alert::new(id, AlertKind::Detection, rule.id().clone(), title, severity, event.time)
        })
    }
}

fn matched(rule: &CompiledRule, event: &Event, key: Option<DedupKey>) -> Match {
    Match {
        rule: rule.id().clone(),
        event: event.id.clone(),
        sequence: event.sequence,
        time: event.time,
        key,
        actor: None,
        alert: None,
        exception: None,
    }
}

pub(super) fn joined(open: &mut OpenAlert, event: &Event, severity: Severity) -> AlertChange {
    let raised_to = (severity > open.severity).then_some(severity);
    open.severity = open.severity.max(severity);
    AlertChange::Joined {
        alert: open.id,
        event: event.id.clone(),
        sequence: event.sequence,
        time: event.time,
        raised_to,
        destinations: Vec::new(),
    }
}

/// The value of an optional function; if it failed, records the error and returns `None` for the fallback.
fn fallible<T>(function: &str, answer: Option<Result<T, RuleFailure>>, errors: &mut Vec<FunctionError>) -> Option<T> {
    match answer? {
        Ok(value) => Some(value),
        Err(failure) => {
            errors.push(FunctionError { function: function.to_owned(), error: failure.message });
            None
        }
    }
}

fn newest(events: &[EventId]) -> Vec<EventId> {
    let rest = events.get(Alert::FIRST_EVENTS..).unwrap_or(&[]);
    rest.get(rest.len().saturating_sub(Alert::NEWEST_EVENTS)..).unwrap_or(&[]).to_vec()
}

fn clipped(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}
