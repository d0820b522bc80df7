//! How things stand: the same data with and without a running agent, which adds what only it knows.

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

/// How things stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program that answers.
    pub version: String,
    /// When this was so.
    pub now: Timestamp,
    /// The agent; absent if none runs.
    pub agent: Option<Running>,
    /// When an agent was last alive.
    pub last_alive: Option<Timestamp>,
    /// Where events come from.
    pub sources: Vec<SourceState>,
    /// What is stored.
    pub events: EventState,
    /// What came of each category, since the store was made.
    #[serde(default)]
    pub categories: Vec<CategoryState>,
    /// Open alerts.
    pub open_alerts: SeverityCounts,
    /// Acknowledged alerts.
    pub acknowledged_alerts: SeverityCounts,
    /// Rules that have been called.
    pub rules: Vec<RuleState>,
    /// Where alerts go.
    pub destinations: Vec<DestinationState>,
    /// Silences that have not ended.
    pub silences: u64,
    /// Size of the store on disk, in bytes.
    pub store_bytes: u64,
}

/// What came of a category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryState {
    /// The category.
    pub category: Category,
    /// Events that were stored.
    pub events: u64,
    /// Of these, the ones that rules were not to look at.
    pub ignored: u64,
    /// Events that were not wanted in the store.
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

    /// The counts with their severities, the highest first.
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
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    pub started: Timestamp,
    /// Generation of the rules that run.
    pub generation: u64,
    /// How many rules.
    pub rules: u64,
    /// How many checks.
    pub checks: u64,
    /// Rules that the guard moved to shadow mode.
    #[serde(default)]
    pub guarded: Vec<RuleId>,
    /// Rule files that are broken, with what is wrong.
    pub broken: Vec<String>,
    /// The files on disk are not those that were loaded.
    pub files_changed: bool,
    /// What it is not doing of its job; empty if all is well.
    pub problems: Vec<String>,
    /// Events evaluated since it runs.
    pub evaluated: u64,
    /// Calls of `fn rule` since it runs.
    pub rules_run: u64,
    /// Calls that failed since it runs.
    pub failures: u64,
    /// Alerts opened since it runs, from info to critical.
    pub alerts_opened: [u64; 5],
    /// Alerts silenced since it runs.
    pub silenced: u64,
    /// By source: its record, and when it is polled next.
    pub sources: BTreeMap<SourceName, RunningSource>,
    /// By destination: how deliveries go.
    pub destinations: BTreeMap<DestinationName, RunningDestination>,
    /// By rule: calls, and seconds they took.
    pub costs: BTreeMap<RuleId, (u64, f64)>,
    /// When the last heartbeat was sent, if any is.
    pub last_heartbeat: Option<Timestamp>,
}

/// What an agent knows of a source beside its record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunningSource {
    /// What is known of it.
    pub record: SourceRecord,
    /// Polls since the agent runs.
    pub polls: u64,
    /// Of these, the ones that failed, by kind of trouble.
    pub failed: BTreeMap<String, u64>,
    /// When it will be polled next.
    pub next_poll: Option<Timestamp>,
}

/// What an agent knows of a destination.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunningDestination {
    /// Messages delivered since the agent runs.
    pub delivered: u64,
    /// Attempts that failed since the agent runs.
    pub failed: u64,
    /// Since when it fails.
    pub failing_since: Option<Timestamp>,
    /// Until when its rate holds messages back.
    pub held_until: Option<Timestamp>,
    /// What the last attempt failed with.
    pub error: Option<String>,
}

/// Whether an agent does its job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What keeps it from working at all: restarting may help.
    pub dead: Vec<String>,
    /// What it does not do of its job: a person has to look.
    pub unready: Vec<String>,
}

/// A source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceState {
    /// Its name.
    pub name: SourceName,
    /// Whether the configuration has it.
    pub configured: bool,
    /// In a few words.
    pub state: String,
    /// What is known of it.
    pub record: SourceRecord,
    /// When it is polled next.
    pub next_poll: Option<Timestamp>,
    /// What drop-off says of it.
    pub drop_off: Option<DropOff>,
}

/// The log drop-off of a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DropOff {
    /// Silence that is not plausible, in seconds.
    pub after: u64,
    /// For how long nothing has arrived, in seconds.
    pub silent_for: Option<u64>,
    /// Whether an alert about it is open.
    pub alarm: bool,
}

/// Events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventState {
    /// How many are stored.
    pub stored: u64,
    /// Their size before compression.
    pub bytes: u64,
    /// The number of the last.
    pub last: u64,
    /// The number of the last that was evaluated.
    pub evaluated: u64,
    /// How many are to be evaluated.
    pub backlog: u64,
}

/// A rule that has been called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleState {
    /// Its id.
    pub rule: RuleId,
    /// Events it said true for.
    pub matches: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Whether it is suspended.
    pub suspended: bool,
    /// What its last failed call said.
    pub last_error: Option<String>,
}

/// A destination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DestinationState {
    /// Its name.
    pub name: DestinationName,
    /// What kind it is; absent if the configuration does not have it.
    pub kind: Option<String>,
    /// Deliveries pending.
    pub pending: u64,
    /// When the oldest of them came up.
    pub oldest: Option<Timestamp>,
    /// Deliveries given up.
    pub given_up: u64,
    /// Messages delivered so far.
    pub delivered: u64,
    /// When the last was.
    pub last_delivered: Option<Timestamp>,
    /// What the last attempt failed with, while it does.
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
    let mut found: BTreeMap<Category, CategoryState> = BTreeMap::new();
    for action in reader.actions() {
        let (_, id, record) = action?;
        let category = Category::of(&id, record.name.as_deref(), record.group.as_deref());
        let none = CategoryState { category, events: 0, ignored: 0, dropped: 0 };
        let state = found.entry(category).or_insert(none);
        state.events += record.events;
        state.ignored += record.ignored;
        state.dropped += record.dropped;
    }
    Ok(found.into_values().filter(|state| state.events + state.dropped > 0).collect())
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
