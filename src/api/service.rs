//! The service that answers requests: the store, and what a running agent adds to it. The answers are in
//! [`respond`](super::respond).

use std::sync::Arc;

use super::{
    Status,
    status::{Health, Running},
};
use crate::{
    deliver,
    dispatch::Recorder,
    model::{
        alert::{Alert, AlertAction, Remark},
        name::{AlertId, SourceName},
        time::Clock,
    },
    source::{self, Refreshed},
    store::{Refetch, Store, StoreError},
};

/// What a running agent adds to the store.
pub trait Live: Send + Sync {
    /// The agent's state.
    fn running(&self) -> Running;
    /// What prevents it from doing its job, if anything.
    fn health(&self) -> Health;
    /// Acknowledges, resolves, reopens or comments on an alert; the error says why that is not possible.
    fn handle(&self, alert: AlertId, action: AlertAction, remark: Remark) -> Result<Alert, String>;
    /// Clears the state of a rule, and returns the number of keys.
    fn clear_memory(&self, space: String) -> Result<usize, String>;
    /// Schedules another fetch of a part of the log. `false` if the source is not polled.
    fn fetch(&self, source: &SourceName, refetch: Refetch) -> bool;
    /// Fetches the source's list of actions, and waits for it. `None` if the source is not polled.
    fn list_actions(&self, source: &SourceName) -> Option<Result<Refreshed, String>>;
    /// Signals that there are events to evaluate.
    fn stored(&self);
    /// Signals that there are messages to deliver.
    fn pending(&self);
}

/// The parts of the configuration that answers depend on.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    pub sources: Vec<source::Settings>,
    pub destinations: Vec<deliver::Settings>,
}

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(super) store: Store,
    pub(super) settings: Arc<ServiceSettings>,
    pub(super) clock: Clock,
    pub(super) live: Option<Arc<dyn Live>>,
    pub(super) recorder: Recorder,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Service({})", if self.live.is_some() { "with an agent" } else { "without an agent" })
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The request is invalid.
    #[error("{0}")]
    Wrong(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client has disconnected.
    #[error("the client closed the connection")]
    Gone,
}

impl Service {
    /// Creates a service on a store, with the agent if one runs in this process.
    pub fn new(
        store: Store,
        recorder: Recorder,
        settings: ServiceSettings,
        clock: Clock,
        live: Option<Arc<dyn Live>>,
    ) -> Self {
        Self { store, settings: Arc::new(settings), clock, live, recorder }
    }

    /// The state of the agent and its store.
    pub fn status(&self) -> Result<Status, StoreError> {
        super::status::status(self)
    }
}
