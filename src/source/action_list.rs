//! Fetches the organization's list of actions: before the first page, once a day, and on request.
//!
//! Rules name activities that only this list resolves, so events are polled after the list has been requested and the
//! rules have loaded it. A list that cannot be read is not a failure of the source: rules then use action ids.

use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::Poller;
use crate::{
    model::{error_kind::ErrorKind, time},
    store::{ActionList, SourceError, SourceRecord},
};

/// Interval of fetches. Actions change rarely.
const DAILY: Duration = Duration::from_secs(86_400);
/// Wait after a failure that may be temporary.
const SOON: Duration = Duration::from_secs(600);
/// How long to wait for the rules to load a list before polling continues.
const PATIENCE: Duration = Duration::from_secs(30);

/// Coordinates pollers and rules when a list has been fetched.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Counts the lists that pollers have stored.
    pub listed: watch::Sender<u64>,
    /// The count of lists that the rules have loaded.
    pub taken: watch::Receiver<u64>,
}

/// The result of fetching the list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refreshed {
    /// Number of actions on the list.
    pub listed: u64,
    /// Number of actions that were not on the list before.
    pub new: u64,
}

/// A request to fetch the list: the channel that receives the result, or the error message.
pub type Refresh = oneshot::Sender<Result<Refreshed, String>>;

impl Poller {
    /// Fetches the list if it is due.
    pub(super) async fn list_if_due(&mut self) {
        let list = self.record().actions;
        let now = self.clock.now();
        let wait = match &list.error {
            None => DAILY,
            // Missing permissions will not appear soon.
            Some(error) if matches!(error.kind, ErrorKind::KeyLacksScope | ErrorKind::OrganizationNotFound) => DAILY,
            Some(_) => SOON,
        };
        if list.tried.is_none_or(|tried| time::since(now, tried) >= wait || tried > now) {
            self.pace.lock().await.turn().await;
            // A failure is in the record.
            self.list().await.ok();
        }
    }

    /// Fetches the list and replies to the request.
    pub(super) async fn refresh(&mut self, reply: Refresh) {
        self.pace.lock().await.turn().await;
        let answer = self.list().await;
        // The requester may be gone.
        reply.send(answer).ok();
    }

    async fn list(&mut self) -> Result<Refreshed, String> {
        let now = self.clock.now();
        let fetched = self.source.actions(now).await;
        let mut record = self.record();
        record.actions.tried = Some(now);
        let listed = match fetched {
            Ok(listed) => listed,
            Err(error) => {
                let known = record.actions.error.as_ref().map(|error| error.kind);
                if known != Some(error.kind) {
                    tracing::info!(
                        source = %self.settings.name, kind = error.kind.name(),
                        "cannot read the organization's list of actions, so rules use action IDs: {}", error.message
                    );
                }
                record.actions.error = Some(SourceError { kind: error.kind, message: error.message.clone(), at: now });
                self.keep(record);
                self.save().await;
                return Err(error.message);
            }
        };
        record.actions = ActionList {
            first: record.actions.first.or(Some(now)),
            fetched: Some(now),
            tried: Some(now),
            listed: listed.len() as u64,
            error: None,
        };
        let (name, saved) = (self.settings.name.clone(), record.clone());
        let saved = self.store.run(move |store| {
            let new = store.save_listed(&name, &listed, &saved, now)?;
            Ok(Refreshed { listed: listed.len() as u64, new: new as u64 })
        });
        let refreshed = saved.await.map_err(|error| error.to_string())?;
        self.keep(record);
        let Refreshed { listed, new } = &refreshed;
        tracing::debug!(source = %self.settings.name, listed, new, "fetched the list of actions");
        self.notify_rules().await;
        Ok(refreshed)
    }

    /// Waits until the rules have loaded the list, before events follow.
    async fn notify_rules(&mut self) {
        let Some(listing) = &mut self.listing else { return };
        let mut number = 0;
        listing.listed.send_modify(|count| {
            *count += 1;
            number = *count;
        });
        let taken = listing.taken.wait_for(|taken| *taken >= number);
        if !matches!(tokio::time::timeout(PATIENCE, taken).await, Ok(Ok(_))) {
            tracing::warn!(source = %self.settings.name, "the rules have not loaded the list of actions yet");
        }
    }

    fn record(&self) -> SourceRecord {
        self.status.borrow().record.clone()
    }

    fn keep(&self, record: SourceRecord) {
        self.status.send_modify(|status| status.record = record);
    }
}
