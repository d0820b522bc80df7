//! The control API: what the other verbs ask, whether an agent runs or not.
//!
//! A question ([`Request`]) is answered by a [`Service`], as items of JSON, one after another. Beside a running agent the service is
//! the agent's and the question goes through a unix socket in the data directory ([`server`]); otherwise the verb opens the
//! store itself and asks a service of its own. [`Client`] hides which. Both give the same answers because they are the same code.

use crate::model::alert::{Alert, AlertAction, AlertKind};

mod client;
pub mod metrics;
pub mod server;
mod service;
mod status;
mod task;
pub mod wire;

pub use client::{Client, ClientError};
pub use service::{DeskError, DeskSettings, Live, Service};
pub use status::{
    CategoryState, DestinationState, DropOff, EventState, Health, RuleState, Running, RunningDestination,
    RunningSource, SeverityCounts, SourceState, Status,
};
pub use wire::Request;

/// The socket of an agent on a data directory.
pub fn socket(data_dir: &std::path::Path) -> std::path::PathBuf {
    data_dir.join("agent.sock")
}

/// Whether a person may do this with an alert; if not, why. `lasts`: what a health alert is about still lasts.
pub fn allowed(alert: &Alert, action: AlertAction, lasts: bool) -> Result<(), String> {
    alert.allows(action)?;
    if matches!(action, AlertAction::Resolve(_)) && alert.kind == AlertKind::Health && lasts {
        return Err(format!(
            "alert {} resolves itself once what it is about has passed: acknowledge it, or silence its rule for a while",
            alert.id.short()
        ));
    }
    Ok(())
}
