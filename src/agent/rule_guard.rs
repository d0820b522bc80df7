//! The guard: replays new and changed rules over recent events before they run.
//!
//! A rule that would raise very many new alerts runs in shadow mode instead: its matches are stored, but not delivered.
//! A health alert reports it. The guard runs on every load of the rules and at each start, so it needs no stored state.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
};

use super::crash::{CrashLog, Runner};
use crate::{
    config::Guard,
    detect::Settings,
    model::{
        alert::{Alert, AlertKind},
        name::{RuleId, RuleVersion},
        time::{self, Timestamp},
    },
    replay::{self, Diff, ReplayProgress, Report, Run},
    rule::{CompiledRule, Guarded, RuleSet, Stage},
    store::{AlertFilter, Reader, SentBlock, StoreError},
};

/// What the guard needs to replay rules.
pub(super) struct Trial<'a> {
    pub(super) guard: &'a Guard,
    pub(super) settings: &'a Settings,
    pub(super) reader: &'a Reader,
    pub(super) crashes: &'a CrashLog,
    pub(super) now: Timestamp,
    pub(super) progress: &'a ReplayProgress,
}

impl Trial<'_> {
    /// Returns the rules, with those that would raise too many alerts in shadow mode. `known` are the rules that ran
    /// before, with their versions.
    pub(super) fn of(&self, rules: Arc<RuleSet>, known: &BTreeMap<RuleId, RuleVersion>) -> Arc<RuleSet> {
        let versions = rules.versions();
        let is_new = |rule: &&Arc<CompiledRule>| {
            rule.metadata.stage != Stage::Shadow
                && !rule.metadata.is_overridden("stage")
                && known.get(rule.id()) != versions.get(rule.id())
        };
        let new: Vec<Arc<CompiledRule>> = rules.detections.iter().filter(is_new).cloned().collect();
        if new.is_empty() || known.is_empty() {
            return rules;
        }
        let names: Vec<String> = new.iter().map(|rule| rule.id().to_string()).collect();
        let since = self.guard.since;
        tracing::info!(rules = names.join(", "), over = time::show_duration(since), "replaying rules before they run");
        match self.added(&rules, &new) {
            Ok(added) => {
                let floods = |(rule, alerts): (RuleId, u64)| {
                    (alerts > self.guard.max_new_alerts).then_some(Guarded { rule, alerts, since })
                };
                let guarded: Vec<Guarded> = added.into_iter().filter_map(floods).collect();
                for Guarded { rule, alerts, .. } in &guarded {
                    let most = self.guard.max_new_alerts;
                    tracing::warn!(%rule, alerts, most, "the rule would raise too many alerts: it runs in shadow mode");
                }
                if guarded.is_empty() { rules } else { rules.on_trial(guarded) }
            }
            Err(error) => {
                tracing::error!(%error, "cannot replay rules before they run: running them unguarded");
                rules
            }
        }
    }

    /// Counts the alerts that each new rule would have raised and that are not in the store. A rule suspected of having
    /// crashed the process runs alone.
    fn added(&self, rules: &RuleSet, new: &[Arc<CompiledRule>]) -> Result<BTreeMap<RuleId, u64>, StoreError> {
        let (suspects, others): (Vec<_>, Vec<_>) = new.iter().cloned().partition(|rule| self.crashes.is_suspect(rule));
        let mut added = BTreeMap::new();
        for group in suspects.chunks(1).chain(std::iter::once(others.as_slice()).filter(|others| !others.is_empty())) {
            {
                let _noted = self.crashes.clearing(Runner::Guard);
                self.crashes.rules(Runner::Guard, group);
                added.append(&mut self.added_together(rules, group)?);
            }
            if !self.progress.is_stopped() {
                self.crashes.cleared(&[], group)?;
            }
        }
        Ok(added)
    }

    fn added_together(&self, rules: &RuleSet, new: &[Arc<CompiledRule>]) -> Result<BTreeMap<RuleId, u64>, StoreError> {
        let since = time::before(self.now, self.guard.since);
        let part = rules.part(new);
        let run = Run {
            since: Some(since),
            warm_up: part.longest_reach(),
            changes: self
                .reader
                .changes_after(0)
                .filter(|change| !matches!(change, Ok(change) if change.author.is_none()))
                .collect::<Result<_, _>>()?,
            watermarks: self.reader.watermarks().collect::<Result<_, _>>()?,
            // Leave processors to the agent, which keeps working meanwhile.
            threads: 1,
            ..Run::default()
        };
        let (sender, receiver) = mpsc::sync_channel(4);
        let mut failed = None;
        let after = std::thread::scope(|scope| {
            let failed = &mut failed;
            scope.spawn(move || {
                // Blocks are copied as a whole: the agent may merge or remove them meanwhile.
                for block in self.reader.sent_blocks() {
                    match block.and_then(SentBlock::block) {
                        Ok(block) => {
                            if self.progress.is_stopped() || sender.send(block).is_err() {
                                break;
                            }
                        }
                        Err(error) => {
                            *failed = Some(error);
                            break;
                        }
                    }
                }
            });
            replay::run(&part, self.settings, &run, receiver, self.progress)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let is_of = |alert: &Alert| {
            alert.kind != AlertKind::Health && !alert.shadow && new.iter().any(|rule| *rule.id() == alert.rule)
        };
        let filter = AlertFilter { since: Some(since), ..AlertFilter::default() };
        let before: Vec<Alert> = self
            .reader
            .alerts(filter)
            .filter(|alert| !matches!(alert, Ok(alert) if !is_of(alert)))
            .collect::<Result<_, _>>()?;
        let not_kept = after.not_kept;
        let diff = Diff::of(&Report { alerts: before, ..Report::default() }, &after);
        let mut added: BTreeMap<RuleId, u64> = BTreeMap::new();
        for rule in new {
            let count = diff.added.iter().filter(|alert| alert.rule == *rule.id()).count() as u64;
            let all = after.rules.get(rule.id()).map_or(0, |found| found.alerts);
            // A replay does not keep all alerts of a flood. In that case, every alert that the rule raised counts.
            added.insert(rule.id().clone(), if not_kept > 0 { all } else { count });
        }
        Ok(added)
    }
}
