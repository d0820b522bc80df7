//! Answers questions about the store, and does what people ask for. Blocking: called on threads of their own.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    Status, allowed,
    status::{Health, Running},
    wire::{
        ActionEntry, AlertDetails, AlertQuery, BackupPart, ChangeLine, Count, Evaluated, EventQuery, EventTotals,
        ExceptionEntry, FetchAnswer, ListAnswer, Request, RuleEntry,
    },
};
use crate::{
    deliver::{self},
    detect,
    dispatch::Recorder,
    model::{
        action::Catalog,
        alert::{Alert, AlertAction, Remark},
        category::Category,
        event::{Event, IncomingEvent},
        name::{AlertId, Sequence, SourceName},
        outcome::Outcome,
        silence::rule_pattern,
        time::{Clock, Timestamp},
    },
    source::{self, Refreshed},
    store::{AlertFilter, Page, Reader, Refetch, ScanFilter, SourceRecord, Store, StoreError},
};

/// A comment is a few sentences.
const MAX_COMMENT: usize = 4_000;
const MAX_AUTHOR: usize = 200;
/// Silences are time-boxed.
const MAX_SILENCE: Duration = Duration::from_secs(366 * 86_400);

/// What a running agent adds to the store.
pub trait Live: Send + Sync {
    /// How it stands.
    fn running(&self) -> Running;
    /// Whether it does its job.
    fn health(&self) -> Health;
    /// Does with an alert what a person wants, or says why not.
    fn handle(&self, alert: AlertId, action: AlertAction, remark: Remark) -> Result<Alert, String>;
    /// Forgets what a rule remembers; says how many keys that were.
    fn clear_memory(&self, space: String) -> Result<usize, String>;
    /// Has a part of the log fetched again; false if the source is not polled.
    fn fetch(&self, source: &SourceName, refetch: Refetch) -> bool;
    /// Has the list of actions fetched, and waits for it; nothing if the source is not polled.
    fn list_actions(&self, source: &SourceName) -> Option<Result<Refreshed, String>>;
    /// Something was stored: there is something to evaluate.
    fn stored(&self);
    /// Something is pending: there is something to deliver.
    fn pending(&self);
}

/// What the service knows of the configuration.
#[derive(Debug, Clone)]
pub struct DeskSettings {
    /// Where events come from.
    pub sources: Vec<source::Settings>,
    /// Where alerts go.
    pub destinations: Vec<deliver::Settings>,
}

/// Answers questions.
#[derive(Clone)]
pub struct Service {
    pub(super) store: Store,
    pub(super) settings: Arc<DeskSettings>,
    pub(super) clock: Clock,
    pub(super) live: Option<Arc<dyn Live>>,
    recorder: Recorder,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Service({})", if self.live.is_some() { "of an agent" } else { "without an agent" })
    }
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The question cannot be answered as it is.
    #[error("{0}")]
    Wrong(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever asked does not listen any more.
    #[error("nobody listens any more")]
    Gone,
}

impl From<serde_json::Error> for DeskError {
    fn from(error: serde_json::Error) -> Self {
        Self::Wrong(format!("an answer has no JSON form: {error}"))
    }
}

/// Where answers go: an item of JSON at a time. False: nobody listens any more.
pub(super) type Sink<'a> = &'a mut dyn FnMut(String) -> bool;

fn put<T: Serialize>(sink: Sink<'_>, item: &T) -> Result<(), DeskError> {
    let item = serde_json::to_string(item)?;
    if sink(item) { Ok(()) } else { Err(DeskError::Gone) }
}

impl Service {
    /// A service on a store; beside a running agent, with what that adds.
    pub fn new(
        store: Store,
        recorder: Recorder,
        settings: DeskSettings,
        clock: Clock,
        live: Option<Arc<dyn Live>>,
    ) -> Self {
        Self { store, settings: Arc::new(settings), clock, live, recorder }
    }

    /// How things stand.
    pub fn status(&self) -> Result<Status, StoreError> {
        super::status::status(self)
    }

    /// Whether a question that waits for news would be answered with some now, and for how long it waits at most.
    pub(super) fn waits(&self, request: &Request) -> Option<Duration> {
        let reader = self.store.reader();
        let (waits, news) = match request {
            Request::Events(EventQuery { wait, after: Some(after), .. }) => {
                (*wait, reader.last_sequence().is_ok_and(|last| last.0 > *after))
            }
            Request::Changes { wait, after: Some(after), .. } => {
                (*wait, reader.last_change().is_ok_and(|last| last > *after))
            }
            _ => return None,
        };
        (!news && waits > 0).then(|| Duration::from_secs(waits.min(30)))
    }

    /// Answers a question, item by item.
    pub(super) fn answer(&self, request: Request, sink: Sink<'_>) -> Result<(), DeskError> {
        let reader = self.store.reader();
        match request {
            Request::Status {} => put(sink, &self.status()?),
            Request::Events(query) => events(&reader, query, sink),
            Request::Event { id } => {
                for source in reader.sources()?.keys() {
                    if let Some(event) = reader.event(source, &id)? {
                        return put(sink, &event);
                    }
                }
                Ok(())
            }
            Request::EventTotals {} => {
                let (events, _) = reader.event_totals()?;
                put(sink, &EventTotals { events, last: reader.last_sequence()?.0 })
            }
            Request::Quarantined { limit } => {
                for entry in reader.quarantined().take(limit) {
                    put(sink, &entry?)?;
                }
                Ok(())
            }
            Request::Alerts(query) => alerts(&reader, query, sink),
            Request::Alert { id } => {
                let alert = one_alert(&reader, &id)?;
                let details = AlertDetails {
                    changes: reader.changes_of(alert.id)?,
                    events: reader.events_of_alert(alert.id).take(100).collect::<Result<_, _>>()?,
                    alert,
                };
                put(sink, &details)
            }
            Request::Changes { after, limit, .. } => changes(&reader, after, limit, sink),
            Request::HandledChanges {} => {
                for change in reader.changes_after(0) {
                    let change = change?;
                    if change.author.is_some() {
                        put(sink, &change)?;
                    }
                }
                Ok(())
            }
            Request::Blocks {} => reader.sent_blocks().try_for_each(|block| put(sink, &block?)),
            Request::Watermarks {} => reader.watermarks().try_for_each(|watermark| put(sink, &watermark?)),
            Request::Evaluated {} => put(
                sink,
                &Evaluated {
                    checkpoint: reader.checkpoint()?,
                    change: reader.last_change()?,
                    skipped: reader.skipped().collect::<Result<_, _>>()?,
                    rules: reader.logged_rules().collect::<Result<_, _>>()?,
                },
            ),
            Request::Handle { alert, action, author, comment } => {
                let remark =
                    Remark { author: author_of(&author)?, at: self.clock.now(), comment: comment_of(comment)? };
                let alert = self.handle(alert, action, remark)?;
                put(sink, &alert)
            }
            Request::Silences { all } => {
                let mut silences = reader.silences()?;
                silences.reverse();
                for silence in silences.iter().filter(|silence| all || silence.ended.is_none()) {
                    put(sink, silence)?;
                }
                Ok(())
            }
            Request::AddSilence(mut wanted) => {
                rule_pattern(&wanted.rule).map_err(DeskError::Wrong)?;
                wanted.author = author_of(&wanted.author)?;
                wanted.comment = comment_of(wanted.comment)?;
                let now = self.clock.now();
                if wanted.until <= now || crate::model::time::since(wanted.until, now) > MAX_SILENCE {
                    return Err(DeskError::Wrong("a silence ends in the future, within a year".to_owned()));
                }
                put(sink, &self.recorder.add_silence(wanted, now)?)
            }
            Request::EndSilence { id } => match self.recorder.end_silence(id, self.clock.now())? {
                Some((silence, recorded)) => {
                    if let (Some(live), true) = (&self.live, recorded.has_pending) {
                        live.pending();
                    }
                    put(sink, &silence)
                }
                None => Err(DeskError::Wrong(format!("there is no silence {id} that has not ended"))),
            },
            Request::Import { source, entries, evaluate } => self.import(source, &entries, evaluate, sink),
            Request::Fetch { source, since } => self.fetch(source, since, sink),
            Request::DeadLetters { destination } => {
                for letter in reader.dead_letters(destination.as_ref())? {
                    put(sink, &letter)?;
                }
                Ok(())
            }
            Request::Settle { destination, discard } => {
                let letters = reader.dead_letters(destination.as_ref())?;
                if discard {
                    self.store.discard(&letters)?;
                } else {
                    self.store.revive(&letters, self.clock.now())?;
                    self.live.iter().for_each(|live| live.pending());
                }
                put(sink, &Count { count: letters.len() as u64 })
            }
            Request::Rules {} => {
                for (rule, record) in detect::rule_records(reader.state()?) {
                    put(sink, &RuleEntry { rule, record })?;
                }
                Ok(())
            }
            Request::Exceptions {} => {
                for (exception, record) in detect::exception_records(reader.state()?) {
                    put(sink, &ExceptionEntry { exception, record })?;
                }
                Ok(())
            }
            Request::Excepted { exception, limit } => {
                for found in reader.excepted(&exception, limit) {
                    put(sink, &found?)?;
                }
                Ok(())
            }
            Request::Memory { space } => {
                let all = detect::memory(reader.state()?).list();
                for item in all.iter().filter(|item| space.as_ref().is_none_or(|space| *space == item.space)) {
                    put(sink, item)?;
                }
                Ok(())
            }
            Request::ClearMemory { space } => {
                let count = match &self.live {
                    Some(live) => live.clear_memory(space).map_err(DeskError::Wrong)?,
                    None => {
                        let mut memory = detect::memory(reader.state()?);
                        let count = memory.clear(&space);
                        let changes = memory.take_changes();
                        self.recorder.record(Outcome::default(), changes, None, self.clock.now())?;
                        count
                    }
                };
                put(sink, &Count { count: count as u64 })
            }
            Request::Actions {} => self.actions(sink),
            Request::ListActions { source } => self.list_actions(source, sink),
            Request::Verify {} => put(sink, &self.store.verify()?),
            Request::Backup {} => {
                use base64::Engine as _;
                let mut listens = true;
                self.store.backup(&mut |bytes| {
                    let part = BackupPart { bytes: base64::engine::general_purpose::STANDARD.encode(bytes) };
                    listens = listens && put(sink, &part).is_ok();
                    listens
                })?;
                if listens { Ok(()) } else { Err(DeskError::Gone) }
            }
        }
    }

    fn handle(&self, id: AlertId, action: AlertAction, remark: Remark) -> Result<Alert, DeskError> {
        if let Some(live) = &self.live {
            return live.handle(id, action, remark).map_err(DeskError::Wrong);
        }
        let reader = self.store.reader();
        let missing = || DeskError::Wrong(format!("there is no alert `{id}`"));
        let alert = reader.alert(id)?.ok_or_else(missing)?;
        let state = reader.state()?;
        allowed(&alert, action, detect::is_open_finding(state.clone(), id)).map_err(DeskError::Wrong)?;
        let state = detect::handled(state, &alert, action);
        self.recorder.handle(id, action, remark, state)?.ok_or_else(missing)
    }

    fn import(&self, source: SourceName, entries: &[String], evaluate: bool, sink: Sink<'_>) -> Result<(), DeskError> {
        let mut page = Page::new(source, self.clock.now(), Vec::new());
        let settings = self.settings.sources.iter().find(|settings| settings.name == page.source);
        page.unwanted = settings.map(|settings| settings.unwanted.clone()).unwrap_or_default();
        page.quiet_before = (!evaluate).then_some(Timestamp::MAX);
        for entry in entries {
            match IncomingEvent::parse(entry) {
                Ok(event) => page.events.push(event),
                Err(rejected) => page.rejected.push(rejected),
            }
        }
        let appended = self.store.import_page(page)?;
        self.live.iter().for_each(|live| live.stored());
        put(sink, &appended)
    }

    /// The sources that are polled; of these, the one that is wanted.
    fn sources(&self, wanted: Option<&SourceName>) -> Result<Vec<&SourceName>, DeskError> {
        let names = || self.settings.sources.iter().map(|settings| &settings.name);
        let sources: Vec<&SourceName> = names().filter(|name| wanted.is_none_or(|wanted| wanted == *name)).collect();
        if sources.is_empty() {
            let known: Vec<&str> = names().map(SourceName::as_str).collect();
            let wanted = wanted.map_or_else(String::new, |wanted| format!(" \"{wanted}\""));
            return Err(DeskError::Wrong(format!("there is no source{wanted}: there are {known:?}")));
        }
        Ok(sources)
    }

    fn actions(&self, sink: Sink<'_>) -> Result<(), DeskError> {
        let reader = self.store.reader();
        for action in reader.actions() {
            let (source, id, record) = action?;
            let category = Category::of(&id, record.name.as_deref(), record.group.as_deref());
            put(sink, &ActionEntry { source, id, category, record })?;
        }
        Ok(())
    }

    fn list_actions(&self, wanted: Option<SourceName>, sink: Sink<'_>) -> Result<(), DeskError> {
        let nobody = || DeskError::Wrong("no agent runs that could ask".to_owned());
        let live = self.live.as_ref().ok_or_else(nobody)?;
        for source in self.sources(wanted.as_ref())? {
            let answer = live.list_actions(source).ok_or_else(nobody)?;
            let (refreshed, error) = match answer {
                Ok(refreshed) => (Some(refreshed), None),
                Err(error) => (None, Some(error)),
            };
            put(sink, &ListAnswer { source: source.clone(), refreshed, error })?;
        }
        Ok(())
    }

    fn fetch(&self, wanted: Option<SourceName>, since: Timestamp, sink: Sink<'_>) -> Result<(), DeskError> {
        let now = self.clock.now();
        for source in self.sources(wanted.as_ref())? {
            let refetch = Refetch::new(since, now);
            let begins = self.live.as_ref().is_some_and(|live| live.fetch(source, refetch.clone()));
            if !begins {
                let record = self.store.reader().source(source)?.unwrap_or_default();
                let refetch = refetch.and(record.refetch.clone());
                self.store.save_source(source, &SourceRecord { refetch: Some(refetch), ..record })?;
            }
            self.store.flush()?;
            put(sink, &FetchAnswer { source: source.clone(), since, now: begins })?;
        }
        Ok(())
    }
}

fn pattern(text: Option<&str>) -> Result<Option<globset::GlobMatcher>, DeskError> {
    text.map(rule_pattern).transpose().map_err(DeskError::Wrong)
}

fn events(reader: &Reader, query: EventQuery, sink: Sink<'_>) -> Result<(), DeskError> {
    let filter = ScanFilter {
        since: query.since,
        until: query.until,
        action: pattern(query.action.map(|action| action.to_lowercase()).as_deref())?,
        source: query.source,
        after: Sequence(query.after.unwrap_or(0)),
    };
    let events: Box<dyn Iterator<Item = Result<Event, StoreError>>> =
        if query.newest_first { Box::new(reader.scan_newest_first(filter)) } else { Box::new(reader.scan(filter)) };
    let by_actor = |event: &Result<Event, StoreError>| match (event, &query.actor) {
        (Ok(event), Some(actor)) => event.evidence().mentions(actor),
        _ => true,
    };
    let catalog = if query.category.is_some() { reader.catalog()? } else { Catalog::default() };
    let by_category = |event: &Result<Event, StoreError>| match (event, query.category) {
        (Ok(event), Some(category)) => catalog.category(&event.action) == category,
        _ => true,
    };
    for event in events.filter(by_category).filter(by_actor).take(query.limit.unwrap_or(usize::MAX)) {
        put(sink, &event?)?;
    }
    Ok(())
}

fn alerts(reader: &Reader, query: AlertQuery, sink: Sink<'_>) -> Result<(), DeskError> {
    let filter = AlertFilter {
        since: query.since,
        until: query.until,
        min_severity: query.severity,
        rule: pattern(query.rule.as_deref())?,
        source: query.source,
        status: query.status,
    };
    let by_actor = |alert: &Result<Alert, StoreError>| match (alert, &query.actor) {
        (Ok(alert), Some(actor)) => alert.evidence.mentions(actor),
        _ => true,
    };
    for alert in reader.alerts(filter).filter(by_actor).take(query.limit.unwrap_or(usize::MAX)) {
        put(sink, &alert?)?;
    }
    Ok(())
}

fn changes(reader: &Reader, after: Option<u64>, limit: usize, sink: Sink<'_>) -> Result<(), DeskError> {
    let changes = match after {
        Some(after) => reader.changes_after(after).take(limit).collect::<Result<Vec<_>, _>>()?,
        None => {
            let mut last = reader.changes_newest_first().take(limit).collect::<Result<Vec<_>, _>>()?;
            last.reverse();
            last
        }
    };
    for change in changes {
        let alert = reader.alert(change.alert)?;
        put(sink, &ChangeLine { change, alert })?;
    }
    Ok(())
}

fn one_alert(reader: &Reader, id: &str) -> Result<Alert, DeskError> {
    let mut found = reader.alerts_beginning(&id.to_lowercase())?;
    match (found.pop(), found.is_empty()) {
        (Some(alert), true) => Ok(alert),
        (None, _) => Err(DeskError::Wrong(format!("there is no alert `{id}`: `watchbell alerts list` lists them"))),
        (Some(_), false) => Err(DeskError::Wrong(format!("several alerts begin with `{id}`: write more of it"))),
    }
}

fn author_of(text: &str) -> Result<String, DeskError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > MAX_AUTHOR || text.chars().any(char::is_control) {
        return Err(DeskError::Wrong("say who you are: `--author NAME`".to_owned()));
    }
    Ok(text.to_owned())
}

fn comment_of(text: Option<String>) -> Result<Option<String>, DeskError> {
    let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if text.as_ref().is_some_and(|text| text.chars().count() > MAX_COMMENT) {
        return Err(DeskError::Wrong(format!("a comment has at most {MAX_COMMENT} characters")));
    }
    Ok(text)
}
