//! The state of the agent and its store. A running agent adds what only it knows; the rest comes from the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Service;
use crate::{
    detect::{self, RuleRecord, rule_records},
    model::{
        alert::{AlertStatus, Severity},
        category::Category,
        name::{DestinationName, RuleId, SourceName},
        time::{self, Timestamp},
    },
    store::{AlertCounts, Reader, SourceRecord, StoreError, Suspect},
};

/// The state of the agent and its store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program that answered.
    pub version: String,
    /// When this state was read.
    pub now: Timestamp,
    /// The agent; absent if none runs.
    pub agent: Option<Running>,
    /// When an agent last ran.
    pub last_alive: Option<Timestamp>,
    pub sources: Vec<SourceState>,
    pub events: EventState,
    /// Event counts of each category since the store was created.
    #[serde(default)]
    pub categories: Vec<CategoryState>,
    pub open_alerts: SeverityCounts,
    pub acknowledged_alerts: SeverityCounts,
    /// Rules that have been called.
    pub rules: Vec<RuleState>,
    pub destinations: Vec<DestinationState>,
    /// The number of active silences.
    pub silences: u64,
    /// The size of the store on disk, in bytes.
    pub store_bytes: u64,
}

/// Event counts of a category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryState {
    pub category: Category,
    /// Events that were stored.
    pub events: u64,
    /// Those excluded from evaluation.
    pub ignored: u64,
    /// Events excluded from the store.
    pub dropped: u64,
}

/// Alerts by severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of severities")]
pub struct SeverityCounts {
    pub info: u64,
    pub low: u64,
    pub medium: u64,
    pub high: u64,
    pub critical: u64,
}

impl SeverityCounts {
    fn of(counts: &AlertCounts, status: AlertStatus) -> Self {
        let of = |severity| counts.of(status, severity);
        Self {
            info: of(Severity::Info),
            low: of(Severity::Low),
            medium: of(Severity::Medium),
            high: of(Severity::High),
            critical: of(Severity::Critical),
        }
    }

    /// The counts with their severities, highest first.
    pub fn by_severity(&self) -> [(Severity, u64); 5] {
        [
            (Severity::Critical, self.critical),
            (Severity::High, self.high),
            (Severity::Medium, self.medium),
            (Severity::Low, self.low),
            (Severity::Info, self.info),
        ]
    }
}

/// What only a running agent knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// The process ID.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// The generation of the loaded rules.
    pub generation: u64,
    /// The number of rules that run on events.
    pub rules: u64,
    /// The number of check rules.
    pub checks: u64,
    /// Rules that the guard moved to shadow mode.
    #[serde(default)]
    pub guarded: Vec<RuleId>,
    /// Broken rule files, with what is wrong.
    pub broken: Vec<String>,
    /// Whether the files on disk differ from those that were loaded.
    pub files_changed: bool,
    /// What it currently fails to do; empty if all is well.
    pub problems: Vec<String>,
    /// Events evaluated since it started.
    pub evaluated: u64,
    /// Calls of `fn rule` since it started.
    pub rules_run: u64,
    /// Failed calls since it started.
    pub failures: u64,
    /// Alerts opened since it started, from info to critical.
    pub alerts_opened: [u64; 5],
    /// Alerts silenced since it started.
    pub silenced: u64,
    pub sources: BTreeMap<SourceName, RunningSource>,
    pub destinations: BTreeMap<DestinationName, RunningDestination>,
    /// By rule: the number of calls and their total time, in seconds.
    pub costs: BTreeMap<RuleId, (u64, f64)>,
    /// When the last heartbeat was sent; absent if none was.
    pub last_heartbeat: Option<Timestamp>,
}

/// What a running agent knows about a source, in addition to its record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunningSource {
    pub record: SourceRecord,
    /// Polls since the agent started.
    pub polls: u64,
    /// Those that failed, by kind of error.
    pub failed: BTreeMap<String, u64>,
    /// The time of the next poll.
    pub next_poll: Option<Timestamp>,
}

/// What a running agent knows about a destination.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunningDestination {
    /// Messages delivered since the agent started.
    pub delivered: u64,
    /// Failed attempts since the agent started.
    pub failed: u64,
    /// When it began to fail; absent if it works.
    pub failing_since: Option<Timestamp>,
    /// Until when its rate limit holds messages back.
    pub held_until: Option<Timestamp>,
    /// The error of the last attempt.
    pub error: Option<String>,
}

/// Whether an agent does its job. Both lists are empty if it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What prevents it from working at all: restarting may help.
    pub dead: Vec<String>,
    /// What it currently fails to do: someone has to look.
    pub unready: Vec<String>,
}

/// The state of a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceState {
    pub name: SourceName,
    /// Whether it is in the configuration.
    pub configured: bool,
    /// A short description, such as `up to date`.
    pub state: String,
    pub record: SourceRecord,
    /// The time of the next poll.
    pub next_poll: Option<Timestamp>,
    /// Absent if it is not in the configuration.
    pub drop_off: Option<DropOff>,
}

/// The log drop-off of a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DropOff {
    /// How long the log may be silent before an alert is raised, in seconds.
    pub after: u64,
    /// The time since the last event arrived or, without one, since the first poll, in seconds.
    pub silent_for: Option<u64>,
    /// Whether an alert about it is open.
    pub alarm: bool,
}

/// Counts of stored events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventState {
    pub stored: u64,
    /// Their size before compression, in bytes.
    pub bytes: u64,
    /// The sequence number of the last event.
    pub last: u64,
    /// The sequence number of the last evaluated event.
    pub evaluated: u64,
    /// The number of events to evaluate.
    pub backlog: u64,
}

/// The state of a rule that has been called or is suspended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleState {
    pub rule: RuleId,
    /// Events that it matched.
    pub matches: u64,
    /// Failed calls.
    pub errors: u64,
    pub suspended: bool,
    /// The error of its last failed call.
    pub last_error: Option<String>,
}

/// The state of a destination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DestinationState {
    pub name: DestinationName,
    /// Absent if it is not in the configuration.
    pub kind: Option<String>,
    /// Pending deliveries.
    pub pending: u64,
    /// When the oldest of them was created.
    pub oldest: Option<Timestamp>,
    /// Deliveries that were given up.
    pub given_up: u64,
    /// Messages delivered so far.
    pub delivered: u64,
    /// When the last message was delivered.
    pub last_delivered: Option<Timestamp>,
    /// The error of the last attempt, while the destination fails.
    pub error: Option<String>,
}

/// Rules that have been called, and those that are suspended because they ended the process.
fn rules(reader: &Reader) -> Result<Vec<RuleState>, StoreError> {
    let state = |(rule, record): (RuleId, RuleRecord)| {
        let state = RuleState {
            rule: rule.clone(),
            matches: record.matches,
            errors: record.errors,
            suspended: record.suspended.is_some(),
            last_error: record.last_error,
        };
        (rule, state)
    };
    let mut rules: BTreeMap<RuleId, RuleState> =
        rule_records(reader.state_beginning(detect::RULE_STATE)?).into_iter().map(state).collect();
    for suspended in reader.crashes()?.suspended {
        let Suspect::Rule { rule, .. } = suspended.suspect else { continue };
        let state = RuleState { rule: rule.clone(), matches: 0, errors: 0, suspended: true, last_error: None };
        rules.entry(rule).or_insert(state).suspended = true;
    }
    Ok(rules.into_values().collect())
}

pub(super) fn status(service: &Service) -> Result<Status, StoreError> {
    let now = service.clock.now();
    let reader = service.store.reader();
    let agent = service.live.as_ref().map(|live| live.running());
    let (stored, bytes) = reader.event_totals()?;
    let categories = categories(&reader)?;
    let (checkpoint, last) = (reader.checkpoint()?, reader.last_sequence()?);
    let counts = reader.alert_counts()?;
    let alarms = detect::sources_of_findings(reader.state_beginning(detect::DROP_OFF_STATE)?);
    let rules = rules(&reader)?;
    let mut records = reader.sources()?;
    for settings in &service.settings.sources {
        records.entry(settings.name.clone()).or_default();
    }
    let sources =
        records.into_iter().map(|(name, record)| source_state(service, &agent, &alarms, name, record, now)).collect();
    let mut outbox = reader.outbox()?;
    let mut destinations = Vec::new();
    let configured = service.settings.destinations.iter();
    let configured: Vec<_> =
        configured.map(|settings| (settings.name.clone(), Some(settings.kind.name().to_owned()))).collect();
    let gone: Vec<_> = outbox
        .keys()
        .filter(|name| !configured.iter().any(|(other, _)| other == *name))
        .map(|name| (name.clone(), None))
        .collect();
    for (name, kind) in configured.into_iter().chain(gone) {
        let pending = outbox.remove(&name);
        let record = reader.destination(&name)?;
        let running = agent.as_ref().and_then(|agent| agent.destinations.get(&name));
        destinations.push(DestinationState {
            kind,
            pending: pending.as_ref().map_or(0, |pending| pending.count),
            oldest: pending.as_ref().and_then(|pending| pending.oldest),
            given_up: pending.as_ref().map_or(0, |pending| pending.given_up),
            delivered: record.delivered,
            last_delivered: record.last_delivered,
            error: running
                .and_then(|running| running.error.clone())
                .or_else(|| pending.and_then(|pending| pending.error)),
            name,
        });
    }
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now,
        last_alive: reader.alive()?,
        sources,
        events: EventState {
            stored,
            bytes,
            last: last.0,
            evaluated: checkpoint.0,
            backlog: last.0.saturating_sub(checkpoint.0),
        },
        categories,
        open_alerts: SeverityCounts::of(&counts, AlertStatus::Open),
        acknowledged_alerts: SeverityCounts::of(&counts, AlertStatus::Acknowledged),
        rules,
        destinations,
        silences: reader.silences()?.iter().filter(|silence| silence.ended.is_none()).count() as u64,
        store_bytes: service.store.size_on_disk()?,
        agent,
    })
}

fn categories(reader: &Reader) -> Result<Vec<CategoryState>, StoreError> {
    let mut states: BTreeMap<Category, CategoryState> = BTreeMap::new();
    for action in reader.actions() {
        let (_, id, record) = action?;
        let category = Category::of(&id, record.name.as_deref(), record.group.as_deref());
        let none = CategoryState { category, events: 0, ignored: 0, dropped: 0 };
        let state = states.entry(category).or_insert(none);
        state.events += record.events;
        state.ignored += record.ignored;
        state.dropped += record.dropped;
    }
    Ok(states.into_values().filter(|state| state.events + state.dropped > 0).collect())
}

fn source_state(
    service: &Service,
    agent: &Option<Running>,
    alarms: &[SourceName],
    name: SourceName,
    record: SourceRecord,
    now: Timestamp,
) -> SourceState {
    let settings = service.settings.sources.iter().find(|settings| settings.name == name);
    let running = agent.as_ref().and_then(|agent| agent.sources.get(&name));
    let record = running.map_or(record, |running| running.record.clone());
    let state = match &record.error {
        _ if settings.is_none() => "not polled".to_owned(),
        Some(error) if error.kind.needs_a_person() => format!("refused ({})", error.kind.name()),
        Some(error) => format!("failing ({})", error.kind.name()),
        None if record.refetch.is_some() => "fetching again".to_owned(),
        None if record.caught_up => "up to date".to_owned(),
        None if record.last_poll.is_none() => "never polled".to_owned(),
        None => "reading".to_owned(),
    };
    let silent_since = record.newest_arrival.or(record.first_poll);
    let by_server = record.by_server(now);
    SourceState {
        configured: settings.is_some(),
        state,
        next_poll: running.and_then(|running| running.next_poll),
        drop_off: settings.map(|settings| DropOff {
            after: settings.drop_off.as_secs(),
            silent_for: silent_since.map(|since| time::since(by_server, since).as_secs()),
            alarm: alarms.contains(&name),
        }),
        name,
        record,
    }
}
