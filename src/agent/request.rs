//! Requests to the rules thread, and the progress it publishes.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::model::{
    alert::{Alert, AlertAction, Remark},
    name::{AlertId, RuleId, RuleVersion, Sequence},
    outcome::Outcome,
};

/// Progress of evaluation since the agent started.
#[derive(Debug, Clone, Default)]
pub struct EvaluationProgress {
    /// The last event that was evaluated.
    pub checkpoint: Sequence,
    /// Number of evaluated events.
    pub events: u64,
    /// Number of calls of `fn rule`.
    pub rules_run: u64,
    /// Number of calls that failed.
    pub failures: u64,
    /// Number of opened alerts by severity, in the order of [`crate::model::alert::Severity::ALL`].
    pub alerts: [u64; 5],
    /// Number of alerts that a silence muted.
    pub silenced: u64,
}

/// A user's action on an alert.
#[derive(Debug)]
pub(super) struct HandleRequest {
    pub(super) alert: AlertId,
    pub(super) action: AlertAction,
    pub(super) remark: Remark,
    /// Receives the changed alert, or the reason for a refusal.
    pub(super) reply: oneshot::Sender<Result<Alert, String>>,
}

/// A request to the rules thread.
#[derive(Debug)]
pub(super) enum RulesRequest {
    /// Apply an action to an alert.
    Handle(HandleRequest),
    /// Clear the state of a rule; the reply is the number of removed keys.
    ClearMemory { space: String, reply: oneshot::Sender<usize> },
    /// Record the result of a retro-hunt.
    RetroHuntResult(Box<RetroHuntResult>),
}

/// The result of a retro-hunt.
#[derive(Debug)]
pub(super) struct RetroHuntResult {
    /// The new rules with their versions.
    pub(super) rules: BTreeMap<RuleId, RuleVersion>,
    pub(super) outcome: Outcome,
}

/// When the rules thread last made progress.
#[derive(Debug)]
pub(super) struct Beat {
    began: Instant,
    millis: AtomicU64,
}

impl Beat {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), millis: AtomicU64::new(0) }
    }

    pub(super) fn beat(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }
}
