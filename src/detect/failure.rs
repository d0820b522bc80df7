//! Rules that fail or keep too much state: an alert about the rule itself.

use std::time::Duration;

use super::{
    Detector, joined,
    state::{self, OpenAlert},
};
use crate::{
    model::{
        alert::{Alert, AlertChange, AlertKind, Severity},
        event::Event,
        name::{AlertId, DedupKey},
        outcome::Outcome,
        time,
    },
    rule::{CompiledRule, RuleFailure, Stage},
};

/// A rule that exceeds its limits this many times in a row is suspended until its file changes.
const SUSPEND_AFTER: u32 = 3;
/// Errors of the same kind of one rule join the same alert for this long.
const ERROR_PERIOD: Duration = Duration::from_secs(86_400);

impl Detector {
    /// Raises an alert if a rule exceeded its state quota, so that something had to be dropped.
    pub(super) fn report_overflow(&mut self, rule: &CompiledRule, event: &Event, outcome: &mut Outcome) {
        let overflowed = self.host.memory().take_overflowed();
        if overflowed.contains(rule.id().as_str()) {
            let (keys, bytes, _) = self.host.memory().size(rule.id().as_str());
            let title = format!("Rule `{}` remembers more than it may, and forgets what is oldest", rule.id());
            let what = format!(
                "It has {keys} keys and {bytes} bytes. Dropped entries no longer count: sequences and first sightings may be \
                 missed or reported again. Use keys that fewer things have, or shorter windows."
            );
            self.raise_error(rule, event, "memory", &title, &what, outcome);
        }
    }

    pub(super) fn failed(&mut self, rule: &CompiledRule, event: &Event, failure: &RuleFailure, outcome: &mut Outcome) {
        outcome.failures.push((rule.id().clone(), failure.message.clone()));
        self.state.failed(rule, event.time, failure, SUSPEND_AFTER);
        let key = format!("error/{}", failure.kind.name());
        self.raise_error(rule, event, &key, &error_title(rule, failure), &failure.message, outcome);
    }

    fn raise_error(
        &mut self,
        rule: &CompiledRule,
        event: &Event,
        key: &str,
        title: &str,
        what: &str,
        outcome: &mut Outcome,
    ) {
        let state_key = state::key_of(rule.id(), event.source.as_str(), key, rule.metadata.stage == Stage::Shadow);
        let mut keyed = self.state.take(&state_key);
        if let Some(open) = keyed.open_at(event.time, ERROR_PERIOD) {
            let change = joined(open, event, Severity::High);
            outcome.alerts.push(change);
        } else {
            // Whoever did what the rule fails on is not involved in the failure: there is no evidence.
            let id = AlertId::derive(rule.id(), event.source.as_str(), key, event.id.as_str());
            let alert = Alert {
                source: Some(event.source.clone()),
                first_events: vec![event.id.clone()],
                dedup_key: DedupKey::clipped(key),
                description: Some(what.to_owned()),
                // The path of the file is left out, because it would differ between the agent and a replay started
                // elsewhere.
                runbook: Some(format!(
                    "The rule cannot detect anything on events it fails on. `watchbell rules show {}` shows its file; the agent reloads it when it is saved. `watchbell events show {}` shows an event it failed on.",
                    rule.id(),
                    event.id
                )),
                tags: vec!["rule-error".to_owned()],
                rule_hash: rule.hash.clone(),
                generation: self.rules.context.generation,
                late: time::since(event.arrived, event.time) > self.settings.max_age,
                shadow: rule.metadata.stage == Stage::Shadow,
                ..Alert::new(id, AlertKind::RuleError, rule.id().clone(), title.to_owned(), Severity::High, event.time)
            };
            keyed.open(OpenAlert { id: alert.id, opened: event.time.as_millisecond(), severity: Severity::High });
            outcome.alerts.push(AlertChange::Opened(Box::new(alert)));
        }
        self.state.put(&state_key, keyed, ERROR_PERIOD + self.settings.max_age);
    }
}

fn error_title(rule: &CompiledRule, failure: &RuleFailure) -> String {
    use crate::rule::FailureKind as Failure;
    let what = match failure.kind {
        Failure::Threw => "throws",
        Failure::WrongType => "does not return true or false",
        Failure::Budget => "runs out of its budget",
        Failure::Deadline => "runs out of time",
        Failure::Size => "builds or recurses beyond its limits",
        Failure::Panicked => "made the host fail",
    };
    format!("Rule `{}` {what}", rule.id())
}
