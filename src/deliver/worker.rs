//! One worker a destination: reads what is owed, sends it, strikes it off. A destination that fails is tried again, later and
//! later, and holds up no other. What is owed stands in the store, so a crash loses nothing; at worst it is sent twice.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Destination, Message, Verdict};
use crate::{
    name::DestinationName,
    store::{Delivery, Store, StoreError},
    time::{self, Clock, Timestamp},
};

/// Deliveries read at a time, and the most that one digest tells of: a backfill should bring one digest, not many.
const AT_ONCE: usize = 5_000;
/// Late alerts are told together once none has come up for so long.
const DIGEST_QUIET: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(10 * 60);
/// When the agent stops, what is due is still tried for so long.
const LAST_WORDS: Duration = Duration::from_millis(1_500);

/// How a destination stands.
#[derive(Debug, Clone, Default)]
pub struct DestinationStatus {
    /// Messages delivered since the agent started.
    pub delivered: u64,
    /// What the last attempt came to; absent if it worked.
    pub error: Option<String>,
    /// Since when it fails.
    pub failing_since: Option<Timestamp>,
}

/// Serves one destination until it is told to stop.
pub struct Worker {
    name: DestinationName,
    destination: Box<dyn Destination>,
    store: Store,
    clock: Clock,
    owed: watch::Receiver<u64>,
    status: watch::Sender<DestinationStatus>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Worker({})", self.name)
    }
}

/// What one pass over the outbox came to: when to look again if nobody calls.
type Again = Option<Timestamp>;

impl Worker {
    /// A worker for a destination. `owed` is called when something new is owed.
    pub fn new(
        name: DestinationName,
        destination: Box<dyn Destination>,
        store: Store,
        clock: Clock,
        owed: watch::Receiver<u64>,
    ) -> Self {
        Self { name, destination, store, clock, owed, status: watch::Sender::default() }
    }

    /// Where to read how the destination stands.
    pub fn status(&self) -> watch::Receiver<DestinationStatus> {
        self.status.subscribe()
    }

    /// Delivers until `stop`, then tries once more what is due.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.owed.mark_unchanged();
            let wait = match self.pass(DIGEST_QUIET).await {
                Ok(again) => again.map_or(Duration::from_secs(60), |again| time::since(again, self.clock.now())),
                Err(error) => {
                    tracing::error!(destination = %self.name, %error, "the outbox cannot be read or written");
                    FIRST_RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                result = self.owed.changed() => if result.is_err() { break },
                () = tokio::time::sleep(wait.max(Duration::from_millis(10))) => {}
            }
        }
        if let Ok(Err(error)) = tokio::time::timeout(LAST_WORDS, self.pass(Duration::ZERO)).await {
            tracing::error!(destination = %self.name, %error, "the outbox cannot be read or written");
        }
    }

    async fn pass(&mut self, quiet: Duration) -> Result<Again, StoreError> {
        let mut again: Again = None;
        loop {
            let owed = self.store.reader().owed(&self.name, AT_ONCE)?;
            let (late, prompt): (Vec<Delivery>, Vec<Delivery>) =
                owed.iter().cloned().partition(|delivery| delivery.late);
            let more = owed.len() == AT_ONCE;
            if !prompt.is_empty() {
                let sent = prompt.len();
                if let Some(due) = self.prompt(prompt).await? {
                    return Ok(Some(due));
                }
                if sent > 0 && more {
                    continue;
                }
            }
            if let Some(due) = self.digest(late, quiet, more).await? {
                again = Some(due);
            }
            // New deliveries may have come up while these were sent; the signal says so.
            if !more || again.is_some() {
                return Ok(again);
            }
        }
    }

    /// Sends deliveries in order, up to the first that is not due or fails.
    async fn prompt(&mut self, deliveries: Vec<Delivery>) -> Result<Again, StoreError> {
        for delivery in deliveries {
            if delivery.due > self.clock.now() {
                return Ok(Some(delivery.due));
            }
            let Some(alert) = self.store.reader().alert(delivery.alert)? else {
                self.store.settle(&[delivery])?;
                continue;
            };
            let message = Message::Alert { notice: delivery.notice, alert: Box::new(alert) };
            if let Some(due) = self.send(&message, vec![delivery]).await? {
                return Ok(Some(due));
            }
        }
        Ok(None)
    }

    /// Sends all late deliveries as one message, once they have stopped coming up.
    async fn digest(&mut self, late: Vec<Delivery>, quiet: Duration, more: bool) -> Result<Again, StoreError> {
        let Some(newest) = late.iter().map(|delivery| delivery.created).max() else {
            return Ok(None);
        };
        let due = late.iter().map(|delivery| delivery.due).max().unwrap_or(newest).max(time::after(newest, quiet));
        if !more && due > self.clock.now() {
            return Ok(Some(due));
        }
        let mut alerts = Vec::new();
        for delivery in &late {
            alerts.extend(self.store.reader().alert(delivery.alert)?);
        }
        // The latest word on an alert is enough.
        alerts.sort_by_key(|alert| (alert.opened_at, alert.id));
        alerts.dedup_by_key(|alert| alert.id);
        if alerts.is_empty() {
            self.store.settle(&late)?;
            return Ok(None);
        }
        self.send(&Message::digest(alerts), late).await
    }

    /// Sends a message that stands for these deliveries; returns when to try again if it failed.
    async fn send(&mut self, message: &Message, mut deliveries: Vec<Delivery>) -> Result<Again, StoreError> {
        match self.destination.send(message).await {
            Verdict::Delivered => {
                self.store.settle(&deliveries)?;
                self.status.send_modify(|status| {
                    status.delivered += 1;
                    status.error = None;
                    status.failing_since = None;
                });
                Ok(None)
            }
            Verdict::Retry(error) => {
                let now = self.clock.now();
                let attempts = deliveries.iter().map(|delivery| delivery.attempts).max().unwrap_or(0);
                let wait = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(attempts.min(20))).min(LONGEST_RETRY);
                let due = time::after(now, wait);
                tracing::warn!(destination = %self.name, %error, attempts = attempts + 1, retry = time::show_duration(wait), "an alert was not delivered");
                for delivery in &mut deliveries {
                    delivery.attempts = attempts.saturating_add(1);
                    delivery.due = due;
                    delivery.error = Some(error.clone());
                }
                self.store.postpone(&deliveries)?;
                self.status.send_modify(|status| {
                    status.error = Some(error.clone());
                    status.failing_since = status.failing_since.or(Some(now));
                });
                Ok(Some(due))
            }
        }
    }
}
