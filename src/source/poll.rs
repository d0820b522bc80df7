//! The poll loop: fetches a page, stores it with its cursor, and decides when to poll again.
//!
//! The log can end in two ways, and both work: a cursor on an empty page, which is kept and used again later, or no
//! cursor at all. In that case the next poll starts at the newest `processedAt` minus an overlap, and known ids are
//! dropped. Errors never end the loop.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{FetchError, FetchedPage, Listing, Pace, Position, Refresh, Settings, Source, atlassian::PAGE_LIMIT};
use crate::model::signal::Signal;
use crate::{
    model::{
        error_kind::ErrorKind,
        repeat::{Repeats, is_worth_telling},
        time::{self, Clock, Timestamp},
    },
    store::{Appended, MAX_CLOCK_SKEW, Page, Refetch, SourceError, SourceRecord, Store, StoreError, TaskStore},
};

/// Waiting times and page size of the poll loop. Only tests change them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Wait before retrying an error that only the user can fix.
    pub refused: Duration,
    /// Wait before the first retry; doubled for each further one.
    pub first_retry: Duration,
    /// Maximum wait between retries.
    pub longest_retry: Duration,
    /// Wait after a 429 without `Retry-After`.
    pub rate_limited: Duration,
    /// Number of entries to request per page.
    pub page_limit: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            refused: Duration::from_secs(5 * 60),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(5 * 60),
            rate_limited: Duration::from_secs(60),
            page_limit: PAGE_LIMIT,
        }
    }
}

/// How long Atlassian keeps the log: 180 days, minus a margin because clocks differ.
const LOG_RETENTION: Duration = Duration::from_secs(180 * 86_400 - 600);
/// Failures after which a refetch is given up: about a day, with five minutes between the later attempts.
const REFETCH_FAILURES: u32 = 300;
/// Consecutive pages without new events after which the cursor counts as going in circles. An overlap of ten minutes is
/// rarely more than a few pages.
const FRUITLESS_PAGES: u32 = 200;

/// The status of a source while the agent runs.
#[derive(Debug, Clone, Default)]
pub struct SourceStatus {
    /// The source's stored record.
    pub record: SourceRecord,
    /// Number of polls since the agent started, including failed ones.
    pub polls: u64,
    /// Number of failed polls since the agent started, by error kind.
    pub failed: BTreeMap<&'static str, u64>,
    /// Time of the next poll; `None` while a poll is running.
    pub next_poll: Option<Timestamp>,
}

/// Polls one source until stopped.
#[derive(Debug)]
pub struct Poller {
    pub(super) settings: Settings,
    timing: Timing,
    pub(super) source: Source,
    pub(super) store: TaskStore,
    pub(super) clock: Clock,
    pub(super) pace: Arc<Mutex<Pace>>,
    pub(super) status: watch::Sender<SourceStatus>,
    /// Counts stored pages: the "look again" signal for the evaluate loop.
    stored: Signal,
    fruitless: u32,
    /// The error kind that was last logged by this process.
    logged: Option<ErrorKind>,
    /// True if the last poll found this machine's clock wrong.
    skewed: bool,
    /// Entries to request on the next page: fewer than `timing.page_limit` after a response that was too large.
    page_limit: usize,
    random: fastrand::Rng,
    /// Requests to fetch a part of the log again.
    refetches: (mpsc::Sender<Refetch>, mpsc::Receiver<Refetch>),
    /// When the end of the log was last polled.
    polled: Option<Instant>,
    /// Counts how often the cursor did not move.
    stuck: Repeats,
    /// True if the end of the log was polled last: a refetch goes next.
    refetch_turn: bool,
    /// Earliest time of the next refetch attempt.
    refetch_due: Option<Instant>,
    /// Signals new action lists to the rules.
    pub(super) listing: Option<Listing>,
    /// Requests for the list of actions.
    refreshes: (mpsc::Sender<Refresh>, mpsc::Receiver<Refresh>),
}

enum Next {
    AtOnce,
    After(Duration),
}

impl Poller {
    /// Creates the poller of a source. Sources with the same key share `pace`.
    pub fn new(
        settings: Settings,
        source: Source,
        store: Store,
        clock: Clock,
        pace: Arc<Mutex<Pace>>,
        stored: Signal,
    ) -> Result<Self, StoreError> {
        let mut record = store.reader().source(&settings.name)?.unwrap_or_default();
        // Events from while no agent was running have to be read first.
        record.caught_up = false;
        let (status, _) = watch::channel(SourceStatus { record, ..SourceStatus::default() });
        Ok(Self {
            settings,
            timing: Timing::default(),
            source,
            store: TaskStore::new(store),
            clock,
            pace,
            status,
            stored,
            fruitless: 0,
            logged: None,
            skewed: false,
            page_limit: PAGE_LIMIT,
            random: fastrand::Rng::new(),
            refetches: mpsc::channel(4),
            polled: None,
            stuck: Repeats::default(),
            refetch_turn: false,
            refetch_due: None,
            listing: None,
            refreshes: mpsc::channel(4),
        })
    }

    /// Replaces the default waiting times and page size.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.page_limit = timing.page_limit;
        self.timing = timing;
        self
    }

    /// Signals new action lists to the rules through `listing`.
    #[must_use]
    pub fn with_listing(mut self, listing: Listing) -> Self {
        self.listing = Some(listing);
        self
    }

    /// Returns the channel for requests to fetch the list of actions.
    pub fn refreshes(&self) -> mpsc::Sender<Refresh> {
        self.refreshes.0.clone()
    }

    /// Returns a receiver of the source's status.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Returns the channel for requests to fetch a part of the log again.
    pub fn refetches(&self) -> mpsc::Sender<Refetch> {
        self.refetches.0.clone()
    }

    /// Polls until `stop`. A page that is being stored is completed first.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                next = self.turn() => next,
            };
            if let Next::After(wait) = next {
                let due = time::after(self.clock.now(), wait);
                self.status.send_modify(|status| status.next_poll = Some(due));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    refetch = self.refetches.1.recv() => self.begin_refetch(refetch).await,
                    Some(refresh) = self.refreshes.1.recv() => self.refresh(refresh).await,
                }
                self.status.send_modify(|status| status.next_poll = None);
            }
            if let Ok(refetch) = self.refetches.1.try_recv() {
                self.begin_refetch(Some(refetch)).await;
            }
        }
    }

    async fn turn(&mut self) -> Next {
        if let Ok(refresh) = self.refreshes.1.try_recv() {
            self.refresh(refresh).await;
        }
        self.list_if_due().await;
        self.poll().await
    }

    async fn begin_refetch(&mut self, refetch: Option<Refetch>) {
        let Some(refetch) = refetch else { return };
        let Refetch { since, until, .. } = &refetch;
        tracing::info!(source = %self.settings.name, %since, %until, "fetching a part of the log again");
        // Merged with a refetch that is already running.
        self.status.send_modify(|status| status.record.refetch = Some(refetch.and(status.record.refetch.take())));
        self.refetch_due = None;
        self.save().await;
    }

    async fn poll(&mut self) -> Next {
        self.pace.lock().await.turn().await;
        let status = self.status.borrow().record.clone();
        let idle = status.caught_up
            && status.error.is_none()
            // Once after each poll of the end, however long that took, and then until the next poll is due.
            && (self.refetch_turn || self.polled.is_some_and(|polled| polled.elapsed() < self.settings.poll_interval));
        let due = self.refetch_due.is_none_or(|due| due <= Instant::now());
        match status.refetch {
            Some(refetch) if idle && due => {
                self.refetch_turn = false;
                self.refetch(refetch).await
            }
            refetch => {
                self.polled = Some(Instant::now());
                let next = self.poll_end().await;
                self.refetch_turn = true;
                let record = self.status.borrow().record.clone();
                match next {
                    Next::After(_) if refetch.is_some() && due && record.error.is_none() && record.caught_up => {
                        Next::AtOnce
                    }
                    next => next,
                }
            }
        }
    }

    /// Fetches a page of a part of the log that is being fetched again. Its cursor is separate from the one at the end
    /// of the log, and its failures do not count as the source's: it is retried with growing intervals, and given up
    /// after a day.
    async fn refetch(&mut self, mut refetch: Refetch) -> Next {
        let now = self.clock.now();
        let position = match &refetch.cursor {
            Some(cursor) => Position::Cursor(cursor.clone()),
            None => Position::From(refetch.since.max(time::before(now, LOG_RETENTION))),
        };
        let page = match self.fetch(&position, now).await {
            Ok(page) => page,
            Err(error) => return self.refetch_failed(refetch, &error).await,
        };
        let entries = page.entries();
        let past =
            page.events.iter().filter_map(|event| event.processed).min().is_some_and(|oldest| oldest > refetch.until);
        let done = entries == 0 || past || page.next.is_none() || page.next == refetch.cursor;
        refetch.cursor.clone_from(&page.next);
        refetch.fetched += entries as u64;
        refetch.failures = 0;
        refetch.error = None;
        let mut record = self.status.borrow().record.clone();
        record.refetch = Some(refetch.clone());
        // Refetched events say nothing about whether the log is silent.
        let arrival = record.newest_arrival;
        match self.store_page(page, record).await {
            Ok(new) => {
                refetch.found += new as u64;
                if done {
                    let Refetch { fetched, found, .. } = &refetch;
                    tracing::info!(source = %self.settings.name, entries = fetched, new = found, "refetch finished");
                }
                self.status.send_modify(|status| {
                    status.record.newest_arrival = arrival;
                    status.record.refetch = (!done).then_some(refetch);
                });
                self.save().await;
                Next::AtOnce
            }
            Err(error) => self.failed(FetchError::new(ErrorKind::StoreFailed, error.to_string())).await,
        }
    }

    async fn refetch_failed(&mut self, mut refetch: Refetch, error: &FetchError) -> Next {
        // If the cursor is refused, the refetch starts over: known events only cost time.
        if error.kind == ErrorKind::CursorRefused {
            refetch.cursor = None;
        }
        refetch.failures = refetch.failures.saturating_add(1);
        refetch.error = Some(error.message.clone());
        let doubled = self.timing.first_retry.saturating_mul(2_u32.saturating_pow(refetch.failures.min(20)));
        let wait = error.retry_after.unwrap_or(doubled.min(self.timing.longest_retry));
        self.refetch_due = Instant::now().checked_add(wait);
        let given_up = refetch.failures >= REFETCH_FAILURES;
        if given_up {
            tracing::error!(
                source = %self.settings.name,
                "refetch given up (start it again with `watchbell events fetch`): {}", error.message
            );
        } else {
            tracing::warn!(
                source = %self.settings.name, kind = error.kind.name(), failures = refetch.failures,
                retry = time::show_duration(wait), "refetch failed: {}", error.message
            );
        }
        self.status.send_modify(|status| status.record.refetch = (!given_up).then_some(refetch));
        self.save().await;
        Next::AtOnce
    }

    /// Fetches a page. Requests fewer entries if a response is too large.
    async fn fetch(&mut self, position: &Position, now: Timestamp) -> Result<FetchedPage, FetchError> {
        loop {
            match self.source.fetch(position, self.page_limit, now).await {
                Ok(page) => {
                    self.page_limit = self.page_limit.saturating_mul(2).min(self.timing.page_limit);
                    return Ok(page);
                }
                Err(error) if error.kind == ErrorKind::OversizedAnswer && self.page_limit > 1 => {
                    self.page_limit /= 2;
                    tracing::info!(
                        source = %self.settings.name, limit = self.page_limit,
                        "{}: requesting fewer entries", error.message
                    );
                    self.pace.lock().await.turn().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn poll_end(&mut self) -> Next {
        let now = self.clock.now();
        let mut record = self.status.borrow().record.clone();
        let position = self.position(&mut record, now);
        match self.fetch(&position, now).await {
            Ok(page) => {
                let entries = page.entries();
                let failures = record.failures;
                let before = record.cursor.take();
                let newest = page.events.iter().filter_map(|event| event.time).max();
                if let (true, Some(newest)) = (record.caught_up, newest) {
                    record.lag = Some(time::since(page.server_time.unwrap_or(now), newest).as_secs());
                }
                record.error = None;
                record.failures = 0;
                record.failing_since = None;
                record.last_poll = Some(now);
                record.cursor = page.next.clone();
                record.caught_up = entries == 0 || page.next.is_none();
                // The response may have taken a while.
                let received = self.clock.now();
                record.clock_skew = page.server_time.map(|server| received.duration_since(server).as_secs());
                self.check_clock(record.clock_skew.unwrap_or(0));
                record.first_poll = record.first_poll.or(Some(record.by_server(received)));
                if self.started_wrong(&record, &position, received).await {
                    return Next::AtOnce;
                }
                let stuck = before.is_some() && before == page.next;
                match self.store_page(page, record).await {
                    Ok(new) => {
                        self.logged = None;
                        if failures > 0 {
                            tracing::info!(source = %self.settings.name, failures, "the source has recovered");
                        }
                        self.after_page(entries, new, stuck).await
                    }
                    Err(error) => self.failed(FetchError::new(ErrorKind::StoreFailed, error.to_string())).await,
                }
            }
            Err(error) => self.failed(error).await,
        }
    }

    /// Logs when this machine's clock turns out to be wrong, and when it is right again.
    fn check_clock(&mut self, skew: i64) {
        let wrong = Duration::from_secs(skew.unsigned_abs()) > MAX_CLOCK_SKEW;
        if wrong && !self.skewed {
            let by = time::show_duration(Duration::from_secs(skew.unsigned_abs()));
            let direction = if skew > 0 { "ahead of" } else { "behind" };
            tracing::warn!(source = %self.settings.name, "this machine's clock is {by} {direction} the server's: set it");
        } else if self.skewed && !wrong {
            tracing::info!(source = %self.settings.name, "this machine's clock is right again");
        }
        self.skewed = wrong;
    }

    /// True if the log was to be read from a time that a wrong clock gave: it is read from the right one then.
    async fn started_wrong(&mut self, record: &SourceRecord, position: &Position, received: Timestamp) -> bool {
        let right = time::before(record.by_server(received), self.settings.backfill);
        let Some(started) = record.started_from.filter(|_| record.stored == 0 && record.newest_processed.is_none())
        else {
            return false;
        };
        if !matches!(position, Position::From(_)) || time::distance(started, right) <= 2 * MAX_CLOCK_SKEW {
            return false;
        }
        self.status.send_modify(|status| {
            status.record.started_from = Some(right);
            status.record.clock_skew = record.clock_skew;
            status.record.cursor = None;
        });
        self.save().await;
        true
    }

    fn position(&self, record: &mut SourceRecord, now: Timestamp) -> Position {
        if let Some(cursor) = &record.cursor {
            return Position::Cursor(cursor.clone());
        }
        let now = record.by_server(now);
        // A time in the future is wrong: nothing would be found after it.
        let processed = record.newest_processed.filter(|newest| *newest <= time::after(now, MAX_CLOCK_SKEW));
        let from = match processed.or(record.newest_event) {
            Some(newest) => time::before(newest, self.settings.overlap),
            None => *record.started_from.get_or_insert(time::before(now, self.settings.backfill)),
        };
        let kept_since = time::before(now, LOG_RETENTION);
        if from < kept_since && record.newest_processed.is_some() {
            tracing::warn!(
                source = %self.settings.name, newest = %from,
                "the newest event is older than Atlassian keeps: events between it and 180 days ago are lost"
            );
        }
        Position::From(from.max(kept_since))
    }

    /// Stores a page with its record. Returns how many of its events are new, including dropped ones.
    async fn store_page(&mut self, page: FetchedPage, mut record: SourceRecord) -> Result<usize, StoreError> {
        let name = self.settings.name.clone();
        let now = self.clock.now();
        // The arrival bounds the times of events. If this machine's clock is wrong, the server's is used.
        let arrived = page.server_time.filter(|server| time::distance(now, *server) > MAX_CLOCK_SKEW).unwrap_or(now);
        let empty = page.entries() == 0;
        let unwanted = self.settings.unwanted.clone();
        // Continues even if the future is dropped, so a page is stored completely or not at all.
        let stored = self.store.run(move |store| {
            if empty {
                store.save_source(&name, &record)?;
                return Ok((record, Appended::default()));
            }
            let quiet_before = record.evaluated_before;
            let page =
                Page { source: name, arrived, events: page.events, rejected: page.rejected, quiet_before, unwanted };
            let appended = store.append_page(page, &mut record)?;
            Ok((record, appended))
        });
        let (record, appended) = stored.await?;
        self.status.send_modify(|status| {
            status.record = record;
            status.polls += 1;
        });
        if appended != Appended::default() {
            let Appended { stored, duplicates, quarantined, .. } = appended;
            tracing::debug!(source = %self.settings.name, stored, duplicates, quarantined, "page stored");
        }
        if appended.quarantined > 0 {
            tracing::warn!(
                source = %self.settings.name, entries = appended.quarantined,
                "quarantined entries that are not events: list them with `watchbell events list --quarantined`"
            );
        }
        if appended.stored > 0 {
            self.stored.send();
        }
        Ok(appended.stored + appended.dropped)
    }

    async fn after_page(&mut self, entries: usize, new: usize, stuck: bool) -> Next {
        if new > 0 {
            self.stuck.over();
        }
        if new > 0 || entries == 0 {
            self.fruitless = 0;
        } else {
            self.fruitless += 1;
        }
        if entries > 0 && new == 0 && (stuck || self.fruitless >= FRUITLESS_PAGES) {
            if let Some(times) = self.stuck.again() {
                tracing::warn!(
                    source = %self.settings.name, times,
                    "the cursor does not advance: restarting at the time of the newest event"
                );
            }
            self.fruitless = 0;
            let now = self.clock.now();
            self.status.send_modify(|status| {
                status.record.cursor = None;
                status.record.cursor_trouble = Some(now);
                status.record.caught_up = true;
            });
            self.save().await;
            return Next::After(self.settings.poll_interval);
        }
        if self.status.borrow().record.caught_up || stuck {
            Next::After(self.settings.poll_interval)
        } else {
            Next::AtOnce
        }
    }

    async fn failed(&mut self, error: FetchError) -> Next {
        let now = self.clock.now();
        let kind = error.kind;
        // Per process: an earlier one wrote to another log.
        let first = self.logged.replace(kind) != Some(kind);
        self.status.send_modify(|status| {
            let record = &mut status.record;
            status.polls += 1;
            *status.failed.entry(kind.name()).or_default() += 1;
            record.failures = record.failures.saturating_add(1);
            record.failing_since = record.failing_since.or(Some(now));
            record.error = Some(SourceError { kind, message: error.message.clone(), at: now });
            if kind == ErrorKind::CursorRefused {
                record.cursor = None;
                record.cursor_trouble = Some(now);
            }
        });
        let failures = self.status.borrow().record.failures;
        self.save().await;
        if kind == ErrorKind::CursorRefused {
            if first || is_worth_telling(failures.into()) {
                tracing::warn!(
                    source = %self.settings.name, failures,
                    "{}: restarting at the time of the newest event", error.message
                );
            }
            // Retry immediately once. A source that keeps refusing cursors is treated like any other failure.
            if failures == 1 {
                return Next::AtOnce;
            }
        }
        let wait = if kind.needs_a_person() {
            if let Err(error) = self.source.reload_secret() {
                tracing::debug!(source = %self.settings.name, %error, "cannot reload the key");
            }
            self.timing.refused
        } else {
            let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(20));
            let base = if kind == ErrorKind::RateLimited { self.timing.rate_limited } else { self.timing.first_retry };
            // Jitter between half and all of it, so that agents do not retry at the same time.
            let wait =
                base.saturating_mul(doubled).min(self.timing.longest_retry).mul_f64(0.5 + self.random.f64() / 2.0);
            match error.retry_after {
                Some(asked) => asked.max(self.timing.first_retry.mul_f64(0.5)),
                None => wait,
            }
        };
        // Log each error kind once, then less and less often.
        let retry = time::show_duration(wait);
        if first || is_worth_telling(failures.into()) {
            tracing::warn!(source = %self.settings.name, kind = kind.name(), failures, retry, "{}", error.message);
        } else {
            tracing::debug!(source = %self.settings.name, kind = kind.name(), failures, retry, "{}", error.message);
        }
        Next::After(wait)
    }

    /// Saves the source's record. If that fails, storing the next page will report the store's problem.
    pub(super) async fn save(&self) {
        let record = self.status.borrow().record.clone();
        let name = self.settings.name.clone();
        if let Err(error) = self.store.run(move |store| store.save_source(&name, &record)).await {
            tracing::error!(source = %self.settings.name, %error, "cannot save the source's state");
        }
    }
}
