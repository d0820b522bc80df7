//! The control API: how the other commands read and change what is stored, whether an agent runs or not.
//!
//! A [`Service`] answers each [`request`] with items, one after another. If an agent runs, the request goes to the
//! agent's service through a Unix socket in the data directory ([`server`]). If not, the command opens the store and
//! uses a service in its own process. [`Client`] hides the difference. Both give the same answers because they share
//! the code.

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

/// The path of the control socket of the agent that uses this data directory.
pub fn socket(data_dir: &std::path::Path) -> std::path::PathBuf {
    data_dir.join("agent.sock")
}

/// Checks whether a user may do this with an alert; the error says why not. `lasts`: the cause of a health alert
/// persists.
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
