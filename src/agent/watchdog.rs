//! Being noticed from outside when the agent no longer does its job: the service manager's watchdog, and a heartbeat to
//! somebody who raises the alarm when it stays away.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::handle::LiveAgent;
use crate::{api::Live, heartbeat::Heartbeat};

/// Tells the service manager that the agent runs, and that it still does, until `stop`. Without one, nothing is told.
pub(super) async fn watchdog(live: Arc<LiveAgent>, stop: CancellationToken) -> &'static str {
    tell(&[NotifyState::Ready]);
    // Half the time it allows, as its manual recommends.
    let every = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    loop {
        let wait = every.unwrap_or(Duration::from_secs(60));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        let health = live.health();
        match health.dead.first() {
            // Not told that it is alive, the service manager starts it anew.
            Some(problem) => tracing::error!("{problem}"),
            None if every.is_some() => tell(&[NotifyState::Watchdog]),
            None => {}
        }
    }
    "the watchdog"
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Sends one, unless the agent stops.
async fn sent(settings: &Heartbeat, stop: &CancellationToken) -> Result<(), String> {
    tokio::select! {
        () = stop.cancelled() => Err("the agent stops".to_owned()),
        sent = settings.send() => sent,
    }
}

/// Sends heartbeats until `stop`, while the agent does its whole job.
pub(super) async fn heartbeat(settings: Heartbeat, live: Arc<LiveAgent>, stop: CancellationToken) -> &'static str {
    loop {
        let health = live.health();
        match health.dead.iter().chain(&health.unready).next() {
            Some(problem) => tracing::warn!("no heartbeat is sent: {problem}"),
            None => match sent(&settings, &stop).await {
                Ok(()) => {
                    let mut last = live.last_heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some(live.clock.now());
                }
                Err(error) => tracing::warn!("a heartbeat was not sent: {error}"),
            },
        }
        tokio::select! {
            () = stop.cancelled() => return "the heartbeat",
            () = tokio::time::sleep(settings.every) => {}
        }
    }
}
