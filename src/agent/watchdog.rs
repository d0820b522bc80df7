//! Lets others notice when the agent no longer does its job: the service manager's watchdog, and a heartbeat to an
//! external monitor that raises an alarm when heartbeats stop.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::handle::LiveAgent;
use crate::{api::Live, heartbeat::Heartbeat};

/// Notifies the service manager, if there is one, that the agent is ready and then that it is alive, until `stop`.
pub(super) async fn watchdog(live: Arc<LiveAgent>, stop: CancellationToken) -> &'static str {
    notify(&[NotifyState::Ready]);
    // Half the watchdog timeout, as systemd's manual recommends.
    let every = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    loop {
        let wait = every.unwrap_or(Duration::from_secs(60));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        let health = live.health();
        match health.dead.first() {
            // Without a notification the service manager restarts the agent.
            Some(problem) => tracing::error!("{problem}"),
            None if every.is_some() => notify(&[NotifyState::Watchdog]),
            None => {}
        }
    }
    "the watchdog"
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Sends one heartbeat, unless the agent stops first.
async fn send(settings: &Heartbeat, stop: &CancellationToken) -> Result<(), String> {
    tokio::select! {
        () = stop.cancelled() => Err("the agent is stopping".to_owned()),
        sent = settings.send() => sent,
    }
}

/// Sends heartbeats until `stop`, as long as the agent is healthy.
pub(super) async fn heartbeat(settings: Heartbeat, live: Arc<LiveAgent>, stop: CancellationToken) -> &'static str {
    loop {
        let health = live.health();
        match health.dead.iter().chain(&health.unready).next() {
            Some(problem) => tracing::warn!("heartbeat skipped: {problem}"),
            None => match send(&settings, &stop).await {
                Ok(()) => {
                    let mut last = live.last_heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some(live.clock.now());
                }
                Err(error) => tracing::warn!("cannot send a heartbeat: {error}"),
            },
        }
        tokio::select! {
            () = stop.cancelled() => return "the heartbeat",
            () = tokio::time::sleep(settings.every) => {}
        }
    }
}
