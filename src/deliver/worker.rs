//! One worker a destination: reads what is owed, sends it, strikes it off. A destination that fails is tried again, later and
//! later, and holds up no other; what cannot be delivered in time becomes a dead letter. What is owed stands in the store, so a
//! crash loses nothing; at worst it is sent twice.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Destination, DigestNotice, Message, Receipt, Settings, Verdict};
use crate::{
    alert::{Alert, Notice},
    store::{Delivery, DestinationRecord, Store, StoreError, Together},
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
/// What `rate` counts messages in.
const HOUR: Duration = Duration::from_secs(3_600);

/// How a destination stands.
#[derive(Debug, Clone, Default)]
pub struct DestinationStatus {
    /// Messages delivered since the agent started.
    pub delivered: u64,
    /// Attempts that failed since the agent started.
    pub failed: u64,
    /// What the last attempt came to; absent if it worked.
    pub error: Option<String>,
    /// Since when it fails.
    pub failing_since: Option<Timestamp>,
    /// Held back until then by `rate`.
    pub held_until: Option<Timestamp>,
}

/// Serves one destination until it is told to stop.
pub struct Worker {
    settings: Settings,
    destination: Box<dyn Destination>,
    store: Store,
    clock: Clock,
    owed: watch::Receiver<u64>,
    status: watch::Sender<DestinationStatus>,
    record: DestinationRecord,
    random: fastrand::Rng,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Worker({})", self.settings.name)
    }
}

/// What one pass over the outbox came to: when to look again if nobody calls.
type Again = Option<Timestamp>;

impl Worker {
    /// A worker for a destination. `owed` is called when something new is owed.
    pub fn new(
        settings: Settings,
        destination: Box<dyn Destination>,
        store: Store,
        clock: Clock,
        owed: watch::Receiver<u64>,
    ) -> Result<Self, StoreError> {
        let record = store.reader().destination(&settings.name)?;
        let status = watch::Sender::default();
        Ok(Self { settings, destination, store, clock, owed, status, record, random: fastrand::Rng::new() })
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
                    tracing::error!(destination = %self.settings.name, %error, "the outbox cannot be read or written");
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
            tracing::error!(destination = %self.settings.name, %error, "the outbox cannot be read or written");
        }
    }

    async fn pass(&mut self, quiet: Duration) -> Result<Again, StoreError> {
        loop {
            let owed = self.store.reader().owed(&self.settings.name, AT_ONCE)?;
            let more = owed.len() == AT_ONCE;
            let (together, prompt): (Vec<Delivery>, Vec<Delivery>) =
                owed.into_iter().partition(|delivery| delivery.together.is_some());
            let sent = !prompt.is_empty();
            let mut again = self.prompt(prompt).await?;
            if again.is_some() {
                return Ok(again);
            }
            if sent && more {
                continue;
            }
            let mut groups: BTreeMap<Option<Together>, Vec<Delivery>> = BTreeMap::new();
            for delivery in together {
                groups.entry(delivery.together).or_default().push(delivery);
            }
            for (together, deliveries) in groups {
                if let Some(due) = self.digest(together, deliveries, quiet, more).await? {
                    again = Some(again.map_or(due, |again| again.min(due)));
                }
            }
            // New deliveries may have come up while these were sent; the signal says so.
            if !more || again.is_some() {
                return Ok(again);
            }
        }
    }

    /// Sends deliveries in order, up to the first that is not due or fails, or until no more may be sent this hour.
    async fn prompt(&mut self, deliveries: Vec<Delivery>) -> Result<Again, StoreError> {
        let mut deliveries = deliveries.into_iter();
        while let Some(delivery) = deliveries.next() {
            let now = self.clock.now();
            if delivery.due > now {
                return Ok(Some(delivery.due));
            }
            let Some(alert) = self.store.reader().alert(delivery.alert)? else {
                self.store.settle(&[delivery], None, None)?;
                continue;
            };
            let rated = !self.updates_an_incident(&delivery);
            if rated && let Some(free) = self.held_until(now) {
                self.status.send_modify(|status| status.held_until = Some(free));
                if !self.record.holding {
                    self.record.holding = true;
                    self.store.save_destination(&self.settings.name, &self.record)?;
                }
                // Updates of what is known already do not wait for that.
                for update in deliveries.filter(|other| self.updates_an_incident(other)).collect::<Vec<_>>() {
                    if let Some(due) = self.send_one(update).await? {
                        return Ok(Some(due.min(free)));
                    }
                }
                return Ok(Some(free));
            }
            if rated && self.record.holding {
                self.status.send_modify(|status| status.held_until = None);
                let mut held = vec![delivery];
                let (updates, rest): (Vec<Delivery>, Vec<Delivery>) =
                    deliveries.by_ref().partition(|other| self.updates_an_incident(other));
                held.extend(rest);
                let failed = if held.len() == 1 {
                    self.send_one(held.remove(0)).await?
                } else {
                    let alerts = self.alerts(&held)?;
                    self.send(&Message::digest(DigestNotice::RateDigest, None, alerts), held).await?
                };
                if failed.is_some() {
                    return Ok(failed);
                }
                for update in updates {
                    if let Some(due) = self.send_one(update).await? {
                        return Ok(Some(due));
                    }
                }
                return Ok(None);
            }
            if let Some(due) = self.send(&Message::alert(delivery.notice, alert), vec![delivery]).await? {
                return Ok(Some(due));
            }
        }
        Ok(None)
    }

    async fn send_one(&mut self, delivery: Delivery) -> Result<Again, StoreError> {
        if delivery.due > self.clock.now() {
            return Ok(Some(delivery.due));
        }
        let Some(alert) = self.store.reader().alert(delivery.alert)? else {
            self.store.settle(&[delivery], None, None)?;
            return Ok(None);
        };
        self.send(&Message::alert(delivery.notice, alert), vec![delivery]).await
    }

    /// Whether it only changes what the destination keeps already, such as closing an incident: that is never held back.
    fn updates_an_incident(&self, delivery: &Delivery) -> bool {
        self.settings.kind.keeps_incidents() && !matches!(delivery.notice, Notice::Opened | Notice::Escalated)
    }

    /// Until when nothing more may be sent, if this hour is used up.
    fn held_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        let rate = self.settings.rate? as usize;
        self.record.sent.retain(|sent| time::since(now, *sent) < HOUR);
        let first = self.record.sent.len().checked_sub(rate)?;
        self.record.sent.get(first).map(|sent| time::after(*sent, HOUR))
    }

    /// Sends deliveries of one kind as one message, once they have stopped coming up.
    async fn digest(
        &mut self,
        together: Option<Together>,
        deliveries: Vec<Delivery>,
        quiet: Duration,
        more: bool,
    ) -> Result<Again, StoreError> {
        let Some(newest) = deliveries.iter().map(|delivery| delivery.created).max() else {
            return Ok(None);
        };
        let due = deliveries.iter().map(|delivery| delivery.due).max().unwrap_or(newest);
        let (notice, silence, quiet) = match together {
            Some(Together::Silenced(silence)) => (DigestNotice::SilenceDigest, Some(silence), Duration::ZERO),
            Some(Together::Late) | None => (DigestNotice::LateDigest, None, quiet),
        };
        let now = self.clock.now();
        let due = due.max(time::after(newest, quiet));
        if !more && due > now {
            return Ok(Some(due));
        }
        if let Some(free) = self.held_until(now) {
            return Ok(Some(free));
        }
        let alerts = self.alerts(&deliveries)?;
        if alerts.is_empty() {
            self.store.settle(&deliveries, None, None)?;
            return Ok(None);
        }
        self.send(&Message::digest(notice, silence, alerts), deliveries).await
    }

    /// The alerts of deliveries, each once, as they stand now: the latest word on an alert is enough.
    fn alerts(&self, deliveries: &[Delivery]) -> Result<Vec<Alert>, StoreError> {
        let mut alerts = Vec::new();
        for delivery in deliveries {
            alerts.extend(self.store.reader().alert(delivery.alert)?);
        }
        alerts.sort_by_key(|alert| (alert.opened_at, alert.id));
        alerts.dedup_by_key(|alert| alert.id);
        Ok(alerts)
    }

    /// Sends a message that stands for these deliveries; returns when to try again if it failed.
    async fn send(&mut self, message: &Message, deliveries: Vec<Delivery>) -> Result<Again, StoreError> {
        let reference = match message.single() {
            Some((_, alert)) => self.store.reader().reference(alert.id, &self.settings.name)?,
            None => None,
        };
        match self.destination.send(message, reference.as_deref()).await {
            Verdict::Delivered(Receipt { reference, .. }) => {
                let now = self.clock.now();
                self.record.delivered += 1;
                self.record.last_delivered = Some(now);
                if self.settings.rate.is_some() {
                    self.record.sent.push(now);
                    self.record.holding = false;
                }
                let reference = message.single().and(reference);
                self.store.settle(&deliveries, Some(&self.record), reference.as_deref())?;
                self.status.send_modify(|status| {
                    status.delivered += 1;
                    status.error = None;
                    status.failing_since = None;
                });
                Ok(None)
            }
            Verdict::Refused(error) => {
                self.give_up(deliveries, &error)?;
                Ok(None)
            }
            Verdict::Retry { reason, after } => self.postpone(deliveries, &reason, after),
        }
    }

    fn postpone(
        &mut self,
        mut deliveries: Vec<Delivery>,
        error: &str,
        asked: Option<Duration>,
    ) -> Result<Again, StoreError> {
        let now = self.clock.now();
        let attempts = deliveries.iter().map(|delivery| delivery.attempts).max().unwrap_or(0);
        let doubled = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(attempts.min(20))).min(LONGEST_RETRY);
        // Up to a quarter less, so that many destinations do not come back together.
        let wait = doubled.mul_f64(1.0 - self.random.f64() / 4.0).max(asked.unwrap_or_default());
        let due = time::after(now, wait);
        tracing::warn!(destination = %self.settings.name, error, attempts = attempts + 1, retry = time::show_duration(wait), "an alert was not delivered");
        for delivery in &mut deliveries {
            delivery.attempts = attempts.saturating_add(1);
            delivery.due = due;
            delivery.error = Some(error.to_owned());
        }
        self.status.send_modify(|status| {
            status.failed += 1;
            status.error = Some(error.to_owned());
            status.failing_since = status.failing_since.or(Some(now));
        });
        self.store.postpone(&deliveries)?;
        // Whatever is owed for too long is given up together, not one attempt after another.
        let mut over = self.store.reader().owed(&self.settings.name, AT_ONCE)?;
        over.retain(|delivery| time::since(now, delivery.created) >= self.settings.give_up_after);
        if !over.is_empty() {
            self.give_up(over, error)?;
        }
        Ok(Some(due))
    }

    fn give_up(&mut self, mut deliveries: Vec<Delivery>, error: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        for delivery in &mut deliveries {
            delivery.error = Some(error.to_owned());
        }
        tracing::error!(
            destination = %self.settings.name, error, deliveries = deliveries.len(),
            "given up: `watchbell destinations dead` lists what was not delivered, `watchbell destinations retry` tries it again"
        );
        self.store.give_up(&deliveries, now)
    }
}
