//! What the rules' thread is asked, and what it shows of itself.

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

/// How far evaluation has come since the agent started.
#[derive(Debug, Clone, Default)]
pub struct EvaluationProgress {
    /// The last event that was evaluated.
    pub checkpoint: Sequence,
    /// Events evaluated.
    pub events: u64,
    /// Calls of `fn rule`.
    pub rules_run: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Alerts opened, by severity, in the order of [`crate::model::alert::Severity::ALL`].
    pub alerts: [u64; 5],
    /// Alerts that a silence kept from being delivered.
    pub silenced: u64,
}

/// What a person wants to do with an alert.
#[derive(Debug)]
pub(super) struct HandleRequest {
    pub(super) alert: AlertId,
    pub(super) action: AlertAction,
    pub(super) remark: Remark,
    /// The alert as it is then, or why it was not done.
    pub(super) reply: oneshot::Sender<Result<Alert, String>>,
}

/// What is asked of the rules' thread.
#[derive(Debug)]
pub(super) enum RulesRequest {
    /// Something with an alert.
    Handle(HandleRequest),
    /// To forget what a rule remembers; answered with how many keys that were.
    ClearMemory { space: String, reply: oneshot::Sender<usize> },
    /// To record what new rules found in stored events.
    RetroHuntResult(Box<RetroHuntResult>),
}

/// What a hunt found.
#[derive(Debug)]
pub(super) struct RetroHuntResult {
    /// The rules that were hunted with, each with its version.
    pub(super) rules: BTreeMap<RuleId, RuleVersion>,
    /// What followed.
    pub(super) outcome: Outcome,
}

/// When the rules' thread was last seen at work.
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
