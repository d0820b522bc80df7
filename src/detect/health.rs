//! Runs check rules: takes records of the agent and its sources, and opens, restates and resolves health alerts.
//!
//! Unlike detection this uses wall-clock time, which the caller passes in. A finding that lasts is one alert, from the
//! check that first reports it to the check that no longer does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::state::{decode, encode};
use crate::{
    model::{
        alert::{Alert, AlertChange, AlertKind, Severity},
        bound::bounded,
        name::{AlertId, DedupKey, RuleId, SourceName},
        outcome::{Outcome, StateChanges},
        time::Timestamp,
    },
    rule::{CallWatch, CompiledRule, Finding, Limits, RuleHost, RuleKind, RuleSet, Stage, frozen},
};

/// Something that check rules evaluate: the agent or a source.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The source; absent for the agent.
    pub source: Option<SourceName>,
    /// The record that check rules read.
    pub record: serde_json::Value,
}

/// An open health alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OpenFinding {
    alert: AlertId,
    rule: RuleId,
    source: Option<SourceName>,
    title: String,
    description: Option<String>,
    severity: Severity,
    resolved: Option<String>,
}

/// Returns true if the cause of a health alert persists, according to stored state.
pub fn is_open_finding(entries: impl IntoIterator<Item = (String, Vec<u8>)>, alert: AlertId) -> bool {
    entries
        .into_iter()
        .filter(|(name, _)| name.starts_with("health/"))
        .filter_map(|(_, bytes)| decode::<OpenFinding>(&bytes))
        .any(|open| open.alert == alert)
}

/// Where the open findings of the check rule for silent logs are stored.
pub const DROP_OFF_STATE: &str = "health/builtin.log_drop_off/";

/// The sources of open findings, by stored state.
pub fn sources_of_findings(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<SourceName> {
    entries.into_iter().filter_map(|(_, bytes)| decode::<OpenFinding>(&bytes)?.source).collect()
}

/// Runs check rules and keeps their open findings.
#[derive(Debug)]
pub struct HealthDetector {
    host: RuleHost,
    open: BTreeMap<String, OpenFinding>,
}

impl HealthDetector {
    /// Creates a detector from stored state, as returned by [`HealthDetector::check`].
    pub fn restore(limits: &Limits, entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let open = entries
            .into_iter()
            .filter(|(name, _)| name.starts_with("health/"))
            .filter_map(|(name, bytes)| Some((name, decode(&bytes)?)))
            .collect();
        Self { host: RuleHost::new(limits), open }
    }

    /// From now on, reports each call of a rule's function to `watch`.
    pub fn set_watch(&mut self, watch: Option<CallWatch>) {
        self.host.set_watch(watch);
    }

    /// Returns true if the cause of an alert persists.
    pub fn is_open(&self, alert: AlertId) -> bool {
        self.open.values().any(|open| open.alert == alert)
    }

    /// Evaluates all subjects as of `now`.
    pub fn check(&mut self, rules: &RuleSet, subjects: &[Subject], now: Timestamp) -> (Outcome, StateChanges) {
        let mut outcome = Outcome::default();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut changes = StateChanges::new();
        for rule in &rules.checks {
            for subject in subjects {
                let judged = self.judge(rule, subject);
                if matches!(judged, Some(Ok(None) | Err(_))) {
                    // The rule cannot decide now: open findings stay open.
                    let same = |open: &OpenFinding| open.rule == *rule.id() && open.source == subject.source;
                    seen.extend(self.open.iter().filter(|(_, open)| same(open)).map(|(name, _)| name.clone()));
                }
                let findings = match judged {
                    None | Some(Ok(None)) => continue,
                    Some(Ok(Some(findings))) => findings,
                    Some(Err(message)) => {
                        outcome.failures.push((rule.id().clone(), message.clone()));
                        vec![Finding {
                            key: "error".to_owned(),
                            title: Some(format!("check rule `{}` fails", rule.id())),
                            severity: Some(Severity::High),
                            description: Some(message),
                            context: serde_json::Map::new(),
                        }]
                    }
                };
                for finding in findings {
                    let source = subject.source.as_ref().map_or("", SourceName::as_str);
                    let hash = AlertId::derive(rule.id(), source, &finding.key, "");
                    let name = format!("health/{}/{hash}", rule.id());
                    seen.insert(name.clone());
                    self.report(
                        rule,
                        rules.context.generation,
                        subject,
                        finding,
                        &name,
                        now,
                        &mut outcome,
                        &mut changes,
                    );
                }
            }
        }
        let ended: Vec<String> = self.open.keys().filter(|name| !seen.contains(*name)).cloned().collect();
        for name in ended {
            if let Some(open) = self.open.remove(&name) {
                let title = open.resolved.unwrap_or_else(|| format!("Resolved: {}", open.title));
                outcome.alerts.push(AlertChange::Resolved { alert: open.alert, time: now, title });
                changes.push((name, None));
            }
        }
        (outcome, changes)
    }

    fn judge(&self, rule: &Arc<CompiledRule>, subject: &Subject) -> Option<Result<Option<Vec<Finding>>, String>> {
        let function = match (rule.kind, &subject.source) {
            (RuleKind::CheckSource, Some(_)) => "check",
            (RuleKind::CheckAgent, None) => "check_agent",
            _ => return None,
        };
        self.host.take_lists();
        Some(self.host.check(rule, function, frozen(&subject.record)).map_err(|failure| failure.message))
    }

    #[expect(clippy::too_many_arguments, reason = "one call site; the parts belong to different owners")]
    fn report(
        &mut self,
        rule: &CompiledRule,
        generation: u64,
        subject: &Subject,
        finding: Finding,
        name: &str,
        now: Timestamp,
        outcome: &mut Outcome,
        changes: &mut StateChanges,
    ) {
        let metadata = &rule.metadata;
        let title = finding.title.unwrap_or_else(|| metadata.title.clone());
        // An override applies whatever the rule's own function returns.
        let severity = finding.severity.filter(|_| !metadata.is_overridden("severity")).unwrap_or(metadata.severity);
        let description = finding.description.or_else(|| metadata.description.clone());
        let resolved = metadata.resolved.as_ref().map(|text| match &subject.source {
            Some(source) => format!("{text}: {source}"),
            None => text.clone(),
        });
        if let Some(open) = self.open.get_mut(name) {
            let raised_to = (severity > open.severity).then_some(severity);
            if raised_to.is_none() && open.title == title {
                return;
            }
            open.severity = open.severity.max(severity);
            open.title.clone_from(&title);
            open.description.clone_from(&description);
            changes.push((name.to_owned(), encode(open)));
            outcome.alerts.push(AlertChange::Restated {
                alert: open.alert,
                title,
                description,
                context: finding.context,
                time: now,
                raised_to,
            });
            return;
        }
        let source = subject.source.as_ref().map_or("", SourceName::as_str);
        let id = AlertId::derive(rule.id(), source, &finding.key, &now.to_string());
        let alert = bounded(Alert {
            source: subject.source.clone(),
            dedup_key: DedupKey::clipped(&finding.key),
            context: finding.context,
            description: description.clone(),
            runbook: metadata.runbook.clone(),
            reference: metadata.reference.clone(),
            tags: metadata.tags.clone(),
            attack: metadata.attack.clone(),
            destinations: metadata.destinations.clone(),
            rule_hash: rule.hash.clone(),
            generation,
            shadow: metadata.stage == Stage::Shadow,
            lists: self.host.take_lists(),
            ..Alert::new(id, AlertKind::Health, rule.id().clone(), title.clone(), severity, now)
        });
        let open = OpenFinding {
            alert: alert.id,
            rule: rule.id().clone(),
            source: subject.source.clone(),
            title,
            description,
            severity,
            resolved,
        };
        changes.push((name.to_owned(), encode(&open)));
        self.open.insert(name.to_owned(), open);
        outcome.alerts.push(AlertChange::Opened(Box::new(alert)));
    }
}
