//! The state of detection, by key: open alerts and counted matches of each dedup key, and a record of each rule.
//!
//! State expires by event time, never by a clock. Changes are returned as bytes, so that they can be stored with the
//! outcome that caused them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::window::WindowCount;
use crate::{
    model::{
        alert::{Alert, AlertAction, Severity},
        event::Event,
        name::{AlertId, EventId, ExceptionId, RuleId, SourceName},
        outcome::StateChanges,
        time::{self, Timestamp},
    },
    rule::{CompiledRule, RuleFailure},
};

/// Open alerts of one key at the same time: only events that arrive far out of order can cause more than one.
const MAX_OPEN: usize = 8;
/// Version of the encoding. Other versions are dropped when read: counting starts again, which costs at most one
/// duplicate alert.
const VERSION: u8 = 1;
const CLOCK: &str = "clock";
const EXCEPTION: &str = "exception/";
const LEARNED: &str = "learned/";
/// How long a reopened alert is kept at least. How long matches join it depends on its rule's dedup period.
const REOPENED: Duration = Duration::from_secs(30 * 86_400);

/// An alert that further matches can join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenAlert {
    pub(super) id: AlertId,
    /// Event time of the opening match, in milliseconds.
    pub(super) opened: i64,
    pub(super) severity: Severity,
}

/// The state of one dedup key of one rule and source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyState {
    open: Vec<OpenAlert>,
    pub(super) pending: Vec<WindowCount>,
    /// Event time, in milliseconds, at which it expires.
    expires: i64,
}

impl KeyState {
    /// The open alert that a match at `time` joins: the one whose opening match is less than `period` away.
    pub(super) fn open_at(&mut self, time: Timestamp, period: Duration) -> Option<&mut OpenAlert> {
        let time = time.as_millisecond();
        let period = millis(period);
        self.open.iter_mut().rev().find(|open| time.saturating_sub(open.opened).saturating_abs() < period)
    }

    pub(super) fn open(&mut self, alert: OpenAlert) {
        if self.open.len() >= MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(alert);
    }

    fn newest(&self) -> i64 {
        let opened = self.open.iter().map(|open| open.opened);
        opened.chain(self.pending.iter().map(|counted| counted.time)).max().unwrap_or(i64::MIN)
    }
}

/// What is recorded about a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRecord {
    /// Number of events that it matched.
    pub matches: u64,
    /// Number of calls that failed.
    pub errors: u64,
    /// Event time of the newest match, in milliseconds since 1970.
    pub last_match: Option<i64>,
    /// Event time of the newest failure, in milliseconds since 1970.
    pub last_error_at: Option<i64>,
    /// Message of the newest failure.
    pub last_error: Option<String>,
    /// Number of limits exceeded in a row.
    exceeded: u32,
    /// Hash of the file that was suspended, if it was.
    pub suspended: Option<String>,
}

/// What is recorded about an exception.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionRecord {
    /// Number of matches that it suppressed.
    pub hits: u64,
    /// Event time of the newest suppressed match, in milliseconds since 1970.
    pub last_hit: Option<i64>,
    /// The event of the newest suppressed match.
    pub last_event: Option<EventId>,
    /// Number of times that its condition failed, which suppresses nothing.
    pub errors: u64,
    /// Message of the newest failure.
    pub last_error: Option<String>,
}

impl ExceptionRecord {
    /// Event time of the newest suppressed match.
    pub fn last_hit_at(&self) -> Option<Timestamp> {
        self.last_hit.map(time::from_millis)
    }
}

/// The beginning of the names under which records of rules are stored.
pub const RULE_STATE: &str = "rule/";

#[derive(Debug, Default)]
pub(super) struct State {
    /// The latest event time seen, in milliseconds.
    clock: i64,
    keys: HashMap<String, KeyState>,
    expiry: BTreeSet<(i64, String)>,
    rules: BTreeMap<RuleId, RuleRecord>,
    /// Rules that exceeded their limits the last time they ran.
    struggling: BTreeSet<RuleId>,
    exceptions: BTreeMap<ExceptionId, ExceptionRecord>,
    /// How far back each rule has warmed up over stored events, in milliseconds.
    learned: BTreeMap<RuleId, i64>,
    changed: BTreeSet<String>,
}

/// The key of the state for a rule, a source and a dedup key. Matches of a rule that is active do not join an alert that
/// it opened in shadow mode, which nobody was notified of.
pub(super) fn key_of(rule: &RuleId, source: &str, key: &str, shadow: bool) -> String {
    // Dedup keys may be long and contain anything; a hash is enough to distinguish them.
    format!("key/{rule}/{}", AlertId::derive(rule, source, key, if shadow { "shadow" } else { "" }))
}

impl State {
    pub(super) fn restore(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let mut state = Self::default();
        for (name, bytes) in entries {
            if name == CLOCK {
                state.clock = decode(&bytes).unwrap_or_default();
            } else if let Some(rule) = name.strip_prefix(RULE_STATE) {
                if let (Ok(rule), Some(record)) = (RuleId::parse(rule), decode::<RuleRecord>(&bytes)) {
                    if record.exceeded > 0 {
                        state.struggling.insert(rule.clone());
                    }
                    state.rules.insert(rule, record);
                }
            } else if let Some(rule) = name.strip_prefix(LEARNED) {
                if let (Ok(rule), Some(reach)) = (RuleId::parse(rule), decode(&bytes)) {
                    state.learned.insert(rule, reach);
                }
            } else if let Some(exception) = name.strip_prefix(EXCEPTION) {
                if let (Ok(exception), Some(record)) = (ExceptionId::parse(exception), decode(&bytes)) {
                    state.exceptions.insert(exception, record);
                }
            } else if name.starts_with("key/")
                && let Some(keyed) = decode::<KeyState>(&bytes)
            {
                state.expiry.insert((keyed.expires, name.clone()));
                state.keys.insert(name, keyed);
            }
        }
        state
    }

    /// The latest event time seen, in milliseconds.
    pub(super) fn clock(&self) -> i64 {
        self.clock
    }

    /// Moves the clock forward to `time`, if that is later, and drops expired state.
    pub(super) fn advance(&mut self, time: Timestamp) {
        let time = time.as_millisecond();
        if time <= self.clock {
            return;
        }
        self.clock = time;
        while let Some((expires, _)) = self.expiry.first() {
            if *expires >= time {
                break;
            }
            if let Some((_, name)) = self.expiry.pop_first() {
                self.keys.remove(&name);
                self.changed.insert(name);
            }
        }
    }

    /// Removes and returns the state of a key; [`State::put`] puts it back.
    pub(super) fn take(&mut self, name: &str) -> KeyState {
        let keyed = self.keys.remove(name).unwrap_or_default();
        self.expiry.remove(&(keyed.expires, name.to_owned()));
        keyed
    }

    pub(super) fn put(&mut self, name: &str, mut keyed: KeyState, lifetime: Duration) {
        // Counted from the clock, so that a late match does not expire at once.
        keyed.expires = keyed.newest().max(self.clock).saturating_add(millis(lifetime));
        self.expiry.insert((keyed.expires, name.to_owned()));
        self.keys.insert(name.to_owned(), keyed);
        self.changed.insert(name.to_owned());
    }

    /// See [`super::Detector::handled`]. Counted matches are not changed.
    pub(super) fn handled(&mut self, alert: &Alert, action: AlertAction) {
        let source = alert.source.as_ref().map_or("", SourceName::as_str);
        let name = key_of(&alert.rule, source, alert.dedup_key.as_str(), alert.shadow);
        match action {
            AlertAction::Resolve(_) if self.keys.contains_key(&name) => {
                let mut keyed = self.take(&name);
                keyed.open.retain(|open| open.id != alert.id);
                // The lifetime of the state does not change.
                self.expiry.insert((keyed.expires, name.clone()));
                self.keys.insert(name.clone(), keyed);
                self.changed.insert(name);
            }
            AlertAction::Reopen => {
                let mut keyed = self.take(&name);
                keyed.open.retain(|open| open.id != alert.id);
                keyed.open(OpenAlert {
                    id: alert.id,
                    opened: alert.opened_at.as_millisecond(),
                    severity: alert.severity,
                });
                self.put(&name, keyed, REOPENED);
            }
            AlertAction::Resolve(_) | AlertAction::Acknowledge | AlertAction::Comment => {}
        }
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = (&RuleId, &RuleRecord)> {
        self.rules.iter()
    }

    pub(super) fn is_suspended(&self, rule: &CompiledRule) -> bool {
        self.rules.get(rule.id()).is_some_and(|record| record.suspended.as_deref() == Some(&*rule.hash))
    }

    pub(super) fn matched(&mut self, rule: &RuleId, time: Timestamp) {
        let record = self.record(rule);
        record.matches = record.matches.saturating_add(1);
        record.last_match =
            Some(record.last_match.map_or(time.as_millisecond(), |last| last.max(time.as_millisecond())));
    }

    pub(super) fn exceptions(&self) -> impl Iterator<Item = (&ExceptionId, &ExceptionRecord)> {
        self.exceptions.iter()
    }

    pub(super) fn excepted(&mut self, exception: &ExceptionId, event: &Event) {
        let time = event.time.as_millisecond();
        let record = self.exception(exception);
        record.hits = record.hits.saturating_add(1);
        record.last_hit = Some(record.last_hit.map_or(time, |last| last.max(time)));
        record.last_event = Some(event.id.clone());
    }

    pub(super) fn exception_failed(&mut self, exception: &ExceptionId, failure: &RuleFailure) {
        let record = self.exception(exception);
        record.errors = record.errors.saturating_add(1);
        record.last_error = Some(failure.message.clone());
    }

    fn exception(&mut self, exception: &ExceptionId) -> &mut ExceptionRecord {
        self.changed.insert(format!("{EXCEPTION}{exception}"));
        self.exceptions.entry(exception.clone()).or_default()
    }

    /// Returns true if any rule exceeded its limits the last time it ran.
    pub(super) fn is_any_struggling(&self) -> bool {
        !self.struggling.is_empty()
    }

    pub(super) fn succeeded(&mut self, rule: &RuleId) {
        if self.struggling.remove(rule) {
            self.record(rule).exceeded = 0;
        }
    }

    /// Records a failure. The `limit`th exceeded limit in a row suspends the rule until its file changes.
    pub(super) fn failed(&mut self, rule: &CompiledRule, time: Timestamp, failure: &RuleFailure, limit: u32) {
        let record = self.record(rule.id());
        record.errors = record.errors.saturating_add(1);
        record.last_error_at = Some(time.as_millisecond());
        record.last_error = Some(failure.message.clone());
        record.exceeded = if failure.kind.exceeds_limit() { record.exceeded + 1 } else { 0 };
        if record.exceeded >= limit {
            record.exceeded = 0;
            record.suspended = Some(rule.hash.clone());
        }
        let struggles = record.exceeded > 0;
        if struggles {
            self.struggling.insert(rule.id().clone());
        } else {
            self.struggling.remove(rule.id());
        }
    }

    /// Records the failure of an optional function, which neither raises an alert nor suspends the rule.
    pub(super) fn function_failed(&mut self, rule: &RuleId, time: Timestamp, message: &str) {
        let record = self.record(rule);
        record.errors = record.errors.saturating_add(1);
        record.last_error_at = Some(time.as_millisecond());
        record.last_error = Some(message.to_owned());
    }

    /// How far back a rule has warmed up over stored events.
    pub(super) fn learned(&self, rule: &RuleId) -> Option<Duration> {
        self.learned.get(rule).map(|reach| Duration::from_millis(u64::try_from(*reach).unwrap_or(0)))
    }

    /// Records how far back a rule has warmed up.
    pub(super) fn set_learned(&mut self, rule: &RuleId, reach: Duration) {
        self.learned.insert(rule.clone(), millis(reach));
        self.changed.insert(format!("{LEARNED}{rule}"));
    }

    /// Records that rules which no longer run must warm up again when they come back, because they miss events in the
    /// meantime.
    pub(super) fn keep_learned(&mut self, runs: impl Fn(&RuleId) -> bool) {
        let gone: Vec<RuleId> = self
            .learned
            .iter()
            .filter(|(rule, reach)| **reach > 0 && !runs(rule))
            .map(|(rule, _)| rule.clone())
            .collect();
        for rule in gone {
            self.set_learned(&rule, Duration::ZERO);
        }
    }

    /// The number of matches that are counted under a key.
    pub(super) fn counted(&self, name: &str) -> usize {
        self.keys.get(name).map_or(0, |keyed| keyed.pending.len())
    }

    fn record(&mut self, rule: &RuleId) -> &mut RuleRecord {
        self.changed.insert(format!("{RULE_STATE}{rule}"));
        self.rules.entry(rule.clone()).or_default()
    }

    pub(super) fn drop_changes(&mut self) {
        self.changed.clear();
    }

    pub(super) fn take_changes(&mut self) -> StateChanges {
        let mut changes: StateChanges = std::mem::take(&mut self.changed)
            .into_iter()
            .map(|name| {
                let bytes = if let Some(rule) = name.strip_prefix(RULE_STATE) {
                    RuleId::parse(rule).ok().and_then(|rule| self.rules.get(&rule)).and_then(encode)
                } else if let Some(rule) = name.strip_prefix(LEARNED) {
                    RuleId::parse(rule).ok().and_then(|rule| self.learned.get(&rule)).and_then(encode)
                } else if let Some(exception) = name.strip_prefix(EXCEPTION) {
                    ExceptionId::parse(exception).ok().and_then(|id| self.exceptions.get(&id)).and_then(encode)
                } else {
                    self.keys.get(&name).and_then(encode)
                };
                (name, bytes)
            })
            .collect();
        changes.push((CLOCK.to_owned(), encode(&self.clock)));
        changes
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    postcard::to_extend(value, vec![VERSION]).ok()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl RuleRecord {
    /// Event time of the newest match.
    pub fn last_match_at(&self) -> Option<Timestamp> {
        self.last_match.map(time::from_millis)
    }
}
