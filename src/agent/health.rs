//! Builds the records that check rules read: the state of sources, rules and destinations. Durations are whole seconds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Watched;
use crate::{
    detect::{Detector, Subject},
    model::{
        action::ActionRecord,
        category::Category,
        name::{Sequence, SourceName},
        text::{printable, shortened},
        time::{self, Clock, Timestamp},
    },
    source::{Settings, SourceStatus},
    store::{Reader, SourceRecord, StoreError},
};

/// A gap longer than this between two rounds means that the machine was asleep.
const ASLEEP: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(86_400);
/// Quarantined entries that one record lists, per source.
const MAX_QUARANTINED: usize = 20;
/// Actions that first appeared longer ago are not reported as new.
const NEW_FOR: Duration = Duration::from_secs(31 * 86_400);

/// Timer of the health checks. Also detects when the machine was asleep.
#[derive(Debug)]
pub(super) struct Pulse {
    interval: Duration,
    last: Instant,
    last_clock: Timestamp,
    first: bool,
    hurried: bool,
    /// When the agent started or woke up. Silence before that says nothing about the log.
    awake_since: Timestamp,
    /// How long the agent was down or asleep before that.
    away: Duration,
}

impl Pulse {
    pub(super) fn new(watched: &Watched, clock: &Clock) -> Self {
        let shortest = watched.sources.iter().map(|(settings, _)| settings.drop_off / 8).min();
        let usual = shortest.unwrap_or(Duration::MAX).clamp(Duration::from_secs(1), Duration::from_secs(30));
        Self {
            interval: watched.pulse.unwrap_or(usual),
            last: Instant::now(),
            last_clock: clock.now(),
            first: true,
            hurried: false,
            awake_since: watched.started,
            away: watched.last_alive.map_or(Duration::ZERO, |alive| time::since(watched.started, alive)),
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.first || self.hurried || self.last.elapsed() >= self.interval
    }

    /// Makes the next round due now.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    pub(super) fn until_due(&self) -> Duration {
        self.interval.saturating_sub(self.last.elapsed())
    }

    /// Starts a round of checks and returns the current time.
    pub(super) fn beat(&mut self, clock: &Clock) -> Timestamp {
        let now = clock.now();
        // `Instant` does not advance while the machine sleeps; the clock does.
        if now < self.last_clock {
            // The clock was set back: a start in the future would make every poll since look like one before it.
            self.awake_since = self.awake_since.min(now);
        }
        let asleep = time::since(now, self.last_clock).saturating_sub(self.last.elapsed());
        if !self.first && asleep > ASLEEP {
            tracing::info!(asleep = time::show_duration(asleep), "the machine was asleep");
            self.awake_since = now;
            self.away = asleep;
        }
        self.first = false;
        self.hurried = false;
        self.last = Instant::now();
        self.last_clock = now;
        now
    }
}

pub(super) fn subjects(
    watched: &Watched,
    pulse: &Pulse,
    reader: &Reader,
    detector: &Detector,
    checkpoint: Sequence,
    now: Timestamp,
) -> Result<Vec<Subject>, StoreError> {
    let mut subjects = Vec::new();
    let actions: Vec<(SourceName, String, ActionRecord)> = reader.actions().collect::<Result<_, _>>()?;
    for (settings, status) in &watched.sources {
        let status = status.borrow().clone();
        let mut record = source_record(settings, &status, pulse, now);
        let own = actions.iter().filter(|(source, ..)| *source == settings.name);
        if let Some(record) = record.as_object_mut() {
            let new = own.filter_map(|(_, id, action)| new_action(id, action, &status.record, now)).collect();
            record.insert("new_actions".to_owned(), Value::Array(new));
            record.insert("set_aside".to_owned(), Value::Array(set_aside(reader, &settings.name, now)?));
        }
        subjects.push(Subject { source: Some(settings.name.clone()), record });
    }
    let outbox = reader.outbox()?;
    let mut destinations: Vec<Value> = watched
        .destinations
        .iter()
        .map(|(name, status)| {
            let status = status.borrow();
            let pending = outbox.get(name);
            // Pending deliveries keep their error across a restart; the worker does not.
            let failing_before = pending.filter(|pending| pending.error.is_some()).and_then(|pending| pending.oldest);
            json!({
                "name": name,
                "configured": true,
                "pending": pending.map_or(0, |pending| pending.count),
                "oldest": age(pending.and_then(|pending| pending.oldest), now),
                "given_up": pending.map_or(0, |pending| pending.given_up),
                "delivered": status.delivered,
                "error": status.error.clone().or_else(|| pending.and_then(|pending| pending.error.clone())),
                "failing_for": age(status.failing_since.or(failing_before), now),
            })
        })
        .collect();
    // Dead letters of destinations that were removed or renamed.
    let left_over =
        outbox.iter().filter(|(name, _)| watched.destinations.iter().all(|(configured, _)| configured != *name));
    destinations.extend(left_over.map(|(name, pending)| {
        json!({
            "name": name, "configured": false, "pending": pending.count, "oldest": age(pending.oldest, now),
            "given_up": pending.given_up, "delivered": 0, "error": pending.error, "failing_for": null,
        })
    }));
    let rules = detector.rules();
    let suspended: Vec<Value> = detector
        .records()
        .filter(|(id, record)| {
            rules.detections.iter().any(|rule| rule.id() == *id && record.suspended.as_deref() == Some(&*rule.hash))
        })
        .map(|(id, record)| json!({ "rule": id, "error": record.last_error }))
        .collect();
    subjects.push(Subject {
        source: None,
        record: json!({
            "uptime": seconds(time::since(now, watched.started)),
            "away": seconds(pulse.away),
            "generation": rules.context.generation,
            "rules": rules.detections.len(),
            "broken": rules.context.broken,
            "suspended": suspended,
            "guarded": rules.context.guarded.iter().map(|guarded| json!({
                "rule": guarded.rule, "alerts": guarded.alerts, "span": time::show_duration(guarded.since),
            })).collect::<Vec<_>>(),
            "ended": rules.context.ended.iter().map(|ended| json!({
                "rule": ended.rule,
                "since": ended.since.to_string(),
                "event": ended.event.map(|event| event.0),
            })).collect::<Vec<_>>(),
            "destinations": destinations,
            "backlog": reader.last_sequence()?.0.saturating_sub(checkpoint.0),
        }),
    });
    Ok(subjects)
}

/// Quarantined entries of a source, newest first.
fn set_aside(reader: &Reader, source: &SourceName, now: Timestamp) -> Result<Vec<Value>, StoreError> {
    let mut entries = Vec::new();
    for entry in reader.quarantined() {
        let entry = entry?;
        if entries.len() >= MAX_QUARANTINED {
            break;
        }
        if entry.source == *source {
            let beginning = shortened(&printable(&entry.raw), 200);
            // Entries quarantined by earlier versions have no hash.
            let hash = if entry.hash.is_empty() { entry.arrived.to_string() } else { entry.hash };
            let age = age(Some(entry.arrived), now);
            entries.push(json!({ "hash": hash, "age": age, "reason": entry.reason, "beginning": beginning }));
        }
    }
    Ok(entries)
}

/// Returns an action that first appeared after the first day, either on the organization's list or in an event
/// without being listed.
fn new_action(id: &str, action: &ActionRecord, source: &SourceRecord, now: Timestamp) -> Option<Value> {
    let listed = action.listed.filter(|listed| source.actions.first.is_some_and(|first| *listed > first));
    // A listed action is not new when it first occurs in an event.
    let seen = action.seen.filter(|seen| action.listed.is_none_or(|listed| *seen < listed));
    let came = seen.into_iter().chain(listed).min()?;
    let began = source.actions.first.or(source.first_poll)?;
    if came <= time::after(began, DAY) || time::since(now, came) > NEW_FOR {
        return None;
    }
    Some(json!({
        "id": id,
        "name": action.name,
        "group": action.group,
        "category": Category::of(id, action.name.as_deref(), action.group.as_deref()).as_str(),
        "listed": action.listed.is_some(),
        "events": action.events,
        "day": came.strftime("%Y-%m-%d").to_string(),
        "age": seconds(time::since(now, came)),
        // How long the source had been known when the action appeared.
        "known_for": seconds(time::since(came, began)),
        "by_list": source.actions.first.is_some(),
    }))
}

fn source_record(settings: &Settings, status: &SourceStatus, pulse: &Pulse, now: Timestamp) -> Value {
    let record = &status.record;
    let silent_since = record.newest_arrival.or(record.first_poll);
    let expires = settings.key_expires().and_then(|date| {
        let midnight = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        // Rounded down: 0 on the day itself.
        Some(midnight.duration_since(now).as_secs().div_euclid(86_400))
    });
    // What is about events goes by the server's clock, as their arrival does.
    let by_server = record.by_server(now);
    json!({
        "name": settings.name,
        "drop_off": seconds(settings.drop_off),
        "poll_interval": seconds(settings.poll_interval),
        // Polled successfully since the agent started or woke up. Before that, nothing is known about the log.
        "polled": record.last_poll.is_some_and(|poll| poll >= pulse.awake_since),
        "awake_for": seconds(time::since(now, pulse.awake_since)),
        "away": seconds(pulse.away),
        "ever": record.newest_arrival.is_some(),
        "silent_for": age(silent_since, by_server),
        "newest_event": age(record.newest_event, by_server),
        "newest_event_time": record.newest_event.map(|time| time.to_string()),
        "newest_arrival": age(record.newest_arrival, by_server),
        "lag": record.lag,
        "last_poll": age(record.last_poll, now),
        "caught_up": record.caught_up,
        "error": record.error.as_ref().map(|error| error.message.clone()),
        "error_kind": record.error.as_ref().map(|error| error.kind.name()),
        "error_remedy": record.error.as_ref().map(|error| error.kind.remedy()),
        "needs_a_person": record.error.as_ref().is_some_and(|error| error.kind.needs_a_person()),
        "failures": record.failures,
        "failing_for": age(record.failing_since, now),
        "cursor_trouble": age(record.cursor_trouble, now),
        "clock_skew": record.clock_skew,
        "key_expires_in": expires,
        "quarantined": record.quarantined,
        "last_quarantined": age(record.last_quarantined, by_server),
        "stored": record.stored,
    })
}

fn age(time: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    time.map(|time| seconds(time::since(now, time)))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
