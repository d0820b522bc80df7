//! The worker of a destination: reads pending deliveries, sends them, and removes them.
//!
//! A failing destination is retried with growing intervals and does not hold up others. What cannot be delivered in
//! time becomes a dead letter. Pending deliveries are in the store, so a crash loses nothing; at worst a message is
//! sent twice.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Destination, DigestNotice, Message, Receipt, SendOutcome, Settings,
    schedule::{Again, End, FIRST_RETRY, HOUR, Sending, backoff, earliest, not_before},
};
use crate::model::signal::Listener;
use crate::{
    model::{
        alert::{Alert, Notice, Severity},
        name::{AlertId, SilenceId},
        repeat::is_worth_telling,
        time::{self, Clock, Timestamp},
    },
    store::{Delivery, DestinationRecord, Sent, Store, StoreError, TaskStore, Together},
};

/// Deliveries read at a time, and the maximum in one digest. Large, because a backfill should produce one digest, not
/// many.
const MAX_DELIVERIES: usize = 5_000;
/// A digest of late alerts is sent once no new one has been added for this long.
const DIGEST_QUIET: Duration = Duration::from_secs(5);
/// After this many failed messages in a row, of different alerts, the destination is at fault, and not their content:
/// fewer if the failures take time.
const MAX_FAILED: u32 = 10;
const MAX_SLOW_FAILED: u32 = 2;
const SLOW: Duration = Duration::from_secs(1);
/// How long due deliveries are still attempted when the agent stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The worker looks again at least this often: the clock may be corrected, and the machine may sleep.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A clock that advanced this much more than the time that passed was set, or the machine was asleep.
const CLOCK_JUMP: Duration = Duration::from_secs(60);

/// The status of a destination.
#[derive(Debug, Clone, Default)]
pub struct DestinationStatus {
    /// Messages delivered since the agent started.
    pub delivered: u64,
    /// Attempts that failed since the agent started.
    pub failed: u64,
    /// The error of the last attempt; `None` if it succeeded.
    pub error: Option<String>,
    /// Time of the first failure since the last success.
    pub failing_since: Option<Timestamp>,
    /// Time until which `rate` holds messages back.
    pub held_until: Option<Timestamp>,
}

/// Delivers to one destination until stopped.
pub struct Worker {
    settings: Settings,
    destination: Box<dyn Destination>,
    store: TaskStore,
    clock: Clock,
    pending: Listener,
    status: watch::Sender<DestinationStatus>,
    record: DestinationRecord,
    random: fastrand::Rng,
    /// The wall clock at the last look, and when that was.
    looked: (Timestamp, Instant),
    /// When the clock last jumped forward: the machine woke up, or the clock was set.
    jumped: Option<Instant>,
    /// How often in a row the destination was at fault, and until when nothing is sent because of it.
    breaks: u32,
    resume: Option<Timestamp>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Worker({})", self.settings.name)
    }
}

impl Worker {
    /// Creates the worker of a destination. `pending` signals new deliveries.
    pub fn new(
        settings: Settings,
        destination: Box<dyn Destination>,
        store: Store,
        clock: Clock,
        pending: Listener,
    ) -> Result<Self, StoreError> {
        let record = store.reader().destination(&settings.name)?;
        let status = watch::Sender::default();
        let store = TaskStore::new(store);
        let looked = (clock.now(), Instant::now());
        let random = fastrand::Rng::new();
        Ok(Self {
            settings,
            destination,
            store,
            clock,
            pending,
            status,
            record,
            random,
            looked,
            jumped: None,
            breaks: 0,
            resume: None,
        })
    }

    /// A receiver of the destination's status.
    pub fn status(&self) -> watch::Receiver<DestinationStatus> {
        self.status.subscribe()
    }

    /// Delivers until `stop`, then attempts once more what is due.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.pending.mark_unchanged();
            let result = tokio::select! {
                result = self.deliver_due(DIGEST_QUIET, Some(&stop)) => result,
                // Gives a message that is being sent a moment to finish.
                () = async { stop.cancelled().await; tokio::time::sleep(STOP_TIMEOUT).await } => return,
            };
            let wait = match result {
                Ok(again) => again.map_or(LONGEST_WAIT, |again| time::since(again, self.clock.now())).min(LONGEST_WAIT),
                Err(error) => {
                    tracing::error!(destination = %self.settings.name, %error, "cannot read or write the outbox");
                    FIRST_RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                result = self.pending.changed() => if result.is_err() { break },
                () = tokio::time::sleep(wait.max(Duration::from_millis(10))) => {}
            }
        }
        if let Ok(Err(error)) = tokio::time::timeout(STOP_TIMEOUT, self.deliver_due(Duration::ZERO, None)).await {
            tracing::error!(destination = %self.settings.name, %error, "cannot read or write the outbox");
        }
    }

    /// Sends what is due, and returns when to check again. Ends between two messages once `stop` is cancelled.
    async fn deliver_due(&mut self, quiet: Duration, stop: Option<&CancellationToken>) -> Result<Again, StoreError> {
        loop {
            let pending = self.pending_after(0).await?;
            if pending.is_empty() {
                // Nothing is pending, so the earlier failure is over.
                self.status.send_modify(|status| {
                    status.error = None;
                    status.failing_since = None;
                });
                return Ok(None);
            }
            let now = self.now();
            // On the way out, everything is tried once more.
            if let Some(resume) = self.resume.and_then(|resume| not_before(resume, now)).filter(|_| stop.is_some()) {
                return Ok(Some(resume));
            }
            self.resume = None;
            let more = pending.len() == MAX_DELIVERIES;
            let mut last = pending.last().map_or(0, |delivery| delivery.number);
            let (together, prompt): (Vec<Delivery>, Vec<Delivery>) =
                pending.into_iter().partition(|delivery| delivery.together.is_some());
            let sent = !prompt.is_empty();
            let mut waiting = HashSet::new();
            let mut sending = self.prompt(prompt, &mut waiting, stop).await?;
            // What is held back, or waits for its turn, must not hide what comes after it.
            let mut full = more;
            while full && sending.again.is_some() && sending.end == End::Done {
                let next = self.pending_after(last).await?;
                full = next.len() == MAX_DELIVERIES;
                last = next.last().map_or(last, |delivery| delivery.number);
                let next = next.into_iter().filter(|next| next.together.is_none()).collect();
                let next = self.prompt(next, &mut waiting, stop).await?;
                sending.again = next.again.map_or(sending.again, |due| earliest(sending.again, due));
                sending.end = next.end;
            }
            let mut again = sending.again;
            if sending.end == End::Failing {
                self.breaks = self.breaks.saturating_add(1);
                let wait = backoff(self.breaks.saturating_sub(1));
                let resume = time::after(self.now(), wait).max(self.resume.unwrap_or(Timestamp::MIN));
                self.resume = Some(resume);
                return Ok(Some(resume));
            }
            if sending.end == End::Summary || stop.is_some_and(CancellationToken::is_cancelled) {
                return Ok(again);
            }
            if sent && more && again.is_none() {
                continue;
            }
            let mut groups: BTreeMap<Option<Together>, Vec<Delivery>> = BTreeMap::new();
            for delivery in together {
                groups.entry(delivery.together).or_default().push(delivery);
            }
            for (together, deliveries) in groups {
                if let Some(due) = self.digest(together, deliveries, quiet, more).await? {
                    again = earliest(again, due);
                }
            }
            // New deliveries may have been added meanwhile; the signal reports them.
            if !more || again.is_some() {
                return Ok(again);
            }
        }
    }

    /// Sends deliveries one by one: those that were not tried yet first, the most severe first, so that messages which a
    /// service refuses for their content do not hold up others. Deliveries of one alert are never reordered: `waiting`
    /// are the alerts with one that was skipped. Ends when two alerts in a row fail: then the destination is at fault.
    async fn prompt(
        &mut self,
        deliveries: Vec<Delivery>,
        waiting: &mut HashSet<AlertId>,
        stop: Option<&CancellationToken>,
    ) -> Result<Sending, StoreError> {
        let mut sending = Sending::default();
        if deliveries.is_empty() {
            return Ok(sending);
        }
        let now = self.now();
        if self.record.holding && self.held_until(now, Severity::Info).is_none() {
            sending.again = self.summary(deliveries).await?;
            if sending.again.is_some() {
                sending.end = End::Summary;
            }
            return Ok(sending);
        }
        let severities = self.severities(&deliveries).await?;
        let mut failed_in_a_row = 0;
        for delivery in self.in_order(deliveries, &severities) {
            if stop.is_some_and(CancellationToken::is_cancelled) {
                break;
            }
            if waiting.contains(&delivery.alert) {
                continue;
            }
            let now = self.now();
            if let Some(due) = not_before(delivery.due, now) {
                sending.again = earliest(sending.again, due);
                waiting.insert(delivery.alert);
                continue;
            }
            let rated = !self.updates_an_incident(&delivery);
            let severity = severities.get(&delivery.alert).copied().unwrap_or(Severity::Info);
            if rated && let Some(free) = self.held_until(now, severity) {
                self.hold(free).await?;
                sending.again = earliest(sending.again, free);
                // Updates of other alerts are not held back.
                waiting.insert(delivery.alert);
                continue;
            }
            let alert = delivery.alert;
            let began = Instant::now();
            match self.send_one(delivery, rated).await? {
                None => failed_in_a_row = 0,
                Some(due) => {
                    sending.again = earliest(sending.again, due);
                    waiting.insert(alert);
                    failed_in_a_row += 1;
                    let most = if began.elapsed() < SLOW { MAX_FAILED } else { MAX_SLOW_FAILED };
                    if failed_in_a_row >= most || self.resume.is_some() {
                        sending.end = End::Failing;
                        break;
                    }
                }
            }
        }
        Ok(sending)
    }

    /// The deliveries in the order in which they are tried, those of an alert together.
    fn in_order(&mut self, deliveries: Vec<Delivery>, severities: &HashMap<AlertId, Severity>) -> Vec<Delivery> {
        let mut alerts: Vec<(AlertId, Vec<Delivery>)> = Vec::new();
        let mut places: HashMap<AlertId, usize> = HashMap::new();
        for delivery in deliveries {
            let place = *places.entry(delivery.alert).or_insert(alerts.len());
            match alerts.get_mut(place) {
                Some((_, own)) => own.push(delivery),
                None => alerts.push((delivery.alert, vec![delivery])),
            }
        }
        // While the destination seems to fail, the first ones to try change from time to time: they may be at fault.
        let shuffled = self.breaks > 0;
        let mut keyed: Vec<_> = alerts
            .into_iter()
            .enumerate()
            .map(|(place, (alert, own))| {
                let tried = own.first().is_some_and(|delivery| delivery.attempts > 0);
                let severity = severities.get(&alert).copied().unwrap_or(Severity::Info);
                let order = if shuffled { self.random.usize(..) } else { place };
                ((tried, Reverse(severity), order), own)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| *key);
        keyed.into_iter().flat_map(|(_, own)| own).collect()
    }

    /// Sends deliveries that were held back as one message, then those that only update an incident.
    async fn summary(&mut self, deliveries: Vec<Delivery>) -> Result<Again, StoreError> {
        self.status.send_modify(|status| status.held_until = None);
        let (updates, mut held): (Vec<Delivery>, Vec<Delivery>) =
            deliveries.into_iter().partition(|delivery| self.updates_an_incident(delivery));
        let now = self.now();
        if let Some(due) = held.iter().filter_map(|delivery| not_before(delivery.due, now)).max() {
            return Ok(Some(due));
        }
        // Stored together with the delivery of the summary.
        self.record.holding = false;
        let failed = if held.len() > 1 {
            self.send_together(DigestNotice::RateDigest, None, held).await?
        } else if let Some(only) = held.pop() {
            self.send_one(only, true).await?
        } else {
            None
        };
        if failed.is_some() {
            self.record.holding = true;
            return Ok(failed);
        }
        for update in updates {
            if let Some(due) = self.send_one(update, false).await? {
                return Ok(Some(due));
            }
        }
        Ok(None)
    }

    /// True if the delivery only updates or closes an existing incident. Such deliveries are never held back.
    fn updates_an_incident(&self, delivery: &Delivery) -> bool {
        self.settings.kind.keeps_incidents() && !matches!(delivery.notice, Notice::Opened | Notice::Escalated)
    }

    /// Time until which no message of this severity may be sent, if the rate limit is reached. Messages of lower
    /// severity do not count, so that a flood of them does not hold back what matters more.
    fn held_until(&mut self, now: Timestamp, severity: Severity) -> Option<Timestamp> {
        let rate = self.settings.rate? as usize;
        // Times in the future are from before the clock was corrected.
        self.record.sent.retain(|sent| sent.at <= now && time::since(now, sent.at) < HOUR);
        let counted: Vec<&Sent> = self.record.sent.iter().filter(|sent| sent.severity >= severity).collect();
        let first = counted.len().checked_sub(rate)?;
        counted.get(first).map(|sent| time::after(sent.at, HOUR))
    }

    /// The severities of the deliveries' alerts.
    async fn severities(&mut self, deliveries: &[Delivery]) -> Result<HashMap<AlertId, Severity>, StoreError> {
        let ids: HashSet<AlertId> = deliveries.iter().map(|delivery| delivery.alert).collect();
        let severities = self.store.run(move |store| {
            let reader = store.reader();
            let severity = |id| Ok(reader.alert(id)?.map(|alert| (id, alert.severity)));
            ids.into_iter().filter_map(|id| severity(id).transpose()).collect()
        });
        severities.await
    }

    /// The wall clock. Notes when it jumps forward.
    fn now(&mut self) -> Timestamp {
        let (now, instant) = (self.clock.now(), Instant::now());
        let (clock, looked) = self.looked;
        if time::since(now, clock).saturating_sub(instant.duration_since(looked)) > CLOCK_JUMP {
            self.jumped = Some(instant);
        }
        self.looked = (now, instant);
        now
    }

    /// Records that messages are held back, in the store too, so that a restart keeps it.
    async fn hold(&mut self, free: Timestamp) -> Result<(), StoreError> {
        self.status.send_modify(|status| status.held_until = Some(free));
        if self.record.holding {
            return Ok(());
        }
        self.record.holding = true;
        let (name, record) = (self.settings.name.clone(), self.record.clone());
        self.store.run(move |store| store.save_destination(&name, &record)).await
    }

    /// Sends deliveries of one group as one message, once no more are added to it.
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
        let now = self.now();
        let due = deliveries.iter().filter_map(|delivery| not_before(delivery.due, now)).max().unwrap_or(now);
        let (notice, silence, quiet) = match together {
            Some(Together::Silenced(silence)) => (DigestNotice::SilenceDigest, Some(silence), Duration::ZERO),
            Some(Together::Late) | None => (DigestNotice::LateDigest, None, quiet),
        };
        let due = due.max(not_before(time::after(newest, quiet), now).unwrap_or(now));
        if !more && due > now {
            return Ok(Some(due));
        }
        let mut severity = Severity::Info;
        if self.settings.rate.is_some() {
            severity = self.alerts(&deliveries).await?.iter().map(|alert| alert.severity).max().unwrap_or(severity);
        }
        if let Some(free) = self.held_until(now, severity) {
            return Ok(Some(free));
        }
        self.send_together(notice, silence, deliveries).await
    }

    /// Pending deliveries after the one with this number, at most [`MAX_DELIVERIES`].
    async fn pending_after(&mut self, number: u64) -> Result<Vec<Delivery>, StoreError> {
        let name = self.settings.name.clone();
        self.store.run(move |store| store.reader().pending_after(&name, number, MAX_DELIVERIES)).await
    }

    /// The current state of the deliveries' alerts, without duplicates, the most severe first: a message that shows only
    /// some shows those.
    async fn alerts(&mut self, deliveries: &[Delivery]) -> Result<Vec<Alert>, StoreError> {
        let ids: Vec<AlertId> = deliveries.iter().map(|delivery| delivery.alert).collect();
        let mut alerts: Vec<Alert> = self
            .store
            .run(move |store| {
                let reader = store.reader();
                ids.into_iter().filter_map(|id| reader.alert(id).transpose()).collect()
            })
            .await?;
        alerts.sort_by_key(|alert| (Reverse(alert.severity), alert.opened_at, alert.id));
        alerts.dedup_by_key(|alert| alert.id);
        Ok(alerts)
    }

    /// Sends deliveries as one message, and returns when to retry if that failed. A refused message may only be too
    /// large, so it is split in half and tried again.
    async fn send_together(
        &mut self,
        notice: DigestNotice,
        silence: Option<SilenceId>,
        deliveries: Vec<Delivery>,
    ) -> Result<Again, StoreError> {
        let mut parts = vec![deliveries];
        while let Some(mut part) = parts.pop() {
            let alerts = self.alerts(&part).await?;
            if alerts.is_empty() {
                self.store.run(move |store| store.settle(&part, None, None)).await?;
                continue;
            }
            let several = alerts.len() > 1;
            let severity = alerts.iter().map(|alert| alert.severity).max().unwrap_or(Severity::Info);
            match self.destination.send(&Message::digest(notice, silence, alerts), None).await {
                SendOutcome::Delivered(_) => self.delivered(part, Some(severity), None).await?,
                SendOutcome::Refused(_) if several => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push(rest);
                    parts.push(part);
                }
                SendOutcome::Refused(error) => self.give_up(part, &error).await?,
                SendOutcome::Retry { reason, after } => return self.postpone(part, &reason, after).await,
            }
        }
        Ok(None)
    }

    /// Sends one delivery, and returns when to retry if that failed.
    async fn send_one(&mut self, delivery: Delivery, rated: bool) -> Result<Again, StoreError> {
        let now = self.now();
        if let Some(due) = not_before(delivery.due, now) {
            return Ok(Some(due));
        }
        let (id, name) = (delivery.alert, self.settings.name.clone());
        let found = self.store.run(move |store| {
            let reader = store.reader();
            let Some(alert) = reader.alert(id)? else { return Ok(None) };
            Ok(Some((alert, reader.reference(id, &name)?)))
        });
        let Some((alert, reference)) = found.await? else {
            // Retention has removed the alert.
            self.store.run(move |store| store.settle(&[delivery], None, None)).await?;
            return Ok(None);
        };
        let severity = rated.then_some(alert.severity);
        let message = Message::of(&delivery, alert);
        match self.destination.send(&message, reference.as_deref()).await {
            SendOutcome::Delivered(Receipt { reference, .. }) => {
                self.delivered(vec![delivery], severity, reference).await?;
                Ok(None)
            }
            SendOutcome::Refused(error) => {
                self.give_up(vec![delivery], &error).await?;
                Ok(None)
            }
            SendOutcome::Retry { reason, after } => self.postpone(vec![delivery], &reason, after).await,
        }
    }

    async fn delivered(
        &mut self,
        deliveries: Vec<Delivery>,
        rated: Option<Severity>,
        reference: Option<String>,
    ) -> Result<(), StoreError> {
        let now = self.now();
        (self.breaks, self.resume) = (0, None);
        self.record.delivered += 1;
        self.record.last_delivered = Some(now);
        if let (Some(severity), Some(_)) = (rated, self.settings.rate) {
            self.record.sent.push(Sent { at: now, severity });
        }
        let record = self.record.clone();
        self.store.run(move |store| store.settle(&deliveries, Some(&record), reference.as_deref())).await?;
        self.status.send_modify(|status| {
            status.delivered += 1;
            status.error = None;
            status.failing_since = None;
        });
        Ok(())
    }

    async fn postpone(
        &mut self,
        mut deliveries: Vec<Delivery>,
        error: &str,
        asked: Option<Duration>,
    ) -> Result<Again, StoreError> {
        let now = self.now();
        let attempts = deliveries.iter().map(|delivery| delivery.attempts).max().unwrap_or(0);
        let doubled = backoff(attempts);
        // Jitter of up to a quarter less, so that destinations do not retry at the same time.
        let wait = doubled.mul_f64(1.0 - self.random.f64() / 4.0).max(asked.unwrap_or_default().min(HOUR));
        let due = time::after(now, wait);
        if asked.is_some() {
            // A service that asks to wait means all messages.
            self.resume = Some(due);
        }
        if is_worth_telling(u64::from(attempts) + 1) {
            tracing::warn!(
                destination = %self.settings.name, error, attempts = attempts + 1, retry = time::show_duration(wait),
                "cannot deliver an alert"
            );
        }
        for delivery in &mut deliveries {
            delivery.attempts = attempts.saturating_add(1);
            delivery.due = due;
            delivery.error = Some(error.to_owned());
        }
        let mut failing_since = now;
        self.status.send_modify(|status| {
            status.failed += 1;
            status.error = Some(error.to_owned());
            failing_since = *status.failing_since.get_or_insert(now);
        });
        self.store.run(move |store| store.postpone(&deliveries)).await?;
        // Gives up all deliveries that have been pending for too long at once, rather than one per attempt. Those never
        // attempted are only given up if the destination has been failing for as long.
        let longest = self.settings.give_up_after;
        let too_long = |since: Timestamp| time::since(now, since) >= longest;
        // Right after the machine was asleep, "too long" says nothing about the destination.
        if self.jumped.is_some_and(|jumped| jumped.elapsed() < longest.min(HOUR)) {
            return Ok(Some(due));
        }
        let mut over = self.pending_after(0).await?;
        over.retain(|delivery| too_long(delivery.created) && (delivery.attempts > 0 || too_long(failing_since)));
        if !over.is_empty() {
            self.give_up(over, error).await?;
        }
        Ok(Some(due))
    }

    async fn give_up(&mut self, mut deliveries: Vec<Delivery>, error: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        for delivery in &mut deliveries {
            delivery.attempts = delivery.attempts.max(1);
            delivery.error = Some(error.to_owned());
        }
        tracing::error!(
            destination = %self.settings.name, error, deliveries = deliveries.len(),
            "delivery given up: list dead letters with `watchbell destinations dead`, retry with \
             `watchbell destinations retry`"
        );
        self.store.run(move |store| store.give_up(&deliveries, now)).await
    }
}
