//! The organization's list of its actions: fetched before the first page and once a day, and whenever somebody asks.
//!
//! Rules name activities that only this list resolves, so events are polled after it was asked for, and after the rules have
//! taken it up. That it may not be read is no failure of the source: rules then go by action ids.

use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::Poller;
use crate::{
    model::{error_kind::ErrorKind, time},
    store::{ActionList, SourceError, SourceRecord},
};

/// Actions change rarely.
const DAILY: Duration = Duration::from_secs(86_400);
/// After a failure that may pass by itself.
const SOON: Duration = Duration::from_secs(600);
/// How long the rules may take to take up a list before polling goes on without them.
const PATIENCE: Duration = Duration::from_secs(30);

/// How pollers and rules tell each other of lists.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Counts lists that brought something new.
    pub listed: watch::Sender<u64>,
    /// The count up to which the rules have taken them up.
    pub taken: watch::Receiver<u64>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refreshed {
    /// Actions on the list.
    pub listed: u64,
    /// Of these, the ones that were not on it before.
    pub new: u64,
}

/// Where the answer to somebody who asks goes: what came of it, or why it was not had.
pub type Refresh = oneshot::Sender<Result<Refreshed, String>>;

impl Poller {
    /// Asks for the list if it is time.
    pub(super) async fn list_if_due(&mut self) {
        let list = self.record().actions;
        let now = self.clock.now();
        let wait = match &list.error {
            None => DAILY,
            // What the key may not do, it may not do tomorrow either.
            Some(error) if matches!(error.kind, ErrorKind::KeyLacksScope | ErrorKind::OrganizationNotFound) => DAILY,
            Some(_) => SOON,
        };
        if list.tried.is_none_or(|tried| time::since(now, tried) >= wait || tried > now) {
            self.pace.lock().await.turn().await;
            // What failed stands in the record.
            self.list().await.ok();
        }
    }

    /// Asks for the list, and tells whoever wanted it.
    pub(super) async fn refresh(&mut self, reply: Refresh) {
        self.pace.lock().await.turn().await;
        let answer = self.list().await;
        // Nobody waits any more: no harm.
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
                    tracing::info!(source = %self.settings.name, kind = error.kind.name(), "the organization's list of actions cannot be read, so rules go by action ids: {}", error.message);
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
        tracing::debug!(source = %self.settings.name, listed = refreshed.listed, new = refreshed.new, "list of actions");
        self.tell_rules().await;
        Ok(refreshed)
    }

    /// Lets the rules take the list up before events follow.
    async fn tell_rules(&mut self) {
        let Some(listing) = &mut self.listing else { return };
        let mut number = 0;
        listing.listed.send_modify(|count| {
            *count += 1;
            number = *count;
        });
        let taken = listing.taken.wait_for(|taken| *taken >= number);
        if !matches!(tokio::time::timeout(PATIENCE, taken).await, Ok(Ok(_))) {
            tracing::warn!(source = %self.settings.name, "the rules have not taken up the list of actions yet");
        }
    }

    fn record(&self) -> SourceRecord {
        self.status.borrow().record.clone()
    }

    fn keep(&self, record: SourceRecord) {
        self.status.send_modify(|status| status.record = record);
    }
}
