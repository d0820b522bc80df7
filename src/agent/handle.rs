//! The control API's handle to the running agent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    EvaluationProgress,
    request::{Beat, HandleRequest, RulesRequest},
};
use crate::model::signal::Signal;
use crate::{
    api::{Health, Live, Running, RunningDestination, RunningSource},
    deliver::DestinationStatus,
    model::{
        alert::{Alert, AlertAction, Remark},
        error_kind::ErrorKind,
        name::{AlertId, DestinationName, SourceName},
        time::{self, Clock, Timestamp},
    },
    rule::{RuleSet, fingerprint_on_disk, stamp_on_disk},
    source::{Refresh, Refreshed, Settings, SourceStatus},
    store::Refetch,
};

/// The rules thread counts as stuck after this time. It completes a round at least every 30 seconds, and a batch of
/// events takes seconds at worst.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// A source counts as unread after this time, or after three poll intervals if that is longer.
const UNREAD_AFTER: Duration = Duration::from_secs(15 * 60);

/// The API's view of a source.
#[derive(Debug)]
pub(super) struct LiveSource {
    pub(super) settings: Settings,
    pub(super) status: watch::Receiver<SourceStatus>,
    pub(super) refetches: mpsc::Sender<Refetch>,
    pub(super) refreshes: mpsc::Sender<Refresh>,
}

/// The API's view of the running agent.
#[derive(Debug)]
pub(super) struct LiveAgent {
    pub(super) clock: Clock,
    pub(super) started: Timestamp,
    pub(super) sources: Vec<LiveSource>,
    pub(super) destinations: Vec<(DestinationName, watch::Receiver<DestinationStatus>)>,
    pub(super) rules: watch::Receiver<Arc<RuleSet>>,
    pub(super) progress: watch::Receiver<EvaluationProgress>,
    pub(super) stored: Signal,
    pub(super) pending: Signal,
    pub(super) requests: mpsc::Sender<RulesRequest>,
    pub(super) beat: Arc<Beat>,
    pub(super) last_heartbeat: Mutex<Option<Timestamp>>,
    pub(super) last_look: Mutex<Option<Look>>,
}

/// A comparison of the rule files with those that are loaded, kept until one of the two changes.
#[derive(Debug)]
pub(super) struct Look {
    stamp: [u8; 32],
    fingerprint: String,
    changed: bool,
}

impl LiveAgent {
    /// Whether the rule files are not those that are loaded. Reads them only if the file system says that something changed.
    fn files_changed(&self, rules: &RuleSet) -> bool {
        let stamp = stamp_on_disk(&rules.context.roots, rules.context.follow_links);
        let mut last = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = &*last
            && look.stamp == stamp
            && look.fingerprint == rules.context.fingerprint
        {
            return look.changed;
        }
        let changed =
            fingerprint_on_disk(&rules.context.roots, rules.context.follow_links) != rules.context.fingerprint;
        *last = Some(Look { stamp, fingerprint: rules.context.fingerprint.clone(), changed });
        changed
    }
}

impl Live for LiveAgent {
    fn running(&self) -> Running {
        let rules = Arc::clone(&self.rules.borrow());
        let progress = self.progress.borrow().clone();
        let health = self.health();
        let sources = self.sources.iter().map(|source| {
            let status = source.status.borrow();
            let running = RunningSource {
                record: status.record.clone(),
                polls: status.polls,
                failed: status.failed.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
                next_poll: status.next_poll,
            };
            (source.settings.name.clone(), running)
        });
        let destinations = self.destinations.iter().map(|(name, status)| {
            let status = status.borrow();
            let running = RunningDestination {
                delivered: status.delivered,
                failed: status.failed,
                failing_since: status.failing_since,
                held_until: status.held_until,
                error: status.error.clone(),
            };
            (name.clone(), running)
        });
        let costs: BTreeMap<_, _> = rules
            .detections
            .iter()
            .chain(&rules.checks)
            .map(|rule| (rule.id().clone(), (rule.cost.calls(), rule.cost.time().as_secs_f64())))
            .collect();
        Running {
            pid: std::process::id(),
            started: self.started,
            generation: rules.context.generation,
            rules: rules.detections.len() as u64,
            checks: rules.checks.len() as u64,
            guarded: rules.context.guarded.iter().map(|guarded| guarded.rule.clone()).collect(),
            broken: rules.context.broken.iter().map(|broken| broken.problem.clone()).collect(),
            files_changed: self.files_changed(&rules),
            problems: health.dead.into_iter().chain(health.unready).collect(),
            evaluated: progress.events,
            rules_run: progress.rules_run,
            failures: progress.failures,
            alerts_opened: progress.alerts,
            silenced: progress.silenced,
            sources: sources.collect(),
            destinations: destinations.collect(),
            costs,
            last_heartbeat: *self.last_heartbeat.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn health(&self) -> Health {
        let mut health = Health::default();
        let age = self.beat.age();
        if age > STUCK_AFTER {
            health.dead.push(format!("the rules have made no progress for {}", time::show_duration(age)));
        }
        let now = self.clock.now();
        for source in &self.sources {
            let record = source.status.borrow().record.clone();
            let name = &source.settings.name;
            if record.error.as_ref().is_some_and(|error| error.kind == ErrorKind::StoreFailed) {
                health.dead.push("cannot write to the store".to_owned());
            }
            let patience = UNREAD_AFTER.max(3 * source.settings.poll_interval);
            let silent = record.last_poll.map_or(Duration::MAX, |poll| time::since(now, poll));
            // Right after startup, a source gets the same time as one that fails.
            if silent > patience && (record.error.is_some() || time::since(now, self.started) > patience) {
                let error = record.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
                health.unready.push(format!("source `{name}` is not being read{error}"));
            }
        }
        health
    }

    fn handle(&self, alert: AlertId, action: AlertAction, remark: Remark) -> Result<Alert, String> {
        let stopping = || "the agent is stopping: try again".to_owned();
        let (reply, answer) = oneshot::channel();
        let request = RulesRequest::Handle(HandleRequest { alert, action, remark, reply });
        self.requests.blocking_send(request).map_err(|_| stopping())?;
        answer.blocking_recv().map_err(|_| stopping())?
    }

    fn clear_memory(&self, space: String) -> Result<usize, String> {
        let stopping = || "the agent is stopping: try again".to_owned();
        let (reply, answer) = oneshot::channel();
        self.requests.blocking_send(RulesRequest::ClearMemory { space, reply }).map_err(|_| stopping())?;
        answer.blocking_recv().map_err(|_| stopping())
    }

    fn fetch(&self, source: &SourceName, refetch: Refetch) -> bool {
        self.sources
            .iter()
            .find(|live| live.settings.name == *source)
            .is_some_and(|live| live.refetches.blocking_send(refetch).is_ok())
    }

    fn list_actions(&self, source: &SourceName) -> Option<Result<Refreshed, String>> {
        let live = self.sources.iter().find(|live| live.settings.name == *source)?;
        let (reply, answer) = oneshot::channel();
        live.refreshes.blocking_send(reply).ok()?;
        answer.blocking_recv().ok()
    }

    fn stored(&self) {
        self.stored.send();
    }

    fn pending(&self) {
        self.pending.send();
    }
}
