//! The guard: a rule that is new or has changed is replayed over recent events before it runs. If it would raise very many alerts that
//! are not there, it goes on trial instead: what it finds is stored, and nobody is told. A health alert says so.
//!
//! It is asked again whenever rules are taken up, and at each start, so that nothing about it has to be kept.

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

/// What rules are tried with.
pub(super) struct Trial<'a> {
    pub(super) guard: &'a Guard,
    pub(super) settings: &'a Settings,
    pub(super) reader: &'a Reader,
    pub(super) crashes: &'a CrashLog,
    pub(super) now: Timestamp,
    pub(super) progress: &'a ReplayProgress,
}

impl Trial<'_> {
    /// Looks at rules that are about to run; gives the same, with those on trial that would flood. `known` are the rules that ran
    /// before, each with its version.
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
                    tracing::warn!(%rule, alerts, most, "the rule would flood: it goes on trial");
                }
                if guarded.is_empty() { rules } else { rules.on_trial(guarded) }
            }
            Err(error) => {
                tracing::error!(%error, "rules could not be replayed before they run: they run");
                rules
            }
        }
    }

    /// Alerts that each of these rules would have raised and that are not in the store. A rule that may have ended the process is run
    /// alone.
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
            // The agent goes on meanwhile, and has its work to do.
            threads: 1,
            ..Run::default()
        };
        let (sender, receiver) = mpsc::sync_channel(4);
        let mut failed = None;
        let after = std::thread::scope(|scope| {
            let failed = &mut failed;
            scope.spawn(move || {
                // Blocks are read whole: the agent may merge or remove them meanwhile.
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
            // Of a flood not all alerts are kept: then all that it raises count.
            added.insert(rule.id().clone(), if not_kept > 0 { all } else { count });
        }
        Ok(added)
    }
}
