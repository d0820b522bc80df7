//! The control API: what the other verbs ask for, whether an agent runs or not.
//!
//! Each [`request`] is answered by a [`Service`] with items, one after another. If an agent runs, the service is the agent's
//! and the request goes through a unix socket in the data directory ([`server`]). Otherwise the verb opens the store and uses
//! a service in its own process. [`Client`] hides the difference. Both give the same answers because they are the same code.

use crate::model::alert::{Alert, AlertAction, AlertKind};

pub mod answer;
mod client;
pub mod metrics;
pub mod request;
mod respond;
pub mod server;
mod service;
mod status;
mod task;
mod wire;

pub use client::{Client, ClientError};
pub use request::Request;
pub use respond::{Respond, Sink};
pub use service::{Live, Service, ServiceError, ServiceSettings};
pub use status::{
    CategoryState, DestinationState, DropOff, EventState, Health, RuleState, Running, RunningDestination,
    RunningSource, SeverityCounts, SourceState, Status,
};
pub use wire::API_VERSION;

/// The socket of an agent on a data directory.
pub fn socket(data_dir: &std::path::Path) -> std::path::PathBuf {
    data_dir.join("agent.sock")
}

/// Whether a person may do this with an alert, and why not. `lasts`: the cause of a health alert still lasts.
pub fn allowed(alert: &Alert, action: AlertAction, lasts: bool) -> Result<(), String> {
    alert.allows(action)?;
    if matches!(action, AlertAction::Resolve(_)) && alert.kind == AlertKind::Health && lasts {
        return Err(format!(
            "alert {} resolves itself once its cause is gone: acknowledge it, or silence its rule for a while",
            alert.id.short()
        ));
    }
    Ok(())
}
