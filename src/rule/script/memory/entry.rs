//! The entries of rule memory, and how they are kept in time order.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::Quota;
use crate::model::{event::Event, name::SourceName};

/// When something happened, ordered by event time and then by arrival: milliseconds since 1970, and the event's
/// sequence number.
pub(crate) type Moment = (i64, u64);

/// What is recorded under a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Content {
    /// The times of `count`, in order.
    Times(VecDeque<Moment>),
    /// The values of `distinct` with their times, in time order.
    Values(VecDeque<(Moment, String)>),
    /// The values of `first_seen`, and when each was last seen, in milliseconds.
    Seen(BTreeMap<String, i64>),
    /// The times of `mark`, in order, and a mark's lifetime in milliseconds.
    Marks(VecDeque<Moment>, i64),
    /// The value of `remember` as JSON, and the end of its lifetime in milliseconds.
    Note(String, i64),
    /// The start of a learning period, in milliseconds.
    Since(i64),
    /// The open expectations, in order of arrival.
    Expected(Vec<Expectation>),
    /// The times of `met`, in order.
    Met(VecDeque<Moment>),
}

/// An expectation that something will happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// The key under which it is expected.
    pub key: String,
    /// The name of what is expected.
    pub name: String,
    /// The deadline, in milliseconds since 1970.
    pub due: i64,
    /// The event that began the expectation.
    #[serde(with = "stored")]
    pub event: Event,
}

impl Expectation {
    pub(super) fn since(&self) -> Moment {
        (self.event.time.as_millisecond(), self.event.sequence.0)
    }

    /// Whether something that happens at a moment meets the expectation.
    pub(super) fn is_met_by(&self, moment: Moment) -> bool {
        self.since() < moment && moment.0 <= self.due
    }
}

/// The entry of a key in a space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) content: Content,
    /// Event time, in milliseconds, after which the entry expires.
    pub(super) expires: i64,
}

/// An entry, with the rule whose quota it counts towards.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) rule: String,
}

/// The memory of one rule, or one that several rules share.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    pub(super) entries: HashMap<String, Held>,
    /// Source, deadline and key of each open expectation. The source is that of the event that began it.
    due: BTreeSet<(SourceName, i64, String)>,
}

/// What counts towards the quota of one rule, in its own space and in shared ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Holder {
    /// End, space and key of each entry.
    pub(super) expiry: BTreeSet<(i64, String, String)>,
    pub(super) bytes: usize,
    pub(super) evicted: u64,
}

impl Holder {
    pub(super) fn add(&mut self, space: &str, key: &str, entry: &Entry) {
        self.bytes += space.len() + key.len() + entry.size();
        self.expiry.insert((entry.expires, space.to_owned(), key.to_owned()));
    }

    pub(super) fn subtract(&mut self, space: &str, key: &str, entry: &Entry) {
        self.bytes = self.bytes.saturating_sub(space.len() + key.len() + entry.size());
        self.expiry.remove(&(entry.expires, space.to_owned(), key.to_owned()));
    }

    /// The entry to evict if the quota is exceeded: the one that expires first, but never the one just written.
    pub(super) fn next_eviction(&mut self, quota: Quota, written: (&str, &str)) -> Option<(String, String)> {
        if self.expiry.len() <= quota.keys && self.bytes <= quota.bytes {
            return None;
        }
        let oldest = self.expiry.iter().map(|(_, space, key)| (space, key));
        let (space, key) = oldest.into_iter().find(|(space, key)| (space.as_str(), key.as_str()) != written)?;
        self.evicted = self.evicted.saturating_add(1);
        Some((space.clone(), key.clone()))
    }
}

impl Entry {
    /// Approximate size in bytes.
    fn size(&self) -> usize {
        24 + match &self.content {
            Content::Times(times) | Content::Met(times) | Content::Marks(times, _) => times.len() * 12,
            Content::Values(values) => values.iter().map(|(_, value)| value.len() + 14).sum(),
            Content::Seen(values) => values.keys().map(|value| value.len() + 10).sum(),
            Content::Note(text, _) => text.len() + 8,
            Content::Since(_) => 8,
            Content::Expected(waiting) => {
                waiting.iter().map(|one| one.key.len() + one.name.len() + one.event.raw.len() + 100).sum()
            }
        }
    }

    /// Sources and deadlines of the open expectations.
    fn due(&self) -> impl Iterator<Item = (SourceName, i64)> {
        let waiting = if let Content::Expected(waiting) = &self.content { waiting.as_slice() } else { &[] };
        waiting.iter().map(|one| (one.event.source.clone(), one.due))
    }

    pub(super) fn describe(&self) -> String {
        let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        match &self.content {
            Content::Times(times) | Content::Met(times) | Content::Marks(times, _) => plural(times.len(), "time"),
            Content::Values(values) => {
                let distinct: BTreeSet<&str> = values.iter().map(|(_, value)| value.as_str()).collect();
                format!("{}: {}", plural(distinct.len(), "value"), few(distinct.into_iter()))
            }
            Content::Seen(values) => {
                format!("{}: {}", plural(values.len(), "value"), few(values.keys().map(String::as_str)))
            }
            Content::Note(text, _) => few(std::iter::once(text.as_str())),
            Content::Since(since) => format!("since {}", crate::model::time::from_millis(*since)),
            Content::Expected(waiting) => {
                let first = waiting.iter().map(|one| one.due).min().unwrap_or_default();
                format!(
                    "{}, the first due {}",
                    plural(waiting.len(), "expectation"),
                    crate::model::time::from_millis(first)
                )
            }
        }
    }
}

fn few<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for value in values.take(5) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.extend(value.chars().take(60));
    }
    text
}

impl Space {
    pub(super) fn put(&mut self, rule: &str, key: String, entry: Entry) {
        self.due.extend(entry.due().map(|(source, due)| (source, due, key.clone())));
        self.entries.insert(key, Held { entry, rule: rule.to_owned() });
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Held> {
        let held = self.entries.remove(key)?;
        for (source, due) in held.entry.due() {
            self.due.remove(&(source, due, key.to_owned()));
        }
        Some(held)
    }

    /// The first deadline of an expectation that a source's event began, with its key.
    pub(super) fn first_due(&self, source: &SourceName) -> Option<(i64, &str)> {
        if self.due.is_empty() {
            return None;
        }
        let (of, due, key) = self.due.range((source.clone(), i64::MIN, String::new())..).next()?;
        (of == source).then_some((*due, key.as_str()))
    }
}

/// Inserts an item in time order. Most arrive in order, so the end is checked first.
pub(super) fn insert<T>(items: &mut VecDeque<T>, item: T, moment_of: impl Fn(&T) -> Moment, moment: Moment) {
    match items.back() {
        Some(last) if moment_of(last) > moment => {
            let at = items.partition_point(|other| moment_of(other) <= moment);
            items.insert(at, item);
        }
        _ => items.push_back(item),
    }
}

/// Drops items that no window can reach any more, allowing for an event that is late by up to one window.
pub(super) fn prune<T>(items: &mut VecDeque<T>, window: i64, most: usize, time_of: impl Fn(&T) -> i64) {
    let newest = items.back().map_or(i64::MIN, &time_of);
    let keep_from = newest.saturating_sub(window.saturating_mul(2));
    while items.len() > most || items.front().is_some_and(|first| time_of(first) < keep_from) {
        items.pop_front();
    }
}

/// The items in the window that ends with `now`.
pub(super) fn within<T>(
    items: &VecDeque<T>,
    now: Moment,
    window: i64,
    moment_of: impl Fn(&T) -> Moment + Copy,
) -> impl Iterator<Item = &T> {
    let begin = now.0.saturating_sub(window);
    items.iter().rev().skip_while(move |item| moment_of(item) > now).take_while(move |item| moment_of(item).0 > begin)
}

/// Serializes an event in the format of earlier versions: its flags are derived from the rest.
mod stored {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::{
        event::{Event, IncomingEvent},
        name::{EventId, Sequence, SourceName},
        time::Timestamp,
    };

    #[derive(Serialize, Deserialize)]
    struct Stored {
        sequence: Sequence,
        source: SourceName,
        arrived: Timestamp,
        time: Timestamp,
        id: EventId,
        action: Arc<str>,
        raw: Arc<str>,
    }

    pub(super) fn serialize<S: Serializer>(event: &Event, serializer: S) -> Result<S::Ok, S::Error> {
        let Event { sequence, source, arrived, time, id, action, raw, .. } = event.clone();
        Stored { sequence, source, arrived, time, id, action, raw }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Event, D::Error> {
        let Stored { sequence, source, arrived, time, id, action, raw } = Stored::deserialize(deserializer)?;
        let read = IncomingEvent::parse(&raw).map(|read| read.into_event(source.clone(), sequence, arrived));
        let flags = read.map(|event| event.flags).unwrap_or_default();
        Ok(Event { sequence, source, arrived, time, id, action, flags, raw })
    }
}
