//! The retro-hunt: runs new rules once over the stored events, on a separate thread. The result goes to the rules
//! thread, which records it as late alerts.
//!
//! A pending hunt is stored in the same commit as the rule that it is for, and removed in the same commit as its result
//! is recorded. An interrupted hunt therefore starts again.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    crash::{CrashLog, Runner},
    request::{RetroHuntResult, RulesRequest},
};
use crate::{
    detect::{Detector, Settings},
    model::{
        alert::{AlertChange, AlertKind},
        name::{RuleId, Sequence},
        outcome::Outcome,
        time::{self, Timestamp},
    },
    rule::{CompiledRule, RuleSet, stack},
    store::{Reader, ScanFilter, StoreError},
};

/// Maximum number of matches recorded per hunt. A rule with more is not suited to a retro-hunt.
const MAX_MATCHES: usize = 20_000;

/// A retro-hunt to run.
#[derive(Debug)]
pub(super) struct RetroHunt {
    pub(super) rules: Arc<RuleSet>,
    /// The new rules.
    pub(super) wanted: Vec<Arc<CompiledRule>>,
    /// How far back the hunt goes.
    pub(super) span: Duration,
    /// The last event that was evaluated before the rules were loaded.
    pub(super) checkpoint: Sequence,
}

impl RetroHunt {
    /// Starts the hunt in the background.
    pub(super) fn begin(
        self,
        settings: Settings,
        reader: Reader,
        now: Timestamp,
        found: mpsc::Sender<RulesRequest>,
        crashes: Arc<CrashLog>,
        stop: CancellationToken,
    ) {
        let rules: Vec<String> = self.wanted.iter().map(|rule| rule.id().to_string()).collect();
        tracing::info!(
            rules = rules.join(", "),
            over = time::show_duration(self.span),
            "running new rules over stored events"
        );
        let hunting = move || match self.hunt(settings, &reader, now, &crashes, &stop) {
            Ok(Some(hunted)) => {
                // Fails if the rules thread has ended. The hunt then runs again at the next start.
                found.blocking_send(RulesRequest::RetroHuntResult(Box::new(hunted))).ok();
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "retro-hunt failed and will be retried at the next start")
            }
        };
        let thread = stack::thread("hunt").spawn(hunting);
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread for the retro-hunt: retrying at the next start");
        }
    }

    /// Runs the hunt. Returns `None` if the agent is stopping.
    fn hunt(
        &self,
        settings: Settings,
        reader: &Reader,
        now: Timestamp,
        crashes: &Arc<CrashLog>,
        stop: &CancellationToken,
    ) -> Result<Option<RetroHuntResult>, StoreError> {
        let part = self.rules.part(&self.wanted);
        let since = time::before(now, self.span);
        let filter = ScanFilter { since: Some(time::before(since, part.longest_reach())), ..ScanFilter::default() };
        let _alone = crashes.hunting();
        let noted = crashes.clearing(Runner::RetroHunt);
        crashes.rules(Runner::RetroHunt, &part.detections);
        let hunting = part.detections.clone();
        let mut detector = Detector::new(part, settings);
        if hunting.iter().any(|rule| crashes.is_suspect(rule)) {
            detector.set_watch(Some(crashes.watch(Runner::RetroHunt, None)));
        }
        let mut outcome = Outcome::default();
        let is_wanted = |rule: &RuleId| self.wanted.iter().any(|wanted| wanted.id() == rule);
        for event in reader.scan_readable(filter) {
            let event = event?;
            if event.sequence > self.checkpoint {
                break;
            }
            if stop.is_cancelled() {
                return Ok(None);
            }
            let mut found = detector.evaluate(&event);
            detector.drop_changes();
            if event.time < since {
                continue;
            }
            found.matches.retain(|found| is_wanted(&found.rule));
            outcome.alerts.extend(found.alerts);
            outcome.matches.extend(found.matches);
            if outcome.matches.len() > MAX_MATCHES {
                let rules: Vec<String> = self.wanted.iter().map(|rule| rule.id().to_string()).collect();
                tracing::warn!(
                    rules = rules.join(", "),
                    "new rules match too many stored events: only the first {MAX_MATCHES} matches are recorded"
                );
                break;
            }
        }
        drop(noted);
        crashes.cleared(&[], &hunting)?;
        let mut known = std::collections::HashSet::new();
        outcome.alerts.retain_mut(|change| match change {
            AlertChange::Opened(alert) => {
                alert.late = true;
                // Rule failures are reported for live events only.
                alert.kind == AlertKind::Detection && is_wanted(&alert.rule) && known.insert(alert.id)
            }
            // Matches that joined an alert from before the span are not new.
            other => known.contains(&other.alert()),
        });
        outcome.matches.retain(|found| found.alert.is_some_and(|alert| known.contains(&alert)));
        let mut rules = self.rules.versions();
        rules.retain(|rule, _| is_wanted(rule));
        Ok(Some(RetroHuntResult { rules, outcome }))
    }
}
